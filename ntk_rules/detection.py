"""Kinks of a function that only JAX knows, found by looking for jumps of its values and of its first two derivatives.

Derivatives are JAX's own, exact on either side, so that a jump is a jump however close one looks: between neighbouring
points of a grid whose values lie far apart, halving goes on to the last digit, and what has not shrunk by then is a jump.
Kinks outside the window, or two between the same neighbours that cancel, are missed: the error estimate has to tell.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

WINDOW = 50.0
_CELLS = 20_000
_AROUND = 6  # neighbours that say how much a smooth function changes from one point to the next
_SUSPECT, _LEAST = 4.0, 1e-7  # times as much as the neighbours; of the function's size


def kinks_of(function: Callable[[jax.Array], jax.Array]) -> tuple[float, ...]:
    """The places in [-WINDOW, WINDOW] where `function` or one of its first two derivatives jumps.

    >>> kinks_of(lambda x: jnp.maximum(x - 0.25, 0) * jnp.tanh(x))
    (0.25,)
    """
    found: list[float] = []
    with jax.enable_x64(True):
        for _ in range(3):
            found += _jumps(jax.jit(function))
            function = _derivative(function)
    places: list[float] = []
    for place in sorted(found):
        if not places or place - places[-1] > 1e-9 * (1 + abs(place)):
            places.append(place)
    return tuple(places)


def _derivative(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]


def _jumps(function: Callable[[jax.Array], jax.Array]) -> list[float]:
    """Where neighbouring values stay apart however close the neighbours."""
    x = np.linspace(-WINDOW, WINDOW, _CELLS + 1) + 0.1234 * WINDOW / _CELLS  # zero, and round numbers, are inside cells
    y = np.asarray(function(jnp.asarray(x)), float)
    steps = np.abs(np.diff(y))
    usual = np.median(np.stack([np.roll(steps, k) for k in range(-_AROUND, _AROUND + 1) if k]), axis=0)
    size = np.maximum(np.abs(y[1:]), np.abs(y[:-1]))
    suspects = np.flatnonzero(np.isfinite(steps) & (steps > _SUSPECT * usual + _LEAST * (1 + size)))
    if not len(suspects):
        return []
    low, high = x[suspects], x[suspects + 1]
    for _ in range(60):
        middle = (low + high) / 2
        a, b, c = (np.asarray(function(jnp.asarray(t)), float) for t in (low, middle, high))
        left = np.abs(b - a) >= np.abs(c - b)
        low, high = np.where(left, low, middle), np.where(left, middle, high)
    apart = np.abs(np.asarray(function(jnp.asarray(high))) - np.asarray(function(jnp.asarray(low))))
    return [
        _round(h)
        for h, jump, step in zip(high, apart, steps[suspects], strict=True)
        if jump > 0.5 * step - _LEAST and jump > _LEAST
    ]


def _round(x: float) -> float:
    """A short decimal within a few units of the last place of x, else x."""
    short = round(float(x), 9)
    return short + 0.0 if abs(short - x) < 1e-14 * (1 + abs(x)) else float(x)
