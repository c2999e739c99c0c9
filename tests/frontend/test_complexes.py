"""Fourier transforms over positions, and complex numbers after them, beside products with matrices of NumPy's own transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core as jex

import tensorprog as tp
from tensorprog import nn
from tensorprog.frontend.complexes import PAIRS
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


Z = np.array([[0.3 - 1j, 2.0 + 0.5j, -1.2], [0.7j, 1.1 - 0.4j, -0.6 + 2j]])
# of complex arrays (2, 3); each name is a row of the table
ROWS: dict[str, Hidden] = {
    "reshape": lambda z: z.reshape(3, 2),
    "squeeze": lambda z: lax.squeeze(z[:1], (0,)),
    "expand_dims": lambda z: lax.expand_dims(z, (1,)),
    "broadcast_in_dim": lambda z: jnp.broadcast_to(z, (2, 2, 3)),
    "transpose": lambda z: z.T,
    "slice": lambda z: z[:, 1:],
    "dynamic_slice": lambda z: lax.dynamic_slice(z, (0, 1), (2, 2)),
    "gather": lambda z: z[jnp.array([1, 0, 1])],
    "pad": lambda z: jnp.pad(z, ((1, 0), (0, 2))),
    "rev": lambda z: z[::-1],
    "concatenate": lambda z: jnp.concatenate([z, 2 * z]),
    "copy": lambda z: jnp.array(z, copy=True),
    "neg": lambda z: -z,
    "add": lambda z: z + (1 - 2j),
    "add_any": lambda z: jax.vjp(lambda u: u * u, z)[1](z)[0],
    "sub": lambda z: (1 + 2j) - z,
    "reduce_sum": lambda z: z.sum(0),
    "cumsum": lambda z: jnp.cumsum(z, 1),
    "select_n": lambda z: lax.select(jnp.array([[True, False, True]] * 2), z, 1j * z),
    "stop_gradient": lambda z: lax.stop_gradient(z),
    "mul": lambda z: z * z[::-1] * (2 - 1j),
    "div": lambda z: z / (1 + z[::-1]) / 4,
    "dot_general": lambda z: z @ z.T + z @ jnp.array([[1.0, 2j], [0.5, 1.0], [1j, -1.0]]),
    "square": lambda z: jnp.square(z),
    "integer_pow": lambda z: z**3,
    "conj": lambda z: z.conj(),
    "real": lambda z: z.real,
    "imag": lambda z: z.imag,
    "complex": lambda z: lax.complex(z.imag, z.real),
    "abs": lambda z: jnp.abs(z),
    "exp": lambda z: jnp.exp(z),
    "convert_element_type": lambda z: z.real.astype(complex),
    "fft": lambda z: jnp.fft.irfft2(jnp.fft.rfft2(jnp.fft.ifft2(jnp.fft.fft(z, axis=0)).real), (2, 3)),
}


def by_pairs(function: Hidden, z: jax.Array, seen: set[str]) -> jax.Array:
    """A function with every equation that reads or makes complex numbers done by its row."""
    traced = jax.make_jaxpr(function)(z)

    def run(jaxpr: Any, consts: Any, args: Any) -> list[Any]:
        env = dict(zip(jaxpr.invars, args, strict=True)) | dict(zip(jaxpr.constvars, consts, strict=True))
        read = lambda v: pair(jnp.asarray(v.val)) if isinstance(v, jex.Literal) else env[v]
        for eqn in jaxpr.eqns:
            operands = list(map(read, eqn.invars))
            inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
            if inner is not None:
                made = run(inner.jaxpr, inner.consts, operands)
            elif any(isinstance(x, tuple) for x in operands) or eqn.outvars[0].aval.dtype.kind == "c":
                seen.add(eqn.primitive.name)
                made = [PAIRS[eqn.primitive.name](eqn, *operands)]
            else:
                made = eqn.primitive.bind(*operands, **eqn.params)
                made = made if eqn.primitive.multiple_results else [made]
            env |= zip(eqn.outvars, made, strict=True)
        return [read(v) for v in jaxpr.outvars]

    (found,) = run(traced.jaxpr, list(map(pair, traced.consts)), [pair(z)])
    return found[0] + 1j * found[1] if isinstance(found, tuple) else found


def pair(x: jax.Array) -> Any:
    return (x.real, x.imag) if x.dtype.kind == "c" else x


def test_every_row_is_what_it_is_in_jax() -> None:
    seen: set[str] = set()
    ways = (lambda f, z: by_pairs(f, z, seen), lambda f, z: f(z))
    found, wanted = (jax.jit(lambda z, way=way: {name: way(f, z) for name, f in ROWS.items()})(Z) for way in ways)
    for name in ROWS:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-12, atol=1e-12, err_msg=name)
    unreached = {"expand_dims", "copy_p", "stop_gradient"}  # other spellings, and a mark that JAX leaves out of values
    assert set(PAIRS) - seen <= unreached, set(PAIRS) - seen
    assert set(ROWS) >= set(PAIRS) - {"copy_p"}
