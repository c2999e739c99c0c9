"""Primitives that write into positions of an array: `h.at[i].set(..)`, sums over the edges of a graph.

Adding at places is the transpose of taking from them, a linear map of positions (`ir.positions`). Setting and multiplying are that
map and a mask, where no place is written twice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import sympy

from tensorprog.frontend.build import constant, lincomb, nonlin, scaled, to_var
from tensorprog.frontend.contract import product
from tensorprog.frontend.joining import join
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import Axis, Known, Value, Var, axis_of, unit_shape, width_axis
from tensorprog.ir import Const, Phi, Position, position
from tensorprog.ir.phi import parameter, vector

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["dynamic_update_slice", "masked", "scatter", "scatter_add", "scatter_extremum", "scatter_mul"]


def scatter_add(eqn: Equation, x: Value, indices: Value, updates: Value) -> Value:
    """x.at[indices].add(updates), `jax.ops.segment_sum` among them."""
    added = _written(eqn, x, indices, updates)
    sign = -1.0 if eqn.primitive == "scatter-sub" else 1.0
    return lincomb([(sign, added)]) if _is(x, 0.0) else lincomb([(1.0, to_var(x)), (sign, added)])


def scatter(eqn: Equation, x: Value, indices: Value, updates: Value) -> Value:
    """x.at[indices].set(updates)."""
    return lincomb(
        [(1.0, masked(to_var(x), _untouched(eqn, x, indices, updates))), (1.0, _written(eqn, x, indices, updates))]
    )


def scatter_mul(eqn: Equation, x: Value, indices: Value, updates: Value) -> Value:
    """x.at[indices].multiply(updates)."""
    factor = lincomb([(1.0, _written(eqn, x, indices, updates)), (1.0, _untouched(eqn, x, indices, updates))])
    return product(to_var(x), factor)


def scatter_extremum(eqn: Equation, x: Value, indices: Value, updates: Value) -> Value:
    """`jax.ops.segment_max` and `segment_min`: of every place the largest of what is written there."""
    top = eqn.primitive == "scatter-max"
    if not isinstance(indices, Known) or not _is(x, -math.inf if top else math.inf):
        raise Refusal(
            "it takes maxima at places that depend on the input, or of more than what is written there",
            "take jax.ops.segment_max over constant segments, and jnp.maximum with the rest",
        )
    var, op = to_var(updates), _map(eqn, to_var(x), to_var(indices), to_var(updates))
    count = math.prod(var.shape)
    ones = jnp.eye(count).reshape(count, *var.shape)
    writes = np.asarray(jax.vmap(lambda one: op(one, jnp.asarray(indices.values[0])))(ones)).reshape(count, -1) > 0
    if not writes.any(0).all():
        raise Refusal("it takes the maximum over an empty segment, which is infinite", "leave empty segments out")
    axis = width_axis(var.layout)
    flat = var if axis is None else map_positions(
        var, position("transpose", permutation=(*(i for i in range(len(var.layout)) if i != axis), axis)),
        (*var.layout[:axis], *var.layout[axis + 1 :], var.layout[axis]),
    )  # fmt: skip
    width: Axis = () if axis is None else var.layout[axis]
    rows = map_positions(flat, position("reshape", to=(count, 1)), (axis_of((count, count)), width))
    members = [np.flatnonzero(column) for column in writes.T]
    order, parts = [], []
    for size in sorted({len(some) for some in members}):
        which = [i for i, some in enumerate(members) if len(some) == size]
        order += which
        parts.append(_largest(rows, np.stack([members[i] for i in which]), width, top))
    found = _rows(join(parts, 0), np.argsort(order), width)
    layout = _layout(to_var(x), var)
    place = width_axis(layout)
    inner = tuple(a for i, a in enumerate(layout) if i != place)
    whole = (*inner, width) if place is not None else inner
    shaped = map_positions(found, position("reshape", to=unit_shape(whole)), whole)
    if place is None:
        return shaped
    back = (*range(place), len(inner), *range(place, len(inner)))
    return map_positions(shaped, position("transpose", permutation=back), layout)


def _largest(rows: Var, members: np.ndarray, width: Axis, top: bool) -> Var:
    """The maximum (or minimum) of some rows for each row of `members`."""
    size = members.shape[1]
    parts = [_rows(rows, column, width) for column in members.T]
    if size == 1:
        return parts[0]
    symbols = [vector(i) if rows.random else parameter(i) for i in range(size)]
    phi = Phi((sympy.Max if top else sympy.Min)(*symbols), *((size, 0) if rows.random else (0, size)))
    return nonlin(phi, parts if rows.random else [], [] if rows.random else parts, rows.power)


def _rows(rows: Var, which: np.ndarray, width: Axis) -> Var:
    """rows[which] along the leading axis, for known places."""
    op = position(
        "gather", slice_sizes=(1, 1), mode="PROMISE_IN_BOUNDS", rank=2, offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,),
        operand_batching_dims=(), start_indices_batching_dims=(), fill_value=None,
    )  # fmt: skip
    layout = (axis_of((len(which), len(which))), width)
    return map_positions(rows, op, layout, constant(which[:, None].astype(np.int32)).node)


def dynamic_update_slice(eqn: Equation, x: Value, update: Value, *starts: Value) -> Value:
    """A block of x replaced, at a place that is known by now."""
    if not all(isinstance(s, Known) and np.array_equal(*s.values) for s in starts):
        raise Refusal("it writes at a place that depends on the input", "use x.at[i].set(..), or a mask")
    whole, part = to_var(x), to_var(update)
    if width_axis(whole.layout) != width_axis(part.layout):
        raise Refusal("it writes into a part of the width", "concatenate parts of the width instead")
    at = [min(max(int(s.values[0]), 0), n - k) for s, n, k in zip(starts, whole.shape, part.shape, strict=True)]  # type: ignore[union-attr]
    config = [(a, n - k - a, 0) for a, n, k in zip(at, whole.shape, part.shape, strict=True)]
    inside = np.pad(np.ones(part.shape), [(low, high) for low, high, _ in config])
    layout = _layout(whole, part)
    written = map_positions(part, position("pad", config=tuple(config)), layout)
    return lincomb([(1.0, masked(whole, constant(1.0 - inside, _without_width(layout)))), (1.0, written)])


# ------------------------------------------------------------------------------------------ the map


def _map(eqn: Equation, x: Var, where: Var, updates: Var) -> Position:
    """The transpose of taking what is written from the places where it is written."""
    if where.random:
        raise Refusal("its indices are hidden values", "index with constants or with the input")
    p, shape, size = eqn.params[0], x.shape, updates.shape
    numbers = p["dimension_numbers"]
    outside = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [i for i in range(len(shape)) if i not in outside]
    window = dict(zip(kept, numbers.update_window_dims, strict=True))
    axis, mine = width_axis(x.layout), width_axis(updates.layout)
    if axis is not None and (axis in outside or axis in numbers.scatter_dims_to_operand_dims or window[axis] != mine):
        raise Refusal(
            "it writes into a part of the width", "write into whole positions; concatenate parts of the width"
        )
    if axis is None and mine is not None:
        raise Refusal("it writes hidden vectors into an array that has no width axis")
    taken = position(
        "gather", slice_sizes=tuple(size[window[i]] if i in window else 1 for i in range(len(shape))), mode=p["mode"].name,
        rank=len(size), offset_dims=tuple(numbers.update_window_dims), collapsed_slice_dims=tuple(numbers.inserted_window_dims),
        start_index_map=tuple(numbers.scatter_dims_to_operand_dims), operand_batching_dims=tuple(numbers.operand_batching_dims),
        start_indices_batching_dims=tuple(numbers.scatter_indices_batching_dims), fill_value=0,
    )  # fmt: skip
    return position("transposed", of="gather", kw=taken.params, shape=shape, lead=0)


def _written(eqn: Equation, x: Value, indices: Value, updates: Value) -> Var:
    """The updates at their places, zero elsewhere."""
    var, where, new = to_var(x), to_var(indices), to_var(updates)
    return map_positions(new, _map(eqn, var, where, new), _layout(var, new), where.node)


def _layout(x: Var, updates: Var) -> tuple[Axis, ...]:
    """That of x, its width made as that of the updates is, where those are hidden vectors."""
    axis, mine = width_axis(x.layout), width_axis(updates.layout)
    if axis is None or mine is None or not updates.random:
        return x.layout
    return (*x.layout[:axis], updates.layout[mine], *x.layout[axis + 1 :])


def _without_width(layout: tuple[Axis, ...]) -> tuple[Axis, ...]:
    axis = width_axis(layout)
    return tuple(() if i == axis else a for i, a in enumerate(layout))


def _untouched(eqn: Equation, x: Value, indices: Value, updates: Value) -> Var:
    """One where nothing is written, zero where something is; no place may be written twice."""
    var, where, new = to_var(x), to_var(indices), to_var(updates)
    op = _map(eqn, var, where, new)
    once = Refusal(
        "it may write twice at one place, so that the order of writing counts",
        "index with constants that differ, or pass unique_indices=True to .at[..].set where they do",
    )
    layout = _without_width(var.layout)
    if isinstance(indices, Known):
        times = np.asarray(op(jnp.ones(new.shape), jnp.asarray(indices.values[0])))
        if times.max(initial=0.0) > 1:
            raise once
        return constant(1.0 - times, layout)
    if not eqn.params[0]["unique_indices"]:
        raise once
    ones = constant(np.ones(new.shape), _without_width(new.layout))
    return nonlin(Phi(1 - parameter(0), 0, 1), [], [map_positions(ones, op, layout, where.node)])


def masked(var: Var, mask: Var) -> Var:
    """A variable times a mask of zeros and ones."""
    if var.random:
        return scaled(var, mask)
    if isinstance(var.node, Const) and not np.isfinite(var.node.value.array()).all():
        raise Refusal(
            "it masks a hidden vector with an infinite number, which the mask times it turns into NaN",
            "use a large finite number, such as -1e30 before a softmax",
        )
    if isinstance(var.node, Const) and not var.node.value.array().any():
        return constant(np.float64(0.0), (), var.power)
    return nonlin(Phi(parameter(0) * parameter(1), 0, 2), [], [var, mask], var.power)


def _is(x: Value, number: float) -> bool:
    return isinstance(x, Known) and all(np.all(v == number) for v in x.values)
