"""Kernels over many devices: eight virtual ones, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import jax.numpy as jnp
import pytest

import tensorprog as tp
from tensorprog import nn

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np, tensorprog as tp
from tensorprog import nn

def net(x):
    return nn.dense(jax.nn.relu(nn.dense(x, bias_var=0.1)){pooled}, features=1)

assert jax.device_count() == 8
kernel = tp.compile(net, jnp.zeros({shape}))
for mesh, n in ((jax.make_mesh((2, 4), ("a", "b")), 11), (jax.make_mesh((8,), ("rows",)), 16)):
    sharded = kernel.shard(mesh)
    x, y = (np.random.default_rng(k).standard_normal((k, *{shape})) for k in (n, 5))
    for found, plain in ((sharded(x, y), kernel(x, y)), (sharded(x), kernel(x))):
        for a, b in zip(found, plain, strict=True):
            assert n % 8 or len(a.sharding.device_set) == 8
            np.testing.assert_allclose(a, b, rtol=1e-12)
    for a in sharded(x):
        np.testing.assert_array_equal(a, a.T)
x = np.float32(x := np.random.default_rng(0).standard_normal((16, *{shape})))
x[1] = x[0] * (1 + 1e-4)
for a, b in zip(sharded(x), kernel(x), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)
assert sharded(x, get="ntk").shape == (16, 16)
sharp = tp.compile(lambda x: nn.dense(jnp.tanh(nn.dense(x)){pooled}, features=1), jnp.zeros({shape}))
x[1] = x[0] * (1 + 1e-2)
for a, b in zip(sharp.shard(mesh)(20 * x), sharp(20 * x), strict=True):
    assert a.dtype == np.float32 and len(a.sharding.device_set) == 8
    np.testing.assert_allclose(a, b, rtol=1e-6)
print("agrees")
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("shape", "pooled"),
    [((3,), ""), ((3, 2), ".mean(0)")],
    ids=["plain", "positions"],
)
def test_eight_devices(shape: tuple[int, ...], pooled: str) -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"}
    script = SCRIPT.replace("{shape}", str(shape)).replace("{pooled}", pooled)
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | flags, capture_output=True, text=True)
    assert done.stdout.strip() == "agrees", done.stderr


def test_only_meshes() -> None:
    kernel = tp.compile(lambda x: nn.dense(nn.dense(x), features=1), jnp.zeros(2))
    with pytest.raises(tp.InputError, match="mesh is a int, expected a jax.sharding.Mesh"):
        kernel.shard(8)  # type: ignore[arg-type]
