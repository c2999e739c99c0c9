"""Order statistics of more than three positions are sampled: against moments that are published, sorting networks and finite width.

Independent standard Gaussians are what a layer makes of orthogonal inputs of variance one. The moments of their order statistics: Sarhan and
Greenberg (1956), Annals of Mathematical Statistics 27, tables I and II.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tensorprog as tp
from tensorprog import nn
from tests import sampling
from tests.everyday import everyday
from tests.uncompiled import uncompiled

Hidden = Callable[[jax.Array], jax.Array]
TOLERANCE = 2e-2  # of one expectation in a few thousand points


def network(function: Hidden) -> Callable[[jax.Array], jax.Array]:
    return lambda x: nn.dense(function(nn.dense(x)), features=1)


def orthogonal(count: int) -> np.ndarray:
    return np.sqrt(count) * np.eye(count)[None]


# function of h (positions, n), positions, E[f^2], E[sum_i (df/dh_i)^2]
PUBLISHED: dict[str, tuple[Hidden, int, float, float]] = {
    "median": (lambda h: jnp.median(h, 0), 5, 0.2868336616, 1.0),
    "third": (lambda h: jnp.sort(h, 0)[2], 4, 0.3604553434 + 0.2970113823**2, 1.0),
    "second largest": (lambda h: lax.top_k(h.T, 2)[0][:, 1], 5, 0.3115189521 + 0.4950189705**2, 1.0),
    "place": (lambda h: jnp.argsort(h, 0)[1].astype(float), 4, (1 + 4 + 9) / 4, 0.0),
    "along": (lambda h: jnp.take_along_axis(h, jnp.argsort(-h, 0), 0, mode="clip")[1], 4, 0.3604553434 + 0.2970113823**2, 1.0),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", everyday(PUBLISHED, ["third", "second largest", "along"]))
def test_published_moments(name: str) -> None:
    function, count, second, slopes = PUBLISHED[name]
    x = orthogonal(count)
    kernel = tp.compile(network(function), x[0], tolerance=TOLERANCE)
    found = uncompiled(kernel, x)
    assert kernel.sampled
    np.testing.assert_allclose(found.nngp, second, rtol=TOLERANCE)
    np.testing.assert_allclose(found.ntk, second + slopes, rtol=TOLERANCE)


@pytest.mark.long
def test_equal_positions() -> None:
    """The median of equal rows is a row, and its slopes add up to one: the kernels are those of a network on one row."""
    x = np.random.default_rng(0).standard_normal((2, 1, 3))
    rows = np.repeat(x, 5, axis=1)
    kernel = tp.compile(network(lambda h: jnp.median(h, 0)), rows[0], tolerance=TOLERANCE)
    found, plain = uncompiled(kernel, rows), uncompiled(tp.compile(network(lambda h: h[0]), x[0]), x)
    np.testing.assert_allclose(found.nngp, plain.nngp, rtol=TOLERANCE)
    np.testing.assert_allclose(found.ntk, plain.ntk, rtol=TOLERANCE)


def by_exchanges(h: jax.Array) -> jax.Array:
    """The third smallest of four, by a sorting network."""
    a, b, c, d = h
    a, b, c, d = jnp.minimum(a, b), jnp.maximum(a, b), jnp.minimum(c, d), jnp.maximum(c, d)
    return jnp.maximum(jnp.maximum(a, c), jnp.minimum(b, d))


@pytest.mark.slow
def test_a_sorting_network() -> None:
    """Of correlated positions, at one input and between two; NNGP alone, for slopes of nested minima are dear."""
    x = np.random.default_rng(1).standard_normal((2, 4, 3))
    nngp = [
        uncompiled(tp.compile(lambda x, f=f: nn.dense(lax.stop_gradient(f(nn.dense(x))), features=1), x[0], tolerance=5e-3), x).nngp
        for f in (lambda h: jnp.sort(h, 0)[2], by_exchanges)
    ]  # fmt: skip
    np.testing.assert_allclose(nngp[0], nngp[1], atol=1e-2 * np.abs(nngp[0]).max())


@pytest.mark.slow
def test_at_finite_width() -> None:
    x = np.random.default_rng(2).standard_normal((2, 5, 3))
    net = lambda nn, x, features: nn.dense(jnp.median(nn.dense(x), 0), features=features)
    limit = uncompiled(tp.compile(lambda x: net(nn, x, 1), x[0], tolerance=5e-3), x)
    sampling.check(
        sampling.plain_network(net, x),
        (limit.nngp, limit.ntk),
        (64, 128, 256, 512),
        (2048, 1024, 512, 256),
        resolution=0.03,
    )


@pytest.mark.slow
def test_both_ways_agree() -> None:
    x = np.random.default_rng(3).standard_normal((2, 4, 2))
    net = network(lambda h: jnp.argsort(h, 0)[0] * jnp.sin(h[0]))
    ways = [
        uncompiled(tp.compile(net, x[0], tolerance=TOLERANCE, method=method), x) for method in ("tangent", "adjoint")
    ]
    np.testing.assert_allclose(ways[0].ntk, ways[1].ntk, rtol=0, atol=1e-12 * np.abs(ways[0].ntk).max())


def test_what_is_refused() -> None:
    with pytest.raises(tp.UnsupportedError, match="sorts 17 positions, and no more than 16"):
        tp.compile(network(lambda h: jnp.sort(h, 0)[0]), jnp.zeros((17, 2)))
    with pytest.raises(tp.UnsupportedError, match="by several keys"):
        tp.compile(network(lambda h: jnp.lexsort((h, jnp.round(h)), axis=0)[0].astype(float)), jnp.zeros((4, 2)))


@pytest.mark.long
def test_no_tolerance_is_refused() -> None:
    with pytest.raises(tp.UnsupportedError, match="quasi-Monte Carlo: reaches"):
        tp.compile(network(lambda h: jnp.median(h, 0)), jnp.zeros((5, 2)))
