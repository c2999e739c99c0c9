"""Primitives that are written in simpler ones, position by position, where their operands are hidden: one row of `WRITTEN_OUT` each.

A running product over positions is a product, a gather whose places are hidden values chooses among all places, sorting positions ranks each
among the others. What they become is ordinary JAX code, which is traced and walked through in their place. None of them may go along the width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

from tensorprog.frontend.bounds import bounds_of
from tensorprog.frontend.build import exact
from tensorprog.frontend.ranks import sorted_rows, top
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.rows import Along, Code, apart, rows_of
from tensorprog.frontend.trace import from_library
from tensorprog.frontend.values import Known, Value, Var, aval, kind_of, width_axis

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["WRITTEN_OUT", "bodies", "by_name", "gathered"]

MOST_CASES = 256  # that a hidden value chooses among


def bodies(eqn: Equation, values: Sequence[Value]) -> tuple[jex.ClosedJaxpr, jex.ClosedJaxpr] | None:
    """The code, at both widths, that stands for an equation; None for a primitive that has a rule of its own here."""
    row = WRITTEN_OUT.get(eqn.primitive)
    if row is None or not _WHERE.get(eqn.primitive, _always)(eqn, values):
        return None
    if eqn.primitive == "gather":
        _check_inside(aval(eqn.eqns[0].invars[0]).shape, [values[1]], eqn.params[0])
    made = []
    for one in eqn.eqns:
        structs = [jax.ShapeDtypeStruct(aval(v).shape, aval(v).dtype) for v in one.invars]
        along = [_width(v) for v in values]
        code = row(along, **one.params)
        made.append(jax.make_jaxpr(code)(*structs))
    return made[0], made[1]


def by_name(eqn: Equation, values: Sequence[Value]) -> tuple[jex.ClosedJaxpr, jex.ClosedJaxpr] | None:
    """The code that stands for a function of JAX's own, which is written in it in a way that no rule takes; None for any other call."""
    name = str(eqn.eqns[0].params.get("name")) if eqn.primitive in ("jit", "pjit") else ""
    row = _BY_NAME.get(name)
    if row is None or not any(map(_hidden, values)) or not from_library(eqn.eqns[0].params["jaxpr"]):
        return None
    wanted, code = row
    if not wanted(eqn, values):
        return None
    structs = [[jax.ShapeDtypeStruct(aval(v).shape, aval(v).dtype) for v in one.invars] for one in eqn.eqns]
    first, second = (
        jax.make_jaxpr(code(one.params["jaxpr"]))(*some) for one, some in zip(eqn.eqns, structs, strict=True)
    )
    return first, second


def _by_a_unit(eqn: Equation, values: Sequence[Value]) -> bool:
    """jnp.mod(h, s) and h // s by s that is no number, with whole numbers of h / s: where these change does not depend on s."""
    if len(values) != 2 or not _hidden(values[0]) or kind_of(eqn.eqns[0].outvars[0]) != "f":
        return False
    unit = values[1]
    return isinstance(unit, Var) and unit.det and exact(unit) is None


def _of_reals(eqn: Equation, values: Sequence[Value]) -> bool:
    return all(kind_of(v) in "fiub" for v in eqn.eqns[0].invars)


def _by_the_last_that_holds(jaxpr: jex.ClosedJaxpr) -> Code:
    """jnp.piecewise: of the functions that it takes everywhere, the one whose condition is the last that holds.

    JAX counts the conditions that hold, takes the place of the largest count, and passes to each function its argument without a gradient
    where another one is chosen, which keeps infinite slopes away. A choice by the conditions themselves is the same.
    """

    def code(*args: jax.Array) -> list[jax.Array]:
        env: dict[Any, Any] = dict(zip(jaxpr.jaxpr.invars, args, strict=True))
        env |= zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)
        read = lambda v: v.val if isinstance(v, jex.Literal) else env[v]
        counts: dict[Any, list[jax.Array]] = {}  # conditions that hold, of the variables that count them
        places: dict[Any, list[jax.Array]] = {}  # of those that say which is the last
        chosen: set[Any] = set()  # and whether it is a certain one
        for eqn in jaxpr.jaxpr.eqns:
            name, operands = eqn.primitive.name, [read(v) for v in eqn.invars]
            known = [v for v in eqn.invars if not isinstance(v, jex.Literal)]
            out, rows = eqn.outvars[0], next((places[v] for v in known if v in places), None)
            if eqn.params.get("name") == "cumsum" and operands[0].dtype == bool:
                counts[out] = rows_of(operands[0], 0)
            if name == "argmax" and known and known[0] in counts:
                places[out] = counts[known[0]]
                made: Any = _last_that_holds(places[out], eqn.params["index_dtype"])
            elif rows is not None and name in ("clamp", "convert_element_type"):
                places[out] = rows
                made = operands[1] if name == "clamp" else eqn.primitive.bind(*operands, **eqn.params)
            elif name == "select_n" and known and known[0] in chosen:
                made = operands[2]
            elif name == "select_n" and rows is not None and eqn.invars[0] in places:
                made = operands[1]
                for row, case in zip(rows[1:], operands[2:], strict=True):
                    made = lax.select(jnp.broadcast_to(row, case.shape), case, made)
            else:
                chosen |= {out} if name == "eq" and rows is not None else set()
                made = eqn.primitive.bind(*operands, **eqn.params)
            env |= zip(eqn.outvars, made if eqn.primitive.multiple_results else [made], strict=True)
        return [read(v) for v in jaxpr.jaxpr.outvars]

    return code


def _last_that_holds(rows: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Its number, 0 where none does."""
    place = jnp.zeros(rows[0].shape, dtype)
    for i, row in enumerate(rows[1:], 1):
        place = lax.select(row, jnp.full_like(place, i), place)
    return place


def _always(eqn: Equation, values: Sequence[Value]) -> bool:
    return True


def _hidden(value: Value) -> bool:
    return isinstance(value, Var) and value.random


# When it is wanted, and what is made of the function's own code.
_BY_NAME: dict[str, tuple[Callable[[Equation, Sequence[Value]], bool], Callable[[jex.ClosedJaxpr], Code]]] = {
    "remainder": (_by_a_unit, lambda _: lambda h, s: h - s * jnp.floor(h / s)),
    "floor_divide": (_by_a_unit, lambda _: lambda h, s: jnp.floor(h / s)),
    "signbit": (_of_reals, lambda _: lambda h: h < 0),  # jnp.copysign asks for it
    "ldexp": (_of_reals, lambda _: lambda h, k: h * 2.0 ** k.astype(h.dtype)),
    "_piecewise": (_of_reals, _by_the_last_that_holds),
}

# Where a primitive that has a rule is written out instead: gathers at hidden places, sums of whole numbers.
_WHERE: dict[str, Callable[[Equation, Sequence[Value]], bool]] = {
    "gather": lambda eqn, values: _hidden(values[1]),
    "cumsum": lambda eqn, values: _hidden(values[0]) and eqn.out_dtype.kind in "iu",
}


def _width(value: Value) -> int | None:
    """The width axis of an operand."""
    if isinstance(value, Known):
        sizes = zip(*value.shapes, strict=True)
        return next((i for i, (a, b) in enumerate(sizes) if a != b), None)
    layout = getattr(value, "layout", None)
    return None if layout is None else width_axis(layout)


# ------------------------------------------------------------------------------------------ reductions, running ones


def _running(along: Along, step: Code, what: str, axis: int, reverse: bool) -> Code:
    """x_1, f(x_1, x_2), f(f(x_1, x_2), x_3) .."""
    apart(along, [axis], what)

    def code(x: jax.Array) -> jax.Array:
        rows = rows_of(x, axis)
        made = list(itertools.accumulate(rows[::-1] if reverse else rows, step))
        return jnp.stack(made[::-1] if reverse else made, axis)

    return code


def _running_logsumexp(along: Along, *, axis: int, reverse: bool) -> Code:
    apart(along, [axis], "a running logsumexp")

    def code(x: jax.Array) -> jax.Array:
        size = x.shape[axis]
        parts = [(i, size) for i in range(size)] if reverse else [(0, i + 1) for i in range(size)]
        made = [jax.nn.logsumexp(lax.slice_in_dim(x, *ends, axis=axis), axis) for ends in parts]
        return jnp.stack(made, axis)

    return code


def _folded(along: Along, step: Code, start: Any, axes: Sequence[int]) -> Code:
    """All entries along some axes, one after the other."""

    def code(x: jax.Array) -> jax.Array:
        for axis in sorted(axes, reverse=True):
            rows = rows_of(x, axis)
            total = rows[0] if rows else jnp.full(np.delete(x.shape, axis), start, x.dtype)
            for row in rows[1:]:
                total = step(total, row)
            x = total
        return x

    return code


def _reduction(step: Code, start: Any, what: str) -> Code:
    def row(along: Along, *, axes: Sequence[int], **_: Any) -> Code:
        apart(along, axes, what)
        return _folded(along, step, start, axes)

    return row


def _place_of(better: Code, what: str) -> Code:
    """argmax and argmin: the first of the largest, or smallest."""

    def row(along: Along, *, axes: Sequence[int], index_dtype: Any) -> Code:
        apart(along, axes, what)

        def code(x: jax.Array) -> jax.Array:
            if x.dtype == bool:
                return _first_that_holds(rows_of(x if better is lax.gt else ~x, axes[0]), index_dtype)
            if x.dtype.kind in "iu":
                raise Refusal(
                    "it takes the place of the largest of whole numbers that are made of hidden values",
                    "use jnp.piecewise, jnp.select, or jnp.where",
                )
            rows = rows_of(x, axes[0])
            best, place = rows[0], jnp.zeros(rows[0].shape, index_dtype)
            for i, row in enumerate(rows[1:], 1):
                new = better(row, best)
                place = lax.select(new, jnp.full_like(place, i), place)
                if i < len(rows) - 1:
                    best = jnp.maximum(best, row) if better is lax.gt else jnp.minimum(best, row)
            return place

        return code

    return row


def _first_that_holds(rows: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Its number, 0 where none does."""
    place = jnp.zeros(rows[0].shape, dtype)
    for i in range(len(rows) - 1, -1, -1):
        place = lax.select(rows[i], jnp.full_like(place, i), place)
    return place


# ------------------------------------------------------------------------------------------ places that are hidden values


def _gathered(
    along: Along, *, dimension_numbers: Any, slice_sizes: Sequence[int], mode: Any, fill_value: Any, **_: Any
) -> Code:
    """A gather whose places are hidden values: a choice among all that stand at a place."""
    numbers = dimension_numbers
    indexed, batching = tuple(numbers.start_index_map), tuple(numbers.operand_batching_dims)
    apart(along[:1], indexed, "it indexes by a hidden value")
    if along[0] is not None and along[0] not in batching:
        raise Refusal(
            "it takes whole hidden vectors at places that are hidden values themselves, coordinate by coordinate",
            "take every coordinate from its own place, jnp.take_along_axis(h, place[None], 0)",
        )

    def code(operand: jax.Array, indices: jax.Array) -> jax.Array:
        counts = [operand.shape[d] - slice_sizes[d] + 1 for d in indexed]
        if math.prod(counts) > MOST_CASES:
            raise Refusal(
                f"a hidden value chooses among {math.prod(counts)} places, and no more than {MOST_CASES} are told apart here",
                "take a smaller table, or a function that is written with arithmetic",
            )
        places = [lax.index_in_dim(indices, j, indices.ndim - 1, keepdims=False) for j in range(len(indexed))]
        number = jnp.zeros(places[0].shape, jnp.int32)
        for place, count in zip(places, counts, strict=True):
            number = number * count + jnp.clip(place, 0, count - 1).astype(jnp.int32)
        cases = [
            _laid(operand, start, numbers, slice_sizes, number.shape)
            for start in itertools.product(*map(range, counts))
        ]
        shape = cases[0].shape
        spread = lambda a: lax.broadcast_in_dim(
            a, shape, [i for i in range(len(shape)) if i not in numbers.offset_dims]
        )
        found = cases[0] if len(cases) == 1 else _choose(spread(number), cases)
        if mode != lax.GatherScatterMode.FILL_OR_DROP:
            return found
        inside = [(p >= 0) & (p < count) for p, count in zip(places, counts, strict=True)]
        filled = jnp.full(shape, jnp.nan if fill_value is None else fill_value, found.dtype)
        for some in inside:
            found = lax.select(spread(some), found, filled)
        return found

    return code


def _choose(number: jax.Array, cases: Sequence[jax.Array]) -> jax.Array:
    if len(cases) == 2:
        return lax.select(number > 0, cases[1], cases[0])
    return lax.select_n(number, *cases)


def gathered(along: int, shape: Sequence[int], columns: Sequence[Value], params: dict[str, Any]) -> Code:
    """A gather whose indices are given column by column, of a table of this shape with its width along an axis."""
    _check_inside(shape, columns, params)
    code = _gathered([along, None], **params)
    return lambda table, *parts: code(table, jnp.concatenate(parts, -1))


def _check_inside(shape: Sequence[int], places: Sequence[Value], p: dict[str, Any]) -> None:
    """Refuse NaN where a place lies outside, unless none does."""
    fill = math.nan if p["fill_value"] is None else float(p["fill_value"])
    if p["mode"] != lax.GatherScatterMode.FILL_OR_DROP or not math.isnan(fill):
        return
    last = min(shape[d] - p["slice_sizes"][d] for d in p["dimension_numbers"].start_index_map)
    if any(low < 0 or high > last for low, high in map(bounds_of, places)):
        raise Refusal(
            "the place in a table, which is a hidden value, may lie outside of it, where NaN is taken",
            'give jnp.take mode="clip" or mode="wrap" or a fill_value, or index by table[..]',
        )


def _laid(
    operand: jax.Array, start: Sequence[int], numbers: Any, slice_sizes: Sequence[int], batch: tuple[int, ...]
) -> jax.Array:
    """What stands at one place, along the axes of the result."""
    batching, paired = tuple(numbers.operand_batching_dims), tuple(numbers.start_indices_batching_dims)
    low, high = [0] * operand.ndim, list(operand.shape)
    for d, s in zip(numbers.start_index_map, start, strict=True):
        low[d], high[d] = s, s + slice_sizes[d]
    for d in range(operand.ndim):
        if d not in numbers.start_index_map and d not in batching:
            high[d] = slice_sizes[d]
    row = lax.squeeze(lax.slice(operand, low, high), numbers.collapsed_slice_dims)
    left = [d for d in range(operand.ndim) if d not in numbers.collapsed_slice_dims]
    offsets = iter(numbers.offset_dims)
    rank = len(batch) + len(numbers.offset_dims)
    of_batch = [i for i in range(rank) if i not in numbers.offset_dims]
    to = [of_batch[paired[batching.index(d)]] if d in batching else next(offsets) for d in left]
    order = sorted(range(len(to)), key=lambda i: to[i])
    sizes = [0] * rank
    for i, n in zip(of_batch, batch, strict=True):
        sizes[i] = n
    for i, d in zip(to, left, strict=True):
        sizes[i] = row.shape[left.index(d)]
    return lax.broadcast_in_dim(lax.transpose(row, order), sizes, sorted(to))


WRITTEN_OUT: dict[str, Code] = {
    "cumsum": lambda along, *, axis, reverse: _running(along, jnp.add, "a running sum", axis, reverse),
    "cumprod": lambda along, *, axis, reverse: _running(along, jnp.multiply, "a running product", axis, reverse),
    "cummax": lambda along, *, axis, reverse: _running(along, jnp.maximum, "a running maximum", axis, reverse),
    "cummin": lambda along, *, axis, reverse: _running(along, jnp.minimum, "a running minimum", axis, reverse),
    "cumlogsumexp": _running_logsumexp,
    "reduce_prod": _reduction(jnp.multiply, 1, "a product"),
    "reduce_and": _reduction(jnp.logical_and, True, "a conjunction"),
    "reduce_or": _reduction(jnp.logical_or, False, "a disjunction"),
    "reduce_xor": _reduction(jnp.logical_xor, False, "an exclusive disjunction"),
    "argmax": _place_of(lax.gt, "an argmax"),
    "argmin": _place_of(lax.lt, "an argmin"),
    "sort": sorted_rows,
    "top_k": top,
    "gather": _gathered,
}
