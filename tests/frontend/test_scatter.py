"""Writing into positions, against the same network written with stacks and sums, and padding of every mode."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tensorprog as tp
from tensorprog import nn
from tests.everyday import everyday
from tests.uncompiled import uncompiled

X = jax.random.normal(jax.random.key(0), (2, 4, 3))


def network(change: Callable, phi: Callable = jnp.cos) -> Callable:
    """A layer that is shifted, something done to its four positions, a function that is not zero at zero."""

    def net(x: jax.Array) -> jax.Array:
        h = change(nn.dense(x[:4]) + 0.5, x)
        return nn.dense(phi(h).sum(0), features=1)

    return net


def same(one: Callable, other: Callable, x: jax.Array = X, **options: object) -> None:
    """By the adjoint program, which needs the transposes of maps; the other by the tangent program, as is the default."""
    wanted = uncompiled(tp.compile(other, x[0], **options), x)
    found = uncompiled(tp.compile(one, x[0], method="adjoint", **options), x)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * float(jnp.abs(b).max()))


WRITTEN = {
    "set a number": (lambda h, x: h.at[1].set(3.0), lambda h, x: jnp.stack([h[0], 0 * h[1] + 3, h[2], h[3]])),
    "set a vector": (lambda h, x: h.at[-1].set(h[0]), lambda h, x: jnp.stack([h[0], h[1], h[2], h[0]])),
    "set a slice": (lambda h, x: h.at[1:3].set(h[:2]), lambda h, x: jnp.stack([h[0], h[0], h[1], h[3]])),
    "add with repeats": (
        lambda h, x: h.at[jnp.array([0, 2, 0])].add(h[1:]),
        lambda h, x: jnp.stack([h[0] + h[1] + h[3], h[1], h[2] + h[2], h[3]]),
    ),
    "subtract": (lambda h, x: h.at[2].subtract(h[3]), lambda h, x: jnp.stack([h[0], h[1], h[2] - h[3], h[3]])),
    "multiply": (
        lambda h, x: h.at[jnp.array([0, 3])].multiply(2.0),
        lambda h, x: jnp.array([2.0, 1, 1, 2])[:, None] * h,
    ),
    "out of bounds": (lambda h, x: h.at[jnp.array([1, 9])].set(h[:2]), lambda h, x: h.at[1].set(h[0])),
    "sums of segments": (
        lambda h, x: jax.ops.segment_sum(h, jnp.array([0, 1, 0, 2]), 4),
        lambda h, x: jnp.stack([h[0] + h[2], h[1], h[3], 0 * h[0]]),
    ),
    "maxima of segments": (
        lambda h, x: jax.ops.segment_max(h, jnp.array([1, 0, 1, 2]), 3),
        lambda h, x: jnp.stack([h[1], jnp.maximum(h[0], h[2]), h[3]]),
    ),
    "minima of segments": (
        lambda h, x: jax.ops.segment_min(h, jnp.array([1, 0, 1, 2]), 3),
        lambda h, x: jnp.stack([h[1], jnp.minimum(h[0], h[2]), h[3]]),
    ),
    "a block": (
        lambda h, x: lax.dynamic_update_slice(h, h[:2], (1, 0)),
        lambda h, x: jnp.stack([h[0], h[0], h[1], h[3]]),
    ),
    "a block that would stick out": (
        lambda h, x: lax.dynamic_update_slice(h, h[:2], (3, 0)),
        lambda h, x: jnp.stack([h[0], h[1], h[0], h[1]]),
    ),
    "a buffer, step by step": (
        lambda h, x: lax.fori_loop(0, 4, lambda i, o: o.at[i].set(h[3 - i]), jnp.zeros_like(h)),
        lambda h, x: h[::-1],
    ),
    "places of the input": (
        lambda h, x: jax.ops.segment_sum(h, (x[:, 0] > 0).astype(int), 2),
        lambda h, x: jnp.stack([jnp.where(x[:, 0] > 0, 0.0, 1.0) @ h, jnp.where(x[:, 0] > 0, 1.0, 0.0) @ h]),
    ),
    "one place of the input": (
        lambda h, x: h.at[jnp.argmax(x[:, 1])].set(1.0),
        lambda h, x: jnp.where((jnp.arange(4) == jnp.argmax(x[:, 1]))[:, None], 1.0, h),
    ),
    "along another axis": (
        lambda h, x: h.reshape(2, 2, -1).at[:, 1].set(h[:2]).reshape(4, -1),
        lambda h, x: jnp.stack([h[0], h[0], h[2], h[1]]),
    ),
}  # fmt: skip


LONG_WRITTEN = [
    "set a vector", "subtract", "multiply", "out of bounds", "maxima of segments", "minima of segments", "a block that would stick out",
    "one place of the input", "along another axis", "a buffer, step by step", "add with repeats",
]  # fmt: skip


@pytest.mark.parametrize("name", everyday(WRITTEN, long=LONG_WRITTEN))
def test_writing_is_a_map_of_positions(name: str) -> None:
    one, other = WRITTEN[name]
    # a function of a maximum would have to be sampled
    phi = (lambda h: h) if name.endswith("ma of segments") else jnp.cos
    same(network(one, phi), network(other, phi))


def test_writing_twice_and_into_the_width_are_refused() -> None:
    refused = {
        r"write twice at one place(.|\n)*unique_indices": lambda h, x: h.at[jnp.array([1, 1])].set(h[:2]),
        r"write twice at one place": lambda h, x: h.at[(x[:2, 0] > 0).astype(int)].set(h[:2]),
        r"into a part of the width": lambda h, x: h.at[:, 0].set(1.0),
        r"empty segment": lambda h, x: jax.ops.segment_max(h, jnp.array([0, 0, 2, 2]), 3),
        r"places that depend on the input": lambda h, x: jax.ops.segment_max(h, (x[:, 0] > 0).astype(int), 2),
    }
    for text, change in refused.items():
        with pytest.raises(tp.UnsupportedError, match=text):
            tp.compile(network(change), X[0])


@pytest.mark.long
def test_message_passing_over_the_edges_of_a_graph() -> None:
    """Sums over senders are those by the adjacency matrix; the edges may be a part of the input."""
    senders, receivers = jnp.array([0, 1, 1, 2, 3, 3]), jnp.array([1, 0, 2, 3, 0, 1])
    matrix = jnp.zeros((4, 4)).at[receivers, senders].add(1.0)

    def net(gathered: Callable) -> Callable:
        def passed(x: dict) -> jax.Array:
            h = jax.nn.relu(nn.dense(x["nodes"], bias_var=0.1))
            return nn.dense(jax.nn.relu(nn.dense(gathered(h, x) + h)).sum(0), features=1)

        return passed

    nodes = jax.random.normal(jax.random.key(1), (2, 4, 3))
    x = {"nodes": nodes, "senders": jnp.stack([senders] * 2), "receivers": jnp.stack([receivers] * 2)}
    one = jax.tree.map(lambda leaf: leaf[0], x)
    wanted = uncompiled(tp.compile(net(lambda h, x: matrix @ h), one), x)
    for gathered in (
        lambda h, x: jax.ops.segment_sum(h[senders], receivers, 4),
        lambda h, x: jax.ops.segment_sum(h[x["senders"]], x["receivers"], 4),
    ):
        found = uncompiled(tp.compile(net(gathered), one), x)
        np.testing.assert_allclose(found.nngp, wanted.nngp, rtol=1e-12)
        np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-12)


# ------------------------------------------------------------------------------------------ padding


def padded(mode: str, places: list[int | None]) -> tuple[Callable, Callable]:
    """jnp.pad of four positions, and the same written place by place (None: a zero)."""
    inside = np.array([[i is not None] for i in places], float)
    pick = lambda h: inside * h[jnp.array([i or 0 for i in places])]
    return lambda h, x: jnp.pad(h, ((2, 1), (0, 0)), mode=mode), lambda h, x: pick(h)


PADS = {
    "constant": [None, None, 0, 1, 2, 3, None],
    "edge": [0, 0, 0, 1, 2, 3, 3],
    "reflect": [2, 1, 0, 1, 2, 3, 2],
    "symmetric": [1, 0, 0, 1, 2, 3, 3],
    "wrap": [2, 3, 0, 1, 2, 3, 0],
}


@pytest.mark.parametrize("mode", everyday(PADS, long=["edge", "symmetric"]))
def test_padding_in_every_mode(mode: str) -> None:
    """What is padded here is a shifted Gaussian: zeros are zeros, not the shift."""
    one, other = padded(mode, PADS[mode])
    same(network(one), network(other))


def test_zeros_around_a_shifted_layer() -> None:
    """cos of a zero is one: by hand. (h + 1 is padded, not h.)"""
    net = lambda x: nn.dense(jnp.cos(jnp.pad(nn.dense(x)[None] + 1.0, ((1, 0), (0, 0)))).sum(0), features=1)
    q = 0.7
    found = uncompiled(tp.compile(net, jnp.zeros(1)), jnp.array([[q**0.5]]))
    mean, square = np.cos(1) * np.exp(-q / 2), (1 + np.cos(2) * np.exp(-2 * q)) / 2
    np.testing.assert_allclose(found.nngp[0, 0], square + 2 * mean + 1, rtol=1e-12)
    slope = (1 - np.cos(2) * np.exp(-2 * q)) / 2  # E sin^2
    np.testing.assert_allclose(found.ntk[0, 0], square + 2 * mean + 1 + q * slope, rtol=1e-12)


# ------------------------------------------------------------------------------------------ taking

TAKEN = {
    "a number out of bounds": (
        lambda h, x: h.at[jnp.array([0, 7, 2])].get(mode="fill", fill_value=0.7),
        lambda h, x: jnp.stack([h[0], 0 * h[0] + 0.7, h[2]]),
    ),
    "a number where the input points out of bounds": (
        lambda h, x: h.at[jnp.where(x[:, 0] > 0, 7, jnp.arange(4))].get(mode="fill", fill_value=-2.0),
        lambda h, x: jnp.where(x[:, :1] > 0, -2.0, h),
    ),
    "a slice that would stick out": (lambda h, x: lax.dynamic_slice_in_dim(h, jnp.array(3), 2), lambda h, x: h[2:]),
    "padding by a negative amount": (
        lambda h, x: lax.pad(h, 0.3, ((-1, 2, 0), (0, 0, 0))),
        lambda h, x: jnp.concatenate([h[1:], 0 * h[:2] + 0.3]),
    ),
    "gaps, cropped": (
        lambda h, x: lax.pad(h, 0.3, ((-1, -1, 1), (0, 0, 0))),
        lambda h, x: jnp.stack([0 * h[0] + 0.3, h[1], 0 * h[0] + 0.3, h[2], 0 * h[0] + 0.3]),
    ),
    "minima of windows": (
        lambda h, x: lax.reduce_window(h, jnp.inf, lax.min, (2, 1), (2, 1), "VALID"),
        lambda h, x: jnp.stack([jnp.minimum(h[0], h[1]), jnp.minimum(h[2], h[3])]),
    ),
    "one of three, by number": (
        lambda h, x: lax.select_n(
            jnp.broadcast_to(jnp.array([2, 0, 1, 2])[:, None], h.shape), h, jnp.sin(h), jnp.full_like(h, 2.0)
        ),
        lambda h, x: jnp.stack([0 * h[0] + 2, h[1], jnp.sin(h[2]), 0 * h[3] + 2]),
    ),
    "one of three, by a number of the input": (
        lambda h, x: h * lax.select_n((x[:, 0] > 0) + (x[:, 1] > 0).astype(int), x[:, 0], x[:, 1], x[:, 2])[:, None],
        lambda h, x: (
            h
            * jnp.where(
                (x[:, 0] > 0) & (x[:, 1] > 0), x[:, 2], jnp.where((x[:, 0] > 0) | (x[:, 1] > 0), x[:, 1], x[:, 0])
            )[:, None]
        ),
    ),
}


LONG_TAKEN = [
    "a number where the input points out of bounds",
    "gaps, cropped",
    "minima of windows",
    "one of three, by number",
]


@pytest.mark.parametrize("name", everyday(TAKEN, long=LONG_TAKEN))
def test_taking(name: str) -> None:
    one, other = TAKEN[name]
    phi = (lambda h: h) if "minima" in name or "three, by number" in name else jnp.cos
    net = lambda change: lambda x: nn.dense(phi(change(nn.dense(x) + 0.5, x)).sum(0), features=1)
    same(net(one), net(other))


def test_a_stride_along_the_width_is_refused() -> None:
    """The mean of every second coordinate was taken for twice the mean of all."""
    with pytest.raises(tp.UnsupportedError, match="stride"):
        tp.compile(lambda x: nn.dense(jnp.cos(nn.dense(x)[::2])), jnp.zeros(3))
