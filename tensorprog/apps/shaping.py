"""Deep kernel shaping: affine constants that give an activation the maps of variance and correlation one wants.

Source: Martens et al. 2021 (Rapid training of deep neural networks without skip connections or normalization layers using deep
kernel shaping), sections 5 to 7. With u standard Gaussian and f(u) = gamma (phi(alpha u + beta) + delta), followed by a linear
layer of variance 1: Q(1) = E f^2, Q'(1) = E f f' u, C(0) = (E f)^2 / Q(1), C'(1) = E f'^2 / Q(1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.apps.grams import check_number, precision
from tensorprog.errors import InputError, explain

__all__ = ["Shaped", "shape_activation"]

REACH, PANELS, NODES = 9.0, 300, 8
SCAN = (-50.0037, 50.0, 0.01)  # where kinks are looked for; the odd number keeps them from falling onto a bound
STARTS = [(a, b) for a in (1.0, 0.5, 0.2, 2.0) for b in (0.0, 0.5, -0.5, 1.0, -1.0, 2.0)]


class Shaped(NamedTuple):
    """The constants of gamma (phi(alpha u + beta) + delta)."""

    alpha: float
    beta: float
    gamma: float
    delta: float

    def activation(self, phi: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The shaped activation, a JAX function."""
        return lambda u: self.gamma * (phi(self.alpha * u + self.beta) + self.delta)


def shape_activation(phi: Callable[[Any], Any], *, slope: float, q_slope: float = 1.0, origin: float = 0.0) -> Shaped:
    """Constants for which Q(1) = 1, Q'(1) = q_slope, C(0) = origin and C'(1) = slope, in each layer.

    phi: a JAX function of a real number, not linear. slope: C'(1), above 1 where origin is 0 (C is convex); for a network of depth d
    whose own slope is to be z, it is z^(1/d). q_slope, origin: see above. Integrals are numerical: to 1e-10, also for a phi
    with kinks, if these lie within 50 of 0 and 0.01 apart.

    Raises InputError where no constants are found.

    Example:
        >>> import jax.numpy as jnp
        >>> from tensorprog import apps
        >>> made = apps.shape_activation(jnp.tanh, slope=1.1)
        >>> f = made.activation(jnp.tanh)
        >>> bool(abs(f(0.0)) < 1.0)
        True
    """
    if not callable(phi):
        raise InputError(f"shape_activation: phi is a {type(phi).__name__}, expected a JAX function of a real number")
    slope, q_slope = check_number(slope, "slope", positive=True), check_number(q_slope, "q_slope")
    origin = check_number(origin, "origin")
    if origin >= 1 or slope <= 1 - origin:
        raise InputError(
            f"shape_activation: slope is {slope} and origin {origin}, expected origin < 1 and slope > 1 - origin: a correlation map is "
            "convex with C(1) = 1"
        )
    with precision(), jax.ensure_compile_time_eval():  # also while a network is traced
        _check_phi(phi)
        one = jax.vmap(phi)
        first = jax.grad(lambda v: jnp.asarray(phi(v), float))
        derivative = jax.vmap(first)
        kinks = _kinks([derivative, jax.vmap(jax.grad(first))])

        def constants(at: jax.Array) -> tuple[Any, Any, jax.Array]:
            nodes, weights = _rule((kinks - at[1]) / at[0])
            values = one(at[0] * nodes + at[1])
            mean = weights @ values
            gamma = jnp.sqrt((1 - origin) / (weights @ jnp.square(values - mean)))
            return gamma, math.sqrt(origin) / gamma - mean, values

        def misses(at: jax.Array) -> jax.Array:
            gamma, delta, values = constants(at)
            nodes, weights = _rule((kinks - at[1]) / at[0])
            f, moved = gamma * (values + delta), gamma * at[0] * derivative(at[0] * nodes + at[1])
            return jnp.stack([weights @ (f * moved * nodes) - q_slope, weights @ jnp.square(moved) - slope])

        found = _solve(jax.jit(misses), jax.jit(jax.jacfwd(misses)))
        if found is None:
            raise InputError(
                explain(
                    f"shape_activation: no constants were found for slope {slope}, q_slope {q_slope} and origin {origin}",
                    reason="this activation's maps do not reach these values, or the search from several starts missed them",
                    mend="ask for a slope nearer to 1, or for other values",
                )
            )
        gamma, delta, _ = constants(jnp.asarray(found))
        return Shaped(float(found[0]), float(found[1]), float(gamma), float(delta))


def _check_phi(phi: Callable[[Any], Any]) -> None:
    """A function that JAX can trace, of one real number to one."""
    number = jax.ShapeDtypeStruct((), jnp.float64)
    try:
        found = jax.eval_shape(lambda u: phi(u), number)
    except Exception as error:
        raise InputError(
            explain(
                f"shape_activation: phi fails for a real number: {type(error).__name__}: {str(error).splitlines()[0]}",
                reason="it is differentiated by JAX",
                mend="write it with jax.numpy, as a function of one argument",
            )
        ) from error
    if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.floating):
        raise InputError(f"shape_activation: phi gives {found} for a real number, expected one real number")


def _kinks(slopes: list[Callable[[Any], Any]]) -> jax.Array:
    """Where one of these functions of a number jumps: of intervals halved again and again, those over which it still changes."""
    edges = jnp.arange(*SCAN)

    def jumps(slope: Callable[[Any], Any]) -> tuple[jax.Array, jax.Array]:
        def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = ends
            middle = (low + high) / 2
            at = slope(middle)
            left = jnp.abs(at - slope(low)) >= jnp.abs(slope(high) - at)
            return jnp.where(left, low, middle), jnp.where(left, middle, high)

        low, high = jax.lax.fori_loop(0, 44, halve, (edges[:-1], edges[1:]))
        before, after = slope(low), slope(high)
        return jnp.abs(after - before) > 1e-7 * (1e-3 + jnp.abs(before) + jnp.abs(after)), high

    found = [jax.jit(jumps, static_argnums=0)(slope) for slope in slopes]
    return jnp.unique(jnp.concatenate([high[there] for there, high in found]))


def _rule(kinks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nodes and weights of a Gaussian expectation: Gauss-Legendre in panels, which end at kinks too, for across one the error falls like
    the panel only. Nodes move with the kinks, so that derivatives see the kinks move."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    edges = jnp.sort(jnp.concatenate([jnp.linspace(-REACH, REACH, PANELS + 1), jnp.clip(kinks, -REACH, REACH)]))
    half = jnp.diff(edges)[:, None] / 2
    nodes = (edges[:-1, None] + half + half * x).ravel()
    weights = (half * w).ravel() * jnp.exp(-(nodes**2) / 2)
    return nodes, weights / weights.sum()


def _solve(misses: Callable[..., Any], slopes: Callable[..., Any]) -> np.ndarray | None:
    """Newton's method with halved steps, from several starts."""
    for start in STARTS:
        at = np.array(start)
        for _ in range(80):
            value = np.asarray(misses(at))
            size = float(np.abs(value).max())
            if size < 1e-12:
                break
            step = np.linalg.lstsq(np.asarray(slopes(at)), -value, rcond=None)[0] if np.isfinite(size) else None
            if step is None or not np.isfinite(step).all():
                break
            share = 1.0
            while share > 1e-6 and not float(np.abs(np.asarray(misses(at + share * step))).max()) < size:
                share /= 2
            if share <= 1e-6:
                break
            at = at + share * step
        if float(np.abs(np.asarray(misses(at))).max()) < 1e-9 and at[0] > 0:
            return at
    return None
