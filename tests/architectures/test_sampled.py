"""Every architecture of examples/architectures.py against sampled networks, by the rates of tests/sampling.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from examples import architectures as zoo
from tensorprog import nn
from tests import sampling

# A batch norm's gradient has heavy tails: fewer draws cannot tell the tangent kernel. Two widths in a layer: even ones.
LARGE_BATCH = {"batch_norm", "instance_norm"}


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_networks_approach_their_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = zoo.ARCHITECTURES[name]
    kinds = {"f": jnp.float32, "i": jnp.int32, "b": bool}
    x = jax.tree.map(lambda a: jnp.asarray(a, kinds[a.dtype.kind]), zoo.random_inputs(found.example, 2))
    kernel = tp.compile(found.net, found.example, tolerance=None if found.tolerance is None else 2e-3)
    assert kernel.sampled == (found.tolerance is not None)
    limit = tuple(np.asarray(k)[(slice(None), slice(None), *(0,) * (k.ndim - 2))] for k in kernel(x))
    monkeypatch.setattr(zoo, "readout", lambda h: nn.dense(h, features=int(nn.width())))
    first = jax.tree.map(lambda a: a[0], x)

    def apply(width: int, params: dict, x) -> jax.Array:
        out = tp.apply(found.net, params, x, width=width)
        return out if out.ndim == 1 else out[0]

    network = sampling.Finite(lambda width, key: dict(tp.init(found.net, first, width, key)), apply, x)
    draws = (4096, 2048, 1024) if name in LARGE_BATCH else (2048, 1024, 512)
    sampling.check(network, limit, widths=(24, 72, 216), draws=draws, resolution=0.04)
