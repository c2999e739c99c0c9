"""Every architecture of examples/architectures.py against sampled networks, by the rates of tests/sampling.py."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from examples import architectures as zoo
from tensorprog import nn
from tests import sampling

pytestmark = pytest.mark.slow

# A batch norm's gradient has heavy tails: fewer draws cannot tell the tangent kernel. Two widths in a layer: even ones.
LARGE_BATCH = {"batch_norm", "instance_norm"}


def finite(net: Any, x: Any, frozen: Collection[str] = ()) -> sampling.Finite:
    """A network at any width; noise is drawn for every input, and the frozen parameters do not move."""
    first = jax.tree.map(lambda a: a[0], x)
    count = len(jax.tree.leaves(x)[0])

    def init(width: int, key: jax.Array) -> dict[str, jax.Array]:
        params = dict(tp.init(net, first, width, key))
        noise = lambda name, one: jax.random.normal(jax.random.fold_in(key, len(name)), (count, *one.shape), one.dtype)
        return {name: noise(name, a) if name.endswith(".noise") else a for name, a in params.items()}

    def apply(width: int, params: dict[str, jax.Array], numbered: Any) -> jax.Array:
        i, one = numbered
        params = {name: a[i] if name.endswith(".noise") else a for name, a in params.items()}
        params = {name: jax.lax.stop_gradient(a) if name in frozen else a for name, a in params.items()}
        out = tp.apply(net, params, one, width=width)
        return out if out.ndim == 1 else out[0]

    return sampling.Finite(init, apply, (jnp.arange(count), x))


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_networks_approach_their_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = zoo.ARCHITECTURES[name]
    kinds = {"f": jnp.float32, "i": jnp.int32, "b": bool}
    x = jax.tree.map(lambda a: jnp.asarray(a, kinds[a.dtype.kind]), zoo.random_inputs(found.example, 2))
    kernel = tp.compile(found.net, found.example, tolerance=None if found.tolerance is None else 2e-3)
    assert kernel.sampled == (found.tolerance is not None)
    limit = tuple(np.asarray(k)[(slice(None), slice(None), *(0,) * (k.ndim - 2))] for k in kernel(x))
    monkeypatch.setattr(zoo, "readout", lambda h, train=True: nn.dense(h, features=int(nn.width()), train=train))
    network = finite(found.net, x, frozen={w.name for w in kernel.program.weights if w.tangent_std == 0})
    draws = (4096, 2048, 1024) if name in LARGE_BATCH else (2048, 1024, 512)
    sampling.check(network, limit, widths=(24, 72, 216), draws=draws, resolution=0.04)


def many_heads(x: jax.Array) -> jax.Array:
    """Attention with n heads of n dimensions each and logits q.k/sqrt(n), as it is written at a finite width."""
    n, features = int(nn.width()), int(nn.width())
    heads = lambda name: (weight(name, (n * n, x.shape[1])) @ x.T / np.sqrt(x.shape[1])).reshape(n, n, len(x))
    q, k, v = map(heads, "qkv")
    attention = jax.nn.softmax(jnp.einsum("hds,hdt->hst", q, k) / np.sqrt(n))
    mixed = jnp.einsum("hst,hdt->shd", attention, v).reshape(len(x), -1)
    hidden = weight("o", (n, n * n)) @ mixed.mean(0) / n
    return weight("readout", (features, n)) @ hidden / np.sqrt(n)


def bilinear(pair: dict[str, jax.Array]) -> jax.Array:
    """a' W b / n, one matrix W for every output."""
    n = int(nn.width())
    a, b = (jax.nn.relu(weight(name, (n, x.shape[0])) @ x / np.sqrt(x.shape[0])) for name, x in pair.items())
    return jnp.einsum("a,fab,b->f", a, weight("W", (n, n, n)), b) / n


def weight(name: str, shape: tuple[int, ...]) -> jax.Array:
    return nn.weight(shape, name=name)


@pytest.mark.parametrize(
    ("name", "net", "scale"),
    [("many_large_heads", many_heads, 2.0), ("bilinear", bilinear, 1.0)],
    ids=["heads", "bilinear"],
)
def test_what_is_written_in_another_form(name: str, net: Any, scale: float) -> None:
    """The network that the form in examples/architectures.py stands for."""
    found = zoo.ARCHITECTURES[name]
    x = jax.tree.map(lambda a: jnp.asarray(scale * a, jnp.float32), zoo.random_inputs(found.example, 2))
    kernel = tp.compile(found.net, found.example, tolerance=None if found.tolerance is None else 2e-3)
    sampling.check(finite(net, x), tuple(kernel(x)), widths=(12, 24, 48), draws=(32768, 16384, 8192), resolution=0.04)
