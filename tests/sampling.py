"""Kernels against sampled finite networks, by the rates that theory gives.

One random network of width n has an empirical NNGP kernel and NTK; over draws,

  their mean is  K + c/n + O(1/n^2)          (bias falls like 1/n)
  and one draw strays by  s/sqrt(n)          (fluctuation falls like 1/sqrt n)

with K the infinite-width kernel.  Three questions are asked of a series of widths, each
with a stated confidence: does the mean, extrapolated to 1/n = 0, equal K; is the
exponent of the bias 1, where the bias can be told from noise; is the exponent of the
fluctuation 1/2.  A question whose answer would be too vague to reject a wrong kernel is
an error too: the draws were too few.

Intervals span Z = 4.5 standard errors: a true statement fails with probability below 1e-5,
and seeds are fixed, so a passing test stays passing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests import plain

Kernels = tuple[Any, Any]

Z = 4.5
GROUPS = 32  # draws are grouped for the error of an estimated variance
CHUNK = 1 << 22  # entries of one square matrix, over all draws held at once
CURVATURE = 0.5
ROUNDING = 1e-6  # of a mean of float32 draws, relative to the largest entry


# --------------------------------------------------------------------------- finite networks


@dataclass(frozen=True)
class Finite:
    """A finite network at any width: ``init(width, key)`` and ``apply(width, params, x)``.

    The output has ``width`` features, so that one network's NNGP kernel, a mean over
    features, has a fluctuation of 1/sqrt(width) like its NTK.
    """

    init: Callable[[int, jax.Array], Any]
    apply: Callable[[int, Any, jax.Array], jax.Array]
    inputs: Any  # an array (N, ..), or a pytree of them

    def kernels(self, width: int, params: Any) -> Kernels:
        """(nngp, ntk) of one network, each (N, N); the NTK is that of the first feature."""
        f = lambda p, x: self.apply(width, p, x)
        outputs = jax.vmap(lambda x: f(params, x))(self.inputs)
        gradients = jax.vmap(lambda x: jax.grad(lambda p: f(p, x)[0])(params))(self.inputs)
        count = len(jax.tree.leaves(self.inputs)[0])
        flat = [g.reshape(count, -1) for g in jax.tree.leaves(gradients)]
        return outputs @ outputs.T / outputs.shape[-1], sum(g @ g.T for g in flat)


def plain_network(net: plain.Net, inputs: np.ndarray) -> Finite:
    """``net(nn, x, features)`` with the layers of ``tests.plain``."""
    x = jnp.asarray(inputs, jnp.float32)
    at = lambda width: lambda nn, x: net(nn, x, width)
    return Finite(
        lambda width, key: plain.init(at(width), x[0], width, key),
        lambda width, params, x: plain.apply(at(width), params, x, width),
        x,
    )


def tensorprog_network(net: plain.Net, inputs: np.ndarray) -> Finite:
    """``net(nn, x, features)`` with ``tensorprog.nn``, through tp.init and tp.apply."""
    import tensorprog as tp

    x = jnp.asarray(inputs, jnp.float32)
    at = lambda width: lambda x: net(tp.nn, x, width)
    return Finite(
        lambda width, key: tp.init(at(width), x[0], width, key),
        lambda width, params, x: tp.apply(at(width), params, x),
        x,
    )


# --------------------------------------------------------------------------- estimates


@dataclass(frozen=True)
class Sample:
    """Draws at one width: entries of both kernels, divided by the scale of the limit."""

    width: int
    entries: np.ndarray  # (draws, entries)

    @property
    def mean(self) -> np.ndarray:
        return self.entries.mean(0)

    @property
    def error(self) -> np.ndarray:
        """Standard errors of the mean."""
        return self.entries.std(0, ddof=1) / np.sqrt(len(self.entries))

    def log_spread(self) -> tuple[float, float]:
        """log of the root mean square fluctuation of one draw, and its standard error.

        The error comes from groups of draws, as fourth moments would need.
        """
        strays = ((self.entries - self.mean) ** 2).mean(1)
        groups = np.array([g.mean() for g in np.array_split(strays, GROUPS)])
        relative = groups.std(ddof=1) / np.sqrt(GROUPS) / strays.mean()
        return 0.5 * float(np.log(strays.mean())), 0.5 * float(relative)


def scaled_entries(kernels: Kernels, scales: tuple[float, float]) -> np.ndarray:
    """Upper triangles of both kernels in units of the limit's largest entry, (.., entries)."""
    upper = np.triu_indices(kernels[0].shape[-1])
    parts = [np.asarray(k, float)[..., upper[0], upper[1]] / s for k, s in zip(kernels, scales, strict=True)]
    return np.concatenate(parts, -1)


def is_constant(x: jax.Array) -> bool:
    """Whether a drawn parameter is a constant; if not, it must look standard Gaussian (Z standard errors)."""
    x = np.asarray(x)
    if x.size > 1 and np.all(x == x.flat[0]):
        return True
    assert abs(np.mean(x**2) - 1) <= Z * np.sqrt(2 / x.size) + Z**2 / x.size, "not a standard Gaussian"
    return False


def redraw(template: Any, shapes: Any, count: int, rng: np.random.Generator) -> Any:
    """``count`` sets of parameters of these shapes, like the template: standard Gaussian, or constant.

    NumPy draws them because JAX's generator takes longer to compile than a small network.
    """

    def leaf(x: jax.Array, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        size = (count, *shape.shape)
        if is_constant(x):
            return np.full(size, np.asarray(x).flat[0], np.float32)
        return rng.standard_normal(size, dtype=np.float32)

    kinds, (sizes, tree) = jax.tree.leaves(template), jax.tree.flatten(shapes)
    return tree.unflatten(leaf(x, shape) for x, shape in zip(kinds, sizes, strict=True))


def sample(network: Finite, widths: Sequence[int], draws: Sequence[int], limit: Kernels, seed: int) -> list[Sample]:
    """Independent draws at every width, in float32."""
    scales = tuple(float(np.abs(k).max()) for k in limit)
    out, key = [], jax.random.key(seed)
    with jax.enable_x64(False):
        template = network.init(widths[0], key)
        for width, count in zip(widths, draws, strict=True):
            shapes = jax.eval_shape(lambda k, w=width: network.init(w, k), key)
            # One network at a time: its matrices stay in cache.
            run = jax.jit(lambda batch, w=width: jax.lax.map(lambda p: network.kernels(w, p), batch))
            rng = np.random.default_rng([seed, width])
            size = min(count, CHUNK // width**2)
            chunks = [run(redraw(template, shapes, size, rng)) for _ in range(-(-count // size))]
            out.append(Sample(width, np.concatenate([scaled_entries(c, scales) for c in chunks])))
    return out


# --------------------------------------------------------------------------- rates


@dataclass(frozen=True)
class Interval:
    """A power of the width with its confidence interval."""

    best: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.best:.2f} [{self.low:.2f}, {self.high:.2f}]"


def extrapolate(samples: Sequence[Sample], limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean at 1/n = 0 minus the limit, per entry, and its standard error.

    Weighted least squares in 1, 1/n, 1/n^2 (as many powers as there are widths, at most).
    """
    order = min(3, len(samples))
    widths = np.array([s.width for s in samples], float)
    design = (widths.min() / widths)[:, None] ** np.arange(order)
    offsets, errors = [], []
    for entry in range(len(limit)):
        sigma = np.array([s.error[entry] for s in samples]) + ROUNDING
        gap = np.array([s.mean[entry] for s in samples]) - limit[entry]
        covariance = np.linalg.inv(design.T @ (design / sigma[:, None] ** 2))
        offsets.append((covariance @ design.T @ (gap / sigma**2))[0])
        errors.append(np.sqrt(covariance[0, 0]))
    return np.array(offsets), np.array(errors)


def bias_exponent(samples: Sequence[Sample], limit: np.ndarray) -> Interval | None:
    """alpha in bias = c n^-alpha (1 + d/n), or None with fewer than four widths or a bias lost in noise.

    The next order is taken to be at most CURVATURE of the leading one at the smallest width.
    The vector of biases is projected on one direction: the one seen in half of the draws at the
    smallest width; the other half, and the other widths, are then independent of the choice.
    """
    first, rest = samples[0], samples[1:]
    half = len(first.entries) // 2
    guess = Sample(first.width, first.entries[:half])
    direction = (guess.mean - limit) / guess.error.max() ** 2
    used = [Sample(first.width, first.entries[half:]), *rest]
    bias = np.array([(s.mean - limit) @ direction for s in used])
    sigma = np.array([(s.entries @ direction).std(ddof=1) / np.sqrt(len(s.entries)) for s in used])
    if len(samples) < 4 or np.abs(bias[0]) < 2 * Z * sigma[0]:
        return None
    ratio = first.width / np.array([s.width for s in used])
    exponents, bends = np.linspace(-1.0, 3.0, 401), np.linspace(-CURVATURE, CURVATURE, 21)
    curves = ratio ** exponents[:, None, None] * (1 + bends[:, None] * ratio) / sigma
    target = bias / sigma
    # The best multiple of a unit curve leaves |target|^2 - <target, curve>^2.
    overlap = curves @ target / np.linalg.norm(curves, axis=-1)
    misfit = target @ target - (overlap**2).max(1)
    inside = exponents[misfit <= misfit.min() + Z**2]
    return Interval(float(exponents[misfit.argmin()]), float(inside.min()), float(inside.max()))


def spread_exponent(samples: Sequence[Sample]) -> Interval:
    """alpha in fluctuation = s n^-alpha exp(d/n), by weighted least squares of logarithms."""
    logs, sigma = np.array([s.log_spread() for s in samples]).T
    widths = np.array([s.width for s in samples], float)
    design = np.stack([np.ones_like(widths), -np.log(widths), widths.min() / widths], 1)[:, : len(widths)]
    covariance = np.linalg.inv(design.T @ (design / sigma[:, None] ** 2))
    best = float((covariance @ design.T @ (logs / sigma**2))[1])
    margin = Z * float(np.sqrt(covariance[1, 1]))
    return Interval(best, best - margin, best + margin)


@dataclass(frozen=True)
class Report:
    """What the draws say about a kernel."""

    offset: np.ndarray  # extrapolated mean minus limit, per entry, relative to the largest
    error: np.ndarray
    bias: Interval | None
    spread: Interval

    def __str__(self) -> str:
        worst = int(np.argmax(np.abs(self.offset) / self.error))
        return (
            f"extrapolated mean - kernel: {self.offset[worst]:+.4f} +- {self.error[worst]:.4f} "
            f"(entry {worst}), largest error {self.error.max():.4f}; bias ~ n^-alpha, alpha = {self.bias}; "
            f"fluctuation ~ n^-beta, beta = {self.spread}"
        )


def report(network: Finite, limit: Kernels, widths: Sequence[int], draws: Sequence[int], seed: int = 0) -> Report:
    """Draw networks of all widths and compare them with the limit (nngp, ntk)."""
    limit = tuple(np.asarray(k, float) for k in limit)
    target = scaled_entries(limit, tuple(float(np.abs(k).max()) for k in limit))
    samples = sample(network, widths, draws, limit, seed)
    offset, error = extrapolate(samples, target)
    return Report(offset, error, bias_exponent(samples, target), spread_exponent(samples))


def check(
    network: Finite,
    limit: Kernels,
    widths: Sequence[int],
    draws: Sequence[int],
    *,
    seed: int = 0,
    resolution: float = 0.02,
    bias: bool = False,
) -> Report:
    """Assert that networks approach the limit at the rates of theory; see the module.

    ``resolution`` bounds the standard error of the extrapolated mean, relative to the
    largest entry: a kernel wrong by 2 Z times that is rejected almost surely.  ``bias`` asks
    for a bias that can be told from noise; without it, its exponent is checked where it can.
    """
    found = report(network, limit, widths, draws, seed)
    assert found.error.max() <= resolution, f"too few draws to tell: {found}"
    assert np.all(np.abs(found.offset) <= Z * found.error), f"the limit is not met: {found}"
    assert 0.5 in found.spread, f"the fluctuation does not fall like n^-1/2: {found}"
    assert 0.0 not in found.spread, f"too few draws to see the fluctuation fall: {found}"
    if bias:
        assert found.bias is not None, f"the bias is lost in the noise: {found}"
        assert 0.0 not in found.bias, f"too few draws to see the bias fall: {found}"
    if found.bias is not None:
        assert 1.0 in found.bias, f"the bias does not fall like 1/n: {found}"
    return found
