"""Derivatives of compiled kernels in the inputs: right, and finite at x = x', x = 0 and x = -x'."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tests.agreement.common import compiled, relative
from tests.cases import Case, composition, convolution, fully_connected, normalised, recurrent

pytestmark = pytest.mark.slow

PICKED = [
    "fc-relu-depth3-wv2.0-bv0.1",
    "fc-erf-depth3-wv1.5-bv0.2",
    "conv-1d-global",
    "rnn-loop-erf-average",
    "residual-relu-3-normed",
    "one-x-times-erf",
]
CASES = [
    case
    for module in (fully_connected, convolution, recurrent, normalised, composition)
    for case in module.CASES
    if case.name in PICKED
]


def pair(kernel: tp.Kernel, which: str):
    """k(a, b) of two single inputs."""
    return lambda a, b: getattr(kernel(a[None], b[None]), which)[0, 0]


def both(kernel: tp.Kernel):
    """(nngp, ntk) of two single inputs, shape (2,): differentiated, and so compiled, together."""

    def f(a, b):
        k = kernel(a[None], b[None])
        return jnp.stack([k.nngp[0, 0], k.ntk[0, 0]])

    return f


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_is_that_of_the_reference(case: Case) -> None:
    """Central differences of the formulas by hand, along one direction, fourth order."""
    a, b, direction = case.inputs(3, seed=5)
    value = lambda s: np.array([k[0, 1] for k in case.reference(np.stack([a + s * direction, b]))])
    h = 1e-3
    slopes = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h)
    gradients = jax.jit(jax.jacrev(both(compiled(case))))(jnp.asarray(a), jnp.asarray(b))
    got = np.tensordot(gradients, direction, direction.ndim)
    assert np.all(np.abs(got - slopes) <= 1e-7 * np.maximum(np.abs(slopes), 1.0))  # h^4 times a fifth derivative


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_is_finite_everywhere(case: Case, dtype: str) -> None:
    x, other = (jnp.asarray(v, dtype) for v in case.inputs(2, seed=6))
    gradient = jax.jit(jax.jacrev(both(compiled(case)), argnums=(0, 1)))
    for a, b in [(x, x), (x, -x), (x, 0 * x), (0 * x, 0 * x), (x, 2 * x), (x, x * (1 + 1e-6)), (x, other)]:
        for g in gradient(a, b):
            assert g.dtype == dtype
            assert np.all(np.isfinite(g)), (a, b)


@pytest.mark.parametrize("name", ["relu", "erf", "gelu"])
@pytest.mark.parametrize("which", ["nngp", "ntk"])
def test_gradient_on_the_diagonal(name: str, which: str) -> None:
    """k is symmetric, so its gradient in one argument at x = x' is half that of x -> k(x, x).

    ReLU's NTK has a cusp there (its angle enters linearly); the middle of the cusp is that same value.
    """
    phi, _ = fully_connected.PHI[name]
    net = fully_connected.net(phi, 2, 1.7, 0.1)
    kernel = tp.compile(lambda v: net(tp.nn, v), jnp.zeros(7))
    k = pair(kernel, which)
    x = jnp.asarray(fully_connected.CASES[0].inputs(1)[0])
    first, second = jax.jit(jax.grad(k, argnums=(0, 1)))(x, x)
    whole = first + second  # the gradient of x -> k(x, x)
    h = 1e-4
    along = lambda d: (k(x + h * d, x + h * d) - k(x - h * d, x - h * d)) / (2 * h)
    differences = np.array([along(d) for d in jnp.eye(7)])
    assert relative(whole, differences) < 1e-6  # h^2
    assert relative(first, np.asarray(whole) / 2) < 1e-10


def test_gradient_of_a_gram_matrix_with_repeated_inputs() -> None:
    net = fully_connected.net(jax.nn.relu, 3, 2.0, 0.0)
    kernel = tp.compile(lambda v: net(tp.nn, v), jnp.zeros(7))
    x = jnp.asarray(fully_connected.CASES[0].inputs(2))
    batch = jnp.concatenate([x, x, -x, 0 * x])
    for which in ("nngp", "ntk"):
        gradient = jax.grad(lambda b, w=which: jnp.sum(jnp.sin(getattr(kernel(b), w))))(batch)
        assert np.all(np.isfinite(gradient))
