"""Depth for any network whose layers repeat: kernels of any depth, fixed points, chi, phases, depth scales, critical lines.

`tensorprog.apps.depth` follows a variance and a correlation. Here the state is whatever the layers of a network hand on: kernels at all
pairs of positions, of several hidden vectors, beside inputs that every layer reads again. The map is found in the kernel graph
(`tensorprog.apps.recursion`), if need be in that of the same network with more blocks (`tensorprog.apps.growth`). Its derivative in the
distance of two inputs that are equal is the tangent kernel's own recursion, which is linear: chi is its spectral radius (of one number,
Schoenholz et al. 2017, equation 5; of positions, Xiao et al. 2018, section 2.2).

Not every network has such a map: where one weight stands in blocks that add to what they read, or that gate it, each block's kernels depend
on all blocks before. Its kernels of any depth are those of the longer program (`tensorprog.apps.followed`), and its phase is read off them
(`tensorprog.apps.unsettled`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

import tensorprog as tp
from tensorprog.apps.checks import check_whole
from tensorprog.apps.depth import CRITICAL, DIVERGENT, Phase, bisected, scale_of
from tensorprog.apps.followed import Followed
from tensorprog.apps.grams import precision, widened
from tensorprog.apps.growth import Growth, growth
from tensorprog.apps.limits import Estimate
from tensorprog.apps.maps import NoMap, Runs
from tensorprog.apps.readouts import trained
from tensorprog.apps.settled import Settled
from tensorprog.apps.unsettled import Unsettled, name_of, nudged_program, scale
from tensorprog.errors import InputError, UnsupportedError, explain
from tensorprog.frontend.interpret import interpret
from tensorprog.frontend.trace import trace
from tensorprog.ir import Program
from tensorprog.joint import JointKernel
from tensorprog.kernel.graph import Normals
from tensorprog.passes.methods import prepared
from tensorprog.runtime.call import KernelFunction
from tensorprog.runtime.kernel import KernelResult

__all__ = ["Layers"]

NEARLY = 1e-2  # |chi - 1| at a state that still changes
SAMPLED = 16  # blocks over which populations are averaged, after twice as many
FEW = 3  # equal blocks in a kernel graph, fewer than which more are written
MORE = 4  # how many


@dataclass(frozen=True)
class _Map:
    """blocks: how many the network has; None where that was not asked yet. shift: that of a network of so many blocks, and this number more, is
    what as many steps lead to."""

    runs: Runs
    blocks: int | None
    shift: int


class Layers:
    """The layers of a deep network, as a map of its kernels.

    net: the kernel of a network (`tp.compile`, `tp.load`) of two equal layers or more before its output, or such a network with an
    example input. tolerance: as for `tp.compile`; that of the kernel unless it is given.

    blocks: how many equal blocks stand in a row in the network's program; a network of one block more has one more. (A block may be several
    layers, where they repeat only after as many, as with skip connections over two. Where its kernels alone repeat, or several times in a
    block, theirs are counted.) What comes before and after them, as the first layer and the readout, is kept. What blocks read of the inputs
    again is, past the last one, what the last one read.
    Where there is no map of a state of fixed size, as with one weight in all blocks of a residual network or in all steps of a GRU, the
    kernels of 48 blocks are followed (24 of populations of neurons; 12 or 24 where they have very many quantities), and `phase`, `chi` and
    `critical` are read off them, with estimates of their errors.

    Raises InputError where no block repeats, and where it is not known what one more would be (numbers of each layer's own).

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
        kernel = tp.Kernel(net.program, net._tree, tolerance, getattr(net, "method", "auto")) if remake else net
        self._begin(kernel, as_written(net))

    def _begin(self, kernel: tp.Kernel, source: Program) -> None:
        """source: the program before its nonlinearities were fused, where it is known."""
        self._kernel, self._source = kernel, source
        self._tolerance, self._tree, self._method = kernel.tolerance, kernel._tree, kernel.method
        self._populated = any(isinstance(q, Normals) for q in self._kernel.graph.nodes)
        self._deeper: dict[int, Followed] = {}
        self._found = self._mapped(self._longer)
        if self._found is None and self._growth is None:
            raise _two_alone() if self._runs_of(self._kernel.program) is not None else _refusal()
        self._runs: Runs | None = None if self._found is None else self._found.runs

    def __getstate__(self) -> Any:
        """What other processes need; they look for the blocks anew."""
        return self._kernel, self._source

    def __setstate__(self, state: Any) -> None:
        self._begin(*state)

    def _made(self, program: Program, method: str, apart: bool = True) -> tp.Kernel:
        return tp.Kernel(program, self._tree, self._tolerance, method, apart)

    @cached_property
    def _growth(self) -> Growth | None:
        """The network with more blocks."""
        return growth(self._source)

    def _longer(self, more: int) -> Program:
        """The network with so many blocks more."""
        if not more:
            return self._kernel.program
        assert self._growth is not None
        return prepared(self._growth.of(self._growth.blocks + more))

    def _mapped(self, longer: Callable[[int], Program]) -> _Map | None:
        """The map of a network; None where there is none by the tangent program. longer: the network with so
        many blocks more. They are taken where it has few itself: what comes first and last is then told from what repeats."""
        own = self._runs_of(longer(0))
        if own is not None and own.blocks >= FEW:
            return _Map(own, None, 0)
        if self._growth is None:  # two alike may be so by chance, and there is no third to compare with
            return None
        runs = self._runs_of(longer(MORE))
        less = None if runs is None else self._runs_of(longer(MORE - 1))
        if runs is None or less is None:
            return None
        if runs.blocks == less.blocks + 1:
            return _Map(runs, self._growth.blocks, runs.blocks - self._growth.blocks - MORE)
        each = runs.blocks - less.blocks  # block of the program has as many of the kernels
        blocks = runs.blocks - MORE * each
        return _Map(runs, blocks, 0) if 0 < blocks < runs.blocks else None

    def _runs_of(self, program: Program) -> Runs | None:
        try:
            if self._populated:  # tangents by their Gaussians have one more of them in every layer
                return Runs(self._made(program, "tangent", apart=False))
            made = program is self._kernel.program and self._kernel.method == "tangent"
            return Runs(self._kernel if made else self._made(program, "tangent"))
        except (NoMap, UnsupportedError):
            return None

    @property
    def hypers(self) -> dict[str, float]:
        """The numbers that may be given to every method, and their defaults."""
        return self._kernel.hypers

    def __repr__(self) -> str:
        if self._runs is None:
            return f"<Layers: {self.blocks} blocks, followed one by one>"
        shapes = [q.shape for q, _ in self._runs.pair.found.entries]
        return f"<Layers: {self.blocks} blocks, a state of {len(shapes)} arrays, {sum(map(math.prod, shapes))} numbers in all>"

    def trajectory(self, x1: Any, x2: Any = None, blocks: int | None = None, **hypers: float) -> KernelResult:
        """The kernels of the networks of 1, 2, .. `blocks` blocks, their readout included.

        x1, x2: two inputs, like the example input; without x2, x1 with itself. blocks: how many, those of the network unless it is given.
        Returns nngp and ntk, each of shape (blocks, *S, *S) for outputs with axes S.
        """
        count = self.blocks if blocks is None else check_whole(blocks, "trajectory: blocks", 1)
        with precision():
            found = self._run(count, x1, x2, hypers)
            missing = [k for k in range(1, count + 1) if k not in found]
            if missing:
                rest = self._followed(missing[-1], x1, x2, hypers)
                found = {missing[-1] + 1 - len(rest) + k: row for k, row in enumerate(rest)} | found
        return KernelResult(*(np.stack(rows) for rows in zip(*(found[k] for k in range(1, count + 1)), strict=True)))

    def _run(self, count: int, x1: Any, x2: Any, hypers: dict[str, float]) -> dict[int, Sequence[np.ndarray]]:
        """The kernels of the networks of so many blocks by the map: of those that it reaches."""
        runs, found = self._runs, dict[int, Sequence[np.ndarray]]()
        if runs is None:
            return found
        shift = self._counted[1]
        if count > runs.blocks - shift and runs.grows and self._in_step:
            count = runs.blocks - shift
        run = runs.own if x2 is None else runs.pair
        state, known = run.begin(*self._read(x1, x2, hypers))
        before = run.found.blocks - runs.blocks  # of which the other of the two recursions knows nothing
        for k in range(before + count + shift):
            state, last = run.advance(state, known, k)
            if k >= before:
                found[k - before + 1 - shift] = runs.shaped(run.end(known, last))
        return found

    @property
    def blocks(self) -> int:
        """How many equal blocks the network has: those that are written in a row in its program."""
        return self._counted[0]

    @cached_property
    def _counted(self) -> tuple[int, int]:
        """How many blocks there are, and the shift of the map's steps against them. The first may compute its kernels in another way than the
        others, and is then none of the map's."""
        runs, found = self._runs, self._found
        if runs is None or found is None:
            assert self._growth is not None
            return self._growth.blocks, 0
        if found.blocks is not None:
            return found.blocks, found.shift
        longer = None if self._growth is None else self._runs_of(self._longer(1))
        if self._growth is None or longer is None or longer.blocks != runs.blocks + 1:
            return runs.blocks, 0
        return self._growth.blocks, runs.blocks - self._growth.blocks

    @property
    def _in_step(self) -> bool:
        """Are the blocks that can be written in the program one by one those of the kernels?"""
        return self._growth is not None and self.blocks == self._growth.blocks

    def _followed(self, blocks: int, x1: Any, x2: Any, hypers: dict[str, float]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The kernels of the networks of so many blocks, and of all up to it that there are."""
        assert self._growth is not None
        less = self.blocks - self._growth.blocks
        if blocks not in self._deeper:
            programs = [prepared(self._growth.of(k - less)) for k in range(1 + max(0, less), blocks + 1)]
            self._deeper[blocks] = Followed(programs, self._method, self._tolerance)
        first, second, values = self._read(x1, x2, hypers)
        return self._deeper[blocks].kernels(first, None if x2 is None else second, values)

    def _read(self, x1: Any, x2: Any, hypers: dict[str, float]) -> tuple[Any, Any, Any]:
        """The leaves of two inputs, and the hyperparameters."""
        first = jax.tree.map(lambda a: np.asarray(a)[None], widened(x1))
        second = first if x2 is None else jax.tree.map(lambda a: np.asarray(a)[None], widened(x2))
        found = self._kernel._checked(first, second, dict(hypers))
        assert found.x2 is not None
        return [a[0] for a in found.x1], [a[0] for a in found.x2], found.hypers

    # ---- where they lead

    @property
    def _moved(self) -> Runs | None:
        """The map that phases are read off; None where there is none, and the layers themselves are followed."""
        return None if self._trained is None or self._trained.grows else self._trained

    @cached_property
    def _trained(self) -> Runs | None:
        """The map of the network in which every parameter is trained, so that its tangent kernel is there in every layer; in one of
        populations a change of the state before the first block alone, so that the tangent kernel has no other source. Where the tangent kernel
        of the output is not that of a tangent program (an average, a tied readout), the output is a readout of what the last block hands on."""
        if self._runs is not None and not self._populated and trained(self._kernel.program) is self._kernel.program:
            return self._runs
        if self._runs is None and self._kernel.method == "tangent":
            return None  # what moves besides makes nothing repeat
        if self._populated:
            nudged = None if self._growth is None else self._growth.nudged()
            if nudged is None:
                raise _endless()
            made = self._mapped(lambda more: nudged_program(nudged, nudged.blocks + more))
            return None if made is None else made.runs
        made, grown = self._mapped(lambda more: trained(self._longer(more))), self._growth
        if made is None and grown is not None:
            made = self._mapped(lambda more: trained(grown.read_out(grown.blocks + more)))
        return None if made is None else made.runs

    @cached_property
    def _unsettled(self) -> Unsettled:
        if self._growth is None or self._growth.nudged() is None:
            raise _endless()
        return Unsettled(self._growth, self._tolerance, self._populated)

    def phase(self, x1: Any, x2: Any, **hypers: float) -> Phase:
        """Fixed points, chi, and depth scales, from two inputs.

        x1, x2: like the example input. Returns a `Phase`. Its q and c are of the network's output, after any number of blocks more: the
        variance of f(x1), and the correlation of f(x1) and f(x2); arrays where the output has axes. chi is the spectral radius of the
        derivative of the map at the kernel of x1 with itself; the depth scales come from the map's slopes in the same way. Where the
        state is a population they are means over blocks, with the error of sampling (scale_q is nan then, and c that after 48 blocks).
        Without a map they are limits that the blocks show, with errors in `Phase.errors`; `Phase.power` is then the growth of a variance
        that diverges.
        """
        with precision():
            read, runs = self._read(x1, x2, hypers), self._moved
            if runs is None:
                return self._unsettled.phase(*read)
            return self._sampled_phase(runs, *read) if self._populated else self._phase(runs, *read)

    def _phase(self, runs: Runs, leaves1: Any, leaves2: Any, values: Any) -> Phase:
        own = Settled(runs.own, leaves1, leaves1, values)
        if own.diverges:
            return DIVERGENT
        other = Settled(runs.own, leaves2, leaves2, values)
        pair = Settled(runs.pair, leaves1, leaves2, values)
        chi = own.chi()
        q, q2, covariance = (runs.diagonal(s.nngp()) for s in (own, other, pair))
        size = np.sqrt(q * q2)
        c = np.where(size > 0, np.minimum(1.0, covariance / np.where(size > 0, size, 1.0)), 1.0)
        number = lambda array: float(array) if np.ndim(array) == 0 else array
        margin = NEARLY if own.slow else CRITICAL
        name = "critical" if abs(chi - 1) < margin else "ordered" if chi < 1 else "chaotic"
        return Phase(number(q), number(c), chi, name, scale_of(own.slope()), scale_of(pair.chi()), scale_of(chi))

    def _sampled_phase(self, runs: Runs, leaves1: Any, leaves2: Any, values: Any) -> Phase:
        """The same of populations, whose law has no map of numbers: means over the later of many blocks."""
        rows = []
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
            return DIVERGENT
        chi, slope = (_grown(run[SAMPLED:, 1], self._tolerance) for run in (own, pair))
        c = min(1.0, pair[2 * SAMPLED :, 0].mean() / math.sqrt(late * other[2 * SAMPLED :, 0].mean()))
        in_c, in_gradient = scale(slope), scale(chi)
        errors = {
            "q": abs(late - early) + self._tolerance * late, "c": self._tolerance, "chi": chi.error, "scale_c": in_c.error,
            "scale_gradient": in_gradient.error,
        }  # fmt: skip
        name = name_of(chi, 2 * self._tolerance)
        return Phase(late, c, chi.value, name, math.nan, in_c.value, in_gradient.value, errors)

    def chi(self, x: Any, **hypers: float) -> float:
        """The factor by which squared lengths of gradients, and small distances, grow with each block, at the fixed point that
        the input x leads to; inf where there is none. Without a map, as `phase` has it, whose errors say how well it is known; nan where it has
        not settled."""
        found = self._chi(x, hypers)
        return found.value if math.isfinite(found.error) else math.nan

    def _chi(self, x: Any, hypers: dict[str, float]) -> Estimate:
        runs = self._moved
        if self._populated and runs is not None:
            found = self.phase(x, x, **hypers)
            return Estimate(math.inf if found.name == "divergent" else found.chi, 0.0)
        with precision():
            leaves, _, values = self._read(x, x, hypers)
            if runs is None:
                return self._unsettled.chi(leaves, values)
            own = Settled(runs.own, leaves, leaves, values)
            return Estimate(math.inf if own.diverges else own.chi(), 0.0)

    def critical(self, name: str, between: tuple[float, float], x: Any, **hypers: float) -> float:
        """The value of the hyperparameter `name` at which chi = 1, at the fixed point that the input x leads to.

        between: two values, one ordered and one chaotic. Raises InputError where both are of one phase.
        """
        if name not in self.hypers:
            raise InputError(
                f"critical: {name!r} is no hyperparameter; the network has: {', '.join(sorted(self.hypers))}"
            )

        def excess(value: float) -> float:
            chi = self._chi(x, {**hypers, name: value})
            if not math.isfinite(chi.error):
                raise InputError(
                    explain(
                        f"critical: chi at {name} = {value:.4g} is not known",
                        reason="no map was found, and the growth of gradients in the blocks that were followed has not settled",
                        mend="look between other values, narrower ones around the critical one; near to it things settle more slowly",
                    )
                )
            return 0.0 if abs(chi.value - 1) <= chi.error else chi.value - 1

        return bisected(excess, name, between)


def as_written(kernel: Any) -> Program:
    """The program of a kernel before its nonlinearities were fused, where its network is known."""
    model = getattr(kernel, "model", None)
    if model is None:
        return kernel.program
    leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in kernel.program.inputs]
    return interpret(trace(model, jax.tree.unflatten(kernel._tree, leaves)), averages=True)


def _grown(tangents: np.ndarray, tolerance: float) -> Estimate:
    """The growth of a population's tangent kernels with each block: of the later half of the blocks, and its distance from that of the earlier
    half, which is large where few neurons carry them."""
    if not (tangents > 0).all():
        return Estimate(0.0, 0.0) if not tangents[-1] else Estimate(math.nan, math.inf)
    early, late = (float(np.mean(np.diff(np.log(half)))) for half in np.split(tangents, 2))
    return Estimate(math.exp(late), math.exp(late) * (abs(late - early) + tolerance))


def _refusal() -> InputError:
    return InputError(
        explain(
            "Layers: no block of this network repeats",
            reason="no two layers in a row are the same instructions, with weights of the same shapes and laws and the same numbers "
            "(a variance, a rate), before an output that reads the last of them or all of them",
            mend="give a network of three equal layers or more before its output; or the block itself, "
            "apps.Block(lambda h: nn.dense(jnp.tanh(h)))",
        )
    )


def _two_alone() -> InputError:
    return InputError(
        explain(
            "Layers: two layers of this network have equal kernels, and no third is there to compare with",
            reason="its program shows no block that repeats, which could be written once more (none does where layers read all before)",
            mend="give the network with one layer more",
        )
    )


def _endless() -> UnsupportedError:
    return UnsupportedError(
        explain(
            "Layers: the phase of this network",
            reason="no map of a state of fixed size takes one block into the next, and its block stands in the graph of its kernels alone, not "
            "in its instructions (with vectors that it hands on), so that it cannot be written more often and followed",
            mend="write all blocks alike, with a weight of its own in each, which its nonlinearity comes before",
        )
    )
