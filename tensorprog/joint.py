"""Networks with several outputs, of every kind: their kernels and those between them, and the part of each parameter.

Readouts of one network, or of several that share weights, are jointly Gaussian in the limit: Cov(f_a(x), f_b(x')) is asked of
the same rules as the kernel of one output (Yang, Tensor Programs I, corollary 5.5, for several output vectors). The neural tangent
kernel between two outputs is that of their two tangent programs. Primed weights of different parameters are independent, so that
the kernel is a sum over parameters of the covariances of the tangent programs in which one parameter moves.

A readout f = v.x / sqrt(n) and an average g = (1/n) sum_a psi_a have gradients of the norms 1 and 1/sqrt(n), so that sqrt(n) times
their product has a limit: with sqrt(n) df/dh and n dg/dh, as the adjoint programs have them, it is the same sum over weights and pairs of
uses (Tensor Programs II, theorem 2.1), for those gradients are vectors of one program, to which the master theorem applies. All
gradients of f are odd in v, which therefore vanishes unless g reads v.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from ntk_rules.collector import older_objects_aside
from ntk_rules.sampling import SHIFTS
from tensorprog.errors import UnsupportedError
from tensorprog.frontend.outputs import Output
from tensorprog.ir import Hyper, Input, MatMul, Node, Program, Weight, topological
from tensorprog.kernel.joint import BlockGraph, Gradients, NoBlock, Pair, Side, derive_blocks, same_copies
from tensorprog.kernel.report import Derivation, Shown, joint_derivation
from tensorprog.lower import SHIFT, lower_blocks
from tensorprog.passes.adjoint import Adjoint
from tensorprog.passes.conditions import check_layouts, check_uses
from tensorprog.passes.dots import Exposed, expose
from tensorprog.passes.fuse import fuse
from tensorprog.passes.methods import Method, Moved, choose, is_average, moved_by, prepared
from tensorprog.passes.scalars import check_scalars
from tensorprog.passes.tied import summands, symmetric_law, tied_readouts
from tensorprog.runtime.blocks import BlockFunctions, Blocks, block_functions, partners_of
from tensorprog.runtime.call import filled, rounded
from tensorprog.runtime.joint_call import JointFunction
from tensorprog.runtime.kernel import GET
from tensorprog.runtime.loaded_joint import save_joint
from tensorprog.runtime.optimisations import check_optimisations

__all__ = ["JointKernel", "Part", "of_program", "outputs_joined", "parts_of_parameters"]


@dataclass(frozen=True)
class Part:
    """One output of a network.

    label: its place in what the network returns. kind: "gaussian", "hidden" or "average". shape: the axes that its kernels have.
    method: the way to its neural tangent kernel, "tangent" or "adjoint"; method_reason: why (see `tp.compile`).
    ntk_power: the power of n by which its neural tangent kernel is multiplied (1 for an average). program: its tensor program;
    traced: the same as it was traced, before limits are put in the place of averages; raw: before any pass. tied: the weights of
    readouts that outputs read otherwise as well, where this one has a part in that (`tensorprog.passes.tied`).
    """

    label: str
    kind: str
    shape: tuple[int, ...]
    program: Program
    traced: Program
    copies: tuple[int, ...] = ()
    method: str = "tangent"
    method_reason: str = ""
    raw: Program | None = None
    tied: frozenset[str] = frozenset()

    @property
    def full_shape(self) -> tuple[int, ...]:
        """With axes of size one and of copies."""
        return self.program.output.type.shape

    @property
    def ntk_power(self) -> int:
        return 1 if self.kind == "average" else 0

    @property
    def side(self) -> Side:
        return Side(self.exposed.program.output, self.copies, self.kind == "gaussian")

    @property
    def exposed(self) -> Exposed:
        """What covariances are asked of: fused, with every Zdot written out."""
        return _exposed(summands(self.program) if self.tied else self.program)

    @property
    def surface(self) -> frozenset[str]:
        """The weights that a readout is made with."""
        return _surface(self.program)

    def __repr__(self) -> str:
        return f"<{self.kind} output {self.label!r} of shape {self.shape}>"


def outputs_joined(inputs: tuple[Input, ...], outputs: Sequence[Output], method: str = "auto") -> list[Part]:
    """The outputs with their programs, checked together. method: as for `tp.joint`."""
    traced = [Program(inputs, output.node, output.mirrored) for output in outputs]
    gaussian = [i for i, output in enumerate(outputs) if output.kind == "gaussian"]
    tied = _tied(traced, gaussian)
    traced = [replace(p, mirrored=()) if names else p for p, names in zip(traced, tied, strict=True)]
    programs = [fuse(program) for program in traced]
    copies = dict(
        zip(gaussian, same_copies([(programs[i].output, programs[i].mirrored) for i in gaussian]), strict=True)
    )
    parts = []
    for i, (output, first, program) in enumerate(zip(outputs, traced, programs, strict=True)):
        raw = first
        side = Side(program.output, copies.get(i, ()), output.kind == "gaussian")
        if output.kind == "hidden":
            check_scalars(raw)
            name, asked = ("adjoint", "asked for; ") if method == "adjoint" else ("tangent", "")
            chosen = Method(name, f"{asked}a neuron is one of many that have no part in each other's gradients")
        else:
            raw = prepared(raw)
            chosen = choose(raw, method)
        made = Part(
            output.label, output.kind, side.shape, raw if tied[i] else program, raw, side.copies, chosen.name, chosen.reason, first,
            tied[i],
        )  # fmt: skip
        parts.append(made)
    return parts


def _tied(traced: Sequence[Program], gaussian: Sequence[int]) -> list[frozenset[str]]:
    """The tied weights of each readout: none where all readouts together are as independent of what they read as one by itself.

    A readout that shares a weight with a tied one is asked of its summands too, so that their covariance is.
    """
    programs = {i: fuse(traced[i]) for i in gaussian}
    nodes = dict.fromkeys(node for program in programs.values() for node in program)
    check_layouts(dict.fromkeys(node for program in map(fuse, traced) for node in program))
    found = [frozenset[str]() for _ in traced]
    try:
        check_uses(nodes)
    except UnsupportedError:
        if not symmetric_law([program.output for program in programs.values()]):
            raise
        names = tied_readouts(nodes)
        surfaces = {i: _surface(program) for i, program in programs.items()}
        reached, grown = names, names
        while grown:
            more = frozenset().union(*(s for s in surfaces.values() if s & reached))
            reached, grown = reached | more, more - reached
        for i, surface in surfaces.items():
            if surface & reached:
                found[i] = names
    return found


@lru_cache(maxsize=256)
def _exposed(program: Program) -> Exposed:
    return expose(fuse(program, drop_zeros=True))


# ------------------------------------------------------------------------------------------ tangents


def _moved(key: Movement) -> Moved | None:
    """The tangent of an output, of which one parameter or all move, or its gradients; None where nothing moves it."""
    part, method, only, shared = key
    program = part.traced if part.kind == "average" else part.program
    if part.kind == "hidden" and method == "adjoint":
        program = prepared(_read_out(part.traced))
    return moved_by(program, method, only, part.copies, shared)


def _read_out(program: Program) -> Program:
    """A readout v.h / sqrt(n) of a hidden layer, v frozen and used for nothing else: its gradients' product is the mean over v of
    (1/n) sum_ab v_a v_b <dh_a, dh_b>, which is that of one neuron. All layers of a width have the same v."""
    layer = program.output
    (axis, width), letters = (layer.type.axis, layer.type.width), "abcdefghijklmnopqrstuvwxyz"[: len(layer.type.shape)]
    assert axis is not None and width is not None
    v = Weight(
        f"readout of a neuron of {width} n",
        (layer.type.shape[axis],),
        (width,),
        float(width) ** -0.5,
        0.0,
        ((Fraction(0), width),),
    )
    spec = f"{letters[axis]},{letters}->{letters.replace(letters[axis], '')}"
    return replace(program, output=MatMul(spec, v, layer))


def _side_of(part: Part, moved: Moved | None) -> Side | Adjoint | None:
    if moved is None:
        return None
    if isinstance(moved.exposed, Adjoint):
        return moved.exposed
    return Side(moved.exposed.output, part.copies, part.kind == "gaussian")


# Which movement of an output: of a part, by a method, with one parameter or all, beside one that reads these weights of the readout.
Movement = tuple[Part, str, str | None, tuple[str, ...]]
Movements = dict[Movement, Moved | None]


def _tangent_pair(a: Part, b: Part, only: str | None, known: Movements) -> Pair:
    """The two sides of a tangent kernel between outputs; none where it is zero in the limit."""
    shared: tuple[str, ...] = ()
    if {a.kind, b.kind} == {"average", "gaussian"}:
        shared = _readout_weights(*((b, a) if a.kind == "average" else (a, b)))
    if a.kind != b.kind and not shared:
        return NoBlock(a.shape, b.shape)
    method = "adjoint" if shared or (a.tied and b.tied) or "adjoint" in (a.method, b.method) else "tangent"
    sides = []
    for part in (a, b):
        known_too = tuple(sorted({*shared, *(part.surface & part.tied)})) if part.kind == "gaussian" else ()
        key = part, method, None if method == "adjoint" else only, known_too
        if key not in known:
            known[key] = _moved(key)
        sides.append(_side_of(part, known[key]))
    u, v = sides
    if u is None or v is None:
        return NoBlock(a.shape, b.shape)
    return Gradients(u, v, only) if isinstance(u, Adjoint) else (u, v)  # type: ignore[arg-type, return-value]


def _readout_weights(readout: Part, average: Part) -> tuple[str, ...]:
    """The weights of a readout that an average reads as well."""
    return tuple(sorted(readout.surface & {w.name for w in average.traced.weights}))


def _surface(program: Program) -> frozenset[str]:
    return frozenset(w.name for w in program.weights if _at_surface(w, program.output))


def _at_surface(weight: Weight, output: Node) -> bool:
    return any(
        node is weight
        for node in topological([output], skip=lambda n: n.type.width is not None and not isinstance(n, Weight))
    )


def parts_of_parameters(parts: Sequence[Part]) -> list[str]:
    """The names of the trained parameters, in the order in which the programs use them."""
    return list(dict.fromkeys(w.name for part in parts for w in part.traced.weights if w.tangent_std))


# ------------------------------------------------------------------------------------------ kernels


class JointKernel(JointFunction):
    """The kernels of all outputs of a network and between them, compiled.

    outputs: what the network returns, as `Part`s: label, kind, shape, program. See `tp.joint`.
    """

    def __init__(
        self, inputs: tuple[Input, ...], parts: Sequence[Part], tree: Any, out_tree: Any, tolerance: float | None,
        method: str = "auto",
    ):  # fmt: skip
        """method: what was asked for; every part has the one that it was given."""
        nodes = dict.fromkeys(node for part in parts for node in (*part.traced, *part.program))
        hypers = {node.name: node.default for node in nodes if isinstance(node, Hyper)}
        nonnegative = frozenset(node.name for node in nodes if isinstance(node, Hyper) and node.nonnegative)
        noise = any(isinstance(node, Weight) and node.per_input for node in nodes)
        super().__init__(inputs, tree, hypers, nonnegative, noise)
        self.outputs, self._out_tree, self._tolerance = tuple(parts), out_tree, tolerance
        self._method, self._made = method, dict[tuple[str, ...], Blocks]()
        self._moved: Movements = {}
        self._off: frozenset[str] = frozenset()

    def without(self, *names: str) -> JointKernel:
        """The same kernels with optimisations switched off, as `Kernel.without`; "interpolation" is none of theirs.

        Raises InputError for other names.

        Example:
            >>> import jax, jax.numpy as jnp, tensorprog as tp
            >>> from tensorprog import nn
            >>> def net(x):
            ...     h = jax.nn.relu(nn.dense(x))
            ...     return nn.dense(h, features=1), jnp.mean(h)
            >>> kernel, x = tp.joint(net, jnp.zeros(3)), jnp.ones((2, 3))
            >>> same = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b)), kernel(x).ntk, kernel.without("loops")(x).ntk)
            >>> jax.tree.all(same)
            True
        """
        other = copy(self)
        other._off, other._made = self._off | check_optimisations(names), {}
        other.__dict__.pop("_only_means", None)
        return other

    def by_parameter(self, x1: Any, x2: Any = None, **hypers: Any) -> dict[str, Any]:
        """The tangent kernels' parts of every trained parameter, by its name; they add up to `ntk`."""
        leaves1, leaves2, values, dtype = self._checked(x1, x2, hypers)
        names, count = parts_of_parameters(self.outputs), len(self.outputs) ** 2
        found = rounded(self._matrices(("parameters",), leaves1, leaves2, values), dtype)
        return {name: self._nested(found[k * count : (k + 1) * count]) for k, name in enumerate(names)}

    def standard_error(self, x1: Any, x2: Any = None, *, get: str | Sequence[str] | None = None, **hypers: Any) -> Any:
        """The standard errors that sampling leaves in what a call returns; zeros where nothing is sampled."""
        shifted = copy(self)
        found = []
        for k in range(SHIFTS):
            shifted._more_hypers = {SHIFT: jnp.asarray(k)}
            found.append(shifted(x1, x2, get=get, **hypers))
        return jax.tree.map(lambda *values: jnp.std(jnp.stack(values), axis=0, ddof=1) / SHIFTS**0.5, *found)

    def _blocks(self, names: tuple[str, ...]) -> Blocks:
        if names not in self._made:
            pairs = [pair for name in names for pair in self._asked(name)]
            partners = partners_of(len(self.outputs), len(pairs) // len(self.outputs) ** 2)
            self._made[names] = Blocks(self._functions(self._graph(pairs)), partners, self._off)
        return self._made[names]

    def _asked(self, name: str) -> list[Pair]:
        """The pairs of sides that a kernel has."""
        parts = self.outputs
        if name == "nngp":
            sides = [part.side for part in parts]
            return [(u, v) for u in sides for v in sides]
        chosen = [None] if name == "ntk" else parts_of_parameters(parts)
        return [_tangent_pair(a, b, only, self._moved) for only in chosen for a in parts for b in parts]

    def _mean_blocks(self) -> Blocks:
        return self._only_means

    @cached_property
    def _only_means(self) -> Blocks:
        return Blocks(self._functions(self._graph([], self._ends)), [], self._off)

    @property
    def _ends(self) -> list[Node]:
        return [part.side.node for part in self.outputs]

    def _graph(self, pairs: Sequence[Pair], means: Sequence[Node] = ()) -> BlockGraph:
        with older_objects_aside():
            return derive_blocks(pairs, means, self._noise, self._tolerance)

    @cached_property
    def graph(self) -> BlockGraph:
        """What is computed for all that there is: the blocks of nngp, row by row, those of ntk, and the means.

        Raises UnsupportedError for a tangent kernel that neither program gives.
        """
        return self._graph([pair for name in GET for pair in self._asked(name)], self._ends)

    def _functions(self, graph: BlockGraph) -> BlockFunctions:
        return block_functions(graph, lower_blocks(graph, self._inputs, self._off), self._off)

    def derivation(self) -> Derivation:
        """How the kernels come about, as Markdown with LaTeX: the program of all outputs, the rule and error bound of every Gaussian
        expectation, the recursion, and each kernel of a pair of outputs.

        Raises UnsupportedError for a tangent kernel that neither program gives.
        """
        graph, count = self.graph, len(self.outputs)
        moved = [
            (f"{part.label} beside an average" if set(shared) - part.tied else part.label, found)
            for (part, _, only, shared), found in self._moved.items()
            if found and only is None
        ]
        shown = [
            Shown(p.label, p.kind, p.shape, p.exposed.program.output, p.method_reason, p.method) for p in self.outputs
        ]
        dots = [dot for p in self.outputs for dot in p.exposed.dots] + [dot for _, found in moved for dot in found.dots]
        blocks = [block.cross for block in graph.blocks]
        return joint_derivation(
            shown,
            [(label, found.exposed) for label, found in moved],
            graph,
            (blocks[: count**2], blocks[count**2 :]),
            dots,
        )

    def export(self, path: str | os.PathLike[str], platforms: Sequence[str] = ("cpu", "cuda")) -> None:
        """Write the kernels to one file, which `tp.load` reads and which JAX alone can run (docs/export.md).

        path, platforms: as for `Kernel.export`; the programs of all outputs and the derivation stand beside the serialised functions.

        Raises ArchiveError where the file cannot be written, InputError for unknown platforms, and for an example input or a value
        that the network returns of other containers than dicts, lists and tuples.

        Example:
            >>> import jax, jax.numpy as jnp, tempfile, tensorprog as tp
            >>> from tensorprog import nn
            >>> def net(x):
            ...     h = jax.nn.relu(nn.dense(x))
            ...     return {"readout": nn.dense(h, features=1), "average": jnp.mean(h)}
            >>> kernel = tp.joint(net, jnp.zeros(3))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     kernel.export(f"{folder}/net.tpk", platforms=("cpu",))
            ...     tp.load(f"{folder}/net.tpk")
            <LoadedJoint of <average output 'average' of shape ()>, <gaussian output 'readout' of shape ()>: serialised>
        """
        functions = lambda: self._functions(self.graph)
        hypers = (self._hypers, self._nonnegative)
        save_joint(
            path, platforms, functions, self._inputs, (self._tree, self._out_tree), hypers, self.outputs, self._tolerance, self._method,
            self.derivation,
        )  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes: the programs of all outputs, of which the kernels are derived anew there."""
        structures = filled(self._tree), filled(self._out_tree)
        return _derived_again, (self.outputs, structures, self._tolerance, self._method, self._off)

    def _repr_markdown_(self) -> str:
        """For Jupyter: the derivation, with its formulas set."""
        return str(self.derivation())

    def __repr__(self) -> str:
        return f"<JointKernel of {', '.join(map(repr, self.outputs))}>"


def of_program(program: Program, method: str) -> Part:
    """The one output of a compiled kernel, and the way to its tangent kernel."""
    side = Side(program.output, program.mirrored, True)
    copies = tuple(i for i in program.mirrored if program.output.type.shape[i] > 1)
    kind = "average" if is_average(program) else "gaussian"
    return Part("output", kind, replace(side, copies=copies).shape, program, program, copies, method, "", program)


def _derived_again(parts: tuple[Part, ...], structures: tuple[Any, Any], *how: Any) -> JointKernel:
    return _made_once(parts, *map(jax.tree.structure, structures), *how)


@lru_cache(maxsize=16)
def _made_once(
    parts: tuple[Part, ...], tree: Any, out_tree: Any, tolerance: float | None, method: str, off: frozenset[str]
) -> JointKernel:
    """The kernels of a pickle: once in each process, which may be sent many, and compiles for the first."""
    kernel = JointKernel(parts[0].traced.inputs, parts, tree, out_tree, tolerance, method)
    kernel._off = off
    return kernel
