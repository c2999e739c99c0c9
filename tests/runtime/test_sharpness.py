"""float32 within 1e-5 of float64 where functions are sharp at the variances they meet, and for nearly opposite inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.runtime import gram
from tensorprog.runtime.interpolated import LEAST_PAIRS

RANDOM = np.random.default_rng(0)
APART = 10.0 ** -np.linspace(1, 6, 30)[:, None]
POINTS, MOVES = RANDOM.standard_normal((2, 30, 5))


def deep(phi: Callable[[jax.Array], jax.Array], depth: int, bias: float = 0.0) -> Callable[[jax.Array], jax.Array]:
    def net(x: jax.Array) -> jax.Array:
        h = x
        for _ in range(depth):
            h = phi(nn.dense(h, bias_var=bias))
        return nn.dense(h, features=1)

    return net


def worst(net: Any, x1: np.ndarray, x2: np.ndarray, changed: Callable[[Any], Any] = lambda kernel: kernel) -> float:
    """The largest error of both kernels in float32, relative to sqrt(K(x, x) K(x', x')), of the kernel changed in some way."""
    x1, x2 = (np.asarray(x, np.float32) for x in (x1, x2))
    kernel = tp.compile(net, jnp.zeros(x1.shape[1:]))
    found = changed(kernel)(x1, x2)
    with jax.enable_x64(True):
        wide = [np.asarray(x, np.float64) for x in (x1, x2)]
        exact = kernel.without("interpolation")(*wide)
        own = [kernel.diag(x) for x in wide]
    errors = []
    for name in ("nngp", "ntk"):
        scale = np.sqrt(np.outer(*(np.asarray(getattr(k, name)) for k in own)))
        errors.append(np.abs(getattr(found, name) - getattr(exact, name)) / scale)
    return float(np.max(errors))


@pytest.mark.parametrize("phi", [jax.lax.erf, jnp.tanh, jax.nn.gelu, jnp.sin], ids=["erf", "tanh", "gelu", "sin"])
@pytest.mark.parametrize("scale", [3, 10])
def test_smooth_functions_of_large_variances(phi: Callable[[jax.Array], jax.Array], scale: float) -> None:
    """Of inputs that nearly coincide, with entries of size 10, float32 alone would have three digits of the tangent kernel."""
    assert worst(deep(phi, 2), scale * POINTS, scale * (POINTS + APART * MOVES)) < 1e-5


def test_variances_may_be_large_in_the_middle_alone() -> None:
    def net(x: jax.Array) -> jax.Array:
        h = jax.lax.erf(nn.dense(x))
        return nn.dense(jax.lax.erf(nn.dense(h, weight_var=1e4)), features=1)

    assert worst(net, POINTS, POINTS + APART * MOVES) < 1e-5


def test_steep_functions_of_small_variances() -> None:
    assert worst(deep(lambda v: jax.lax.erf(50 * v), 1), POINTS, POINTS + APART * MOVES) < 1e-5


@pytest.mark.parametrize("size", [10, 40, 300])
def test_series_of_large_variances(size: float) -> None:
    """Of inputs of one norm: up to 40 a series, beyond that none is short enough."""
    x = np.concatenate([POINTS, POINTS + APART**0.5 * MOVES])
    x = np.repeat(size * x / np.linalg.norm(x, axis=1, keepdims=True), 4, 0)
    assert len(x) ** 2 > LEAST_PAIRS
    assert worst(deep(jax.lax.erf, 2), x, x) < 1e-5


def test_moderate_variances_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(gram, "in_float64", lambda *args: calls.append(args))
    tp.compile(deep(jax.lax.erf, 3, 0.1), jnp.zeros(5))(POINTS.astype(np.float32))
    assert not calls


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("phi", [jax.nn.relu, jax.nn.leaky_relu, jnp.abs], ids=["relu", "leaky", "abs"])
def test_nearly_opposite_inputs(phi: Callable[[jax.Array], jax.Array], depth: int) -> None:
    for bias in (0.0, 1e-4, 0.1):
        assert worst(deep(phi, depth, bias), POINTS, -POINTS + APART * MOVES) < 1e-5


def test_loaded_kernels(tmp_path: Path) -> None:
    def loaded(kernel: Any) -> Any:
        kernel.export(tmp_path / "net.tpk", platforms=("cpu",))
        back = tp.load(tmp_path / "net.tpk")
        back(POINTS.astype(np.float32))
        assert back.source == "serialised"
        return back

    net, x1, x2 = deep(jax.lax.erf, 2), 30 * POINTS, 30 * (POINTS + APART * MOVES)
    assert worst(net, x1, x2, loaded) < 1e-5
    both = lambda kernel: tp.joint(lambda x: {"f": net(x)}, jnp.zeros(5))
    narrow = lambda k: tp.KernelResult(*(tree["f"]["f"] for tree in k))
    assert worst(net, x1, x2, lambda kernel: lambda *x: narrow(loaded(both(kernel))(*x))) < 1e-5


def test_sharded_kernels() -> None:
    """Of one device; of several in test_sharded.py."""
    mesh = jax.make_mesh((1,), ("rows",))
    net, x1, x2 = deep(jax.lax.erf, 2), 30 * POINTS, 30 * (POINTS + APART * MOVES)
    assert worst(net, x1, x2, lambda kernel: kernel.shard(mesh)) < 1e-5
