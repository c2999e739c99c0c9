"""Fourier transforms over positions, and complex numbers after them, beside products with matrices of NumPy's own transform."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests.uncompiled import uncompiled

Hidden = Callable[[jax.Array], jax.Array]
X = np.random.default_rng(4).standard_normal((2, 5, 3))
F = np.fft.fft(np.eye(5))
R, HALF = np.fft.rfft(np.eye(4)).T, np.array([1.0, 0.5 - 1j, 2.0])  # of four positions; what a filter multiplies
BACK = np.fft.irfft(HALF[:, None] * R, 4, axis=0)
PLANE = np.kron(np.fft.fft(np.eye(2)), np.fft.fft(np.eye(2)))


def mixed(h: jax.Array, matrix: np.ndarray) -> jax.Array:
    return jnp.einsum("pq,qn->pn", jnp.asarray(matrix), h)


# of h (positions, n), beside maps by real matrices
CASES: dict[str, tuple[Hidden, Hidden]] = {
    "real part, as FNet mixes tokens": (lambda h: jnp.fft.fft(h, axis=0).real, lambda h: mixed(h, F.real)),
    "both parts": (
        lambda h: (lambda z: jnp.sin(z.real[1] / 3) + jnp.sin(z.imag[1] / 3))(jnp.fft.fft(h, axis=0)),
        lambda h: jnp.sin(mixed(h, F.real)[1] / 3) + jnp.sin(mixed(h, F.imag)[1] / 3),
    ),
    "a filter": (
        lambda h: jnp.fft.irfft(jnp.asarray(HALF)[:, None] * jnp.fft.rfft(h[:4], axis=0), 4, axis=0),
        lambda h: mixed(h[:4], BACK),
    ),
    "there and back": (lambda h: jnp.fft.ifft(jnp.fft.fft(h, axis=0), axis=0).real, lambda h: h),
    "in the plane": (
        lambda h: jnp.fft.fft2(h[:4].reshape(2, 2, -1), axes=(0, 1)).imag.reshape(4, -1) + h[:4],
        lambda h: mixed(h[:4], PLANE.imag + np.eye(4)),
    ),
    "a power spectrum": (
        lambda h: (lambda z: (z * z.conj()).real)(jnp.fft.rfft(h, axis=0)[2]),
        lambda h: mixed(h, F.real)[2] ** 2 + mixed(h, F.imag)[2] ** 2,
    ),
    "a quotient and a product of matrices": (
        lambda h: (jnp.asarray(F[1]) @ jnp.fft.fft(h, axis=0) / (1 + 2j)).imag,
        lambda h: mixed(h, ((F[1] @ F) / (1 + 2j)).imag[None])[0],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_beside_real_matrices(name: str) -> None:
    nets = [lambda x, f=f: nn.dense(nn.flatten(jnp.atleast_2d(f(nn.dense(x)))), features=1) for f in CASES[name]]
    for a, b in zip(*(uncompiled(tp.compile(net, X[0]), X) for net in nets), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())


def test_at_finite_width() -> None:
    """The program of the network is the network, digit by digit: its readout's gradient has the hidden layer's square."""

    def net(x: jax.Array) -> jax.Array:
        return nn.dense(
            jnp.fft.fft(nn.dense(x), axis=0).real.mean(0) + jnp.fft.fft(nn.dense(x), axis=0).imag[1], features=1
        )

    limit, width = float(uncompiled(tp.compile(net, X[0]), X[:1]).ntk[0, 0]), 4096
    slope = jax.jit(jax.grad(lambda p: tp.apply(net, p, jnp.asarray(X[0]))[0]))
    found = [
        sum(float(jnp.sum(g**2)) for g in slope(tp.init(net, X[0], width, jax.random.key(k))).values())
        for k in range(4)
    ]
    np.testing.assert_allclose(np.mean(found), limit, rtol=4.5 * 2 / np.sqrt(4 * width))


def test_outputs_and_what_is_refused() -> None:
    with pytest.raises(tp.UnsupportedError, match="a Fourier transform along the width"):
        tp.compile(lambda x: nn.dense(jnp.fft.fft(nn.dense(x)).real, features=1), X[0, 0])
    with pytest.raises(tp.UnsupportedError, match="'sqrt' has no rule for complex numbers"):
        tp.compile(lambda x: nn.dense(jnp.sqrt(jnp.fft.fft(nn.dense(x), axis=0)).real[0], features=1), X[0])
    complex_output = lambda x: (nn.weight((nn.width(),)) @ jnp.fft.fft(nn.dense(x), axis=0)[0] / jnp.sqrt(nn.width()))[
        None
    ]
    with pytest.raises(tp.NetworkError, match="returns complex numbers"):
        tp.compile(complex_output, X[0])
    real = uncompiled(tp.compile(lambda x: complex_output(x).real, X[0]), X).nngp
    np.testing.assert_allclose(real, X.sum(1) @ X.sum(1).T / 3, rtol=1e-12)
