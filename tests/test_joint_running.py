"""How several outputs are computed changes none of them: tiles, symmetry, optimisations, precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.runtime import tiles
from tests.test_joint import readout, relu


def test_tiles_and_symmetry(monkeypatch: pytest.MonkeyPatch) -> None:
    def net(x: jax.Array) -> dict[str, jax.Array]:
        w, h = readout(), nn.dense(x)
        return {"a": w @ relu(h), "b": w @ h, "p": nn.dense(jnp.stack([x, 2 * x]), features=1)[:, 0]}

    x = np.random.default_rng(3).standard_normal((150, 3))
    whole = tp.joint(net, x[0])(x)
    cut = tp.joint(net, x[0])
    monkeypatch.setattr(tiles, "TILE_BYTES", 1 << 16)
    tiled = cut(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), whole, tiled)
    for kernels in whole:
        for a in kernels:
            for b in kernels:
                turned = np.swapaxes(kernels[b][a], 0, 1)
                assert np.array_equal(kernels[a][b], np.swapaxes(turned, 2, 3) if a == b == "p" else turned)


LOWERED, RUN = ("loops", "branches", "together", "windows"), ("rows", "sides", "threads", "reuse", "symmetry")


@pytest.mark.long
@pytest.mark.parametrize(
    "names",
    [("packing", *LOWERED, *RUN), ("packing",), LOWERED, RUN],
    ids="-".join,
)
def test_optimisations_change_no_value(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CACHED", 64)
    kernel = tp.joint(deep_and_windows, np.ones((4, 2)))
    x = np.random.default_rng(2).standard_normal((9, 4, 2))
    x[1] = x[0]
    for a, b in zip(*(jax.tree.leaves(k(x)) for k in (kernel, kernel.without(*names))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    with pytest.raises(tp.InputError, match="'turbo' is no optimisation"):
        kernel.without("turbo")


def deep_and_windows(x: jax.Array) -> dict[str, jax.Array]:
    h = x[0]
    for _ in range(3):
        h = relu(nn.dense(h, weight_var=1.5, bias_var=0.1))
    field = relu(nn.conv(relu(nn.conv(x, 3)), 3))
    return {"deep": nn.dense(h, features=1), "mean": jnp.mean(h), "field": nn.dense(field, features=1)}


@pytest.mark.parametrize("average", [pytest.param(False, marks=pytest.mark.long), True])
def test_nearly_equal_inputs_in_float32(average: bool) -> None:
    """Kinks make a tangent kernel change like the angle between inputs: near pairs, scaled ones too, are computed in float64."""

    def net(x: jax.Array) -> dict[str, jax.Array]:
        h = nn.dense(relu(nn.dense(x, bias_var=0.1)), weight_var=2.0, bias_var=0.1)
        found = {"a": nn.dense(relu(h), features=1), "h": h}
        return found | ({"m": nn.weight((nn.width(),)) @ relu(h) / nn.width()} if average else {})

    rng = np.random.default_rng(0)
    base = rng.standard_normal((4, 3)).astype(np.float32)
    moved = [base + np.float32(e) * rng.standard_normal(base.shape).astype(np.float32) for e in (1e-6, 1e-4, 1e-2)]
    x = np.concatenate([base, *moved, 2 * moved[1]])
    kernel = tp.joint(net, x[0])
    for found, wanted in (
        (kernel(x), kernel(x.astype(float))),
        (kernel(x[:5], x), kernel(x[:5].astype(float), x.astype(float))),
    ):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert a.dtype == np.float32 and b.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1.0, float(np.abs(b).max())))
    gram = kernel(x).ntk["a"]["h"]
    assert np.array_equal(gram, np.swapaxes(kernel(x).ntk["h"]["a"], 0, 1))
