"""Depth for any network whose kernels repeat a step: kernels of any depth, fixed points, chi, phases, depth scales, critical lines.

`tensorprog.apps.depth` follows a variance and a correlation. Here the state is whatever the layers of a network hand on: kernels at all
pairs of positions, of several hidden vectors, beside inputs that every layer reads again. The map is found in the kernel graph
(`tensorprog.apps.recursion`). Its derivative in the distance of two inputs that are equal is the tangent kernel's own recursion,
which is linear: chi is its spectral radius (of one number, Schoenholz et al. 2017, equation 5; of positions, Xiao et al. 2018,
section 2.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog.apps.checks import check_whole
from tensorprog.apps.depth import CRITICAL, LARGEST, Phase, bisected, scale_of
from tensorprog.apps.grams import precision, widened
from tensorprog.apps.recursion import Recursion, Vertex, recursion
from tensorprog.apps.unrolled import Unrolled
from tensorprog.errors import InputError, UnsupportedError, explain
from tensorprog.ir import MatMul, Program, Weight, operands, topological
from tensorprog.ir.rebuild import rebuild
from tensorprog.joint import JointKernel
from tensorprog.kernel import KernelGraph
from tensorprog.kernel.graph import Normals, Sampled, Tilted
from tensorprog.kernel.questions import Second
from tensorprog.passes.structure import Structure
from tensorprog.runtime.call import KernelFunction
from tensorprog.runtime.kernel import KernelResult

__all__ = ["Layers"]

TINY = 1e-10  # of what it was, a state that has decayed
STEPS = 3000  # of plain iteration, which stays among covariances
UNSETTLED = 1e-9  # a change per block, of the state, that is left after all these
NEARLY = 1e-2  # |chi - 1| at such a state
SAMPLED = 16  # blocks over which populations are averaged, after twice as many
WHOLE = 200  # entries up to which all eigenvalues are computed


class Layers:
    """The layers of a deep network, as a map of its kernels.

    net: the kernel of a network (`tp.compile`, `tp.load`) of three equal layers or more before its readout, or such a network with an
    example input. tolerance: as for `tp.compile`; that of the kernel unless it is given.

    blocks: how many equal blocks were found in a row; a network of one block more has one more. (A block may be several layers, where their
    kernels repeat only after as many, as with skip connections over two.) What comes before and after them, as the
    first layer and the readout, is kept. What blocks read of the inputs again is, past the last one, what the last one read.

    Raises InputError where no step repeats.

    Example:
        >>> import jax.numpy as jnp, tensorprog as tp
        >>> from jax.scipy.special import erf
        >>> from tensorprog import apps, nn
        >>> def net(x):
        ...     h = nn.dense(x)
        ...     for _ in range(5):
        ...         h = nn.dense(erf(h), weight_var=tp.hyper("weight_var", 2.0)) + nn.dense(x, weight_var=0.1)
        ...     return nn.dense(h, features=1)
        >>> layers = apps.Layers(net, jnp.zeros(3))
        >>> x = jnp.eye(3)
        >>> layers.phase(x[0], x[1], weight_var=1.0).name
        'ordered'
        >>> round(layers.critical("weight_var", (1.0, 4.0), x[0]), 2)
        1.29
    """

    def __init__(self, net: Any, example: Any = None, *, tolerance: float | None = None):
        if example is not None and not isinstance(net, KernelFunction):
            net = tp.compile(net, example, tolerance=tolerance)
        if isinstance(net, JointKernel) or not hasattr(net, "program"):
            raise InputError(
                f"Layers: net is a {type(net).__name__}, expected the kernel of a deep network, or a network and an example input\n"
                "  to mend: apps.Layers(net, example)"
            )
        tolerance = net.tolerance if tolerance is None else tolerance
        remake = not isinstance(net, tp.Kernel) or tolerance != net.tolerance
        self._tolerance, self._tree = tolerance, net._tree
        self._kernel = tp.Kernel(net.program, net._tree, tolerance, getattr(net, "method", "auto")) if remake else net
        self._runs = _Runs(self._kernel)
        self.blocks = self._runs.blocks

    @property
    def hypers(self) -> dict[str, float]:
        """The numbers that may be given to every method, and their defaults."""
        return self._kernel.hypers

    def __repr__(self) -> str:
        shapes = [q.shape for q, _ in self._runs.pair.found.entries]  # type: ignore[attr-defined]
        return f"<Layers: {self.blocks} blocks, a state of {len(shapes)} arrays, {sum(map(math.prod, shapes))} numbers in all>"

    def trajectory(self, x1: Any, x2: Any = None, blocks: int | None = None, **hypers: float) -> KernelResult:
        """The kernels of the networks of 1, 2, .. `blocks` blocks, their readout included.

        x1, x2: two inputs, like the example input; without x2, x1 with itself. blocks: how many, those of the network unless it is given.
        Returns nngp and ntk, each of shape (blocks, *S, *S) for outputs with axes S.
        """
        count = self.blocks if blocks is None else check_whole(blocks, "trajectory: blocks", 1)
        run = self._runs.own if x2 is None else self._runs.pair
        with precision():
            state, known = run.begin(*self._read(x1, x2, hypers))
            found = []
            before = run.found.blocks - self.blocks  # of which the other of the two recursions knows nothing
            for k in range(before + count):
                state, last = run.advance(state, known, k)
                if k >= before:
                    found.append(self._runs.shaped(run.end(known, last)))
        return KernelResult(*(np.stack(rows) for rows in zip(*found, strict=True)))

    def _read(self, x1: Any, x2: Any, hypers: dict[str, float]) -> tuple[Any, Any, Any]:
        """The leaves of two inputs, and the hyperparameters."""
        first = jax.tree.map(lambda a: np.asarray(a)[None], widened(x1))
        second = first if x2 is None else jax.tree.map(lambda a: np.asarray(a)[None], widened(x2))
        leaves1, leaves2, values = self._kernel._checked(first, second, dict(hypers))
        return [a[0] for a in leaves1], [a[0] for a in leaves2], values

    # ---- where they lead

    @cached_property
    def _moved(self) -> _Runs:
        """The recursion of the network in which every parameter is trained, so that its tangent kernel is there in every layer; in a sampled
        one those of the first layer alone, so that it has no other source."""
        program = _trained(self._kernel.program, first=self._runs.sampled)
        if program is self._kernel.program and self._kernel.method == "tangent":
            return self._runs
        try:
            kernel = tp.Kernel(program, self._tree, self._tolerance, "tangent")
        except UnsupportedError as error:
            raise UnsupportedError(
                f"Layers: chi is read off the tangent program, which does not hold here: {error}"
            ) from error
        return _Runs(kernel)

    def phase(self, x1: Any, x2: Any, **hypers: float) -> Phase:
        """Fixed points, chi, and depth scales, from two inputs.

        x1, x2: like the example input. Returns a `Phase`. Its q and c are of the network's output, after any number of blocks more: the
        variance of f(x1), and the correlation of f(x1) and f(x2); arrays where the output has axes. chi is the spectral radius of the
        derivative of the map at the kernel of x1 with itself; the depth scales come from the map's slopes in the same way. Where the
        state is a population they are means over blocks, with the error of sampling (scale_q is nan then, and c that after 48 blocks).
        """
        with precision():
            read = self._read(x1, x2, hypers)
            return self._sampled_phase(*read) if self._runs.sampled else self._phase(*read)

    def _phase(self, leaves1: Any, leaves2: Any, values: Any) -> Phase:
        runs = self._moved
        own = _Settled(runs.own, leaves1, leaves1, values)
        if own.diverges:
            return Phase(math.nan, math.nan, math.nan, "divergent", math.inf, math.inf, math.inf)
        other = _Settled(runs.own, leaves2, leaves2, values)
        pair = _Settled(runs.pair, leaves1, leaves2, values)
        chi = own.chi()
        q, q2, covariance = (runs.diagonal(s.nngp()) for s in (own, other, pair))
        size = np.sqrt(q * q2)
        c = np.where(size > 0, np.minimum(1.0, covariance / np.where(size > 0, size, 1.0)), 1.0)
        number = lambda array: float(array) if np.ndim(array) == 0 else array
        margin = NEARLY if own.slow else CRITICAL
        name = "critical" if abs(chi - 1) < margin else "ordered" if chi < 1 else "chaotic"
        return Phase(number(q), number(c), chi, name, scale_of(own.slope()), scale_of(pair.chi()), scale_of(chi))

    def _sampled_phase(self, leaves1: Any, leaves2: Any, values: Any) -> Phase:
        """The same of populations, whose law has no map of numbers: means over the later of many blocks."""
        runs, rows = self._moved, []
        for run, sides in (
            (runs.own, (leaves1, leaves1)),
            (runs.own, (leaves2, leaves2)),
            (runs.pair, (leaves1, leaves2)),
        ):
            state, known = run.begin(*sides, values)
            made = []
            for k in range(3 * SAMPLED):
                state, last = run.advance(state, known, k)
                made.append([float(np.mean(v)) for v in run.end(known, last)])
                known[1][: max(0, k)] = [None] * max(0, k)  # the neurons' random numbers have been read
            rows.append(np.array(made))
        own, other, pair = rows
        early, late = own[SAMPLED : 2 * SAMPLED, 0].mean(), own[2 * SAMPLED :, 0].mean()
        assert self._tolerance is not None
        if not math.isfinite(late) or late > (1 + 5 * self._tolerance) * early:
            return Phase(math.nan, math.nan, math.nan, "divergent", math.inf, math.inf, math.inf)
        growth = [run[-1, 1] / run[2 * SAMPLED, 1] if run[2 * SAMPLED, 1] else 0.0 for run in (own, pair)]
        chi, slope = (float(max(0.0, g)) ** (1 / (SAMPLED - 1)) for g in growth)
        c = pair[2 * SAMPLED :, 0].mean() / math.sqrt(late * other[2 * SAMPLED :, 0].mean())
        name = "critical" if abs(chi - 1) < self._tolerance else "ordered" if chi < 1 else "chaotic"
        return Phase(late, min(1.0, c), chi, name, math.nan, scale_of(slope), scale_of(chi))

    def chi(self, x: Any, **hypers: float) -> float:
        """The factor by which squared lengths of gradients, and small distances, grow with each block, at the fixed point that
        the input x leads to; inf where there is none."""
        if self._runs.sampled:
            found = self.phase(x, x, **hypers)
            return math.inf if found.name == "divergent" else found.chi
        with precision():
            leaves, _, values = self._read(x, x, hypers)
            own = _Settled(self._moved.own, leaves, leaves, values)
            return math.inf if own.diverges else own.chi()

    def critical(self, name: str, between: tuple[float, float], x: Any, **hypers: float) -> float:
        """The value of the hyperparameter `name` at which chi = 1, at the fixed point that the input x leads to.

        between: two values, one ordered and one chaotic. Raises InputError where both are of one phase.
        """
        if name not in self.hypers:
            raise InputError(
                f"critical: {name!r} is no hyperparameter; the network has: {', '.join(sorted(self.hypers))}"
            )
        return bisected(lambda value: self.chi(x, **{**hypers, name: value}) - 1, name, between)


class _Runs:
    """The recursions of a kernel, of an input with itself and of a pair, and which entries of their states are tangent kernels."""

    def __init__(self, kernel: tp.Kernel):
        graph = kernel.graph
        pair = recursion([(graph.nngp, None), (graph.ntk, None)])
        own = recursion([(graph.nngp_self, 0), (graph.ntk_self, 0)])
        if pair is None or own is None:
            raise _refusal(graph)
        self.graph, self.blocks = graph, min(pair.blocks, own.blocks)
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


def _refusal(graph: KernelGraph) -> InputError:
    if any(isinstance(q, (Sampled, Tilted)) for q in graph.nodes):
        reason = "an expectation over whole fields (batch norm, a softmax over positions) stands in it, which is not compared between layers"
    else:
        reason = (
            "no two layers in a row compute their kernels by the same operations, from the same of the inputs, before an output that "
            "reads the last of them alone"
        )
    mend = "give a network of three equal layers or more before its readout; or the block itself, apps.Block(lambda h: nn.dense(jnp.tanh(h)))"
    return InputError(explain("Layers: no step of this network's kernels repeats", reason=reason, mend=mend))


def _trained(program: Program, *, first: bool) -> Program:
    """The same network with no frozen parameter, or all frozen but those that read the inputs; itself where nothing changes."""
    moved = {w.name for w in program.weights if w.std and not w.per_input}
    if first:
        products = [node for node in program.nodes if isinstance(node, MatMul)]
        reads = {node.root.name for node in products if node.x.type.kind == "scalar"}
        moved &= reads - {node.root.name for node in products if node.x.type.kind == "vector"}
        if not moved:
            raise InputError(
                "Layers: chi of a state that is a population is the growth of what the first layer's parameters move, and no parameter "
                "reads the inputs alone\n  to mend: begin with a layer of weights of its own, nn.dense(x)"
            )
    if all(bool(w.tangent_std) == (w.name in moved) for w in program.weights):
        return program
    new: dict[Any, Any] = {}
    for node in topological([program.output]):
        if isinstance(node, Weight):
            new[node] = replace(node, tangent_std=(node.tangent_std or node.std) if node.name in moved else 0.0)
        else:
            new[node] = rebuild(node, [new[o] for o in operands(node)])
    return replace(program, output=new[program.output])


class _Settled:
    """A state to which the blocks lead, and the slopes of their map there. Tangent kernels are left out of it: where chi > 1 they grow."""

    def __init__(self, run: Unrolled, leaves1: Any, leaves2: Any, values: Any):
        self._run = run
        state, self._known = run.begin(leaves1, leaves2, values)
        # after some more blocks what they read of the block before is what they read themselves
        self._count = run.found.blocks + len(run.found.given[0])
        for k in range(self._count):
            state, _ = run.advance(state, self._known, k)
        self._shapes = [np.shape(a) for a in state]
        begun = self._size(state)
        state, _ = run.repeat(state, self._known, STEPS, LARGEST, TINY)
        kept = [np.asarray(a) for a, moved in zip(state, run.tangent, strict=True) if not moved]
        self._zero = np.zeros(sum(math.prod(s) for s, moved in zip(self._shapes, run.tangent, strict=True) if moved))
        self.at, self.gap, self.diverges = _flat(kept), 0.0, False
        if self._size(state) > TINY * begun:
            self.at, self.gap = _settle(lambda v: self._step(v, self._zero)[0], self.at)
            size = np.abs(self.at).max()
            grows = self.gap > UNSETTLED * size and np.abs(self._step(self.at, self._zero)[0]).max() > size
            self.diverges = bool(not size < LARGEST or grows)

    @property
    def slow(self) -> bool:
        """Does it still change, like a power of the depth, as at criticality?"""
        return self.gap > UNSETTLED * float(np.abs(self.at).max(initial=0.0))

    def _size(self, state: list[Any]) -> float:
        kernels = [np.abs(a).max() for a, moved in zip(state, self._run.tangent, strict=True) if not moved]
        return float(max(kernels, default=0.0))

    def _step(self, kernels: np.ndarray, tangents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state, self._last = self._run.advance(list(self._joined(kernels, tangents)), self._known, self._count)
        parts: tuple[list[Any], list[Any]] = ([], [])
        for array, moved in zip(state, self._run.tangent, strict=True):
            parts[moved].append(array)
        return _flat(parts[0]), _flat(parts[1])

    def _joined(self, kernels: np.ndarray, tangents: np.ndarray) -> Iterator[jax.Array]:
        """The entries of the state, from the two vectors."""
        at = [0, 0]
        for shape, moved in zip(self._shapes, self._run.tangent, strict=True):
            size = math.prod(shape)
            yield jnp.asarray((kernels, tangents)[moved][at[moved] : at[moved] + size].reshape(shape))
            at[moved] += size

    def nngp(self) -> jax.Array:
        """The output's kernel there."""
        self._step(self.at, self._zero)
        return self._run.end(self._known, self._last)[0]

    def chi(self) -> float:
        """The spectral radius of the map of tangent kernels, which is the derivative of that of covariances."""
        if not len(self._zero):
            return 0.0
        own = self._step(self.at, self._zero)[1]
        return _radius(lambda v: self._step(self.at, v)[1] - own, np.ones(len(own)))

    def slope(self) -> float:
        """The largest slope of the map of kernels, by differences along the state itself: what is a covariance stays one."""
        size = float(np.abs(self.at).max(initial=0.0))
        if not size:
            return 0.0
        step = 1e-4 * size

        def slope(v: np.ndarray) -> np.ndarray:
            up, down = (self._step(self.at + sign * step * v, self._zero)[0] for sign in (1, -1))
            return (up - down) / (2 * step)

        return _power(slope, self.at / size)


def _flat(arrays: list[Any]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *(np.asarray(a, float).ravel() for a in arrays)])


def _radius(linear: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> float:
    """The spectral radius of a linear map."""
    if len(start) > WHOLE:
        return _power(linear, start)
    matrix = np.stack([linear(row) for row in np.eye(len(start))], 1)
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def _power(linear: Callable[[np.ndarray], np.ndarray], v: np.ndarray) -> float:
    """The largest eigenvalue that repeating a map from v shows."""
    before = size = math.inf
    for _ in range(500):
        v = linear(v)
        size = float(np.abs(v).max())
        if size < 1e-300:
            return 0.0
        if abs(size - before) < 1e-11 * size:
            break
        before, v = size, v / size
    return size


def _settle(step: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> tuple[np.ndarray, float]:
    """The limit of iteration from near it, sped up along the slowest direction (Irons and Tuck 1969), and the last change."""
    gap = math.inf
    for _ in range(STEPS // 30):
        one = step(x)
        two = step(one)
        first, second = one - x, two - one
        size, gap = float(np.abs(two).max(initial=0.0)), float(np.abs(second).max(initial=0.0))
        if not size < LARGEST or gap <= 1e-13 * size:
            return two, gap
        bend = second - first
        jump = two - second * float(second @ bend) / max(float(bend @ bend), 1e-300)
        closer = np.linalg.norm(second) < np.linalg.norm(first) and np.abs(jump - two).max() < 1e3 * gap
        x = jump if closer and np.abs(step(jump) - jump).max() < gap else two
    return x, gap
