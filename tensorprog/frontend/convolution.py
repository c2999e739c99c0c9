"""Convolutions: windows of positions, times one weight for each offset."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tensorprog.frontend.build import to_var
from tensorprog.frontend.contract import Dims, product, spread, sum_over, times_weight
from tensorprog.frontend.cutting import parts_along, weight_parts
from tensorprog.frontend.joining import beside
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import WIDTHS, Axis, Layout, Matrices, Param, Value, Var, aval, axis_of, width_axis
from tensorprog.ir import position

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["convolution"]


def of_windows(kernel: Value, x: Var, dims: Dims) -> Value:
    """What the kernel of a convolution does to windows. `dims` has the kernel first."""
    assert isinstance(kernel, Param)
    return times_weight(kernel, x, dims, weight_first=False)


def convolution(
    eqn: Equation, lhs: Value, rhs: Value, multiply: Callable[[Value, Var, Dims], Value] = of_windows
) -> Value:
    """A convolution is a gather of patches followed by a MatMul with one matrix per offset.

    With groups of channels: one convolution per group, beside each other; with one channel per group (depthwise):
    patches times a vector of weights per offset. multiply: the product of the kernel and windows of x, the kernel first.
    """
    p = eqn.params[0]
    if p["batch_group_count"] != 1:
        raise Refusal("a convolution with groups of examples", "convolve one example at a time")
    if not isinstance(rhs, (Param, Matrices)):
        raise Refusal(
            "a convolution whose kernel is not a parameter",
            "use avg_pool, pad and slices, or a product with a constant matrix",
        )
    x, channels = to_var(lhs), p["dimension_numbers"].lhs_spec[1]
    if width_axis(x.layout) in p["dimension_numbers"].lhs_spec[2:]:
        raise Refusal("a convolution along the width", "convolve positions only")
    counts = tuple(q["feature_group_count"] for q in eqn.params)
    if counts == (1, 1):
        return _convolved(p, x, rhs, multiply)
    if isinstance(rhs, Matrices):
        raise Refusal("a convolution in groups whose kernel is an expression", "convolve with each weight, and add")
    if counts[0] != counts[1]:
        return _depthwise(p, x, rhs, counts, tuple(aval(e.invars[0]).shape[channels] for e in eqn.eqns))
    return _grouped(p, x, rhs, counts[0])


def _patches(p: dict[str, Any], x: Var, rhs: Param | Matrices) -> Var:
    """Every window of x, its offsets as new axes at the end."""
    numbers = p["dimension_numbers"]
    space = numbers.lhs_spec[2:]
    op = position(
        "patches", axes=tuple(space), window=tuple(math.prod(rhs.layout[a]) for a in numbers.rhs_spec[2:]),
        strides=tuple(p["window_strides"]), padding=tuple(map(tuple, p["padding"])),
        dilation=tuple(p["rhs_dilation"]), base_dilation=tuple(p["lhs_dilation"]),
    )  # fmt: skip
    layout = tuple(
        axis_of((n, n)) if i in space or i >= len(x.layout) else x.layout[i] for i, n in enumerate(op.shape(x.shape))
    )
    return map_positions(x, op, layout)


def _convolved(
    p: dict[str, Any], x: Var, rhs: Param | Matrices, multiply: Callable[[Value, Var, Dims], Value] = of_windows
) -> Var:
    numbers, rank = p["dimension_numbers"], len(x.layout)
    space = numbers.lhs_spec[2:]
    dims = Dims(
        ((numbers.rhs_spec[1], *numbers.rhs_spec[2:]), (numbers.lhs_spec[1], *range(rank, rank + len(space)))), ((), ())
    )
    product = multiply(rhs, _patches(p, x, rhs), dims)
    # now (batch, space in the order of x's axes, features): bring it to the order asked for
    made = {axis: i for i, axis in enumerate(dims.free(1, rank + len(space)))}
    assert isinstance(product, Var)
    return _in_order(product, numbers, (made[numbers.lhs_spec[0]], len(made), *(made[a] for a in space)))


def _in_order(made: Var, numbers: Any, sources: Sequence[int]) -> Var:
    """Transpose to the layout a convolution's result is asked in. sources: the axes of batch, features and space."""
    order = [0] * len(sources)
    for place, source in zip(numbers.out_spec, sources, strict=True):
        order[place] = source
    return map_positions(made, position("transpose", permutation=tuple(order)), tuple(made.layout[i] for i in order))


def _grouped(p: dict[str, Any], x: Var, rhs: Param, groups: int) -> Var:
    numbers = p["dimension_numbers"]
    channels = parts_along(x, numbers.lhs_spec[1], groups)
    kernels = weight_parts(rhs, numbers.rhs_spec[0], groups)
    made = [_convolved(p, to_var(a), b) for a, b in zip(channels, kernels, strict=True)]
    return beside(made, numbers.out_spec[1])


def _depthwise(
    p: dict[str, Any], x: Var, rhs: Param, counts: tuple[int, int], channels: tuple[int, int]
) -> Var:  # fmt: skip
    numbers = p["dimension_numbers"]
    if counts != channels or rhs.sizes(numbers.rhs_spec[0]) != channels or rhs.size(numbers.rhs_spec[1]) != 1:
        raise Refusal(
            f"a convolution with {counts[0]} groups of channels at width {WIDTHS[0]} and {counts[1]} at width {WIDTHS[1]}",
            "take a fixed number of groups, or one channel in and out per group (depthwise)",
        )
    space = numbers.rhs_spec[2:]
    order = (numbers.rhs_spec[1], numbers.rhs_spec[0], *space)  # one, features, offsets
    kernel = to_var(replace(rhs, axes=tuple(rhs.axes[a] for a in order)))
    patches, rank = _patches(p, x, rhs), len(x.layout)
    places = {0: numbers.lhs_spec[0], 1: numbers.lhs_spec[1]} | {2 + i: rank + i for i in range(len(space))}
    multiplied = product(patches, spread(kernel, places, tuple(_at(patches.layout, places))))
    summed = sum_over(multiplied, tuple(range(rank, rank + len(space))))
    return _in_order(summed, numbers, numbers.lhs_spec)


def _at(layout: Layout, places: dict[int, int]) -> Iterator[Axis]:
    """The axes of a layout at some places; axes of size one elsewhere."""
    return (a if i in places.values() else () for i, a in enumerate(layout))
