"""Derivatives of sampled expectations: right where the functions are continuous, NaN where they jump."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.ir import Nonlin
from tensorprog.lower.samples import of_samples
from tests.finite_program import network_program

X, Y, ALONG = np.random.default_rng(0).standard_normal((3, 2, 3))


def after_a_sum(phi: Callable) -> Callable:
    """phi of the sum of a position and the mean of its images: no function of a few Gaussians."""

    def net(x: jax.Array) -> jax.Array:
        h = nn.dense(x)
        return nn.dense(phi(h + jnp.mean(phi(h), axis=0)), features=1).sum()

    return net


def slopes(phi: Callable) -> np.ndarray:
    """Of both kernels along a line of inputs: [by differentiation, of the values]."""
    value = along_a_line(phi)
    return np.stack([jax.jacrev(value)(0.0), (value(1e-4) - value(-1e-4)) / 2e-4])


def along_a_line(phi: Callable) -> Callable:
    kernel = tp.compile(after_a_sum(phi), jnp.zeros((2, 3)), tolerance=5e-2)
    assert kernel.sampled
    return jax.jit(lambda t: jnp.stack(jax.tree.leaves(kernel((X + t * ALONG)[None], Y[None]))).ravel())


@pytest.mark.slow
def test_smooth_functions_have_derivatives() -> None:
    found, wanted = slopes(jax.scipy.special.erf)
    np.testing.assert_allclose(found, wanted, rtol=1e-7)  # differences have no more digits


@pytest.mark.long
def test_kinks_leave_those_of_the_values_alone() -> None:
    """No derivative of the tangent kernel, in which the slope of relu jumps; that of the NNGP kernel, which is computed with it, stands."""
    found, wanted = slopes(jax.nn.relu)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-3)  # a difference meets kinks of single samples
    assert np.isnan(found[1])


@pytest.mark.long
def test_a_jump_has_none() -> None:
    assert np.isnan(jax.jacrev(along_a_line(jnp.sign))(0.0)).all()


def test_forward_mode_and_what_does_not_move() -> None:
    jump, still = samples_of(jnp.sign), jnp.ones(3)
    of_t, of_s = jax.jacfwd(lambda t, s: s * jump(t * still), argnums=(0, 1))(0.5, 2.0)
    assert np.isnan(of_t).all()
    np.testing.assert_array_equal(of_s, still)
    np.testing.assert_array_equal(jax.vmap(jax.grad(lambda x, y: y + 0 * jump(x), argnums=1))(still, still), still)


def samples_of(phi: Callable) -> Callable:
    """The function of samples of an instruction."""
    (node,) = (
        n
        for n in network_program(lambda x: nn.dense(phi(nn.dense(x)), features=1), jnp.zeros(3))
        if isinstance(n, Nonlin)
    )
    return of_samples(node)


@pytest.mark.long
def test_what_no_quadrature_reaches_has_a_standard_error() -> None:
    """A function of two Gaussians with kinks along curves."""

    def net(x: jax.Array) -> jax.Array:
        scale = jnp.mean(jnp.abs(jnp.sin(nn.dense(x) * nn.dense(x))))
        return scale * nn.dense(jax.scipy.special.erf(nn.dense(x)), features=1)

    kernel = tp.compile(net, jnp.zeros(3), tolerance=2e-2)
    assert kernel.sampled
    assert 0 < kernel.standard_error(X[:1], get="nngp")[0, 0] < 2e-2 * kernel(X[:1], get="nngp")[0, 0]
