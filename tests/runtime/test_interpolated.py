"""Whole matrices from a series in norms and angle: as exact as the layers, also for near, equal and opposite inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf
from numpy.polynomial.chebyshev import chebval

import tensorprog as tp
from ntk_rules.interpreted import operations
from tensorprog import nn
from tensorprog.kernel.invariant import features, homogeneous
from tensorprog.runtime import interpolated, pieces
from tensorprog.runtime.kernel import pair_operations

Net = Callable[[jax.Array], jax.Array]


def deep(act: Net, depth: int, bias: Any = 0.0) -> Net:
    def net(x: jax.Array) -> jax.Array:
        h = jnp.ravel(x) / 2
        for _ in range(depth):
            h = act(nn.dense(h, weight_var=2.0, bias_var=bias))
        return nn.dense(h, features=1)

    return net


def inputs(count: int, dtype: Any = np.float64, *, equal_norms: bool = False) -> np.ndarray:
    """Inputs of shape (2, 2), the first five special: two equal, one near, one opposite, one of another norm."""
    x = np.random.default_rng(0).standard_normal((count, 2, 2))
    x *= np.random.default_rng(1).uniform(1, 2, (count, 1, 1)) / np.linalg.norm(x, axis=(1, 2), keepdims=True)
    x[0] /= np.linalg.norm(x[0])
    x[1], x[2], x[3], x[4] = x[0], x[0] * (1 + 1e-6 * x[5]), -x[0], 2 * x[0]
    if equal_norms:
        x /= np.linalg.norm(x, axis=(1, 2), keepdims=True)
    return x.astype(dtype)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Interpolate however few pairs there are; the list tells whether it was done."""
    done: list[bool] = []
    call = interpolated.Interpolated.work

    def noted(self: Any, *args: Any) -> Any:
        found = call(self, *args)
        done.append(found is not None)
        return found

    monkeypatch.setattr(interpolated, "LEAST_PAIRS", 1)
    monkeypatch.setattr(interpolated, "_cost", lambda shape: 0.0)
    monkeypatch.setattr(interpolated.Interpolated, "work", noted)
    return done


def difference(a: Any, b: Any, kernel: Any, x: Any, y: Any) -> float:
    """The largest one, relative to sqrt(K(x, x) K(y, y))."""
    scales = [np.sqrt(np.outer(k, q)) for k, q in zip(kernel.diag(x), kernel.diag(y), strict=True)]
    return max(float(np.max(np.abs(p - q) / s)) for p, q, s in zip(a, b, scales, strict=True))


@pytest.mark.long
@pytest.mark.parametrize(
    ("net", "equal_norms"),
    [
        (deep(jax.nn.relu, 3), False),
        (deep(jax.nn.relu, 2, 0.3), True),
        pytest.param(deep(erf, 2, 0.1), False, marks=pytest.mark.slow),
    ],
    ids=["homogeneous", "kinks with biases, one norm", "smooth with biases"],
)
def test_agrees_with_the_layers(net: Net, equal_norms: bool, always: list[bool]) -> None:
    kernel = tp.compile(net, jnp.zeros((2, 2)))
    x, y = inputs(40, equal_norms=equal_norms), inputs(23, equal_norms=equal_norms)[::-1]
    layers = kernel.without("interpolation")
    near = 1e-9  # layers have the angle of inputs 1e-6 apart from a cosine of 1 - 1e-12, to four digits
    assert difference(kernel(x[3:], y[:-3]), layers(x[3:], y[:-3]), kernel, x[3:], y[:-3]) < 2e-12
    assert difference(kernel(x, y), layers(x, y), kernel, x, y) < near
    gram = kernel(x)
    assert difference(gram, layers(x), kernel, x, x) < near
    assert all(always) and len(always) == 3
    for k, own in zip(gram, kernel.diag(x), strict=True):
        np.testing.assert_array_equal(k, k.T)
        np.testing.assert_allclose(np.diag(k), own, rtol=1e-12)
        np.testing.assert_allclose(k[0, 1], own[0], rtol=1e-12)
    assert kernel(x, get="ntk").shape == (40, 40)


@pytest.mark.parametrize("degree", [0, 1, 2, 5, 6, 13, 25])
@pytest.mark.parametrize("in_powers", [True, False])
def test_an_even_and_an_odd_half(degree: int, in_powers: bool) -> None:
    """E(2 t^2 - 1) + t O(2 t^2 - 1) is the series, in powers and in Chebyshev's polynomials."""
    random = np.random.default_rng(degree)
    coefficients = random.standard_normal((2, 1, 1, degree + 1)) * 0.5 ** np.arange(degree + 1)
    t = np.cos(np.linspace(0, np.pi, 41))
    halves = interpolated._by_parity(coefficients)
    if in_powers:
        halves = halves @ interpolated._powers(halves.shape[-1])
    for k in range(2):
        found = interpolated._sum(jnp.asarray(halves[k, 0, 0]), jnp.asarray(t), in_powers)
        np.testing.assert_allclose(found, chebval(t, coefficients[k, 0, 0]), atol=1e-14)


def test_however_the_layers_are_computed_for_it_the_series_is_the_same(
    always: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of norms and directions apart or pair by pair, by NumPy or by XLA."""
    x, found, made = inputs(12), [], interpolated.Interpolated.__init__
    for cost in (math.inf, 1e6):

        def forced(self: Any, *args: Any, cost: float, chosen: float = cost, **options: Any) -> None:
            made(self, *args, cost=chosen, **options)

        monkeypatch.setattr(interpolated.Interpolated, "__init__", forced)
        kernel = tp.compile(deep(erf, 1, 0.1), jnp.zeros((2, 2)))
        found += [kernel(x), kernel.without("numpy")(x)]
    assert all(always) and len(always) == 4
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.long
def test_costly_layers_asked_for_again_and_again_are_compiled(
    always: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def costly(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options | {"cost": math.inf})

    init = interpolated.Interpolated.__init__
    monkeypatch.setattr(interpolated.Interpolated, "__init__", costly)
    monkeypatch.setattr(interpolated, "OFTEN", 1)
    kernel, x = tp.compile(deep(erf, 1, tp.hyper("v", 0.1)), jnp.zeros((2, 2))), inputs(8)
    made, ways = kernel._interpolated, []
    assert made is not None
    for v in (0.7, 1.1, 1.3):
        np.testing.assert_allclose(kernel(x, v=v).ntk, kernel.without("interpolation")(x, v=v).ntk, rtol=1e-10)
        ways.append({by_numpy for _, by_numpy in made._plane._codes})
    assert ways == [{True}, {True, False}, {True, False}] and all(always)


def test_near_inputs_keep_their_digits_in_float32(always: list[bool]) -> None:
    kernel = tp.compile(deep(jax.nn.relu, 8), jnp.zeros((2, 2)))
    x = inputs(40, np.float32)
    wide = kernel.without("interpolation")(np.float64(x))
    for k, exact in zip(kernel(x), wide, strict=True):
        assert k.dtype == np.float32
        np.testing.assert_allclose(k, exact, atol=1e-6 * np.max(np.abs(exact[:4, :4])), rtol=1e-6)


def test_hyperparameters_make_another_series(always: list[bool]) -> None:
    def net(x: jax.Array) -> jax.Array:
        return nn.dense(jax.nn.relu(nn.dense(jnp.ravel(x), weight_var=tp.hyper("v", 2.0))), features=1)

    kernel, x = tp.compile(net, jnp.zeros((2, 2))), inputs(20)
    for v in (2.0, 0.5):
        np.testing.assert_allclose(kernel(x, v=v).ntk, kernel.without("interpolation")(x, v=v).ntk, atol=1e-9)
    assert all(always)


@pytest.mark.long
def test_a_range_of_norms_grows_with_the_inputs(always: list[bool]) -> None:
    kernel = tp.compile(deep(erf, 1, 0.1), jnp.zeros((2, 2)))
    layers = kernel.without("interpolation")
    for scale in (1.0, 1.5, 0.7):
        x = scale * inputs(20)[3:]
        np.testing.assert_allclose(kernel(x).ntk, layers(x).ntk, rtol=1e-11)


def test_looks_once_where_there_is_no_series(always: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(interpolated, "make_series", lambda *args: made.append(args))
    kernel = tp.compile(deep(erf, 1, 0.1), jnp.zeros((2, 2)))
    for x in (inputs(20), inputs(12), 1.5 * inputs(20)):
        kernel(x)
    assert len(made) == 2 and not any(always)


def test_declines_what_it_does_not_know(always: list[bool]) -> None:
    biased = tp.compile(deep(jax.nn.relu, 2, 0.3), jnp.zeros((2, 2)))  # a corner at equal inputs, in the norms too
    homogeneous_net = tp.compile(deep(jax.nn.relu, 1), jnp.zeros((2, 2)))
    nothing = np.concatenate([np.zeros((1, 2, 2)), inputs(9)])
    for kernel, x in ((biased, inputs(10)), (homogeneous_net, nothing)):
        np.testing.assert_array_equal(kernel(x).ntk, kernel.without("interpolation")(x).ntk)
    assert not any(always)


CASES: dict[str, tuple[Net, bool, bool]] = {  # rotation invariant, homogeneous
    "relu": (deep(jax.nn.relu, 2), True, True),
    "leaky": (deep(lambda h: jnp.maximum(h, 0.1 * h), 2), True, True),
    "a residual": (lambda x: nn.dense((h := nn.dense(jnp.ravel(x))) + nn.dense(jax.nn.relu(h)), features=1), True, True),
    "a square beside": (lambda x: nn.dense((h := nn.dense(jnp.ravel(x))) + nn.dense(h**2), features=1), True, False),
    "biases": (deep(jax.nn.relu, 2, 0.1), True, False),
    "erf": (deep(erf, 1), True, False),
    "the first entry": (lambda x: nn.dense(jax.nn.relu(nn.dense(jnp.ravel(x)) + x[0, 0]), features=1), False, False),
    "two layers of the input": (
        lambda x: nn.dense(jax.nn.relu(nn.dense(jnp.ravel(x)) + nn.dense(jnp.ravel(x) ** 2)), features=1), False, False,
    ),
    "positions": (lambda x: nn.dense(jnp.mean(jax.nn.relu(nn.dense(x)), 0), features=1), False, False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_structure(name: str) -> None:
    net, invariant, scales = CASES[name]
    graph = tp.compile(net, jnp.zeros((2, 2))).graph
    vector = features(graph)
    assert (vector is not None) == invariant
    if vector is not None:
        assert homogeneous(graph, vector) == scales


def test_unknown_optimisations_are_named() -> None:
    kernel = tp.compile(deep(jax.nn.relu, 1), jnp.zeros((2, 2)))
    with pytest.raises(tp.InputError, match="'turbo' is no optimisation"):
        kernel.without("turbo")


def test_norms_that_differ_late_are_seen() -> None:
    """Of a kinked network with biases there is a series for inputs of one norm alone, and a few are looked at first."""
    kernel = tp.compile(deep(jax.nn.relu, 2, 0.3), jnp.zeros((2, 2)))
    x = inputs(200, equal_norms=True)
    x[interpolated.AT_FIRST :] *= np.linspace(1, 2, 200 - interpolated.AT_FIRST)[:, None, None]
    for mine, right in zip(kernel(x), kernel.without("interpolation")(x), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-12)


def test_few_pairs_have_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tp.compile(deep(jax.nn.relu, 2), jnp.zeros((2, 2)))
    workers: list[int] = []
    at_once = pieces.at_once
    monkeypatch.setattr(pieces, "at_once", lambda jobs, count: workers.append(count) or at_once(jobs, count))
    monkeypatch.setattr(pieces, "cores", lambda: 2)
    kernel(inputs(200)), kernel(inputs(500))
    assert workers == [1, 2]


@pytest.mark.parametrize(
    "phi", [jax.nn.relu, erf, jnp.sin, partial(jax.nn.gelu, approximate=False)], ids=["relu", "erf", "sin", "gelu"]
)
def test_what_a_pair_costs_is_about_what_is_traced(phi: Callable[[jax.Array], jax.Array]) -> None:
    kernel = tp.compile(deep(phi, 3, 0.1), jnp.zeros((2, 2)))
    x = [jnp.zeros((64, 2, 2))]
    with jax.enable_x64(True):
        traced = jax.jit(kernel.functions.rows).trace(x, x, {})
    counted = operations(traced.jaxpr) / 64
    assert counted / 3 < pair_operations(kernel.graph.nodes) < 3 * counted


def test_without_a_closed_form_a_pair_costs_more_than_any_series() -> None:
    kernel = tp.compile(deep(jax.nn.swish, 1), jnp.zeros((2, 2)))
    assert pair_operations(kernel.graph.nodes) == math.inf


def test_an_input_beside_a_constant_vector_is_not_invariant() -> None:
    """What reads x'c depends on the direction of x, not on norms and angles alone."""

    def net(x: jax.Array) -> jax.Array:
        w = nn.weight((nn.width(), 2))
        h, g = (w @ v / 2**0.5 for v in (x, jnp.array([1.0, 0.0])))
        return nn.dense(jnp.sin(h) * jnp.cos(g), features=1)

    assert tp.compile(net, jnp.zeros(2))._interpolated is None


@pytest.mark.parametrize("depth", [1, 3])
def test_norms_that_rounding_has_parted_are_one(depth: int) -> None:
    """Inputs of unit norm in float32: a series in the angle alone, for which the norms need not be equal to the last digit."""
    x = np.random.default_rng(0).standard_normal((200, 2, 2)).astype(np.float32)
    x = np.asarray(jnp.asarray(x) / jnp.linalg.norm(jnp.asarray(x), axis=(1, 2), keepdims=True))
    kernel = tp.compile(deep(jax.nn.relu, depth, 0.1), jnp.zeros((2, 2)))
    found = kernel(x)
    shortcut = kernel._gram._shortcut
    assert isinstance(shortcut, interpolated.Interpolated)
    assert shortcut._made is not None
    _, low, high, series = shortcut._made
    assert 1e-12 < high - low <= 1e-6
    assert series is not None
    assert series.coefficients.shape[1:3] == (1, 1)
    with jax.enable_x64(True):
        exact = kernel.without("interpolation")(x.astype(np.float64))
    np.testing.assert_allclose(found.nngp, exact.nngp, rtol=1e-6)
    np.testing.assert_allclose(found.ntk, exact.ntk, rtol=1e-6)
