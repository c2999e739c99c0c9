"""A recursion of a kernel graph, run: the state before the first block, one block, and the kernel after the last."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tensorprog.apps.alike import operands_at
from tensorprog.apps.recursion import Places, Recursion, vertices
from tensorprog.errors import InputError, explain
from tensorprog.ir import Const, Input, Node
from tensorprog.kernel.graph import Data, Normals
from tensorprog.lower.emit import Context, emit, real_dtype
from tensorprog.lower.population import AllNormals, further_normals

__all__ = ["Unrolled"]

FRESH = 2**20  # random numbers beyond those of the network: streams from here on

Arrays = list[jax.Array]


class Unrolled:
    """The functions of a recursion, for one pair of inputs.

    begin(leaves1, leaves2, hypers): (the state before the first block, what the blocks read besides). advance(state, known, k): the state
    after the k-th block, and what `end` reads. end(known, last): the roots. tangent: which entries of the state are tangent kernels.
    """

    def __init__(self, found: Recursion, inputs: Sequence[Input], tangent: Sequence[bool]):
        self.found, self.tangent, self._inputs = found, tuple(tangent), inputs
        self._first = vertices([*found.starts, *found.fixed, *(v for row in found.given for v in row)])
        rows = found.given
        slots = range(len(rows[0]))  # of each, the one that the block before read the same in
        same = lambda i, j: all(after[i] == before[j] for before, after in pairwise(rows))
        self._lags = [next((j for j in slots if j != i and same(i, j)), None) for i in slots]
        self._varies = [len({row[i] for row in rows}) > 1 for i in slots]
        self._emit_first = jax.jit(self._begin)
        self._step = jax.jit(self._one_step)
        self._finish = jax.jit(self._end)
        self._many_steps = jax.jit(self._repeated)

    def _contexts(
        self, dtype: Any, both: Any = None, hypers: Any = None, normals: Any = ()
    ) -> dict[int | None, Context]:
        """What emitting reads, of either input and of the pair."""
        drawn = AllNormals(normals, dtype, None)
        leaves: list[dict[Node, Any]] = [dict(zip(self._inputs, x, strict=True)) for x in both] if both else [{}, {}]
        made: dict[int | None, Context] = {
            side: Context(leaves[side], hypers or {}, dtype, None, drawn) for side in (0, 1)
        }
        made[None] = Context({}, hypers or {}, dtype, None, drawn)
        return made

    def begin(self, leaves1: Arrays, leaves2: Arrays, hypers: dict[str, jax.Array]) -> tuple[Arrays, Any]:
        """The state before the first block, and what blocks read besides."""
        state, fixed, rows = self._emit_first(leaves1, leaves2, hypers)
        return state, (fixed, list(rows))

    def _begin(self, leaves1: Arrays, leaves2: Arrays, hypers: dict[str, jax.Array]) -> tuple[Any, Any, Any]:
        dtype = real_dtype(leaves1)
        normals = [q for q, _ in self._first if isinstance(q, Normals)]
        contexts = self._contexts(dtype, (leaves1, leaves2), hypers, dict.fromkeys(normals))
        made: dict[Any, jax.Array] = {}
        for v in self._first:
            made[v] = emit(v[0], [made[o] for o in operands_at(v)], contexts[v[1]])
        f = self.found
        return [made[v] for v in f.starts], [made[v] for v in f.fixed], [[made[v] for v in row] for row in f.given]

    def advance(self, state: Arrays, known: Any, k: int) -> tuple[Arrays, Any]:
        """The state after the k-th block, from 0 on. Past the last block of the network, what a block reads of the inputs is what the
        last one read, and random numbers are other ones."""
        fixed, rows = known
        while len(rows) <= k:
            rows.append(self._further(rows))
        return self._step(state, fixed, rows[k])

    def _further(self, rows: list[Arrays]) -> Arrays:
        """What one more block reads besides the state. What it reads of the block before, it reads again."""
        last = [quantity for quantity, _ in self.found.given[-1]]
        made = []
        for i, quantity in enumerate(last):
            lag = self._lags[i]
            if lag is not None:
                made.append(rows[-1][lag])
            elif isinstance(quantity, Normals):  # one law's are read by both inputs, and by what moves
                stream = jnp.asarray(FRESH + len(rows) * len(last) + last.index(quantity))
                made.append(further_normals(stream, rows[-1][i].shape, rows[-1][i].dtype))
            elif isinstance(quantity, Data) and isinstance(quantity.node, Const) and self._varies[i]:
                raise InputError(
                    explain(
                        f"Layers: the kernels of more than {len(self.found.given)} blocks of this network",
                        reason="what its blocks remember grows from one to the next (a weight that all steps share, in a state "
                        "that gates carry on), so that no map takes one into the other",
                        mend="compile the network of more steps",
                    )
                )
            else:
                made.append(rows[-1][i])
        return made

    def _one_step(self, state: Arrays, fixed: Arrays, given: Arrays) -> tuple[Arrays, Any]:
        here = self._emitted(
            self.found.block, self.found.reads, {"state": state, "fixed": fixed, "given": given}, "here"
        )
        values = {"here": here, "state": state, "fixed": fixed}
        return [values[p.kind][p.at] for p in self.found.state], (here, state, given)

    def repeat(self, state: Arrays, known: Any, most: int, largest: float, tiny: float) -> tuple[Arrays, jax.Array]:
        """Up to so many times the last block, until nothing changes any more, or all is larger or (than it was) smaller by so much; tangent
        kernels are left out. With it the last change."""
        fixed, rows = known
        return self._many_steps(state, fixed, rows[-1], most, largest, tiny)

    def _repeated(
        self, state: Arrays, fixed: Arrays, given: Arrays, most: int, largest: float, tiny: float
    ) -> tuple[Arrays, jax.Array]:
        still = lambda arrays: [jnp.zeros_like(a) if t else a for a, t in zip(arrays, self.tangent, strict=True)]
        most_of = lambda arrays: jnp.max(jnp.stack([jnp.max(jnp.abs(a)) for a in arrays]))
        state = still(state)
        begun = most_of(state)

        def goes_on(carry: Any) -> jax.Array:
            k, now, gap = carry
            size = most_of(now)
            return (k < most) & (gap > 1e-13 * size) & (size < largest) & (size > tiny * begun)

        def step(carry: Any) -> Any:
            k, now, _ = carry
            after = still(self._one_step(now, fixed, given)[0])
            return k + 1, after, most_of([a - b for a, b in zip(after, now, strict=True)])

        _, state, gap = lax.while_loop(goes_on, step, (0, state, jnp.asarray(jnp.inf, begun.dtype)))
        return state, gap

    def end(self, known: Any, last: Any) -> Arrays:
        """The roots, after the block that left `last`."""
        return self._finish(known[0], last)

    def _end(self, fixed: Arrays, last: Any) -> Arrays:
        values = {"here": last[0], "state": last[1], "given": last[2], "fixed": fixed}
        values["end"] = self._emitted(self.found.ends, self.found.end_reads, values, "end")
        return [values[p.kind][p.at] for p in self.found.roots]

    def _emitted(self, order: Any, reads: tuple[Places, ...], values: dict[str, Arrays], kind: str) -> Arrays:
        arrays = [a for own in values.values() for a in own if jnp.issubdtype(a.dtype, jnp.floating)]
        contexts = self._contexts(arrays[0].dtype)
        made: Arrays = []
        for (quantity, side), places in zip(order, reads, strict=True):
            args = [made[p.at] if p.kind == kind else values[p.kind][p.at] for p in places]
            made.append(emit(quantity, args, contexts[side]))
        return made
