"""Matrix expressions against the same networks written vector by vector, and against sampled networks of finite width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests.everyday import everyday
from tests.uncompiled import uncompiled

X = np.random.default_rng(7).standard_normal((2, 2, 3))
elu1 = lambda h: jax.nn.relu(h) + 0.5


def network(of: Callable[[dict[str, Any], jax.Array], jax.Array]) -> tp.Network:
    """v . of(weights, relu(U x)) / sqrt(n), where x has two positions and the weights A, B and C are n x n / sqrt(n)."""

    def init(n: int) -> dict[str, tp.Gaussian]:
        square = {name: tp.Gaussian((n, n)) for name in "ABC"}
        return {
            "U": tp.Gaussian((n, 3)),
            "v": tp.Gaussian((n,)),
            "g": tp.Gaussian((n,)),
            "K": tp.Gaussian((3, n, n)),
        } | square

    def apply(p: dict[str, Any], x: jax.Array) -> jax.Array:
        n = p["v"].size
        scaled = {name: w / jnp.sqrt(n) if w.ndim > 1 and name != "U" else w for name, w in p.items()}
        return p["v"] @ of(scaled, jax.nn.relu(x @ p["U"].T)) / jnp.sqrt(n)

    return tp.Network(init, apply)


def gradient_step(p: dict[str, Any], h: jax.Array) -> jax.Array:
    """A weight after one step of gradient descent on a loss of its own, at one position; applied to the other."""
    n = h.shape[-1]
    loss = lambda w: jnp.sum((w @ h[0] - h[0]) ** 2) / 2
    return (p["A"] - 0.3 / n * jax.grad(loss)(p["A"])) @ h[1]


def fast_weights(p: dict[str, Any], h: jax.Array) -> jax.Array:
    """A state made of outer products, which decays (linear attention, Katharopoulos et al. 2020, with n key features)."""
    n = h.shape[-1]
    keys, values = elu1(h @ p["A"].T), h @ p["B"].T

    def step(state: jax.Array, at: Any) -> tuple[jax.Array, jax.Array]:
        key, value = at
        state = 0.9 * state + jnp.outer(value, key) / n
        return state, state @ key

    return jax.lax.scan(step, jnp.zeros((n, n)), (keys, values))[1][-1]


def delta_rule(p: dict[str, Any], h: jax.Array) -> jax.Array:
    """The same where a value replaces what its key held (Schlag et al. 2021, eq. 24)."""
    n = h.shape[-1]
    keys, values, state = elu1(h @ p["A"].T), h @ p["B"].T, jnp.zeros((n, n))
    for k, v in zip(keys, values, strict=True):
        state = state @ (jnp.eye(n) - 0.5 / n * jnp.outer(k, k)) + jnp.outer(v, k) / n
    return state @ keys[0]


def delta_by_vectors(p: dict[str, Any], h: jax.Array) -> jax.Array:
    n = h.shape[-1]
    (k1, k2), (v1, v2) = elu1(h @ p["A"].T), h @ p["B"].T
    after = lambda q: v1 * (k1 @ q) / n
    return after(k1 - 0.5 / n * k2 * (k2 @ k1)) + v2 * (k2 @ k1) / n


def orders(p: dict[str, Any], h: jax.Array) -> jax.Array:
    """The powers of a matrix, summed by Horner's scheme."""
    one = jnp.eye(h.shape[-1])
    return (one - p["A"] @ (one - p["A"] / 2)) @ h[0]


# An expression, and the same by products with vectors.
EQUAL: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sum": (lambda p, h: (p["A"] - 2 * p["B"]) @ h[0], lambda p, h: p["A"] @ h[0] - 2 * (p["B"] @ h[0])),
    "antisymmetric": (lambda p, h: (p["A"] - p["A"].T) @ h[0], lambda p, h: p["A"] @ h[0] - p["A"].T @ h[0]),
    "both halves": (lambda p, h: ((p["A"] + p["A"].T) / 2 + (p["A"] - p["A"].T) / 2) @ h[0], lambda p, h: p["A"] @ h[0]),
    "product": (lambda p, h: (p["A"] @ p["B"].T) @ h[0], lambda p, h: p["A"] @ (p["B"].T @ h[0])),
    "gram": (lambda p, h: h[0] @ (p["A"] @ p["A"].T), lambda p, h: p["A"] @ (p["A"].T @ h[0])),
    "power": (lambda p, h: jnp.linalg.matrix_power(p["A"], 3) @ h[0], lambda p, h: p["A"] @ (p["A"] @ (p["A"] @ h[0]))),
    "identity": (lambda p, h: (p["A"].T - 0.3 * jnp.eye(h.shape[-1])) @ h[0], lambda p, h: p["A"].T @ h[0] - 0.3 * h[0]),
    "series": (orders, lambda p, h: h[0] - p["A"] @ (h[0] - p["A"] @ h[0] / 2)),
    "centring": (
        lambda p, h: (jnp.eye(h.shape[-1]) - 1 / h.shape[-1]) @ (p["A"] @ h[0]) ** 2,
        lambda p, h: (p["A"] @ h[0]) ** 2 - jnp.mean((p["A"] @ h[0]) ** 2),
    ),
    "centred weight": (lambda p, h: (p["A"] - p["A"].mean(0)) @ h[0], lambda p, h: p["A"] @ h[0] - jnp.mean(p["A"] @ h[0])),
    "rows": (lambda p, h: (p["g"][:, None] * p["A"]) @ h[0], lambda p, h: p["g"] * (p["A"] @ h[0])),
    "columns": (lambda p, h: (p["A"] * p["g"]) @ h[0], lambda p, h: p["A"] @ (p["g"] * h[0])),
    "diagonal": (lambda p, h: jnp.diag(p["g"]) @ h[0] + p["A"] @ h[1], lambda p, h: p["g"] * h[0] + p["A"] @ h[1]),
    "stacked": (
        lambda p, h: jax.lax.scan(lambda h, w: (jax.nn.relu(w @ h), None), h[0], jnp.stack([p["A"], p["B"]]))[0],
        lambda p, h: jax.nn.relu(p["B"] @ jax.nn.relu(p["A"] @ h[0])),
    ),
    "chosen": (
        lambda p, h: jnp.einsum("kij,kj->i", p["K"][::-1][jnp.array([0, 2])], h),
        lambda p, h: p["K"][2] @ h[0] + p["K"][0] @ h[1],
    ),
    "mixed": (
        lambda p, h: jnp.einsum("k,kij->ij", jnp.array([1.0, 0.0, -2.0]), p["K"]) @ h[0],
        lambda p, h: p["K"][0] @ h[0] - 2 * (p["K"][2] @ h[0]),
    ),
    "a gate for all": (
        lambda p, h: (jnp.mean(h[1]) * p["A"] + (1 - jnp.mean(h[1])) * p["B"]) @ h[0],
        lambda p, h: jnp.mean(h[1]) * (p["A"] @ h[0]) + (1 - jnp.mean(h[1])) * (p["B"] @ h[0]),
    ),
    "gradient step": (
        gradient_step,
        lambda p, h: p["A"] @ h[1] - 0.3 * (p["A"] @ h[0] - h[0]) * jnp.mean(h[0] * h[1]),
    ),
    "fast weights": (
        fast_weights,
        lambda p, h: (lambda k, v: 0.9 * v[0] * jnp.mean(k[0] * k[1]) + v[1] * jnp.mean(k[1] ** 2))(elu1(h @ p["A"].T), h @ p["B"].T),
    ),
    "delta rule": (delta_rule, delta_by_vectors),
}  # fmt: skip


@pytest.mark.parametrize("name", everyday(EQUAL, ["delta rule", "series", "centring", "chosen", "power"]))
def test_an_expression_is_its_products(name: str) -> None:
    """Both kernels, and tangent against adjoint program."""
    written, plain = map(network, EQUAL[name])
    wanted = uncompiled(tp.compile(plain, X[0]), X)
    for method in ("tangent", "adjoint"):
        found = uncompiled(tp.compile(written, X[0], method=method), X)
        for k, w in zip(found, wanted, strict=True):
            np.testing.assert_allclose(k, w, rtol=0, atol=1e-12 * np.abs(w).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["antisymmetric", "product", "gradient step", "fast weights", "delta rule"])
def test_an_expression_in_sampled_networks(name: str) -> None:
    """They compute the matrix itself."""
    found = tp.compile(network(EQUAL[name][0]), X[0]).check(X, widths=(64, 128, 256), samples=1024)
    assert found.agrees, str(found)


def kernels(written: Callable[..., Any], plain: Callable[..., Any]) -> None:
    x = np.random.default_rng(3).standard_normal((2, 4, 4, 2))
    nets = (lambda x, f=f: nn.dense(f(nn.conv(x, (1, 1)))[1, 2], features=1) for f in (written, plain))
    found, wanted = (uncompiled(tp.compile(net, x[0]), x) for net in nets)
    for k, w in zip(found, wanted, strict=True):
        np.testing.assert_allclose(k, w, rtol=0, atol=1e-12 * np.abs(w).max())


def convolved(h: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(h[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


def two_kernels() -> tuple[jax.Array, jax.Array]:
    n = nn.width()
    first, second = nn.weight((3, 3, n, n)), nn.weight((3, 3, n, n))
    return first / jnp.sqrt(9 * n), second / jnp.sqrt(9 * n)


def test_a_sum_of_convolution_kernels_one_of_them_turned() -> None:
    def written(h: jax.Array) -> jax.Array:
        first, second = two_kernels()
        return convolved(h, first + second[::-1, ::-1])

    def plain(h: jax.Array) -> jax.Array:
        first, second = two_kernels()
        return convolved(h, first) + convolved(h[::-1, ::-1], second)[::-1, ::-1]

    kernels(written, plain)


def test_a_constant_that_tells_coordinates_apart_is_refused() -> None:
    net = network(lambda p, h: jnp.triu(p["A"]) @ h[0])
    with pytest.raises(tp.UnsupportedError, match="not c n\\^p times the identity plus a number for all entries"):
        tp.compile(net, X[0])
    for diagonal in (lambda n: jnp.arange(n) / n, lambda n: jnp.where(jnp.arange(n) < n // 2, 1.0, -1.0)):
        net = network(lambda p, h, diagonal=diagonal: (p["A"] + jnp.diag(diagonal(h.shape[-1]))) @ h[0])
        with pytest.raises(tp.UnsupportedError, match=r"identity plus a number|vary along the width"):
            tp.compile(net, X[0])


def test_entries_of_a_matrix_are_refused() -> None:
    for of in (
        lambda a: a * a.T,
        lambda a: jnp.diag(a)[:, None] * a,
        lambda a: jnp.tanh(a + a.T) * 1.0,
        lambda a: a / (a + 1),
    ):
        net = network(lambda p, h, of=of: of(p["A"] - p["B"]) @ h[0])
        with pytest.raises(tp.UnsupportedError, match="to mend"):
            tp.compile(net, X[0])
