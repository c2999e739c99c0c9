"""Readouts written entry by entry are those written as products."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests.uncompiled import uncompiled

relu = jax.nn.relu
n = nn.width
Hidden = Callable[[jax.Array], jax.Array]


def layer(x: jax.Array) -> jax.Array:
    return relu(nn.dense(x, name="in"))


def twice(x: jax.Array) -> jax.Array:
    return jnp.concatenate([h := layer(x), h**2])


def v(*shape: int) -> jax.Array:
    return nn.weight((*shape, n()), name="v")


CASES: dict[str, tuple[Hidden, Hidden]] = {
    "sum": (lambda x: jnp.sum(v() * layer(x)) / jnp.sqrt(n()), lambda x: v() @ layer(x) / jnp.sqrt(n())),
    "mean": (lambda x: jnp.mean(3 * v() * layer(x)), lambda x: 3 * v() @ layer(x) / n()),
    "scaled by the input": (
        lambda x: jnp.sum(v() * layer(x) * x[0]) / jnp.sqrt(n()),
        lambda x: x[0] * (v() @ layer(x)) / jnp.sqrt(n()),
    ),
    "rows that are added": (
        lambda x: v(2).sum(0) @ layer(x) / jnp.sqrt(n()),
        lambda x: (v(2) @ layer(x)).sum() / jnp.sqrt(n()),
    ),
    "one row": (
        lambda x: v(2)[1] @ layer(x) / jnp.sqrt(n()),
        lambda x: (v(2) @ layer(x))[1] / jnp.sqrt(n()),
    ),
    "rows of two axes": (
        lambda x: jnp.stack([(w := v(2, 3))[1, 2] @ (h := layer(x)), w[0, 2] @ h, w[1, 2] @ h**2]) / jnp.sqrt(n()),
        lambda x: (
            jnp.stack([(y := v(2, 3) @ jnp.stack([h := layer(x), h**2], 1))[1, 2, 0], y[0, 2, 0], y[1, 2, 1]])
            / jnp.sqrt(n())
        ),
    ),
    "a function of another": (
        lambda x: jnp.sum(v() * jnp.sin(nn.dense(x, name="in")) ** 3) / jnp.sqrt(n()),
        lambda x: v() @ jnp.sin(nn.dense(x, name="in")) ** 3 / jnp.sqrt(n()),
    ),
    "an even power": (
        lambda x: jnp.mean(v() ** 2 * layer(x)),
        lambda x: (lambda w: (w * layer(x)) @ w / n())(v()),
    ),
    "a concatenation": (
        lambda x: jnp.sum(nn.weight((2 * n(),), name="v") * twice(x)) / jnp.sqrt(n()),
        lambda x: nn.weight((2 * n(),), name="v") @ twice(x) / jnp.sqrt(n()),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_they_are_products(name: str) -> None:
    check(*CASES[name])


def inner(read: Callable[[jax.Array, jax.Array], jax.Array]) -> Hidden:
    """A network with averages of a parameter times a layer, at each position, inside."""

    def net(x: jax.Array) -> jax.Array:
        w = v()
        h = relu(nn.dense(x, name="in") + w)
        return nn.dense(h * read(w, h)[:, None], features=1)

    return net


# Of several positions: a parameter for all, or flattened as they are.
PLACED: dict[str, tuple[Hidden, Hidden]] = {
    "one for all positions": (lambda x: jnp.sum(v() * layer(x), -1), lambda x: layer(x) @ v()),
    "one for all, summed": (lambda x: jnp.sum(v() * layer(x)), lambda x: (layer(x) @ v()).sum()),
    "one for all, inside": (inner(lambda w, h: jnp.mean(w * h, -1)), inner(lambda w, h: h @ w / n())),
    "flattened": (
        lambda x: jnp.sum(nn.weight((4 * n(),), name="v") * layer(x).reshape(-1)),
        lambda x: nn.weight((4 * n(),), name="v") @ layer(x).reshape(-1),
    ),
    "a flattened one for all of two": (
        lambda x: jnp.sum(nn.weight((2 * n(),), name="v") * layer(x).reshape(2, -1), 1),
        lambda x: layer(x).reshape(2, -1) @ nn.weight((2 * n(),), name="v"),
    ),
    "flattened before": (
        lambda x: jnp.vdot(v(4), layer(x)),
        lambda x: jnp.einsum("pi,pi->", v(4), layer(x)),
    ),
    "flattened after": (
        lambda x: jnp.sum((v(4) * layer(x)).reshape(-1)),
        lambda x: jnp.einsum("pi,pi->", v(4), layer(x)),
    ),
}


@pytest.mark.parametrize("name", PLACED)
def test_they_are_products_at_positions(name: str) -> None:
    check(
        *((lambda x, net=net: net(x) / jnp.sqrt(n())) if "inside" not in name else net for net in PLACED[name]), (4, 3)
    )


def test_positions_moved_after_they_were_flattened() -> None:
    """Entries of the parameter meet coordinates of other positions: no product of a tensor program."""
    moved = lambda x: jnp.sum(v(4).T.reshape(-1)[::-1] * layer(x).T.reshape(-1)) / jnp.sqrt(n())
    with pytest.raises(tp.UnsupportedError):
        tp.compile(moved, np.zeros((4, 3)))


def check(one: Hidden, other: Hidden, shape: tuple[int, ...] = (3,)) -> None:
    x = np.random.default_rng(0).standard_normal((2, *shape))
    found, wanted = uncompiled(tp.compile(one, x[0]), x), uncompiled(tp.compile(other, x[0]), x)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1e-3, float(np.abs(b).max())))


def test_places_of_a_parameter() -> None:
    """Rows in another order, and one weight for each position."""
    x = np.random.default_rng(0).standard_normal((2, 4, 3))
    turned = uncompiled(
        tp.compile(lambda x: v(2)[::-1] @ relu(nn.dense(x[0], name="in")) / jnp.sqrt(n()), x[0]), x
    ).nngp
    plain = uncompiled(tp.compile(lambda x: v() @ relu(nn.dense(x[0], name="in")) / jnp.sqrt(n()), x[0]), x).nngp
    np.testing.assert_allclose(turned, np.einsum("ij,ab->ijab", plain, np.eye(2)), atol=1e-14)
    check_rows = lambda x: jnp.sum(v(4) * relu(nn.dense(x, name="in")), 1) / jnp.sqrt(n())
    product = lambda x: jnp.einsum("pi,pi->p", v(4), relu(nn.dense(x, name="in"))) / jnp.sqrt(n())
    for a, b in zip(uncompiled(tp.compile(check_rows, x[0]), x), uncompiled(tp.compile(product, x[0]), x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)


def test_single_coordinates_are_named() -> None:
    def net(x: jax.Array) -> jax.Array:
        w = nn.weight((n(), n()))
        return w.T[:1] @ jnp.tanh(w @ nn.dense(x) / jnp.sqrt(n())) / jnp.sqrt(n())

    with pytest.raises(
        tp.UnsupportedError, match=r"neurons of a hidden layer.*(.|\n)*return the whole layer to tp.joint"
    ):
        tp.compile(net, jnp.zeros(3))
