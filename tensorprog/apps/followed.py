"""The kernels of a network at every depth, for layers without a map: one graph for all depths, computed quantity by quantity.

Where one weight stands in all blocks of a residual network, each block's kernels depend on all blocks before, so that the graph of L
blocks has of the order of L^2 quantities. XLA takes minutes to compile as much code in one piece. But it is the same few operations over and
over: each kind is compiled once, for all depths, and every quantity is then a call of some microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from tensorprog.apps.alike import Vertex, kind_of, operands_at
from tensorprog.apps.recursion import vertices
from tensorprog.ir import Program
from tensorprog.kernel.graph import Data, Normals, Zero
from tensorprog.kernel.joint import Block, BlockGraph, Gradients, Pair, Side, derive_blocks
from tensorprog.lower.emit import Context, emit, real_dtype
from tensorprog.lower.population import AllNormals
from tensorprog.passes.adjoint import Adjoint
from tensorprog.passes.dots import expose
from tensorprog.passes.fuse import fuse
from tensorprog.passes.methods import choose, moved_by, output_program

__all__ = ["Followed"]

Arrays = list[jax.Array]


class Followed:
    """The kernels of several programs over the same inputs, which share what they compute.

    programs: prepared ones. method: as for `tp.compile`. tolerance, apart: as for `tensorprog.kernel.derive`.
    """

    def __init__(self, programs: Sequence[Program], method: str, tolerance: float | None, apart: bool = True):
        self._inputs = programs[0].inputs
        kernels, tangents = zip(*(_sides(program, method) for program in programs), strict=True)
        noise = any(weight.per_input for weight in programs[-1].weights)
        moved = [pair for pair in tangents if pair is not None]
        self._graph: BlockGraph = derive_blocks([*kernels, *moved], [], noise, tolerance, apart)
        rest = iter(self._graph.blocks[len(kernels) :])
        self._blocks = [
            (nngp, None if pair is None else next(rest))
            for nngp, pair in zip(self._graph.blocks, tangents, strict=False)
        ]
        self._made: dict[Any, Any] = {}

    def __len__(self) -> int:
        """How many quantities there are."""
        return len(self._graph.nodes)

    @property
    def depth(self) -> int:
        """How many programs there are."""
        return len(self._blocks)

    @cached_property
    def sampled(self) -> bool:
        """Is the state a population of neurons?"""
        return any(isinstance(q, Normals) for q in self._graph.nodes)

    def kernels(self, leaves1: Arrays, leaves2: Arrays | None, hypers: Any) -> list[tuple[np.ndarray, np.ndarray]]:
        """NNGP and NTK of each program, with the output's axes twice: of two inputs, or without the second of the first with itself."""
        side = 0 if leaves2 is None else None
        place = lambda block: ((block.own if leaves2 is None else block.cross), side)
        roots = [place(block) for pair in self._blocks for block in pair if block is not None]
        values = self._values(roots, leaves1, leaves1 if leaves2 is None else leaves2, hypers)
        whole = lambda block: _shaped(values[place(block)], block)
        found = []
        for nngp, ntk in self._blocks:
            first = whole(nngp)
            found.append((first, np.zeros_like(first) if ntk is None else whole(ntk)))
        return found

    def _values(self, roots: Sequence[Vertex], leaves1: Arrays, leaves2: Arrays, hypers: Any) -> dict[Vertex, Any]:
        """What the roots come to. Whatever nothing reads any more is given up at once."""
        order, dtype = vertices(roots), real_dtype(leaves1)
        normals = AllNormals([q for q, _ in order if isinstance(q, Normals)], dtype, None)
        sides: dict[int | None, Any] = {None: {}}
        for side, leaves in ((0, leaves1), (1, leaves2)):
            sides[side] = dict(zip(self._inputs, leaves, strict=True))
        contexts = {side: Context(own, hypers, dtype, None, normals) for side, own in sides.items()}
        last = {o: i for i, v in enumerate(order) for o in operands_at(v)}
        kept, values = set(roots), dict[Vertex, Any]()
        for i, vertex in enumerate(order):
            read = operands_at(vertex)
            values[vertex] = self._emitted(vertex, [values[o] for o in read], contexts[vertex[1]])
            for operand in read:
                if last[operand] == i and operand not in kept:
                    values.pop(operand, None)
        return values

    def _emitted(self, vertex: Vertex, args: Arrays, context: Context) -> Any:
        """One quantity, by the code of its kind."""
        quantity = vertex[0]
        if isinstance(quantity, (Data, Normals, Zero)):  # which read inputs, hyperparameters and random numbers
            return emit(quantity, args, context)
        key = kind_of((quantity, None)), context.dtype
        if key not in self._made:
            plain = Context({}, {}, context.dtype, None, AllNormals((), context.dtype, None))
            self._made[key] = jax.jit(lambda args: emit(quantity, args, plain))
        return self._made[key](args)


def _sides(program: Program, method: str) -> tuple[Pair, Pair | None]:
    """What the NNGP of a program and its NTK are asked of, as by `tensorprog.kernel.derive`; no NTK where nothing is trained."""
    name = choose(program, method).name
    copies = tuple(i for i in program.mirrored if program.output.type.shape[i] > 1)
    output = expose(fuse(output_program(program), drop_zeros=True)).program.output
    own, moved = Side(output, copies, False), moved_by(program, name)
    if moved is None:
        return (own, own), None
    if isinstance(moved.exposed, Adjoint):
        return (own, own), Gradients(moved.exposed, moved.exposed)
    side = Side(moved.exposed.output, copies, False)
    return (own, own), (side, side)


def _shaped(value: Any, block: Block) -> np.ndarray:
    return np.broadcast_to(np.asarray(value)[block.first], block.shape)
