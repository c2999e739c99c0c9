"""The map that a kernel's layers are, for an input with itself and for a pair of inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import jax
import numpy as np

import tensorprog as tp
from tensorprog.apps.alike import Vertex, follows
from tensorprog.apps.recursion import Recursion, recursion
from tensorprog.apps.unrolled import Unrolled
from tensorprog.ir import Const, Program
from tensorprog.kernel import KernelGraph
from tensorprog.kernel.graph import Data, Normals
from tensorprog.kernel.questions import Second
from tensorprog.passes.structure import Structure

__all__ = ["NoMap", "Runs"]


class NoMap(Exception):
    """No step of a kernel's graph repeats."""


class Runs:
    """The recursions of a kernel, of an input with itself and of a pair, and which entries of their states are tangent kernels."""

    def __init__(self, kernel: tp.Kernel):
        graph = kernel.graph
        pair = recursion([(graph.nngp, None), (graph.ntk, None)], _goes_on)
        own = recursion([(graph.nngp_self, 0), (graph.ntk_self, 0)], _goes_on)
        if pair is None or own is None:
            raise NoMap
        self.graph, self.blocks = graph, min(pair.blocks, own.blocks)
        self.grows = any(_remembers(column) for found in (pair, own) for column in zip(*found.given, strict=True))
        self.sampled = any(isinstance(q, Normals) for q in graph.nodes)
        moved = kernel._moved.exposed if kernel._moved is not None else None
        facts = Structure([kernel.exposed_program.output, *([moved.output] if isinstance(moved, Program) else [])])
        made = lambda found: Unrolled(found, kernel.program.inputs, _are_tangent(found, graph, facts))
        self.pair, self.own = made(pair), made(own)

    def shaped(self, roots: list[jax.Array]) -> list[np.ndarray]:
        """NNGP and NTK with the output's axes twice."""
        shape = self.graph.shape
        axes = len(self.graph.mirrored) + 2 * len(shape)
        first = tuple(0 if axis in self.graph.mirrored else slice(None) for axis in range(axes))
        return [np.broadcast_to(np.asarray(value)[first], (*shape, *shape)) for value in roots]

    def diagonal(self, nngp: jax.Array) -> np.ndarray:
        """Of each entry of the output with itself."""
        value, shape = self.shaped([nngp])[0], self.graph.shape
        return np.diagonal(value.reshape(math.prod(shape), -1)).reshape(shape)


def _are_tangent(found: Recursion, graph: KernelGraph, facts: Structure) -> list[bool]:
    """Which entries of the state are tangent kernels: those that the NNGP does not depend on, and that answer questions about variables
    which move with the parameters. (A layer's own share of its tangent kernel may be the same quantity as its covariance.)"""
    kernels = found.needed(0)
    return [k not in kernels and _moves(entry, graph, facts) for k, entry in enumerate(found.entries)]


def _moves(entry: Vertex, graph: KernelGraph, facts: Structure) -> bool:
    asked = [q for q in graph.answers.get(entry[0], ()) if isinstance(q, Second)]
    odd = [facts[node].odd for q in asked for node in (q.u, q.v) if node.type.kind == "vector"]
    return not odd or any(odd)


def _remembers(column: Sequence[Vertex]) -> bool:
    """Is this, of every block, where it writes into a memory that grows from block to block?"""
    made = [v[0].node for v in column if isinstance(v[0], Data) and isinstance(v[0].node, Const)]
    return len(made) == len(column) and len(set(made)) > 1 and np.dtype(made[0].value.dtype).kind == "i"


def _goes_on(found: Recursion) -> bool:
    """Is it known what one more block would read? What the last two read alike, what reads the inputs (they stay as they are), random numbers,
    a place in a memory; no number that changes from block to block, as a rate of dropout or a hyperparameter of each layer's own."""
    rows = found.given
    for i, column in enumerate(zip(*rows, strict=True)):
        if column[-1] == column[-2] or _remembers(column) or any(isinstance(q, Normals) for q, _ in column):
            continue
        if any(all(after[i] == before[j] for before, after in pairwise(rows)) for j in range(len(rows[0])) if j != i):
            continue
        if not follows(column[-1], column[-2]):
            return False
    return True
