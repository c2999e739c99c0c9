"""The references themselves: against quadrature, against each other, against sampled finite networks."""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit

from tests import plain, sampling
from tests.cases import composition, convolution, fully_connected, normalised, recurrent
from tests.references import composite, duals, gram, quadrature
from tests.references import convolution as conv_reference
from tests.references import fully_connected as fc_reference
from tests.references import recurrent as rnn_reference

pytestmark = pytest.mark.slow

CASES = [
    case
    for module in (fully_connected, convolution, recurrent, normalised, composition)
    for case in module.CASES
    if case.sampled
] + composition.AFTER_POOLING

_SQRT2 = np.sqrt(2.0)
FUNCTIONS = {
    "relu": composite.RELU,
    "abs": (np.abs, np.sign),
    "identity": (lambda u: u, np.ones_like),
    "erf": composite.ERF,
    "gelu": (
        lambda u: u * (1 + erf(u / _SQRT2)) / 2,
        lambda u: (1 + erf(u / _SQRT2)) / 2 + u * np.exp(-u * u / 2) / np.sqrt(2 * np.pi),
    ),
    "sin": (np.sin, np.cos),
    "cos": (np.cos, lambda u: -np.sin(u)),
    "exp": (np.exp, np.exp),
    "square": (np.square, lambda u: 2 * u),
    "cube": (lambda u: u**3, lambda u: 3 * u * u),
}
CORRELATIONS = np.array([-1.0, -0.99, -0.5, 0.0, 0.3, 0.9, 0.9999, 1.0])


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-300))


# ------------------------------------------------------------------ dual activations


@pytest.mark.parametrize("name", FUNCTIONS)
def test_closed_form_is_the_quadrature(name: str) -> None:
    rng = np.random.default_rng(0)
    q1, q2 = rng.uniform(0.1, 3.0, (2, len(CORRELATIONS)))
    c = CORRELATIONS * np.sqrt(q1 * q2)
    closed, brute = duals.CLOSED[name], quadrature.dual(*FUNCTIONS[name], name)
    assert relative(closed.value(q1, q2, c), brute.value(q1, q2, c)) < 1e-13
    # arccos near 1 turns the rounding of c into 1e-16 / sqrt(1e-4) here.
    assert relative(closed.slope(q1, q2, c), brute.slope(q1, q2, c)) < 1e-13
    assert np.abs(closed.mean(q1) - brute.mean(q1)).max() < 1e-13 * np.abs(closed.value(q1, q1, q1)).max()


def test_every_closed_form_is_tested() -> None:
    assert set(FUNCTIONS) == set(duals.CLOSED)


SCALAR = {
    "relu(u) erf(u)": (composite.relu_times_erf, lambda u: max(u, 0.0) * math.erf(u)),
    "u erf(u)": (composite.times_erf, lambda u: u * math.erf(u)),
    "relu(erf(u))": (composite.relu_of_erf, lambda u: max(math.erf(u), 0.0)),
    "tanh": (composite.tanh, math.tanh),
    "relu": (duals.relu, lambda u: max(u, 0.0)),
}


@pytest.mark.parametrize("name", SCALAR)
def test_quadrature_is_the_adaptive_one(name: str) -> None:
    dual, phi = SCALAR[name]
    q1, q2, c = 1.3, 0.7, 0.4
    assert abs(dual.value(q1, q2, c) - quadrature.adaptive_pair(phi, phi, q1, q2, c)) < 1e-12


@pytest.mark.parametrize(
    ("dual", "phi"),
    [
        (composite.plus_relu, lambda u: u + np.maximum(u, 0)),
        (composite.times_erf, lambda u: u * erf(u)),
        (composite.relu_times_erf, lambda u: np.maximum(u, 0) * erf(u)),
        (composite.relu_of_erf, lambda u: np.maximum(erf(u), 0)),
        (composite.erf_of_relu, lambda u: erf(np.maximum(u, 0))),
        (composite.tanh, np.tanh),
        (composite.sigmoid_squared, lambda u: expit(u) ** 2),
        (duals.abrelu(0.2, 1.0), lambda u: np.where(u > 0, u, 0.2 * u)),
    ],
    ids=lambda p: getattr(p, "name", ""),
)
def test_slope_is_the_derivative_of_the_dual(dual: duals.Dual, phi) -> None:
    """Price's theorem: d/dc E[phi(u) phi(v)] = E[phi'(u) phi'(v)]; and the value is that of phi."""
    q1, q2, c, h = np.array([1.1]), np.array([0.8]), np.array([0.35]), 1e-3
    stencil = [(1, 4 / 5), (2, -1 / 5), (3, 4 / 105), (4, -1 / 280)]  # eighth-order central difference
    slope = sum(w * (dual.value(q1, q2, c + k * h) - dual.value(q1, q2, c - k * h)) for k, w in stencil) / h
    assert relative(dual.slope(q1, q2, c), slope) < 1e-10  # rounding divided by h
    assert relative(dual.value(q1, q2, c), quadrature.dual(phi, phi, "").value(q1, q2, c)) < 1e-13


def test_quadrature_in_four_dimensions() -> None:
    """Where the four variables pair up, it is a product of two-dimensional expectations."""
    f = lambda a, b, c, d: np.tanh(a) * np.sin(b) * np.tanh(c) * np.sin(d)
    block = np.array([[0.5, 0.2], [0.2, 0.4]])
    covariance = np.kron(block, np.eye(2))  # (a, c) and (b, d)
    tanh, sin = (composite.tanh, duals.sin)
    pairs = tanh.value(0.5, 0.4, 0.2) * sin.value(0.5, 0.4, 0.2)
    assert abs(quadrature.folded_expectation(f, covariance) / pairs - 1) < 1e-8  # order 16 on tanh
    entire = lambda a, b, c, d: np.cos(a) * np.sin(b) * np.cos(c) * np.sin(d)
    pairs = duals.cos.value(0.5, 0.4, 0.2) * sin.value(0.5, 0.4, 0.2)
    assert abs(quadrature.expectation(entire, covariance) / pairs - 1) < 1e-13
    kinked = lambda a, b, c, d: np.maximum(a + b, 0) * np.maximum(c + d, 0)
    total = np.array([[1, 1, 0, 0], [0, 0, 1, 1]])
    mixed = np.array([[0.5, 0.1, 0.2, 0.0], [0.1, 0.4, 0.1, 0.2], [0.2, 0.1, 0.6, -0.1], [0.0, 0.2, -0.1, 0.3]])
    s = total @ mixed @ total.T
    want = duals.relu.value(s[0, 0], s[1, 1], s[0, 1])
    assert abs(quadrature.folded_expectation(kinked, mixed) / want - 1) < 1e-12


# ------------------------------------------------------------------ recursions


def test_relu_on_the_sphere() -> None:
    """Two papers, one kernel: Jacot's recursion and Bietti and Mairal's closed form of it."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 4))
    x *= np.sqrt(4) / np.linalg.norm(x, axis=1, keepdims=True)
    nngp, ntk = fc_reference.kernels(x, duals.relu, depth=6, weight_var=2.0)
    off = ~np.eye(5, dtype=bool)
    cosine = (x @ x.T / 4)[off]
    want = fc_reference.network_on_sphere(cosine, depth=6)
    assert relative(nngp[off], want[0]) < 1e-13
    assert relative(ntk[off], want[1]) < 1e-13


def test_recursion_is_the_steps() -> None:
    x = np.random.default_rng(2).standard_normal((4, 3))
    k = gram.inputs(x[:, None])
    for _ in range(3):
        k = gram.activation(gram.dense(k, 1.3, 0.2), duals.erf)
    got = gram.readout(k, 1.3, 0.2)
    for a, b in zip(got, fc_reference.kernels(x, duals.erf, 3, 1.3, 0.2), strict=True):
        assert relative(a, b) < 1e-14


def test_longdouble_keeps_near_duplicates() -> None:
    """The recursion in longdouble is the witness for near-duplicates: it agrees with float64 elsewhere."""
    x = np.random.default_rng(3).standard_normal((3, 4))
    fine = fc_reference.kernels(x.astype(np.longdouble), duals.relu, 3, 2.0, 0.1)
    coarse = fc_reference.kernels(x, duals.relu, 3, 2.0, 0.1)
    assert fine[1].dtype == np.longdouble
    for a, b in zip(coarse, fine, strict=True):
        assert relative(a, b) < 1e-14


def test_convolution_of_one_pixel_is_dense() -> None:
    x = np.random.default_rng(4).standard_normal((3, 1, 5))
    _, index = conv_reference.patches((1,), (1,), (1,), "SAME")
    k = gram.activation(conv_reference.conv(gram.inputs(x), index, 1.5, 0.1), duals.relu)
    got = gram.readout(gram.flatten(k), 1.5, 0.1)
    for a, b in zip(got, fc_reference.kernels(x[:, 0], duals.relu, 1, 1.5, 0.1), strict=True):
        assert relative(a, b) < 1e-14


WINDOWS = [
    ((5,), (3,), (1,), (1,)),
    ((6,), (4,), (2,), (1,)),
    ((7, 5), (3, 2), (2, 1), (1, 2)),
    ((4, 3, 5), (2, 3, 2), (1, 2, 2), (1, 1, 2)),
]


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", "explicit"])
@pytest.mark.parametrize(("shape", "window", "strides", "dilation"), WINDOWS, ids=str)
def test_patches_are_those_of_a_convolution(shape, window, strides, dilation, padding: str) -> None:
    """The patches times a random kernel are JAX's convolution with that kernel."""
    padding = tuple((1, k % 2) for k in range(len(shape))) if padding == "explicit" else padding
    rng = np.random.default_rng(5)
    x, kernel = rng.standard_normal((*shape, 2)), rng.standard_normal((*window, 2, 1))
    nn = plain.Layers(1, lambda size, initial: jnp.asarray(kernel))
    want = nn.conv(x, window, strides=strides, padding=padding, dilation=dilation, features=1)
    out, index = conv_reference.patches(shape, window, strides, padding, dilation)
    assert want.shape == (*out, 1)
    padded = np.concatenate([x.reshape(-1, 2), np.zeros((1, 2))])  # position -1 reads the zeros
    got = np.einsum("kpc,kc->p", padded[index], kernel.reshape(-1, 2)) / np.sqrt(kernel.size)
    assert relative(got, np.asarray(want).ravel()) < 1e-13


def test_recurrent_with_one_step_is_dense() -> None:
    x = np.random.default_rng(6).standard_normal((3, 1, 4))
    got = gram.readout(rnn_reference.last(rnn_reference.states(x, duals.erf, 1.4, 0.8, 0.2)))
    k = gram.activation(gram.dense(gram.inputs(x), 0.8, 0.2), duals.erf)
    for a, b in zip(got, gram.readout(k), strict=True):
        assert relative(a, b) < 1e-14


def test_recurrent_without_recurrence_forgets() -> None:
    x = np.random.default_rng(7).standard_normal((3, 5, 4))
    got = gram.readout(rnn_reference.last(rnn_reference.states(x, duals.relu, 0.0, 0.8, 0.2)))
    want = gram.readout(rnn_reference.last(rnn_reference.states(x[:, -1:], duals.relu, 1.4, 0.8, 0.2)))
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) < 1e-14


@pytest.mark.parametrize("module", [fully_connected, convolution, recurrent, normalised, composition])
def test_gram_matrices_are_positive(module) -> None:
    for case in module.CASES:
        for k in case.reference(case.inputs(3)):
            assert relative(k, k.T) < 1e-13, case
            assert np.linalg.eigvalsh(k).min() > -1e-12 * np.abs(k).max(), case


def test_case_names_are_distinct() -> None:
    modules = (fully_connected, convolution, recurrent, normalised, composition)
    names = [case.name for case in itertools.chain.from_iterable(m.CASES for m in modules)]
    assert len(set(names)) == len(names)


# ------------------------------------------------------------------ finite networks
# Every architecture is also sampled by tests/finite_width; there through tensorprog, here without it.

EVERYDAY = {
    "fc-relu-depth3-wv2.0-bv0.1",
    "conv-1d-global",
    "rnn-loop-erf-average",
    "norm-before-erf-gain-shift",
}


@pytest.mark.parametrize("case", [c for c in CASES if c.name in EVERYDAY], ids=str)
def test_finite_networks_approach_the_reference(case) -> None:
    x = case.inputs(2)
    sampling.check(sampling.plain_network(case.net, x), case.reference(x), (12, 48, 192), (4096, 2048, 768))


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c.name not in EVERYDAY], ids=str)
def test_finite_networks_approach_every_reference(case) -> None:
    x = case.inputs(2)
    sampling.check(sampling.plain_network(case.net, x), case.reference(x), (12, 48, 192), (4096, 2048, 768))


def test_sampling_rejects_a_kernel_that_is_ten_percent_off() -> None:
    """The check can fail: the same network against a wrong limit, and a wrong rate."""
    case = next(c for c in CASES if c.name == "one-relu-of-erf")
    x = case.inputs(2)
    nngp, ntk = case.reference(x)
    network = sampling.plain_network(case.net, x)
    with pytest.raises(AssertionError, match="the limit is not met"):
        sampling.check(network, (nngp, 1.1 * ntk), (12, 48, 192), (4096, 2048, 768))
    with pytest.raises(AssertionError, match="too few draws to tell"):
        sampling.check(network, (nngp, ntk), (12, 48), (32, 32))
