"""Second derivatives where the inputs of a pair are one, and variables of equal variance that are not one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf

import tensorprog as tp
from tensorprog import nn
from tests.uncompiled import uncompiled

W, B = 1.5, 0.25
relu = jax.nn.relu


def dense(phi: Callable[[Any], Any], layers: int, bias: float = B) -> tp.Kernel:
    def net(x: jax.Array) -> jax.Array:
        for _ in range(layers):
            x = phi(nn.dense(x, weight_var=W, bias_var=bias))
        return nn.dense(x, features=1)

    return tp.compile(net, jnp.zeros(2))


def pair(kernel: tp.Kernel) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return lambda a, b: jnp.stack([k[0, 0] for k in kernel(a[None], b[None])])


def of_erf(layers: int, bias: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Both kernels by Williams' arcsine (1997), smooth at equal inputs, with tangent kernels by the recursion of Jacot et al. (2018)."""

    def formula(a: jax.Array, b: jax.Array) -> jax.Array:
        q1, c, q2 = (jnp.dot(s, t) / 2 for s, t in ((a, a), (a, b), (b, b)))
        ntk = 0 * c
        for _ in range(layers):
            q1, c, q2 = (W * v + bias for v in (q1, c, q2))
            ntk = W * ntk + c
            root = jnp.sqrt((1 + 2 * q1) * (1 + 2 * q2))
            slope = 4 / jnp.pi / jnp.sqrt(root**2 - 4 * c**2)
            value = lambda u, r: 2 / jnp.pi * jnp.arcsin(2 * u / r)
            q1, c, q2, ntk = value(q1, 1 + 2 * q1), value(c, root), value(q2, 1 + 2 * q2), slope * ntk
        return jnp.stack([c, ntk + c])

    return formula


@pytest.mark.long
@pytest.mark.parametrize("layers", [1, 3])  # three are a loop
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_hessians_of_a_smooth_kernel(layers: int, mode: str) -> None:
    """The mixed derivative d^2 k / dx dx' is the covariance of gradients; it was 0 on the diagonal, and the others were off as well."""
    outer = {"reverse": jax.jacrev, "forward": jax.jacfwd}[mode]
    every = lambda f: jax.jit(outer(jax.jacrev(f, (0, 1)), (0, 1)))
    got, want = every(pair(dense(erf, layers))), every(of_erf(layers, B))
    x = jnp.array([0.7, -0.4])
    for a, b in [(x, x), (x, -x), (x, 0 * x), (0 * x, 0 * x), (x, x[::-1])]:
        for g, w in zip(jax.tree.leaves(got(a, b)), jax.tree.leaves(want(a, b)), strict=True):
            np.testing.assert_allclose(g, w, atol=1e-12)


@pytest.mark.parametrize("bias", [pytest.param(0.0, marks=pytest.mark.long), B])
def test_hessians_of_a_kink(bias: float) -> None:
    """ReLU's NNGP kernel is c / 2 + norms * (t^3 / 6 pi + ..) near t = 0, which has two derivatives."""
    f = pair(dense(relu, 1, bias))
    x = jnp.array([0.7, -0.4])
    (own, mixed), (_, other) = jax.jit(jax.hessian(lambda a, b: f(a, b)[0], (0, 1)))(x, x)
    np.testing.assert_allclose(own, np.zeros((2, 2)), atol=1e-12)
    np.testing.assert_allclose(other, np.zeros((2, 2)), atol=1e-12)
    np.testing.assert_allclose(mixed, W / 4 * np.eye(2), atol=1e-12)


@pytest.mark.long
def test_hessians_in_hyperparameters_of_a_gram_matrix() -> None:
    """On the diagonal both sides move as one: the kernel of an input with itself has no kink."""

    def net(x: jax.Array) -> jax.Array:
        for _ in range(3):
            x = relu(nn.dense(x, weight_var=tp.hyper("w", W), bias_var=tp.hyper("b", B)))
        return nn.dense(x, features=1)

    kernel, x = tp.compile(net, jnp.zeros(2)).without("loops"), jnp.array([[0.7, -0.4], [0.3, 0.2]])
    of = lambda k: jax.hessian(lambda h: k(b=h[0], w=h[1]))(jnp.array([B, W]))
    for get in ("nngp", "ntk"):
        gram = of(lambda get=get, **h: jnp.diagonal(kernel(x, get=get, **h)))
        np.testing.assert_allclose(gram, of(lambda get=get, **h: kernel.diag(x, get=get, **h)), atol=1e-10)


@pytest.mark.long
def test_positions() -> None:
    """Pairs of positions meet in a pair of one input: differences of values where they do not."""
    net = lambda x: nn.dense(jnp.mean(erf(nn.conv(x, 2, bias_var=B)), 0), features=1)
    kernel = tp.compile(net, jnp.zeros((3, 1)))
    f = lambda a, b: kernel(a[None], b[None], get="nngp")[0, 0]
    x, u, v = jax.random.normal(jax.random.key(0), (3, 3, 1))
    along = lambda s, t: f(x + s * u, x + t * v)
    mixed = jax.jit(jax.grad(jax.grad(along), 1))(0.0, 0.0)
    h = 1e-3
    value = lambda s, t: uncompiled(kernel, np.asarray(x + s * h * u)[None], np.asarray(x + t * h * v)[None]).nngp[0, 0]
    differences = (value(1, 1) - value(1, -1) - value(-1, 1) + value(-1, -1)) / (4 * h**2)
    np.testing.assert_allclose(mixed, differences, rtol=1e-5)  # h^2


def test_slope_in_a_bias_of_variance_zero() -> None:
    """At x: K = E relu(u)^2 = (2 |x|^2 / 2 + b) / 2, so 1/2, which the root of b made NaN at its default of 0."""
    net = lambda x: nn.dense(relu(nn.dense(x, weight_var=2.0, bias_var=tp.hyper("b", 0.0))), features=1)
    kernel, x = tp.compile(net, jnp.zeros(2)), jnp.array([[0.7, -0.4], [0.3, 0.9]])
    slope = jax.jacfwd(lambda b: kernel(x, b=b).nngp)(0.0)
    t = jnp.arccos(x[0] @ x[1] / jnp.sqrt(x[0] @ x[0] * (x[1] @ x[1])))
    # by c, and by both variances, of norms (sin t + (pi - t) cos t) / 2 pi
    ratio = jnp.sqrt(x[0] @ x[0] / (x[1] @ x[1]))
    apart = (jnp.pi - t) / (2 * jnp.pi) + jnp.sin(t) * (ratio + 1 / ratio) / (4 * jnp.pi)
    np.testing.assert_allclose(slope, [[0.5, apart], [apart, 0.5]], atol=1e-12)


# ------------------------------------------------------------------------------------------ equal variances


def shared(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two variables of equal variances and half of it in common."""
    a = nn.dense(x, name="a")
    return a + nn.dense(x, name="b"), a + nn.dense(x, name="c")


def means(x: jax.Array) -> jax.Array:
    u, v = shared(x)
    return nn.dense(jnp.mean(relu(u), 0) + jnp.mean(relu(v), 0), features=1)


def arccosine(q1: np.ndarray, c: np.ndarray, q2: np.ndarray) -> np.ndarray:
    norms = np.sqrt(q1 * q2)
    angle = np.arccos(np.clip(c / norms, -1, 1))
    return norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)


def test_variables_of_equal_variance_are_two() -> None:
    """At equal positions the covariance of u and v was taken for their variance: the kernel of an input with itself was a fifth too large."""
    x = np.random.default_rng(0).standard_normal((2, 3, 2))
    gram = np.einsum("nsi,mti->nmst", x, x) / 2
    own = np.einsum("nnss->ns", gram)
    q1, q2 = 2 * own[:, None, :, None], 2 * own[None, :, None, :]
    want = 2 * (arccosine(q1, 2 * gram, q2) + arccosine(q1, gram, q2)).mean((2, 3))
    kernel = tp.compile(means, jnp.zeros((3, 2)))
    np.testing.assert_allclose(uncompiled(kernel, x).nngp, want, atol=1e-7)  # arccos near 1 in the formula
    np.testing.assert_allclose(kernel.diag(x).nngp, np.diagonal(want), atol=1e-7)


@pytest.mark.slow
def test_variables_of_equal_variance_at_finite_width() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 2))
    found = tp.compile(means, jnp.zeros((3, 2))).check(x, (64, 128, 256))
    assert found, str(found)


@pytest.mark.long
def test_hessians_of_variables_of_equal_variance() -> None:
    def net(x: jax.Array) -> jax.Array:
        u, v = shared(x)
        return nn.dense(erf(u) + erf(v), features=1)

    def formula(a: jax.Array, b: jax.Array) -> jax.Array:
        q1, c, q2 = jnp.dot(a, a), jnp.dot(a, b), jnp.dot(b, b)  # variances of u, twice those of a
        root = jnp.sqrt((1 + 2 * q1) * (1 + 2 * q2))
        return 4 / jnp.pi * (jnp.arcsin(2 * c / root) + jnp.arcsin(c / root))

    kernel, x = tp.compile(net, jnp.zeros(2)), jnp.array([0.7, -0.4])
    every = lambda f: jax.tree.leaves(jax.jit(jax.hessian(f, (0, 1)))(x, x))
    for got, want in zip(every(lambda a, b: pair(kernel)(a, b)[0]), every(formula), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)
