"""Running a schedule: operations one by one, or those that share their work together; loops as `lax.scan`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tensorprog.kernel.graph import Expect, Operand, Quantity
from tensorprog.lower.packing import fits, is_light, packed, unpacked
from tensorprog.lower.schedule import Loop, Step, operands_of

__all__ = ["Outside", "Results", "Slots", "plan", "run"]

Emit = Callable[
    [Sequence[Quantity], list[jax.Array]], list[jax.Array]
]  # of quantities that read the same, their values
Place = tuple[int, int | None]  # an entry, and the row of it where it is a stack of a loop's results


def _places(steps: Iterable[Step]) -> dict[Quantity, tuple[int, int, int]]:
    """(loop, position, group) of every quantity in a loop."""
    return {
        q: (number, j, g)
        for number, step in enumerate(steps)
        if isinstance(step, Loop)
        for g, group in enumerate(step.groups)
        for j, q in enumerate(group)
    }


class Results:
    """The values of quantities; those of a loop are rows of stacks."""

    def __init__(self, outside: Outside | None):
        self.values: dict[Quantity, jax.Array] = {}
        self.stacks: dict[tuple[int, int], jax.Array] = {}
        self.rows: dict[Quantity, tuple[tuple[int, int], int]] = {}
        self._outside = outside

    def __getitem__(self, quantity: Quantity) -> jax.Array:
        if quantity in self.values:
            return self.values[quantity]
        stack, row = self.rows[quantity]
        return self.stacks[stack][row]

    def read(self, operand: Operand) -> jax.Array:
        """The value of an operand, here or outside."""
        if operand.side is not None:
            assert self._outside is not None
            return self._outside.read(operand)
        return self[operand.quantity]

    def together(self, operands: Sequence[Operand]) -> jax.Array:
        """The values of operands as one stack; rows that already are one are not taken apart."""
        if operands[0].side is not None:
            assert self._outside is not None
            return self._outside.together(operands)
        found = _one_slice([self.rows.get(o.quantity) for o in operands])
        return jnp.stack([self.read(o) for o in operands]) if found is None else self.stacks[found[0]][found[1]]

    def entries(self, slots: Slots) -> list[jax.Array]:
        """The arrays that `slots` names."""
        return [self.stacks[e] if isinstance(e, tuple) else self[e] for e in slots.order]


def _one_slice(places: Sequence[tuple[Any, int | None] | None]) -> tuple[Any, slice] | None:
    """The entry and the rows, where the places are neighbouring rows of one entry."""
    if any(place is None or place[1] is None for place in places):
        return None
    entries, rows = zip(*(place for place in places if place is not None), strict=True)
    neighbours = len(set(entries)) == 1 and list(rows) == list(range(rows[0], rows[0] + len(rows)))
    return (entries[0], slice(rows[0], rows[-1] + 1)) if neighbours else None


@dataclass(frozen=True)
class Slots:
    """Where the quantities that are kept stand in a state: an entry, or a row of one."""

    order: tuple[Any, ...]
    places: dict[Quantity, Place]

    def slot(self, quantity: Quantity) -> int:
        """Which entry of a state holds it, with others of a loop."""
        return 1 + self.places[quantity][0]

    def read(self, state: Sequence[jax.Array], quantity: Quantity) -> jax.Array:
        """The value of a quantity in a state (whose first entry is the input's fingerprint)."""
        entry, row = self.places[quantity]
        return state[1 + entry] if row is None else state[1 + entry][row]

    def of_all(self, states: Sequence[Any], quantity: Quantity) -> Any:
        """The values of a quantity in the states of many inputs, with a batch axis."""
        entry, row = self.places[quantity]
        return states[1 + entry] if row is None else states[1 + entry][:, row]


@dataclass(frozen=True)
class Outside:
    """What a pair reads: the states of its two inputs."""

    slots: Slots
    states: tuple[Sequence[jax.Array], Sequence[jax.Array]]

    def read(self, operand: Operand) -> jax.Array:
        return self.slots.read(self.states[operand.side or 0], operand.quantity)

    def together(self, operands: Sequence[Operand]) -> jax.Array:
        """The values of operands of one side as one stack."""
        found = _one_slice([self.slots.places[o.quantity] for o in operands])
        if found is None:
            return jnp.stack([self.read(o) for o in operands])
        return self.states[operands[0].side or 0][1 + found[0]][found[1]]


def plan(steps: Sequence[Step], kept: Sequence[Quantity]) -> Slots:
    """One entry for each quantity that is kept, one for all rows of a loop's position."""
    looped = _places(steps)
    last = {number: len(step.groups) - 1 for number, step in enumerate(steps) if isinstance(step, Loop)}
    stacked = {looped[q][:2] for q in kept if q in looped and looped[q][2] < last[looped[q][0]]}
    order: dict[Any, int] = {}
    places: dict[Quantity, Place] = {}
    for q in kept:
        row = looped[q][2] if q in looped and looped[q][:2] in stacked else None
        key: Any = q if row is None else looped[q][:2]
        places[q] = (order.setdefault(key, len(order)), row)
    return Slots(tuple(order), places)


def run(
    steps: Sequence[Step],
    emit: Emit,
    kept: Sequence[Quantity],
    outside: Outside | None = None,
    *,
    together: bool = True,
    emit_open: Emit | None = None,
) -> Results:
    """Compute every step. kept: quantities that are read afterwards. together: expectations of the same Gaussians at once. emit_open: emits
    what XLA may fuse, for loops in one pass (`packing`); None where there are to be none."""
    results = Results(outside)
    looped = _places(steps)
    wanted = set(kept) | _read_outside(steps, looped)
    single = [step for step in steps if not isinstance(step, Loop)]
    alike = dict(zip(single, _alike([(q, operands_of(q)) for q in single], together), strict=True))
    for number, step in enumerate(steps):
        if isinstance(step, Loop):
            _run_loop(number, step, emit, results, wanted, together, emit_open)
        elif step not in results.values:
            group = [single[k] for k in alike[step]]
            values = emit(group, [results.read(o) for o in operands_of(step)])
            results.values.update(zip(group, values, strict=True))
    return results


def _alike(steps: Sequence[tuple[Quantity, Hashable]], together: bool) -> list[list[int]]:
    """For each quantity the places of those to be computed with it: expectations of the same Gaussians, along the same axes.

    steps: each with what it reads. A layer's nngp and the slope of its tangent kernel share the square root and the angle of every pair;
    sums over nodes share next to nothing.
    """
    groups: dict[Hashable, list[int]] = {}
    for k, (q, reads) in enumerate(steps):
        if together and isinstance(q, Expect) and q.expectation.formula is not None:
            groups.setdefault((reads, q.letters, q.out, q.shape, q.cross), []).append(k)
        else:
            groups[k] = [k]
    of = {k: group for group in groups.values() for k in group}
    return [of[k] for k in range(len(steps))]


def _read_outside(steps: Sequence[Step], looped: dict[Quantity, tuple[int, int, int]]) -> set[Quantity]:
    """Quantities of loops that later steps read."""
    wanted: set[Quantity] = set()
    for number, step in enumerate(steps):
        for user in (q for group in step.groups for q in group) if isinstance(step, Loop) else (step,):
            for o in operands_of(user):
                if o.side is None and o.quantity in looped and looped[o.quantity][0] != number:
                    wanted.add(o.quantity)
    return wanted


def _run_loop(
    number: int, loop: Loop, emit: Emit, results: Results, wanted: set[Quantity], together: bool, emit_open: Emit | None
) -> None:  # fmt: skip
    last = len(loop.groups) - 1
    stacked = [j for j in range(len(loop.reads)) if any(group[j] in wanted for group in loop.groups[:-1])]
    ended = [j for j in range(len(loop.reads)) if j not in stacked and loop.groups[last][j] in wanted]
    carried = sorted({*loop.first, *ended})
    each = list(dict.fromkeys(r for row in loop.reads for r in row if r.kind == "each"))
    fixed = {r: results.read(r.operands[0]) for row in loop.reads for r in row if r.kind == "fixed"}
    alike = _alike(list(zip(loop.groups[0], loop.reads, strict=True)), together)

    def body(carry: Sequence[jax.Array], rows: tuple[jax.Array, ...], emit: Emit = emit) -> tuple[Any, Any]:
        before, given = dict(zip(carried, carry, strict=True)), dict(zip(each, rows, strict=True))
        made: dict[int, jax.Array] = {}
        find = {
            "here": lambda r: made[r.at],
            "before": lambda r: before[r.at],
            "fixed": fixed.__getitem__,
            "each": given.__getitem__,
        }
        for j, reads in enumerate(loop.reads):
            if j not in made:
                values = emit([loop.groups[0][k] for k in alike[j]], [find[r.kind](r) for r in reads])
                made.update(zip(alike[j], values, strict=True))
        return tuple(made[j] for j in carried), tuple(made[j] for j in stacked)

    xs = tuple(results.together(r.operands) for r in each)
    start = tuple(_start(loop, j, results, body, carried, xs) for j in carried)
    end: Sequence[jax.Array]
    stacks: Sequence[jax.Array] = ()
    if emit_open is not None and not stacked and fits(start) and all(map(is_light, loop.groups[0])):
        one_pass = lambda both, rows: (packed(body(unpacked(both), rows, emit_open)[0]), None)
        end = unpacked(lax.scan(one_pass, packed(start), xs, length=len(loop.groups))[0])
    else:
        end, stacks = lax.scan(body, start, xs, length=len(loop.groups))
    for j, stack in zip(stacked, stacks, strict=True):
        results.stacks[number, j] = stack
        for g, group in enumerate(loop.groups):
            results.rows[group[j]] = ((number, j), g)
    for j, value in zip(carried, end, strict=True):
        results.values.setdefault(loop.groups[last][j], value)


def _start(
    loop: Loop, j: int, results: Results, body: Any, carried: Sequence[int], xs: tuple[jax.Array, ...]
) -> jax.Array:
    """What a carried position holds before the loop: what the first group reads, or nothing that is read."""
    if j in loop.first:
        return results[loop.first[j]]
    known = [results[loop.first[k]] for k in loop.first]
    dtype = jnp.result_type(*known) if known else jnp.result_type(*xs, float)
    return jnp.zeros(loop.groups[0][j].shape, dtype)  # type: ignore[attr-defined]
