"""Nearly parallel inputs in float32: tangent kernels with kinks keep their digits, whatever is near, compiled or loaded from a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.runtime.refine import SKETCH, sketch

relu = jax.nn.relu


def biased_above(x: jax.Array) -> jax.Array:
    """The first layer sees directions alone; biases above it part x and 2 x."""
    h = nn.dense(relu(nn.dense(x)), weight_var=2.0, bias_var=0.1)
    return nn.dense(relu(h), features=1)


def average(x: jax.Array) -> jax.Array:
    return jnp.mean(relu(nn.dense(relu(nn.dense(x)), bias_var=0.1)))


def several(x: jax.Array) -> dict[str, jax.Array]:
    h = nn.dense(relu(nn.dense(x)), weight_var=2.0, bias_var=0.1)
    return {"a": nn.dense(relu(h), features=1), "h": h}


def near(entries: int) -> np.ndarray:
    """Inputs, and near them: the same, twice as long with a little noise, opposite ones."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((4, entries)).astype(np.float32)
    noise = lambda size: np.float32(size) * rng.standard_normal(base.shape).astype(np.float32)
    return np.concatenate(
        [base, base + noise(1e-4), 2 * base + noise(1e-3), 3 * base + noise(1e-5), -2 * base + noise(1e-4)]
    )


@pytest.mark.parametrize(
    "entries", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(SKETCH + 1, marks=pytest.mark.long)]
)
def test_whatever_the_norms(entries: int) -> None:
    """Without the second computation the error is 8e-5 (3 entries)."""
    x = near(entries)
    kernel = tp.compile(biased_above, x[0]).without("interpolation")
    wanted = kernel(x.astype(float))
    for found, rows in ((kernel(x), slice(None)), (kernel(x[:3], x), slice(3))):
        assert found.ntk.dtype == np.float32
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b[rows], rtol=0, atol=2e-6 * np.abs(b).max())


def deep(biases: Sequence[float]) -> Callable[[jax.Array], jax.Array]:
    def net(x: jax.Array) -> jax.Array:
        for bias in biases:
            x = relu(nn.dense(x, weight_var=2.0, bias_var=bias))
        return nn.dense(x, features=1)

    return net


def convolved(x: jax.Array) -> jax.Array:
    h = relu(nn.conv(x[:, None], 3, padding="SAME"))
    return nn.dense(jnp.mean(relu(nn.conv(h, 3, bias_var=0.1)), axis=0), features=1)


@pytest.mark.parametrize(
    ("net", "wanted"),
    [
        (deep([0.0, 0.1]), True),
        (deep([0.1, 0.1]), False),  # the first layer sees a bias as well
        (
            deep([0.0, 0.0]),
            True,
        ),  # nothing above parts what has one direction, but opposite inputs have nothing in common
        (lambda x: deep([0.0])(jnp.tanh(nn.dense(x))), False),
        (lambda x: deep([0.0, 0.1])(x) + nn.dense(x, features=1), True),
        (convolved, True),
    ],
    ids=["biased above", "biased", "homogeneous", "smooth first", "beside the input", "convolution"],
)
def test_where_directions_matter(net: Callable[[jax.Array], jax.Array], wanted: bool) -> None:
    assert tp.compile(net, jnp.zeros(4)).functions.directions is wanted


@pytest.mark.long
@pytest.mark.parametrize("net", [biased_above, average])
def test_loaded(net: Callable, tmp_path: Path) -> None:
    x = near(3)
    tp.compile(net, x[0]).export(tmp_path / "net.tpk", platforms=("cpu",))
    loaded = tp.load(tmp_path / "net.tpk")
    assert loaded.source == "serialised"
    wanted = loaded(x.astype(float)).ntk
    np.testing.assert_allclose(loaded(x).ntk, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.long
def test_loaded_outputs(tmp_path: Path) -> None:
    x = near(3)
    tp.joint(several, x[0]).export(tmp_path / "net.tpk", platforms=("cpu",))
    loaded = tp.load(tmp_path / "net.tpk")
    assert loaded.source == "serialised"
    for a, b in zip(jax.tree.leaves(loaded(x)), jax.tree.leaves(loaded(x.astype(float))), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * max(1.0, float(np.abs(b).max())))


def test_sketches_keep_distances() -> None:
    """Of many entries; the bound on their squares is passed by none of a million pairs, were they as near as is asked about."""
    x = np.random.default_rng(0).standard_normal((1000, 200))
    found, directions = np.asarray(sketch([jnp.asarray(x)])), x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = np.triu_indices(1000, 1)

    def squares(a: np.ndarray) -> np.ndarray:
        lengths = np.sum(a * a, axis=1)
        return (lengths[:, None] + lengths - 2 * a @ a.T)[pairs]

    ratio = squares(found) / squares(directions)
    assert abs(ratio.mean() - 1) < 0.05 and ratio.max() < 3.5
    assert not np.any(np.isnan(sketch([jnp.zeros((2, 3))])))


def of_positions(biases: Sequence[float]) -> Callable[[jax.Array], jax.Array]:
    def net(x: jax.Array) -> jax.Array:
        for bias in biases:
            x = relu(nn.conv(x, 3, padding="SAME", weight_var=2.0, bias_var=bias))
        return nn.dense(x, features=1)[:, 0]

    return net


RNG = np.random.default_rng(0)
SEQUENCES = RNG.standard_normal((4, 6, 2)).astype(np.float32)
POSITIONED = {
    "near inputs": SEQUENCES + 1e-3 * RNG.standard_normal((2, 1, 6, 2)).astype(np.float32),
    "near at one position": SEQUENCES + np.float32(np.arange(2) / 1e3)[:, None, None, None] * (np.arange(6) == 2)[:, None],
    "opposite inputs": SEQUENCES * np.float32([1, -1])[:, None, None, None] + 1e-3 * np.float32(RNG.standard_normal((2, 4, 6, 2))),
    "near positions": SEQUENCES[None, :, :1] + 1e-3 * RNG.standard_normal((2, 4, 6, 2)).astype(np.float32),
    "equal inputs": np.stack([SEQUENCES] * 2),
}  # fmt: skip


def errors(found: tp.KernelResult, wanted: tp.KernelResult) -> list[float]:
    for a in found:
        assert a.dtype == np.float32
    return [float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("biases", [(0.0,), (0.1, 0.0)], ids=["one layer", "biased"])
@pytest.mark.parametrize("name", POSITIONED)
def test_outputs_with_positions(name: str, biases: Sequence[float]) -> None:
    """Without the second computation the error is up to 3e-4."""
    x = np.asarray(POSITIONED[name].reshape(8, 6, 2), np.float32)
    kernel = tp.compile(of_positions(biases), jnp.zeros((6, 2)))
    wanted, own = kernel(x.astype(float)), kernel.diag(x.astype(float))
    gram = kernel(x)
    assert max(errors(gram, wanted)) < 2e-6
    for k in gram:
        np.testing.assert_array_equal(k, k.transpose(1, 0, 3, 2))
    assert max(errors(kernel(x[:3], x), tp.KernelResult(*(k[:3] for k in wanted)))) < 2e-6
    assert max(errors(kernel.diag(x), own)) < 2e-6
    np.testing.assert_allclose(kernel(x, get="ntk"), gram.ntk, rtol=1e-6)


@pytest.mark.long
def test_outputs_with_positions_loaded_and_sharded(tmp_path: Path) -> None:
    x = np.asarray(np.concatenate(list(POSITIONED.values())).reshape(-1, 6, 2), np.float32)
    kernel = tp.compile(of_positions((0.1, 0.0)), jnp.zeros((6, 2)))
    wanted = kernel(x.astype(float))
    kernel.export(tmp_path / "net.tpk", platforms=("cpu",))
    loaded = tp.load(tmp_path / "net.tpk")
    for changed in (loaded, kernel.shard(jax.make_mesh((1,), ("rows",))), kernel.without("symmetry")):
        assert max(errors(changed(x), wanted)) < 2e-6
        assert max(errors(changed(x[:3], x), tp.KernelResult(*(k[:3] for k in wanted)))) < 2e-6
    assert loaded.source == "serialised"
