"""What of a pair's program belongs to one of its inputs alone: computed once for each input, not in each tile.

A function of two states is traced, and its operations are told apart by what they read: one of the states, or both. Of the first kind are
the roots of variances, and the coefficients of a series. Where an operation of the second kind reads one of the first, the value is *kept*:
computed for all inputs together with their states. Loops and branches are taken apart too; what a loop computes of one input in each round
is a stack. A tile is left with the operations of pairs, so that there are fewer loops to compile, and to run.

A value that is larger than what it is made of, such as a function at the nodes of a quadrature, is left in the tile (its sums are not),
and so is one that is only moved, or of a row and cheap, which is computed once for all columns there. The rows of a stack are read where they
stand, among those of all inputs: a tile's own would be one more loop to compile for each stack.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from ntk_rules.interpreted import called, loop_sizes

__all__ = ["Parted", "Some", "stretch"]

Bind = Callable[..., Sequence[Any]]  # the values of an operation, from those that it reads
_MOVES = {"reshape", "broadcast_in_dim", "squeeze"}
_CHEAP = {
    "add", "sub", "mul", "neg", "abs", "sign", "max", "min", "clamp", "select_n", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not",
}  # fmt: skip
_BOTH = frozenset((0, 1))


def stretch(array: Any, start: Any, count: int) -> Any:
    """So many of the inputs of an array, from `start` on, which is not negative: along one axis, whose loop takes least to compile."""
    each = math.prod(array.shape[1:])
    if array.ndim == 1 or array.size > np.iinfo(np.int32).max:
        return lax.dynamic_slice_in_dim(array, start, count, allow_negative_indices=False)
    found = lax.dynamic_slice_in_dim(array.ravel(), start * each, count * each, allow_negative_indices=False)
    return found.reshape(count, *array.shape[1:])


@dataclass(frozen=True)
class Some:
    """Of what is kept of all inputs, that of so many, from `start` on, which is not negative."""

    arrays: Sequence[Any]
    start: Any
    count: int


class Parted:
    """A function of (state, state, *rest) in two steps: `one` computes what is kept of a state, `two` the results from what is kept of both.

    axes: of each array that is kept, where a batch axis goes: behind the rounds of a loop that reads it row by row.
    """

    def __init__(self, function: Callable[..., Sequence[Any]], state: Any, rest: Sequence[Any] = ()):
        """state, rest: of what shapes and dtypes."""
        closed, numbers = jax.make_jaxpr(function)(state, state, *rest), _Numbers()
        leaves = list(enumerate(jax.tree.leaves(state)))
        sides = [[_given(("leaf", k), leaf, frozenset([side]), numbers) for k, leaf in leaves] for side in (0, 1)]
        more = [_given(object(), leaf, _BOTH, numbers) for leaf in rest]
        self._pair = _Program(_read(closed.jaxpr, closed.consts, [*sides[0], *sides[1], *more], numbers))
        kept = {v.key: v for v in self._pair.reads if v.node.one_sided}
        self._kept = _Program(list(kept.values()), whole=True)
        leaf = {v.key: k for k, v in enumerate(sides[0])}
        self._leaves = [leaf[v.key] for v in self._kept.reads]
        place = {key: k for k, key in enumerate(kept)}
        self._reads = [
            (min(v.node.sides), place[v.key]) if v.node.one_sided else (2, more.index(v)) for v in self._pair.reads
        ]
        stacks = {v.key for node in self._pair.nodes for v in node.stacks}
        self.axes = [int(key in stacks) for key in kept]

    def one(self, state: Any) -> list[Any]:
        """What is kept of a state."""
        leaves = jax.tree.leaves(state)
        return self._kept([leaves[k] for k in self._leaves])

    def two(self, a: Sequence[Any], b: Sequence[Any], *rest: Any) -> list[Any]:
        """The results of a pair."""
        given = a, b, rest
        return self._pair([given[side][k] for side, k in self._reads])

    def pairs(self, first: Some, second: Some, *rest: Any) -> list[Any]:
        """The results of every pair, with two batch axes."""
        cut = [self._cut(some) for some in (first, second)]

        def pair(a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
            return self.two(self._given(first, a), self._given(second, b), *rest)

        return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(*cut)

    def _cut(self, some: Some) -> list[Any]:
        """What `_given` reads with a batch axis: which inputs these are, and what loops do not read by rows."""
        slices = [
            stretch(a, some.start, some.count) for a, axis in zip(some.arrays, self.axes, strict=True) if axis == 0
        ]
        return [np.arange(some.count), *slices]

    def _given(self, some: Some, cut: Sequence[Any]) -> list[Any]:
        """What is kept of one of them."""
        which, *slices = cut
        rest, one = iter(slices), _One(some.start, which)
        return [_Rows(a, one) if axis else next(rest) for a, axis in zip(some.arrays, self.axes, strict=True)]


# ------------------------------------------------------------------------------------------------ operations


@dataclass(frozen=True, eq=False)
class _Node:
    """An operation. bind: None of what is given. kinds: of its values. sides: which inputs it reads. number: the same for operations that
    compute the same of one input, whichever of the two. order: grows along a program. base: how many numbers it is made of, at last. kept:
    are its values, of one input, worth being kept? stacks: what a loop reads row by row."""

    bind: Bind | None
    reads: tuple[_Value, ...]
    kinds: tuple[Any, ...]
    sides: frozenset[int]
    number: int
    order: int
    base: int = 0
    kept: bool = False
    stacks: tuple[_Value, ...] = ()

    @property
    def one_sided(self) -> bool:
        return len(self.sides) == 1


@dataclass(frozen=True)
class _Value:
    """One of the values of an operation."""

    node: _Node
    index: int = 0

    @property
    def key(self) -> tuple[int, int]:
        return self.node.number, self.index

    @property
    def kind(self) -> Any:
        return self.node.kinds[self.index]

    @property
    def size(self) -> int:
        return math.prod(self.kind.shape)


@dataclass(frozen=True)
class _Numbers:
    """A number for all operations that compute the same. constants: arrays that are told apart by their place in memory, which nothing else
    is to have."""

    known: dict[Any, int] = field(default_factory=dict)
    constants: list[Any] = field(default_factory=list)
    fresh: Iterator[int] = field(default_factory=itertools.count)

    def __call__(self, key: Any) -> int:
        try:
            if key not in self.known:
                self.known[key] = next(self.fresh)
            return self.known[key]
        except TypeError:  # a parameter that cannot be compared
            return next(self.fresh)


class _Program:
    """The operations that some values need, and what they are given: `reads`, in this order.

    whole: from the beginning; otherwise what is kept of one input is given. nodes: the operations, in order.
    """

    def __init__(self, ends: Sequence[_Value], whole: bool = False):
        self._ends = ends
        reads: dict[_Value, None] = {}
        nodes: set[_Node] = set()
        waiting = list(reversed(ends))
        while waiting:
            value = waiting.pop()
            if value.node.bind is None or (value.node.kept and not whole):
                reads[value] = None
            elif value.node not in nodes:
                nodes.add(value.node)
                waiting += reversed(value.node.reads)
        self.reads, self.nodes = list(reads), sorted(nodes, key=lambda node: node.order)

    def __call__(self, given: Sequence[Any]) -> list[Any]:
        values = dict(zip(self.reads, given, strict=True))
        for node in self.nodes:
            assert node.bind is not None
            found = node.bind(*(values[v] for v in node.reads))
            values.update((_Value(node, k), value) for k, value in enumerate(found))
        return [values[v] for v in self._ends]


@dataclass(frozen=True, eq=False)
class _One:
    """One of the inputs: number `which` of those from `start` on."""

    start: Any
    which: Any


@dataclass(frozen=True)
class _Rows:
    """The rows of a stack of all inputs that belong to one."""

    stack: Any
    one: _One


@custom_vmap
def _rows(stacks: list[Any], k: Any, start: Any, which: Any) -> list[Any]:
    """Row k of each stack, for one input."""
    return [stack[k, start + which] for stack in stacks]


@_rows.def_vmap
def _rows_of_some(
    count: int, _: Any, stacks: list[Any], k: Any, start: Any, which: Any
) -> tuple[list[Any], list[bool]]:
    """For all that `which` counts, which are neighbours: a slice."""
    rows = [lax.dynamic_index_in_dim(stack, k, keepdims=False, allow_negative_indices=False) for stack in stacks]
    found = [lax.dynamic_slice_in_dim(row, start, count, allow_negative_indices=False) for row in rows]
    return found, [True] * len(found)


def _given(key: Any, kind: Any, sides: frozenset[int], numbers: _Numbers) -> _Value:
    node = _Node(None, (), (kind,), sides, numbers(key), next(numbers.fresh), math.prod(kind.shape))
    return _Value(node)


def _operation(
    key: Any, bind: Bind, reads: Sequence[_Value], kinds: Sequence[Any], numbers: _Numbers, kept: bool = False,
    stacks: Sequence[_Value] = (),
) -> list[_Value]:  # fmt: skip
    sides, order = _sides(reads), next(numbers.fresh)
    number = order if sides == _BOTH else numbers((key, tuple(v.key for v in reads)))
    kept = kept and len(sides) == 1
    base = max(math.prod(k.shape) for k in kinds) if kept else max((v.node.base for v in reads), default=0)
    node = _Node(bind, tuple(reads), tuple(kinds), sides, number, order, base, kept, tuple(stacks))
    return [_Value(node, k) for k in range(len(kinds))]


def _sides(values: Sequence[_Value]) -> frozenset[int]:
    return frozenset().union(*(v.node.sides for v in values))


# ------------------------------------------------------------------------------------------------ a traced function


def _read(jaxpr: Any, consts: Sequence[Any], given: Sequence[_Value], numbers: _Numbers) -> list[_Value]:
    """The results of a traced function; calls are taken apart."""
    values = dict(zip(jaxpr.invars, given, strict=True))
    values.update(zip(jaxpr.constvars, (_constant(c, numbers) for c in consts), strict=True))

    def value(atom: Any) -> _Value:
        if isinstance(atom, jex.Literal):
            kind: Any = atom.aval
            return _constant(np.asarray(atom.val, kind.dtype), numbers)
        return values[atom]

    for eqn in jaxpr.eqns:
        reads, body = [value(v) for v in eqn.invars], called(eqn)
        made = _of_equation(eqn, reads, numbers) if body is None else _read(body[0], body[1], reads, numbers)
        values.update(zip(eqn.outvars, made, strict=True))
    return [value(v) for v in jaxpr.outvars]


def _constant(value: Any, numbers: _Numbers) -> _Value:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        key: Any = value.tobytes(), value.dtype
    else:
        key = id(value)
        numbers.constants.append(value)
    return _operation(("constant", key), lambda: [value], (), [jax.typeof(value)], numbers)[0]


def _of_equation(eqn: Any, reads: list[_Value], numbers: _Numbers) -> list[_Value]:
    name = eqn.primitive.name
    if name in _TAKEN_APART and _sides(reads) == _BOTH:
        return _TAKEN_APART[name](eqn, reads, numbers)
    key = eqn.primitive, tuple(sorted(eqn.params.items(), key=lambda item: item[0]))
    kinds = [v.aval for v in eqn.outvars]
    size = max(math.prod(kind.shape) for kind in kinds)
    small = any(size <= v.node.base or size < v.size for v in reads if v.node.sides)
    of_row = name in _CHEAP and _sides(reads) == frozenset([0])
    return _operation(key, partial(_bound, eqn), reads, kinds, numbers, small and name not in _MOVES and not of_row)


def _bound(eqn: Any, *values: Any) -> Sequence[Any]:
    found = eqn.primitive.bind(*values, **eqn.params)
    return found if eqn.primitive.multiple_results else [found]


def _of_branches(eqn: Any, reads: list[_Value], numbers: _Numbers) -> list[_Value]:
    """Branches without what they compute of one input, which is computed whichever is taken."""
    index, *operands = reads
    inside = {_given(("inside", v.key), v.kind, v.node.sides, numbers): v for v in operands}
    parts = [_Program(_read(b.jaxpr, b.consts, list(inside), numbers)) for b in eqn.params["branches"]]
    every = list(dict.fromkeys(v for part in parts for v in part.reads))
    place = {v: k for k, v in enumerate(every)}

    def bind(index: Any, *values: Any) -> Sequence[Any]:
        codes = [lambda given, part=part: part([given[place[v]] for v in part.reads]) for part in parts]
        return lax.switch(index, codes, values)

    outside = [index, *(_outside(v, inside, (), 0, numbers) for v in every)]
    return _operation(object(), bind, outside, [v.aval for v in eqn.outvars], numbers)


def _of_loop(eqn: Any, reads: list[_Value], numbers: _Numbers) -> list[_Value]:
    """A loop without what it computes of one input in each round."""
    params, body = eqn.params, eqn.params["jaxpr"]
    n_consts, n_carry = loop_sizes(eqn, body.jaxpr)
    consts, start, stacks = reads[:n_consts], reads[n_consts : n_consts + n_carry], reads[n_consts + n_carry :]
    fixed = {_given(("inside", v.key), v.kind, v.node.sides, numbers): v for v in consts}
    carried = [_given(object(), v.kind, _BOTH, numbers) for v in start]
    rows = {_given(("row", v.key), _like(v.kind, v.kind.shape[1:]), v.node.sides, numbers): v for v in stacks}
    part, length = _Program(_read(body.jaxpr, body.consts, [*fixed, *carried, *rows], numbers)), params["length"]
    outside = {v: _outside(v, fixed | rows, rows, length, numbers) for v in part.reads if v not in carried}
    by_row = [v for v in outside if not rows.keys().isdisjoint(_Program([v], whole=True).reads)]
    once = [v for v in outside if v not in by_row]
    given = [_stack(outside[v], numbers) for v in by_row]

    def bind(*values: Any) -> Sequence[Any]:
        known, values = dict(zip(once, values, strict=False)), values[len(once) :]
        start, stacks = values[:n_carry], dict(zip(by_row, values[n_carry:], strict=True))
        in_place: dict[_One, dict[_Value, Any]] = {}
        for v, stack in stacks.items():
            if isinstance(stack, _Rows):
                in_place.setdefault(stack.one, {})[v] = stack.stack
        rows = {v: stack for v, stack in stacks.items() if not isinstance(stack, _Rows)}

        def step(carry: Sequence[Any], at: tuple[Any, Sequence[Any]]) -> tuple[Any, Any]:
            k, row = at
            here = {**known, **dict(zip(carried, carry, strict=True)), **dict(zip(rows, row, strict=True))}
            for one, some in in_place.items():
                here.update(zip(some, _rows(list(some.values()), k, one.start, one.which), strict=True))
            found = part([here[v] for v in part.reads])
            return tuple(found[:n_carry]), tuple(found[n_carry:])

        xs = np.arange(length, dtype=np.int32), list(rows.values())
        end, made = lax.scan(step, start, xs, length, params["reverse"], params["unroll"])
        return [*end, *made]

    reads, kinds = [*(outside[v] for v in once), *start, *given], [v.aval for v in eqn.outvars]
    return _operation(object(), bind, reads, kinds, numbers, stacks=given)


def _stack(value: _Value, numbers: _Numbers) -> _Value:
    """What a loop reads row by row, and nothing else: in place, where it is of one input."""
    return _operation("stack", lambda stack: [stack], [value], [value.kind], numbers, kept=True)[0]


def _like(kind: Any, shape: tuple[int, ...]) -> Any:
    return jax.ShapeDtypeStruct(shape, kind.dtype)


def _outside(
    value: _Value, inside: dict[_Value, _Value], rows: Collection[_Value], length: int, numbers: _Numbers
) -> _Value:
    """What is computed inside of a loop or branch, computed before: of a loop, where it reads rows, for all rounds."""
    if value in inside:
        return inside[value]
    program = _Program([value], whole=True)
    by_row = [v in rows for v in program.reads]
    run = lambda *values: program(values)
    if any(by_row):
        run = jax.vmap(run, [0 if row else None for row in by_row])
    shape = (length, *value.kind.shape) if any(by_row) else value.kind.shape
    reads = [inside[v] for v in program.reads]
    return _operation(("before", value.key), run, reads, [_like(value.kind, shape)], numbers, kept=True)[0]


_TAKEN_APART = {"scan": _of_loop, "cond": _of_branches}
