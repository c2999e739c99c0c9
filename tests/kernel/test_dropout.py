"""Masks that every input draws anew: dropout, and the diagonal that it tells from the rest of a gram matrix.

The formulas are those of the train mode of neural-tangents' `stax.Dropout`: second moments of one draw with itself are
divided by the share that is kept, all others are unchanged.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.frontend.recording import current
from tests.references import duals

RNG = np.random.default_rng(3)
X = RNG.standard_normal((3, 4))
SEQUENCES = RNG.standard_normal((2, 5, 3))


def two_layers(x: jax.Array) -> jax.Array:
    for rate in (0.3, 0.2):
        x = nn.dropout(jax.nn.relu(nn.dense(x)), rate)
    return nn.dense(x, features=1)


def by_hand(x: np.ndarray, own: bool) -> tuple[np.ndarray, np.ndarray]:
    """NNGP and NTK of two_layers. own: with every input's own draw on the diagonal; else all pairs are two draws."""
    k = theta = x @ x.T / x.shape[1]
    q = np.diag(k)
    diagonal = np.eye(len(x), dtype=bool)
    for kept in (0.7, 0.8):
        args = q[:, None], q[None, :], np.where(diagonal & own, q[:, None], k)
        scale = np.where(diagonal & own, 1 / kept, 1.0)
        value, slope = scale * duals.relu.value(*args), scale * duals.relu.slope(*args)
        q = duals.relu.value(q, q, q) / kept
        k, theta = value, value + slope * theta
    return k, theta


def close(found: tp.KernelResult, wanted: tuple[np.ndarray, np.ndarray]) -> None:
    np.testing.assert_allclose(found.nngp, wanted[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.ntk, wanted[1], rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_own_draws_and_two_draws(tmp_path: Path) -> None:
    kernel = tp.compile(two_layers, X[0])
    close(kernel(X), by_hand(X, True))
    close(kernel(X, X), by_hand(X, False))
    close(jax.jit(kernel)(X), by_hand(X, True))
    np.testing.assert_allclose(kernel.diag(X).ntk, np.diag(by_hand(X, True)[1]), rtol=1e-10)
    twice = np.concatenate([X[:1], X[:1]])
    np.testing.assert_allclose(kernel(twice).nngp[0, 1], by_hand(X, False)[0][0, 0], rtol=1e-10)
    assert tp.parse_program(str(kernel.program)) == kernel.program
    kernel.export(tmp_path / "dropout.tpk", platforms=("cpu",))
    loaded = tp.load(tmp_path / "dropout.tpk")
    close(loaded(X), by_hand(X, True))
    close(loaded.recompile()(X, X), by_hand(X, False))


@pytest.mark.long
@pytest.mark.parametrize("shared", [(), pytest.param((0,), marks=pytest.mark.slow)])
def test_masks_of_positions(shared: tuple[int, ...]) -> None:
    """Independent masks leave two positions of one input alone; one mask for all divides them too."""
    net = lambda x: nn.dense(nn.dropout(jax.nn.relu(nn.dense(x)), 0.25, shared=shared).mean(0), features=1)
    found = tp.compile(net, SEQUENCES[0])(SEQUENCES).nngp
    k = np.einsum("gsd,htd->ghst", SEQUENCES, SEQUENCES) / 3
    q = np.einsum("ggss->gs", k)
    k = duals.relu.value(q[:, None, :, None], q[None, :, None, :], k)
    one_draw = np.eye(2, dtype=bool)[:, :, None, None]
    one_mask = one_draw & (np.ones((5, 5), bool) if shared else np.eye(5, dtype=bool))
    np.testing.assert_allclose(found, np.where(one_mask, k / 0.75, k).mean((2, 3)), rtol=1e-10)


@pytest.mark.slow
def test_a_function_of_dropped_positions_is_sampled() -> None:
    """A mask inside of a function of many positions: of one input with itself and with another, by the same formula."""
    net = lambda x: nn.dense(jnp.tanh(nn.dropout(nn.dense(x), 0.5).mean(0)), features=1)
    kernel = tp.compile(net, SEQUENCES[0], tolerance=2e-3)
    found = kernel(SEQUENCES, get="nngp")
    draws = np.random.default_rng(0)
    k = np.einsum("gsd,htd->gsht", SEQUENCES, SEQUENCES).reshape(10, 10) / 3
    h = (draws.standard_normal((400_000, 10)) @ np.linalg.cholesky(k + 1e-12 * np.eye(10)).T).reshape(-1, 2, 5)
    masks = 2.0 * (draws.random((2, *h.shape)) < 0.5)
    u, v = (np.tanh((h * m).mean(2)) for m in masks)
    wanted = np.array(
        [[(u[:, 0] ** 2).mean(), (u[:, 0] * v[:, 1]).mean()], [(v[:, 0] * u[:, 1]).mean(), (u[:, 1] ** 2).mean()]]
    )
    np.testing.assert_allclose(found, wanted, atol=5e-3)  # 400,000 draws and the sampling of the kernel


def test_the_finite_network_drops_that_share() -> None:
    net = lambda x: nn.dense(nn.dropout(nn.dense(x), 0.3), features=1)
    params = tp.init(net, X[0], 4000, jax.random.key(0))
    assert set(params) == {"dense_0.weight", "dropout_0.noise", "dense_1.weight"}
    gradient = jax.grad(lambda w: tp.apply(net, params | {"dense_1.weight": w}, X[0], width=4000)[0])(
        params["dense_1.weight"]
    )
    assert abs(float((gradient == 0).mean()) - 0.3) < 0.03
    kept = tp.compile(lambda x: nn.dense(nn.dropout(nn.dense(x), 0.0), features=1), X[0])
    assert not kept.graph.noise


REFUSED = {
    "a rate of one": (lambda x: nn.dropout(nn.dense(x), 1.0), "expected a number >= 0 and < 1"),
    "the width shared": (lambda x: nn.dropout(nn.dense(x), 0.5, shared=(0,)), "expected some of the position axes"),
    "the input": (lambda x: nn.dense(nn.dropout(x, 0.5)), "a mask of finite size stays random"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    layer, message = REFUSED[name]
    with pytest.raises(tp.UserError, match=message):
        tp.compile(lambda x: nn.dense(layer(x), features=1), X[0])


def test_noise_as_a_weight_is_refused() -> None:
    def net(x: jax.Array) -> jax.Array:
        h = nn.dense(x)
        recorder = current()
        assert recorder is not None
        noise = recorder.parameter("mine", tp.Gaussian((nn.width(),), per_input=True))
        return nn.dense(h, features=1) + noise @ h / nn.width() ** 0.5

    with pytest.raises(tp.UnsupportedError, match="sums a parameter times hidden coordinates"):
        tp.compile(net, X[0])
