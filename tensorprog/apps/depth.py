"""Signal through depth: what a block does to variances and correlations, over and over.

A network that repeats one block maps the variance q and the correlation c of two hidden vectors the same way in each layer.
Fixed points of these maps, and their slopes there, say how far a signal and a gradient reach. Sources: Poole et al. 2016
(section 2: the maps), Schoenholz et al. 2017 (sections 3 and 4: chi, phases, depth scales, the critical line).

The maps come from the kernel of a network that is the block alone, whatever the block: its input is a wide Gaussian vector
with the covariance that is asked for, and its input's own trained shift gives chi as one term of the NTK. The block is given, or
found in the program of a deep network (`tensorprog.apps.repeated`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog import nn
from tensorprog.apps.checks import check_whole
from tensorprog.apps.grams import check_number, precision
from tensorprog.apps.repeated import repeated
from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.joint import JointKernel
from tensorprog.runtime.call import KernelFunction

__all__ = ["DIVERGENT", "Block", "Phase", "bisected", "scale_of"]

LARGEST = 1e12  # a variance beyond it diverges
CRITICAL = 1e-6  # |chi - 1| below which a phase is called critical


@dataclass(frozen=True)
class Phase:
    """Where depth leads.

    q: the fixed variance (nan where variances diverge). c: the correlation to which nearby inputs go. chi: the factor by which
    squared lengths of gradients, and distances of coinciding inputs, grow with each layer. name: "ordered" (chi < 1), "chaotic"
    (chi > 1), "critical", or "divergent"; "undecided" where the errors leave that open. scale_q, scale_c, scale_gradient: depth scales in
    layers, over which the variance, the correlation and the gradient change by a factor e; infinite where they do not.

    errors: of these numbers, by their names, where they are sampled or read off the layers themselves (`apps.Layers` of populations, and of
    networks without a map): estimates, no bounds. power: of the depth, with which a variance grows that diverges; infinite where it grows
    faster than any, nan where that was not measured.
    """

    q: float
    c: float
    chi: float
    name: str
    scale_q: float
    scale_c: float
    scale_gradient: float
    errors: Mapping[str, Any] = field(default_factory=dict)
    power: float = math.nan

    def __str__(self) -> str:
        if self.name == "divergent":
            how = f", like the depth to the power {self.power:.3g}" if math.isfinite(self.power) else ""
            return f"divergent: the variance grows without bound{how}{_about(self.errors.get('power'))}"
        error = lambda name: _about(self.errors.get(name))
        return (
            f"{self.name}: variance {_shown(self.q)}{error('q')}, correlations go to {_shown(self.c)}{error('c')}, chi = {self.chi:.6g}"
            f"{error('chi')}; depth scales: variance {self.scale_q:.3g}, correlation {self.scale_c:.3g}, gradient {self.scale_gradient:.3g} "
            "layers"
        )


DIVERGENT = Phase(math.nan, math.nan, math.nan, "divergent", math.inf, math.inf, math.inf)


def _about(error: Any) -> str:
    """An error in brackets, the largest of an array."""
    if error is None or not np.max(error):
        return ""
    return f" (error about {np.max(error):.1g})" if np.max(error) < math.inf else " (not settled yet)"


def _shown(value: Any) -> str:
    """A number, or an array of an output with axes."""
    return f"{value:.4g}" if np.ndim(value) == 0 else np.array2string(np.asarray(value), precision=4, threshold=8)


class Block:
    """One layer of a network, as maps of variances and correlations.

    block: a JAX function of a wide vector (n,) to one of the same size, written with `tensorprog.nn`, with a linear layer before
    or after its nonlinearity: the next block must see a Gaussian vector. Its numbers that are to be varied are `tp.hyper`s.
    Or the kernel of a deep network (`tp.compile`, `tp.load`): the longest row of equal blocks in its program is looked for, and of
    two in a row the Gaussian vector between them is what is followed. example: an example input, where block is not a block but a
    whole network, to be compiled. tolerance: as for `tp.compile`; that of the kernel unless it is given.

    Where the vector has positions (a convolution, tokens), those of one input are taken to be alike, and have to be so
    afterwards: pad in a circle.

    Raises InputError where a network has no block that repeats, and where two blocks in a row do not have the kernel of the map
    applied twice.

    Example:
        >>> import jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> weight, bias = tp.hyper("weight_var", 2.5), tp.hyper("bias_var", 0.05)
        >>> block = apps.Block(lambda h: nn.dense(jnp.tanh(h), weight_var=weight, bias_var=bias))
        >>> block.phase().name, block.phase(weight_var=1.0).name
        ('chaotic', 'ordered')
        >>> round(block.critical("weight_var", (0.5, 4.0), bias_var=0.05), 2)
        1.76
        >>> def net(x):
        ...     for _ in range(10):
        ...         x = jnp.tanh(nn.dense(x, weight_var=weight, bias_var=bias))
        ...     return nn.dense(x, features=1)
        >>> round(apps.Block(tp.compile(net, jnp.zeros(3))).critical("weight_var", (0.5, 4.0), bias_var=0.05), 2)
        1.76
    """

    def __init__(self, block: Any, example: Any = None, *, tolerance: float | None = None):
        if example is not None:
            block = block if isinstance(block, KernelFunction) else tp.compile(block, example, tolerance=tolerance)
        if not callable(block) or isinstance(block, JointKernel):
            raise InputError(
                f"Block: block is a {type(block).__name__}, expected a JAX function of a wide vector, or the kernel of a deep network\n"
                "  to mend: give an example input too where it is a network, apps.Block(net, example)"
            )
        self.block = block
        if isinstance(block, KernelFunction):
            found = repeated(block.program)  # type: ignore[attr-defined]
            tolerance = block.tolerance if tolerance is None else tolerance
            make = lambda blocks, moved: tp.compile_program(found.network(blocks, moved), tolerance=tolerance)
        else:
            make = lambda blocks, moved: self._compiled(blocks, moved, tolerance)
        self._error = max(1e-6, 10 * (tolerance or 0.0))
        self._maps = {False: make(1, False)}
        self._noise = self._maps[False].graph.noise
        self._check(make(2, False))
        self._maps[True] = make(1, True)

    def _compiled(self, blocks: int, moved: bool, tolerance: float | None) -> tp.Kernel:
        try:
            return tp.compile(self._net(blocks, moved), jnp.zeros(2), tolerance=tolerance)
        except NetworkError as error:
            hint = "or, if this is a whole network and not a block of one, give an example input too: apps.Block(net, example)"
            raise type(error)(f"{error}\n  {hint}") from error

    def _net(self, blocks: int, moved: bool) -> Callable[[jax.Array], jax.Array]:
        """x in R^2 with the Gram matrix 2 C, a Gaussian vector of covariance C, blocks, a frozen readout."""

        def net(x: jax.Array) -> jax.Array:
            h = nn.dense(x, train=False, name="embedding")
            if moved:
                h = h + nn.constant(h.shape, 0.0, name="shift")  # its part of the NTK is chi
            for _ in range(blocks):
                h = self.block(h)
            return nn.dense(h, features=1, train=False, name="readout")[0]

        return net

    @property
    def hypers(self) -> dict[str, float]:
        """The numbers that may be given to every method, and their defaults."""
        return self._maps[False].hypers

    def __repr__(self) -> str:
        where = "found in a network" if isinstance(self.block, KernelFunction) else "of a layer"
        given = ", ".join(f"{name}={value:g}" for name, value in sorted(self.hypers.items()))
        return f"<Block {where}: {given}>" if given else f"<Block {where}>"

    def _kernel(self, get: str, moved: bool, q1: float, q2: float, c: float, hypers: dict[str, float]) -> float:
        """NNGP or NTK after the block of two inputs, each with noise of its own where the block draws any."""
        with precision():
            first = np.array([[math.sqrt(2 * q1), 0.0]])
            second = math.sqrt(2 * q2) * np.array([[c, math.sqrt(max(0.0, 1 - c * c))]])
            same = q1 == q2 and c == 1
            given: dict[str, Any] = dict(hypers)
            return self._alike(self._maps[moved](first, first if same else second, get=get, **given))

    def _own(self, moved: bool, q: float, hypers: dict[str, float]) -> tuple[float, float]:
        """NNGP and NTK after the block of one input with itself."""
        with precision():
            given: dict[str, Any] = dict(hypers)
            found = self._maps[moved].diag(np.array([[math.sqrt(2 * q), 0.0]]), **given)
            return self._alike(found.nngp), self._alike(found.ntk)

    def _alike(self, values: Any) -> float:
        """The one value of a covariance at all pairs of positions."""
        array = np.asarray(values)
        low, high = float(array.min()), float(array.max())
        if high - low > self._error * max(abs(low), abs(high)):
            raise InputError(
                explain(
                    f"Block: positions that were alike are not so after the block: their covariances are from {low:.3g} to {high:.3g}",
                    reason="variance and correlation are then not two numbers: padding with zeros, pooling and masks treat positions "
                    "differently",
                    mend='pad in a circle, nn.conv(.., padding="CIRCULAR"), or follow the kernels of all positions, apps.Layers(net, example)',
                )
            )
        return float(array.mean())

    def _check(self, two: tp.Kernel) -> None:
        """Do two blocks in a row have the kernel of the map applied twice? Asked at the defaults, and away from them: a default may
        switch off what tells."""
        x = np.array([[1.0, 0.2], [-0.4, 1.1]])
        settings: tuple[dict[str, Any], ...] = ({}, {name: 1.25 * value + 0.3 for name, value in self.hypers.items()})
        for given in settings:
            with precision():
                twice = np.asarray(two(x, get="nngp", **given))
            q = [self._own(False, float(v @ v) / 2, given)[0] for v in x]
            before = float(x[0] @ x[1] / np.linalg.norm(x[0]) / np.linalg.norm(x[1]))
            once = self._kernel("nngp", False, float(x[0] @ x[0]) / 2, float(x[1] @ x[1]) / 2, before, given)
            again = self._kernel("nngp", False, q[0], q[1], once / math.sqrt(q[0] * q[1]), given) if all(q) else 0.0
            found = [abs(again - self._alike(twice[0, 1]))]
            found += [abs(self._own(False, q[i], given)[0] - self._alike(twice[i, i])) for i in range(2) if q[i]]
            if max(found) > self._error * np.abs(twice).max():
                raise InputError(
                    explain(
                        "Block: two blocks in a row do not have the kernel of the block's map applied twice",
                        reason="the map is that of Gaussian vectors, and this block does not give one, so the second layer sees another law",
                        mend="let a linear layer stand between one nonlinearity and the next, as in lambda h: nn.dense(jnp.tanh(h))",
                    )
                )

    # ---- the maps

    def variance(self, q: float, **hypers: float) -> float:
        """The variance after the block of a vector of variance q."""
        return self._own(False, check_number(q, "q"), hypers)[0]

    def correlation(self, c: float, q: float, **hypers: float) -> float:
        """The correlation after the block of two vectors of variance q and correlation c."""
        q, c = check_number(q, "q", positive=True), _check_correlation(c)
        variance = self.variance(q, **hypers)
        return self._kernel("nngp", False, q, q, c, hypers) / variance if variance else 1.0

    def chi(self, q: float, c: float = 1.0, **hypers: float) -> float:
        """The derivative of the covariance after the block in the one before it, at variance q and correlation c.

        At c = 1 it is the factor of squared gradients, E[phi'(u)^2] times the weight variance for a plain layer
        (Schoenholz et al. 2017, equation 5); with dropout, that of one draw of its masks (section 5 there).
        """
        q, c = check_number(q, "q"), _check_correlation(c)
        if c == 1:
            return self._own(True, q, hypers)[1] - self._own(False, q, hypers)[1]
        return self._slope(q, c, hypers)

    def _slope(self, q: float, c: float, hypers: dict[str, float]) -> float:
        return self._kernel("ntk", True, q, q, c, hypers) - self._kernel("ntk", False, q, q, c, hypers)

    def trajectory(self, c: float, q: float, depth: int, **hypers: float) -> np.ndarray:
        """(depth + 1, 2): variance and correlation layer by layer, of two inputs of variance q and correlation c."""
        check_whole(depth, "trajectory: depth", 0)
        rows = [(check_number(q, "q", positive=True), _check_correlation(c))]
        for _ in range(depth):
            q, c = rows[-1]
            covariance, after = self._kernel("nngp", False, q, q, c, hypers), self.variance(q, **hypers)
            rows.append((after, min(1.0, covariance / after) if after else 1.0))
        return np.array(rows)

    # ---- where they lead

    def fixed_variance(self, start: float = 1.0, **hypers: float) -> float:
        """The variance to which repeating the block leads from `start`; inf if it grows without bound."""
        return self._fixed(lambda q: self.variance(q, **hypers), check_number(start, "start", positive=True))

    def _fixed(self, step: Callable[[float], float], x: float) -> float:
        """The limit of iteration, by Steffensen's method where it converges: iteration alone is slow near criticality."""
        for _ in range(300):
            one = step(x)
            if one > LARGEST:
                return math.inf
            two = step(one)
            bend = two - 2 * one + x
            if abs(one - x) <= 1e-13 * max(1.0, abs(one)) or bend == 0:
                return one
            jump = x - (one - x) ** 2 / bend
            inside = math.isfinite(jump) and jump > 0 and abs(two - one) < abs(one - x)
            x = jump if inside and abs(jump - two) < 1e3 * abs(two - x) else two
        return _first_crossing(step, x)

    def phase(self, start: float = 1.0, **hypers: float) -> Phase:
        """Fixed points, chi, and depth scales, from inputs of variance `start`."""
        q = self.fixed_variance(start, **hypers)
        if not math.isfinite(q):
            return DIVERGENT
        if q < 1e-10:  # everything decays to zero
            q = 1e-10
        chi = self.chi(q, **hypers)
        name = "critical" if abs(chi - 1) < CRITICAL else "ordered" if chi < 1 else "chaotic"
        c = 1.0
        if name == "chaotic" or self._noise:
            c = self._fixed(lambda v: self.correlation(min(1.0, max(0.0, v)), q, **hypers), 0.5)
        step = 1e-4 * q
        slope = (self.variance(q + step, **hypers) - self.variance(q - step, **hypers)) / (2 * step)
        slope_c = chi if c == 1.0 else self._slope(q, c, hypers)
        return Phase(q, c, chi, name, scale_of(slope), scale_of(slope_c), scale_of(chi))

    def critical(self, name: str, between: tuple[float, float], *, start: float = 1.0, **hypers: float) -> float:
        """The value of the hyperparameter `name` at which chi = 1 at the fixed variance: a point of the critical line.

        between: two values, one ordered and one chaotic. Raises InputError where both are of one phase.
        """
        if name not in self.hypers:
            raise InputError(
                f"critical: {name!r} is no hyperparameter; the block has: {', '.join(sorted(self.hypers))}"
            )
        return bisected(lambda value: self._excess(start, {**hypers, name: value}), name, between)

    def _excess(self, start: float, hypers: dict[str, float]) -> float:
        q = self.fixed_variance(start, **hypers)
        return self.chi(max(q, 1e-10), **hypers) - 1 if math.isfinite(q) else math.inf


def bisected(excess: Callable[[float], float], name: str, between: Any) -> float:
    """Where chi - 1 changes its sign between two values of a hyperparameter."""
    try:
        low, high = (check_number(v, "between") for v in between)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"critical: between is {between!r}, expected two numbers") from None
    at_low, at_high = excess(low), excess(high)
    if at_low * at_high > 0:
        raise InputError(
            f"critical: chi - 1 is {at_low:.3g} at {name} = {low} and {at_high:.3g} at {high}, expected one of each sign"
        )
    for _ in range(60):
        middle = (low + high) / 2
        value = excess(middle)
        if value == 0:
            return middle
        if value * at_low > 0:
            low = middle
        else:
            high = middle
        if high - low < 1e-10 * max(1.0, abs(high)):
            break
    return (low + high) / 2


def _first_crossing(step: Callable[[float], float], x: float) -> float:
    """Where step(x) - x changes its sign, going the way that iteration goes from x; the end of the way where it does not."""
    x = max(x, 1e-12)
    rising = step(x) > x
    further = np.geomspace(x, LARGEST if rising else 1e-12, 200)[1:]
    for after in map(float, further):
        if (step(after) > after) != rising:
            break
        x = after
    else:
        return math.inf if rising else 0.0
    for _ in range(100):
        middle = (x + after) / 2
        x, after = (middle, after) if (step(middle) > middle) == rising else (x, middle)
    return (x + after) / 2


def _check_correlation(c: Any) -> float:
    """A number from -1 to 1."""
    try:
        number = float(c)
    except (TypeError, ValueError):
        number = math.nan
    if not -1 <= number <= 1:
        raise InputError(f"c is {c!r}, expected a correlation between -1 and 1")
    return number


def scale_of(slope: float) -> float:
    """1 / |log slope|: after so many layers a perturbation has changed by e."""
    if slope <= 0:
        return 0.0
    return 1 / abs(math.log(slope)) if abs(math.log(slope)) > CRITICAL else math.inf
