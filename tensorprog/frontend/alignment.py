"""Giving program variables one layout and one block structure, so that elementwise operations can combine them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

from tensorprog.frontend.blocks import take_block
from tensorprog.frontend.division import common, division_of, finer_by, finer_origins
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import Axis, Division, Layout, Var, unit_shape, width_axis
from tensorprog.ir import position

__all__ = ["align", "cut_at", "unflattened"]

ZERO = Fraction(0)


def align(variables: Sequence[Var]) -> list[Var]:
    """Give all random variables one layout and one block structure; deterministic ones may stay smaller."""
    random = [v for v in variables if v.random]
    if not random:
        return list(variables)
    variables = _beside_alike(variables)
    layout = _common_layout(variables)
    variables = [_grown(v, layout) if v.random else v for v in variables]
    random = [v for v in variables if v.random]
    ends = sorted({end for v in random for end in _ends(v)})
    return [cut_at(v, ends) if v.random and len(v.blocks) < len(ends) else v for v in variables]


def _common_layout(variables: Sequence[Var]) -> Layout:
    """The layout of the result of elementwise operations; axes of size one stretch."""
    rank = max(len(v.layout) for v in variables)
    layout: list[Axis] = [()] * rank
    for var in sorted(variables, key=lambda v: v.det):
        for i, axis in enumerate(var.layout, start=rank - len(var.layout)):
            if axis and not layout[i]:
                layout[i] = axis
            elif axis and axis != layout[i] and not (var.det and _one_number(axis, layout[i])):
                _divide_alike(variables, rank - i, (axis, layout[i]))
                raise Refusal(
                    f"it combines hidden arrays built differently along one axis: {_show(tuple(layout))} and {_show(var.layout)}",
                    "combine arrays whose width and position axes stand in the same order",
                )
    if sum(isinstance(f, Fraction) for axis in layout for f in axis) > 1:
        raise Refusal(
            "it makes an array with two width axes out of hidden vectors (an outer product over the width)",
            "contract the width, or let both factors share it",
        )
    return tuple(layout)


def _beside_alike(variables: Sequence[Var]) -> list[Var]:
    """Flattened positions as vectors beside each other where other variables are such vectors."""
    found = {
        len(v.layout) - axis for v in variables if len(v.blocks) > 1 and (axis := width_axis(v.layout)) is not None
    }
    made = []
    for var in variables:
        axis = width_axis(var.layout)
        apart = None
        if axis is not None and len(var.layout[axis]) > 1 and len(var.layout) - axis in found:
            apart = unflattened(var, axis)
        made.append(var if apart is None else apart)
    return made


def _one_number(axis: Axis, other: Axis) -> bool:
    """Is a deterministic array the same along the whole of an axis, however the other one is built? (Numbers for groups of
    coordinates are not, and have to meet their groups.)"""
    return math.prod(axis) == math.prod(other) and all(isinstance(f, Fraction) for f in axis)


def _divide_alike(variables: Sequence[Var], from_end: int, axes: tuple[Axis, Axis]) -> None:
    """Ask for one axis of the width to be divided into positions in all of these variables as it is in some of them."""
    sizes = [Fraction(math.prod(axis)) for axis in axes]
    if sizes[0] != sizes[1] or not all(any(isinstance(f, Fraction) for f in axis) for axis in axes):
        return
    made = common(division_of(axes[0]), division_of(axes[1]), sizes[0])
    if made is None:
        return
    for var in variables:
        if var.random and len(var.layout) >= from_end and (own := var.layout[len(var.layout) - from_end]):
            by = finer_by(made, division_of(own))
            if by != Division() and len(var.blocks) == 1:
                raise finer_origins([var.node], by)


def _grown(var: Var, layout: Layout) -> Var:
    """Repeat a random variable along the axes that others have longer."""
    if var.layout == layout:
        return var
    if width_axis(layout) is not None and width_axis(var.layout) is None:
        raise Refusal(
            "it combines a hidden vector with an output or a parameter of finite size, which stays random in the limit",
            "give the parameter a width axis, or freeze it to a constant; keep outputs at the end",
        )
    axes = tuple(range(len(layout) - len(var.layout), len(layout)))
    return map_positions(var, position("broadcast", to=unit_shape(layout), axes=axes), layout)


def _show(layout: Layout) -> str:
    return (
        "("
        + ", ".join("*".join(f"{f}n" if isinstance(f, Fraction) else str(f) for f in axis) or "1" for axis in layout)
        + ")"
    )


def _ends(var: Var) -> list[Fraction]:
    """Where the blocks of a variable end."""
    return list(itertools.accumulate(width for width, _ in var.blocks))


def cut_at(var: Var, ends: Sequence[Fraction]) -> Var:
    """The same variable with its blocks cut further, at all of these multiples of n."""
    blocks, at = [], ZERO
    for width, node in var.blocks:
        inner = [at, *(e for e in ends if at < e < at + width), at + width]
        for low, high in itertools.pairwise(inner):
            blocks.append((high - low, node if high - low == width else take_block(node, low - at, high - at)))
        at += width
    return Var(tuple(blocks), var.layout, var.power)


def unflattened(var: Var, axis: int) -> Var | None:
    """Positions flattened before the width as so many vectors beside each other; None where they stand behind it."""
    have = var.layout[axis]
    if len(have) == 1:
        return var
    if len(have) != 2 or not isinstance(have[1], Fraction):
        return None
    count, unit = int(have[0]), have[1]
    blocks, shape = [], var.shape
    for place in range(count):
        start = tuple(place if i == axis else 0 for i in range(len(shape)))
        stop = tuple(place + 1 if i == axis else n for i, n in enumerate(shape))
        layout = (*var.layout[:axis], (unit,), *var.layout[axis + 1 :])
        one = map_positions(var, position("slice", start=start, stop=stop, stride=(1,) * len(shape)), layout)
        blocks.append((unit, one.node))
    return Var(tuple(blocks), (*var.layout[:axis], (count * unit,), *var.layout[axis + 1 :]), var.power)
