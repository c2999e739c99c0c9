"""Networks with several outputs, of every kind: their kernels and those between them, and the part of each parameter.

Readouts of one network, or of several that share weights, are jointly Gaussian in the limit: Cov(f_a(x), f_b(x')) is asked of
the same rules as the kernel of one output (Yang, Tensor Programs I, corollary 5.5, for several output vectors). The neural tangent
kernel between two outputs is that of their two tangent programs. Primed weights of different parameters are independent, so that
the kernel is a sum over parameters of the covariances of the tangent programs in which one parameter moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from ntk_rules.sampling import SHIFTS
from tensorprog.errors import UnsupportedError, explain
from tensorprog.frontend.outputs import Output
from tensorprog.ir import Hyper, Input, Node, Program, Weight, topological
from tensorprog.kernel.joint import Gradients, NoBlock, Pair, Side, derive_blocks, same_copies
from tensorprog.lower import SHIFT, lower_blocks
from tensorprog.passes.adjoint import Adjoint
from tensorprog.passes.conditions import check_uses
from tensorprog.passes.dots import expose
from tensorprog.passes.fuse import fuse
from tensorprog.passes.methods import Method, choose, is_average, moved_by, prepared
from tensorprog.runtime.blocks import Blocks
from tensorprog.runtime.call import KernelFunction
from tensorprog.runtime.inputs import check_hypers, check_inputs
from tensorprog.runtime.kernel import KernelResult, check_get, float_dtype

__all__ = ["JointKernel", "Part", "of_program", "outputs_joined", "parts_of_parameters"]


@dataclass(frozen=True)
class Part:
    """One output of a network.

    label: its place in what the network returns. kind: "gaussian", "hidden" or "average". shape: the axes that its kernels have.
    method: the way to its neural tangent kernel, "tangent" or "adjoint"; method_reason: why (see `tp.compile`).
    ntk_power: the power of n by which its neural tangent kernel is multiplied (1 for an average). program: its tensor program;
    traced: the same as it was traced, before limits are put in the place of averages.
    """

    label: str
    kind: str
    shape: tuple[int, ...]
    program: Program
    traced: Program
    copies: tuple[int, ...] = ()
    method: str = "tangent"
    method_reason: str = ""

    @property
    def ntk_power(self) -> int:
        return 1 if self.kind == "average" else 0

    @property
    def side(self) -> Side:
        return Side(_exposed(self.program), self.copies, self.kind == "gaussian")

    def __repr__(self) -> str:
        return f"<{self.kind} output {self.label!r} of shape {self.shape}>"


def outputs_joined(inputs: tuple[Input, ...], outputs: Sequence[Output], method: str = "auto") -> list[Part]:
    """The outputs with their programs, checked together. method: as for `tp.joint`."""
    traced = [Program(inputs, output.node, output.mirrored) for output in outputs]
    programs = [fuse(program) for program in traced]
    check_uses(dict.fromkeys(node for program in programs for node in program))
    gaussian = [i for i, output in enumerate(outputs) if output.kind == "gaussian"]
    copies = dict(
        zip(gaussian, same_copies([(programs[i].output, programs[i].mirrored) for i in gaussian]), strict=True)
    )
    parts = []
    for i, (output, raw, program) in enumerate(zip(outputs, traced, programs, strict=True)):
        side = Side(program.output, copies.get(i, ()), output.kind == "gaussian")
        if output.kind == "hidden":
            chosen = Method("tangent", "a neuron is one of many that have no part in each other's gradients")
        else:
            raw = prepared(raw)
            chosen = choose(raw, method)
        made = Part(output.label, output.kind, side.shape, program, raw, side.copies, chosen.name, chosen.reason)
        parts.append(made)
    return parts


def _exposed(program: Program) -> Node:
    """The output that covariances are asked of: fused, with every Zdot written out."""
    return expose(fuse(program, drop_zeros=True)).program.output


# ------------------------------------------------------------------------------------------ tangents


def _moved(part: Part, method: str, only: str | None) -> Side | Adjoint | None:
    """The tangent of an output, of which `only` one parameter moves, or its gradients; None where nothing moves it."""
    program = part.traced if part.kind == "average" else part.program
    found = moved_by(program, method, only, part.copies)
    if found is None:
        return None
    moved = found.exposed
    return moved if isinstance(moved, Adjoint) else Side(moved.output, part.copies, part.kind == "gaussian")


def _tangent_pair(a: Part, b: Part, only: str | None, known: dict[tuple[Part, str, str | None], Any]) -> Pair:
    """The two sides of a tangent kernel between outputs; none where it is zero in the limit."""
    if {a.kind, b.kind} == {"average", "gaussian"}:
        _check_apart(*((a, b) if a.kind == "average" else (b, a)))
    if a.kind != b.kind:
        return NoBlock(a.shape, b.shape)
    method = "adjoint" if "adjoint" in (a.method, b.method) else "tangent"
    which = None if method == "adjoint" else only
    for part in (a, b):
        if (part, method, which) not in known:
            known[part, method, which] = _moved(part, method, which)
    u, v = known[a, method, which], known[b, method, which]
    if u is None or v is None:
        return NoBlock(a.shape, b.shape)
    return Gradients(u, v, only) if method == "adjoint" else (u, v)


def _check_apart(average: Part, readout: Part) -> None:
    """The kernel between an average and a readout is zero where the readout's weights have no part in the average."""
    surface = {w.name for w in readout.program.weights if w.tangent_std and _at_surface(w, readout.program.output)}
    shared = sorted(surface & {w.name for w in average.traced.weights})
    if shared:
        raise UnsupportedError(
            explain(
                f"the outputs {average.label!r} and {readout.label!r} share the readout weight {shared[0]!r}",
                reason="one divides by n and one by sqrt(n), and the tangent kernel between them, times sqrt(n), is not that of their "
                "tangent programs",
                mend="compile them one by one",
            )
        )


def _at_surface(weight: Weight, output: Node) -> bool:
    return any(
        node is weight
        for node in topological([output], skip=lambda n: n.type.width is not None and not isinstance(n, Weight))
    )


def parts_of_parameters(parts: Sequence[Part]) -> list[str]:
    """The names of the trained parameters, in the order in which the programs use them."""
    return list(dict.fromkeys(w.name for part in parts for w in part.traced.weights if w.tangent_std))


# ------------------------------------------------------------------------------------------ kernels


class JointKernel(KernelFunction):
    """The kernels of all outputs of a network and between them, compiled.

    outputs: what the network returns, as `Part`s: label, kind, shape, program. See `tp.joint`.
    """

    def __init__(
        self, inputs: tuple[Input, ...], parts: Sequence[Part], tree: Any, out_tree: Any, tolerance: float | None
    ):
        nodes = dict.fromkeys(node for part in parts for node in (*part.traced, *part.program))
        hypers = {node.name: node.default for node in nodes if isinstance(node, Hyper)}
        nonnegative = frozenset(node.name for node in nodes if isinstance(node, Hyper) and node.nonnegative)
        noise = any(isinstance(node, Weight) and node.per_input for node in nodes)
        super().__init__(inputs, tree, hypers, nonnegative, noise)
        self.outputs, self._out_tree, self._tolerance = tuple(parts), out_tree, tolerance
        self._made: dict[tuple[str, ...], Blocks] = {}
        self._moved: dict[tuple[Part, str, str | None], Any] = {}

    def __call__(
        self, x1: Any, x2: Any = None, *, get: str | Sequence[str] | None = None, progress: bool = False, **hypers: Any
    ) -> Any:
        """The kernel matrices of all outputs between two sets of inputs.

        x1, x2, get, hypers: as for `tp.Kernel`; progress shows nothing here. For outputs in a dict,
        `nngp["a"]["b"]` has E[a(x1) b(x2)], of shape (N1, N2, *A, *B) with A and B the shapes of `outputs`: a tree, as the network
        returns it, of trees. Features of readouts that are independent copies are given once. In float32 the tangent kernels of nearly
        equal inputs keep half their digits where nonlinearities have kinks (`tp.compile` computes such pairs in float64).

        Raises InputError for bad inputs, UnsupportedError for a tangent kernel that neither program gives (get="nngp" leaves it
        out).
        """
        names = check_get(get)
        leaves1, leaves2, values = self._checked(x1, x2, hypers)
        found = self._blocks(names)(leaves1, leaves2, values)
        count = len(self.outputs) ** 2
        trees = [self._nested(found[k * count : (k + 1) * count]) for k in range(len(names))]
        if get is None:
            return KernelResult(*trees)
        return trees[0] if isinstance(get, str) else tuple(trees)

    def diag(self, x: Any, **hypers: Any) -> KernelResult:
        """The kernels of each input with itself, of shape (N, *A, *B)."""
        leaves, _, values = self._checked(x, None, hypers)
        found = self._blocks(("nngp", "ntk")).diagonal(leaves, values)
        count = len(self.outputs) ** 2
        return KernelResult(self._nested(found[:count]), self._nested(found[count:]))

    def mean(self, x: Any, **hypers: Any) -> Any:
        """The expectation of every output, a tree of arrays (N, *A): zero for readouts, E[h] of a neuron of a hidden layer, and
        what an average over the width converges to."""
        leaves, _, values = self._checked(x, None, hypers)
        found = self._mean_blocks.means(leaves, values)
        return jax.tree.unflatten(self._out_tree, [_once(m, p) for m, p in zip(found, self.outputs, strict=True)])

    def by_parameter(self, x1: Any, x2: Any = None, **hypers: Any) -> dict[str, Any]:
        """The tangent kernels' parts of every trained parameter, by its name; they add up to `ntk`."""
        leaves1, leaves2, values = self._checked(x1, x2, hypers)
        names, count = parts_of_parameters(self.outputs), len(self.outputs) ** 2
        found = self._blocks(("parameters",))(leaves1, leaves2, values)
        return {name: self._nested(found[k * count : (k + 1) * count]) for k, name in enumerate(names)}

    def standard_error(self, x1: Any, x2: Any = None, *, get: str | Sequence[str] | None = None, **hypers: Any) -> Any:
        """The standard errors that sampling leaves in what a call returns; zeros where nothing is sampled."""
        shifted = copy(self)
        found = []
        for k in range(SHIFTS):
            shifted._more_hypers = {SHIFT: jnp.asarray(k)}
            found.append(shifted(x1, x2, get=get, **hypers))
        return jax.tree.map(lambda *values: jnp.std(jnp.stack(values), axis=0, ddof=1) / SHIFTS**0.5, *found)

    def _checked(self, x1: Any, x2: Any, hypers: dict[str, Any]) -> tuple[Any, Any, Any]:
        leaves1 = check_inputs(x1, "x1", self._inputs, self._tree)
        leaves2 = None if x2 is None else check_inputs(x2, "x2", self._inputs, self._tree)
        if leaves2 is not None:
            kinds = [jnp.result_type(a, b) for a, b in zip(leaves1, leaves2, strict=True)]
            leaves1, leaves2 = ([a.astype(k) for a, k in zip(x, kinds, strict=True)] for x in (leaves1, leaves2))
        values = check_hypers(hypers, self._hypers, self._nonnegative, float_dtype(leaves1)) | self._more_hypers
        return leaves1, leaves2, values

    def _nested(self, found: Sequence[Any]) -> Any:
        n = len(self.outputs)
        rows = [jax.tree.unflatten(self._out_tree, found[i * n : (i + 1) * n]) for i in range(n)]
        return jax.tree.unflatten(self._out_tree, rows)

    def _blocks(self, names: tuple[str, ...]) -> Blocks:
        if names not in self._made:
            pairs = [pair for name in names for pair in self._asked(name)]
            self._made[names] = self._compiled(pairs, [])
        return self._made[names]

    def _asked(self, name: str) -> list[Pair]:
        """The pairs of sides that a kernel has."""
        parts = self.outputs
        if name == "nngp":
            sides = [part.side for part in parts]
            return [(u, v) for u in sides for v in sides]
        chosen = [None] if name == "ntk" else parts_of_parameters(parts)
        return [_tangent_pair(a, b, only, self._moved) for only in chosen for a in parts for b in parts]

    @cached_property
    def _mean_blocks(self) -> Blocks:
        return self._compiled([], [part.side.node for part in self.outputs])

    def _compiled(self, pairs: Sequence[Pair], means: Sequence[Node]) -> Blocks:
        graph = derive_blocks(pairs, means, self._noise, self._tolerance)
        n = len(self.outputs)
        at = range(len(pairs))
        partners = [k - k % n**2 + (k % n) * n + k % n**2 // n for k in at]
        return Blocks(graph, lower_blocks(graph, self._inputs), partners)

    def __repr__(self) -> str:
        return f"<JointKernel of {', '.join(map(repr, self.outputs))}>"


def _once(mean: jax.Array, part: Part) -> jax.Array:
    """The means of an output, those of identical copies once."""
    sizes = part.program.output.type.shape
    whole = mean.reshape(mean.shape[0], *sizes)
    first = tuple(0 if i in part.copies or n == 1 else slice(None) for i, n in enumerate(sizes))
    return whole[(slice(None), *first)]


def of_program(program: Program, method: str) -> Part:
    """The one output of a compiled kernel, and the way to its tangent kernel."""
    side = Side(program.output, program.mirrored, True)
    copies = tuple(i for i in program.mirrored if program.output.type.shape[i] > 1)
    kind = "average" if is_average(program) else "gaussian"
    return Part("output", kind, replace(side, copies=copies).shape, program, program, copies, method)
