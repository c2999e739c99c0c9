"""Phases read off the layers themselves, where there is no map: against maps where there is one, random matrices, and sampled networks."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf

import tensorprog as tp
from tensorprog import apps, nn
from tensorprog.apps.depth import Phase
from tensorprog.apps.grams import precision
from tests.apps.test_layers import inputs, layers

LEAK, GAIN = tp.hyper("leak", 0.5), tp.hyper("gain", 1.5)
SLOPE = 2 / np.sqrt(np.pi)  # of erf at 0


def leaky(x: jax.Array) -> jax.Array:
    """One weight in all steps, in a state that leaks: the random networks of Sompolinsky, Crisanti and Sommers 1988 in discrete time."""
    n = nn.width()
    w, h = nn.weight((n, n)), nn.dense(x)
    for _ in range(3):
        h = LEAK * h + GAIN * (w @ erf(h)) / n**0.5
    return nn.dense(h, features=1)


@cache
def followed() -> apps.Layers:
    return apps.Layers(leaky, jnp.zeros(3))


def read_off(found: apps.Layers, x: np.ndarray, **hypers: float) -> Phase:
    """As if there were no map."""
    with precision():
        return found._unsettled.phase(*found._read(*x, hypers))


@pytest.mark.parametrize(
    "name", [pytest.param("padded", marks=pytest.mark.slow), pytest.param("read again", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("w", [0.5, 1.2, 2.5])
def test_what_maps_say(name: str, w: float) -> None:
    """Fixed points and slopes of maps, to the errors that are stated; padding has a scale_q of its own, of all covariances."""
    found, x = layers(name), inputs((4, 2) if name == "padded" else (3,))
    expected, phase = found.phase(*x, w=w), read_off(found, x, w=w)
    assert phase.name == expected.name
    for field in ("q", "c", "chi", "scale_c", "scale_gradient", *(["scale_q"] if name == "read again" else [])):
        a, b = getattr(phase, field), getattr(expected, field)
        small = 1e-6 * np.abs(b) + 1e-9  # maps give what has decayed to 1e-10 as it is, and slopes by differences
        assert np.all(np.abs(a - b) <= phase.errors[field] + small), field
        if field != "c" and not (field == "scale_c" and b > 24):  # known to half of itself beyond half the blocks
            assert np.all(phase.errors[field] < 1e-2), field


@pytest.mark.slow
def test_small_signals_are_those_of_random_matrices() -> None:
    """At zero the step is (leak + gain slope W) h, whose powers grow like the largest absolute value of its eigenvalues: those of W fill
    the unit disk (Ginibre 1965). With a weight for each step it would be the square root of leak^2 + gain^2 slope^2."""
    x = inputs((3,))
    phase = followed().phase(*x, gain=0.3)
    expected = (0.5 + 0.3 * SLOPE) ** 2
    assert phase.name == "ordered" and abs(phase.chi - expected) < phase.errors["chi"] < 1e-4
    assert phase.q <= phase.errors["q"] < 1e-9
    assert abs(phase.scale_gradient + 1 / np.log(expected)) < phase.errors["scale_gradient"]


@pytest.mark.slow
def test_critical_lines_are_those_of_random_matrices() -> None:
    x = inputs((3,))
    assert abs(followed().critical("gain", (0.3, 0.46), x[0]) - 0.5 / SLOPE) < 2e-3
    with pytest.raises(tp.InputError, match="(?s)chi at gain = .* is not known.*narrower"):
        followed().critical("gain", (0.2, 0.8), x[0])


@pytest.mark.slow
def test_chaos_of_sampled_networks() -> None:
    """The variance that goes on, and the growth of a change, at width 1,000."""
    x, n, depth = inputs((3,)), 1000, 30
    phase = followed().phase(*x)
    variances, growths = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        w, h, v, sizes = (
            rng.standard_normal((n, n)) / np.sqrt(n),
            rng.standard_normal((n, 3)) @ x[0] / np.sqrt(3),
            rng.standard_normal(n),
            [],
        )
        for _ in range(depth):
            v = 0.5 * v + 1.5 * w @ (SLOPE * np.exp(-h * h) * v)
            h = 0.5 * h + 1.5 * w @ np.asarray(erf(h))
            sizes.append(np.log(v @ v))
        variances.append(h @ h / n)
        growths.append(np.exp((sizes[-1] - sizes[14]) / (depth - 15)))
    assert phase.name == "chaotic"
    for value, error, sampled in ((phase.q, phase.errors["q"], variances), (phase.chi, phase.errors["chi"], growths)):
        assert abs(value - np.mean(sampled)) < error + 4 * np.std(sampled) / np.sqrt(6)


@pytest.mark.slow
def test_variances_that_grow() -> None:
    """Without a leak erf saturates, so that every step adds the same vector: the variance grows like the square of the depth. With a weight
    for each step it grows like the depth."""
    phase = followed().phase(*inputs((3,)), leak=1.0)
    assert phase.name == "divergent" and abs(phase.power - 2) < 0.1
    assert str(phase).startswith("divergent: the variance grows without bound, like the depth to the power 2")
    assert followed().chi(inputs((3,))[0], leak=1.0) == np.inf


@pytest.mark.slow
def test_words() -> None:
    shown = str(followed().phase(*inputs((3,))))
    assert "chaotic: variance" in shown and "(error about" in shown
    with pytest.raises(tp.InputError, match="chi - 1 is .* expected one of each sign"):
        followed().critical("gain", (0.1, 0.2), inputs((3,))[0])


# ------------------------------------------------------------------------------------------ populations

sigmoid = jax.nn.sigmoid


def gated(x: jax.Array) -> jax.Array:
    """A GRU, whose three weights all steps share."""
    n = nn.width()
    w, u = [nn.weight((n, n)) for _ in range(3)], [nn.dense(x, bias_var=0.1) for _ in range(3)]
    h = jnp.zeros(n)
    for _ in range(4):
        z, r = (sigmoid(w[i] @ h / n**0.5 + u[i]) for i in range(2))
        h = z * h + (1 - z) * jnp.tanh(2 * w[2] @ (r * h) / n**0.5 + u[2])
    return nn.dense(h, features=1)


@pytest.mark.slow
def test_gates_of_shared_weights() -> None:
    """Against eight sampled networks of width 1,000, of 24 steps."""
    x, n = inputs((3,)), 1000
    phase = apps.Layers(gated, jnp.zeros(3), tolerance=2e-2).phase(*x)
    plain, variances, growths = (lambda u: 1 / (1 + np.exp(-u))), [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        w = [rng.standard_normal((n, n)) / np.sqrt(n) for _ in range(3)]
        u = [rng.standard_normal((n, 3)) @ x[0] / np.sqrt(3) + np.sqrt(0.1) * rng.standard_normal(n) for _ in range(3)]
        h, v, sizes = np.zeros(n), rng.standard_normal(n), []
        for _ in range(24):
            z, r = plain(w[0] @ h + u[0]), plain(w[1] @ h + u[1])
            c = np.tanh(2 * w[2] @ (r * h) + u[2])
            dz, dr = z * (1 - z) * (w[0] @ v), r * (1 - r) * (w[1] @ v)
            v = dz * h + z * v - dz * c + (1 - z) * (1 - c * c) * 2 * (w[2] @ (dr * h + r * v))
            h = z * h + (1 - z) * c
            sizes.append(np.log(v @ v))
        variances.append(h @ h / n)
        growths.append(np.exp((sizes[-1] - sizes[17]) / 6))
    assert phase.name == "ordered"
    for value, error, sampled in ((phase.q, phase.errors["q"], variances), (phase.chi, phase.errors["chi"], growths)):
        assert error < 0.1 and abs(value - np.mean(sampled)) < error + 4 * np.std(sampled) / np.sqrt(8)


def minimal(x: jax.Array) -> jax.Array:
    """The minimalRNN of Chen, Pennington and Schoenholz 2018, equation 2, with weights of its own for every step and inputs that are new in
    each, as there."""
    h = jnp.tanh(nn.dense(x, weight_var=2.0))
    for _ in range(4):
        e = jnp.tanh(nn.dense(x, weight_var=2.0))
        u = sigmoid(nn.dense(h, weight_var=6.0) + nn.dense(e, weight_var=1.0))
        h = u * h + (1 - u) * e
    return nn.dense(h, features=1)


@pytest.mark.slow
def test_minimal_recurrent_networks() -> None:
    """Their mean field, section 4: the gate is independent of what it gates, and chi = E u^2 + sw^2 E sigma'^2 E (h - e)^2. Blocks read the
    inputs again here, whose weights have no part in chi."""
    x, tolerance = inputs((3,)), 2e-2
    z, weights = np.polynomial.hermite_e.hermegauss(100)
    mean = lambda f, q: weights @ f(np.sqrt(q) * z) / weights.sum()
    plain = lambda a: 1 / (1 + np.exp(-a))
    q = of_e = mean(lambda a: np.tanh(a) ** 2, 2 * x[0] @ x[0] / 3)
    for _ in range(400):
        gate = 6 * q + of_e
        q = mean(lambda a: plain(a) ** 2, gate) * q + mean(lambda a: (1 - plain(a)) ** 2, gate) * of_e
    chi = mean(lambda a: plain(a) ** 2, gate) + 6 * mean(lambda a: (plain(a) * (1 - plain(a))) ** 2, gate) * (q + of_e)
    phase = apps.Layers(minimal, jnp.zeros(3), tolerance=tolerance).phase(*x)
    assert abs(phase.q - q) < tolerance * q and abs(phase.chi - chi) < phase.errors["chi"] < 0.1


@pytest.mark.slow
def test_slow_growth_is_no_divergence() -> None:
    """A little above the critical gain the variance grows through all blocks that are followed, to a fixed point: from far above it shrinks."""
    assert followed().phase(*inputs((3,)), gain=0.48).name == "undecided"
