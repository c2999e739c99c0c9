"""Making program variables from front-end values: the vocabulary the primitive rules are written in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import sympy

from tensorprog.frontend.alignment import align
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal, moves_from_zero
from tensorprog.frontend.values import (
    Complex,
    Known,
    Layout,
    Matrices,
    OwnPlaces,
    Param,
    Squares,
    Value,
    Var,
    fit_power,
    layout_of,
    unit_shape,
)
from tensorprog.ir import (
    Const,
    LinComb,
    Literal,
    Moment,
    Node,
    Nonlin,
    Phi,
    PositionMap,
    Weight,
    position,
)  # fmt: skip
from tensorprog.ir.phi import snap

__all__ = [
    "constant",
    "exact",
    "lincomb",
    "moment",
    "nonlin",
    "scaled",
    "to_var",
    "weight_node",
]

ZERO = Fraction(0)


def constant(array: Any, layout: Layout | None = None, power: Fraction = ZERO) -> Var:
    """A deterministic constant as a variable."""
    array = np.asarray(array)
    layout = tuple(() if s == 1 else (s,) for s in array.shape) if layout is None else layout
    return Var.of(Const(Literal.of(array)), layout, power)


def to_var(value: Value) -> Var:
    """Commit a value to being a variable of the program: a constant, or a parameter used as vectors."""
    if isinstance(value, Var):
        return value
    if isinstance(value, Known):
        return _known_var(value)
    if isinstance(value, OwnPlaces):
        raise Refusal(
            "it joins hidden places with the numbers of the coordinates, which have no limit",
            "let every coordinate take from its own column, jnp.take_along_axis(table, place[None], 0)[0]",
        )
    if isinstance(value, Complex):
        raise Refusal(
            "it takes complex numbers of hidden values",
            "take their real and imaginary parts, z.real and z.imag, before",
        )
    if isinstance(value, Squares):
        raise Refusal(
            f"the weight {value.param.name!r} has two width axes and its entries are squared",
            "sum the squares over a width axis, for the norms of rows or columns",
        )
    if isinstance(value, Matrices):
        raise Refusal(
            "it is a function of the entries of a matrix, which is made of weights or hidden vectors",
            "add, scale and multiply matrices as you like, but let them end in the product with a vector",
        )
    widths = [w for w in value.widths if w is not None]
    if value.per_input and not widths:
        raise Refusal(
            "a mask of finite size stays random in the limit, and the kernel would be that of one mask",
            "drop coordinates of hidden layers, over which a mask averages out; for an input or an output, give the mask as an input "
            "and average the kernels",
        )
    if len(widths) > 1:
        raise Refusal(
            f"the weight {value.name!r} has two width axes and is used in another way than multiplying a vector",
            "use an n x n weight only to multiply vectors (dot, matmul, einsum, conv), scaled by numbers at most",
        )
    return _param_var(value)


def _known_var(value: Known) -> Var:
    if value.values[0].dtype.kind == "V":  # bfloat16, a type that NumPy computes nothing with
        value = Known((value.values[0].astype(float), value.values[1].astype(float)))
    try:
        layout = layout_of(value.shapes)
        array, power = fit_power((_at_unit(value.values[0], layout), _at_unit(value.values[1], layout)))
    except ValueError as error:
        raise Refusal(
            f"it uses a constant that has no limit: {error}",
            "a constant may depend on the width only as c n^p, and may not vary along a width axis, "
            "because the coordinates of a hidden vector are exchangeable",
        ) from None
    return constant(array, layout, power)


def _at_unit(array: np.ndarray, layout: Layout) -> np.ndarray:
    """One entry along each width axis, after checking that they are all the same."""
    for i, axis in enumerate(layout):
        if any(isinstance(f, Fraction) for f in axis):
            first = np.take(array, [0], axis=i)
            if not np.array_equal(array, np.broadcast_to(first, array.shape), equal_nan=array.dtype.kind == "f"):
                raise ValueError("its entries vary along the width")
            array = first
    return array


def weight_node(
    param: Param, shape: tuple[int, ...], widths: tuple[Fraction | None, ...], region: Any = None
) -> Weight:
    """The weight of a parameter, laid out as it is used."""
    where = region or param.region
    noise, twofold = param.per_input, param.symmetric
    return Weight(
        param.name, shape, widths, param.std, param.tangent_std, where, per_input=noise, symmetric=twofold, stopped=param.stopped
    )  # fmt: skip


def _param_var(param: Param) -> Var:
    along = next((i for i, w in enumerate(param.widths) if w is not None), None)
    full = tuple(param.laid(i) for i in range(len(param.widths)))
    blocks = []
    for start, stop in param.pieces(along) if along is not None else [(ZERO, Fraction(1))]:
        region = tuple((start, stop) if i == along else r for i, r in enumerate(param.region))
        shape = unit_shape(full)
        widths = tuple((stop - start) / n if i == along else None for i, n in enumerate(shape))
        width = next((w for w in widths if w is not None), Fraction(1))
        blocks.append((width, weight_node(param, shape, widths, region)))
    var = Var(tuple(blocks), full, param.power)
    if param.mean:
        var = lincomb([(1.0, var), (1.0, Var.of(Const(Literal.of(np.float64(param.mean))), (), param.power))])
    var = _arrange(var, param)
    return var if param.scale is None else scaled(var, param.scale)


def _arrange(var: Var, param: Param) -> Var:
    """Bring the parameter's axes into the order they have after its transposes and new axes."""
    if param.axes == tuple(range(len(param.widths))):
        return var
    kept = [a for a in param.axes if a is not None]
    order = (*kept, *(a for a in range(len(param.widths)) if a not in kept))
    moved = map_positions(var, position("transpose", permutation=order), tuple(var.layout[a] for a in order))
    layout = tuple(() if a is None else var.layout[a] for a in param.axes)
    return map_positions(moved, position("reshape", to=unit_shape(layout)), layout)


def lincomb(terms: Sequence[tuple[float, Var]]) -> Var:
    """A sum of variables with numbers as coefficients. All must scale alike, but for parameters that vanish beside the rest."""
    terms = _without_vanishing(terms)
    powers = {var.power for _, var in terms}
    if len(powers) > 1:
        words = moves_from_zero(n for _, var in terms if var.power == max(powers) for _, n in var.blocks)
        if words is not None:
            raise Refusal(*words)
        raise Refusal(
            f"it adds terms that grow with different powers of the width: {', '.join(f'n^{p}' for p in sorted(powers))}",
            "scale the terms so that they are of the same order, such as 1/sqrt(n) before a sum over n",
        )
    variables = align([var for _, var in terms])
    random = [var for var in variables if var.random]
    shape_of = random[0] if random else max(variables, key=lambda v: len(v.layout))
    nodes = []
    for block in range(len(shape_of.blocks)):
        parts = [
            (c, v.blocks[block if len(v.blocks) > 1 else 0][1]) for (c, _), v in zip(terms, variables, strict=True)
        ]
        nodes.append(_sum(parts))
    layout = shape_of.layout if random else _joined_layout(variables)
    return shape_of.with_blocks(nodes, layout, powers.pop())


def _without_vanishing(terms: Sequence[tuple[float, Var]]) -> Sequence[tuple[float, Var]]:
    """The terms but for added parameters (biases) of a lower power of the width than a hidden vector beside them.

    A bias of variance c/n, as libraries draw it, has no part in the limit of W x + b.
    """
    terms = [
        term for term in terms if term[1].random or term[1].layout or exact(term[1]) != 0
    ] or terms  # sum(parts) starts at 0
    top = max((var.power for _, var in terms if var.random and not _is_parameter(var)), default=None)
    if top is None:
        return terms
    return [(c, var) for c, var in terms if var.power >= top or not _is_parameter(var)]


def _is_parameter(var: Var) -> bool:
    """Is it an array of parameters, at most scaled by numbers and rearranged?"""
    stack = [node for _, node in var.blocks]
    while stack:
        match stack.pop():
            case Weight():
                pass
            case PositionMap(args=args):
                stack.append(args[0])
            case LinComb(terms=terms):
                stack.extend(x for _, x in terms)
            case _:
                return False
    return True


def _joined_layout(variables: Sequence[Var]) -> Layout:
    """The layout of deterministic arrays broadcast against each other."""
    rank = max(len(v.layout) for v in variables)
    full = [v.layout for v in variables if len(v.layout) == rank]
    return tuple(max(axes, key=len) for axes in zip(*full, strict=True))


def _sum(parts: list[tuple[float, Node]]) -> Node:
    """A LinComb with nested plain sums opened and equal terms joined."""
    total: dict[tuple[Node | None, Node], float] = {}
    for coefficient, node in parts:
        inner = [((None, node), 1.0)]
        if isinstance(node, LinComb) and len(node.terms) == 1 and not isinstance(node.terms[0][0], Node):
            inner = [((None, node.terms[0][1]), node.terms[0][0])]
        for key, factor in inner:
            total[key] = total.get(key, 0.0) + coefficient * factor
    terms = tuple((c, node) for (_, node), c in total.items())
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    return LinComb(terms)


def scaled(var: Var, factor: Var) -> Var:
    """`var` times a deterministic array."""
    power = var.power + factor.power
    var, factor = align([var, factor])
    number = _number(factor)
    nodes = []
    for _, node in var.blocks:
        if number is not None:
            nodes.append(_sum([(number, node)]))
        elif node.type.kind == "scalar":
            raise AssertionError("deterministic products are elementwise")
        else:
            nodes.append(LinComb(((factor.node, node),)))
    return var.with_blocks(nodes, power=power)


def _number(var: Var) -> float | None:
    node = var.node
    if isinstance(node, Const) and node.value.shape == ():
        return float(node.value.array())
    if isinstance(node, Const) and node.value.array().size:
        flat = node.value.array().ravel()
        if np.all(flat == flat[0]):
            return float(flat[0])
    return None


def exact(var: Var) -> sympy.Expr | None:
    """The number that a deterministic variable is everywhere; None where it is none."""
    if var.random or (var.node.type.shape != () and math.prod(var.node.type.shape) != 1):
        return None
    number = _number(var)
    return None if number is None else snap(number)


def nonlin(phi: Phi, xs: Sequence[Var], thetas: Sequence[Var], power: Fraction = ZERO) -> Var:
    """phi applied to aligned variables, block by block."""
    variables = align([*xs, *thetas])
    xs, thetas = variables[: len(xs)], variables[len(xs) :]
    if not xs:
        node = Nonlin(phi, (), tuple(t.node for t in thetas))
        return Var.of(node, _joined_layout(thetas), power)
    if xs[0].blocks[0][1].type.width is None:
        raise Refusal(
            "it is a nonlinear function of an output of finite size: in the limit that is not Gaussian",
            "end the network with the readout, and apply such functions to samples of the process",
        )
    nodes: list[Node] = [
        Nonlin(phi, tuple(x.blocks[b][1] for x in xs), tuple(t.node for t in thetas)) for b in range(len(xs[0].blocks))
    ]
    return xs[0].with_blocks(nodes, power=power)


def moment(var: Var, layout: Layout) -> Var:
    """The sum over the width axis, as n times the mean: blocks add with their widths. The axis keeps its place."""
    from tensorprog.ir.phi import identity

    total: list[tuple[float, Node]] = []
    for width, node in var.blocks:
        phi, xs, thetas = (node.phi, node.xs, node.thetas) if isinstance(node, Nonlin) else (identity, (node,), ())
        total.append((float(width), Moment(phi, xs, thetas)))
    return Var.of(_sum(total), layout, var.power + 1)
