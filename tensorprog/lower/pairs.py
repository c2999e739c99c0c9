"""A kernel graph as functions: one of one input for what belongs to it alone, one of a pair for the rest.

Nothing here knows a batch axis: `jax.vmap` over both arguments turns the first layer's inner products into one
matrix product and keeps every self quantity at N, not N^2.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.ir import Input
from tensorprog.kernel import KernelGraph
from tensorprog.kernel.graph import Normals, quantities
from tensorprog.kernel.joint import Block, BlockGraph
from tensorprog.lower.coinciding import differentiable, with_value
from tensorprog.lower.emit import SHIFT, Context, emit_open, emit_together, is_cross, real_dtype
from tensorprog.lower.fingerprint import fingerprint
from tensorprog.lower.population import AllNormals
from tensorprog.lower.run import Outside, plan, run
from tensorprog.lower.schedule import operands_of, schedule
from tensorprog.lower.sharpness import Sharpness
from tensorprog.lower.strained import Strained, parameters_of, variances_of

__all__ = ["Lowered", "lower", "lower_blocks"]

State = tuple[Any, ...]


@dataclass(frozen=True)
class Lowered:
    """Blocks as functions without batch axes.

    state: (inputs, hypers, live, differentiated) -> what one input contributes. pair: (state, state, live, differentiated) -> the blocks.
    live, differentiated: see `emit.Context`. diagonal: state -> the blocks of an input with itself. strained: a
    check of the states of many inputs, and so is sharp. means: state -> the means.
    """

    state: Callable[..., State]
    pair: Callable[..., tuple[jax.Array, ...]]
    diagonal: Callable[[State], tuple[jax.Array, ...]]
    strained: Strained | None
    means: Callable[[State], tuple[jax.Array, ...]]
    sharp: Sharpness | None = None

    @property
    def guarded(self) -> Lowered:
        """The same, with NaN where variances are beyond what quadrature follows."""
        if self.strained is None:
            return self
        beyond = self.strained.beyond

        def marked(bad: jax.Array, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            return tuple(jnp.where(bad, jnp.nan, block) for block in found)

        return replace(
            self,
            pair=lambda a, b, *more: marked(beyond(a) | beyond(b), self.pair(a, b, *more)),
            diagonal=lambda a: marked(beyond(a, own=True), self.diagonal(a)),
            means=lambda a: marked(beyond(a, own=True), self.means(a)),
        )


def lower(graph: KernelGraph, inputs: tuple[Input, ...], off: Collection[str] = ()) -> Lowered:
    """The functions of a kernel graph, whose two blocks are nngp and ntk. off: optimisations that are switched off."""
    axes = len(graph.mirrored) + 2 * len(graph.shape)
    first = tuple(0 if axis in graph.mirrored else slice(None) for axis in range(axes))  # of identical copies
    shape, right = (*graph.shape, *graph.shape), len(graph.shape)
    blocks = (
        Block(graph.nngp, graph.nngp_self, first, shape, right),
        Block(graph.ntk, graph.ntk_self, first, shape, right),
    )
    return lower_blocks(BlockGraph(blocks, (), graph.noise), inputs, off)


def lower_blocks(graph: BlockGraph, inputs: tuple[Input, ...], off: Collection[str] = ()) -> Lowered:
    """The functions of a graph of blocks."""
    roll, together = "loops" not in off, "together" not in off
    pair_ends = list(dict.fromkeys(b.cross for b in graph.blocks if is_cross(b.cross)))
    pair_steps = schedule(pair_ends, True, roll=roll)
    used = {o.quantity for q in quantities(pair_ends) for o in operands_of(q) if o.side is not None}
    every = [*(q for b in graph.blocks for q in (b.cross, b.own)), *graph.means]
    ends = dict.fromkeys(q for q in every if not is_cross(q))
    looked_at = variances_of(quantities([*pair_ends, *ends]))
    used |= {v for q, own in looked_at for v in (*own, *(parameters_of(q) if q.expectation.by_parameters else ()))}
    kept = [q for q in quantities([*ends, *(q for q in graph.nodes if q in used)]) if q in used or q in ends]
    state_steps = schedule(kept, False, roll=roll)
    slots = plan(state_steps, kept)
    codes: dict[Any, Callable[..., Any]] = {}
    exact = differentiable(pair_ends)

    def state(
        leaves: Sequence[jax.Array],
        hypers: dict[str, jax.Array],
        live: jax.Array | None = None,
        differentiated: bool = True,
    ) -> State:
        dtype = real_dtype(leaves)
        shift = hypers[SHIFT].astype(jnp.int32) if SHIFT in hypers else None
        normals = AllNormals((q for q in quantities(kept) if isinstance(q, Normals)), dtype, shift)
        context = Context(
            dict(zip(inputs, leaves, strict=True)),
            hypers,
            dtype,
            shift,
            normals,
            live,
            None,
            off,
            codes,
            differentiated,
        )
        env = run(state_steps, lambda found, args: emit_together(found, args, context), kept, together=together)
        # the dtype is remembered in an array of it: a state may hold nothing else
        return (fingerprint(leaves), *env.entries(slots), jnp.zeros((), dtype), *([] if shift is None else [shift]))

    def read(a: State) -> tuple[jnp.dtype, jax.Array | None]:
        """The dtype, and the random shift."""
        last = 1 + len(slots.order)
        return a[last].dtype, a[last + 1] if len(a) > last + 1 else None

    def pair(a: State, b: State, live: jax.Array | None = None, differentiated: bool = True) -> tuple[jax.Array, ...]:
        dtype, shift = read(a)
        normals = AllNormals((q for q in pair_steps if isinstance(q, Normals)), dtype, shift)
        same = functools.reduce(operator.and_, (one == other for one, other in zip(a[0], b[0], strict=True)))
        moves = exact and differentiated
        met = same if moves and not graph.noise else None
        context = Context({}, {}, dtype, shift, normals, live, met, off, codes, differentiated)
        step = lambda found, args: emit_together(found, args, context)
        openly = None if live is None or "packing" in off else lambda found, args: emit_open(found, args, context)
        env = run(pair_steps, step, pair_ends, outside=Outside(slots, (a, b)), together=together, emit_open=openly)
        found = []
        for block in graph.blocks:
            value = env[block.cross] if is_cross(block.cross) else slots.read(a, block.cross)
            if not graph.noise:
                own = (slots.read(a, block.own) + slots.read(b, block.own)) / 2
                value = with_value(same, own, value) if moves else jnp.where(same, own, value)
            found.append(jnp.broadcast_to(value[block.first], block.shape).astype(dtype))
        return tuple(found)

    def diagonal(a: State) -> tuple[jax.Array, ...]:
        return tuple(slots.read(a, b.own)[b.first].astype(read(a)[0]) for b in graph.blocks)

    def means(a: State) -> tuple[jax.Array, ...]:
        return tuple(slots.read(a, q).astype(read(a)[0]) for q in graph.means)

    strained = Strained(looked_at, slots) if looked_at else None
    return Lowered(state, pair, diagonal, strained, means, Sharpness(quantities(pair_ends), slots) or None)
