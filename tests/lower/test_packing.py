"""Loops in one pass: two arrays as one of complex numbers."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests.everyday import everyday

Net = Callable[[jax.Array], jax.Array]


def deep(phi: Net, depth: int = 4, bias_var: float = 0.1) -> Net:
    def net(x: jax.Array) -> jax.Array:
        for _ in range(depth):
            x = phi(nn.dense(x, weight_var=1.5, bias_var=bias_var))
        return nn.dense(x, features=1)

    return net


def with_hyperparameter(x: jax.Array) -> jax.Array:
    for _ in range(4):
        x = jax.nn.relu(nn.dense(x, weight_var=tp.hyper("v", 1.5), bias_var=0.1))
    return nn.dense(x, features=1)


def residual(x: jax.Array) -> jax.Array:
    x = nn.dense(x)
    for _ in range(4):
        x = x + nn.dense(jax.nn.relu(x), weight_var=0.5)
    return nn.dense(x, features=1)


def positions(x: jax.Array) -> jax.Array:
    for _ in range(4):
        x = jax.nn.relu(nn.dense(x, weight_var=2.0, bias_var=0.1))
    return nn.dense(nn.global_avg_pool(x), features=1)


def windows(x: jax.Array) -> jax.Array:
    for _ in range(4):
        x = jax.nn.relu(nn.conv(x, 3, weight_var=2.0))
    return nn.dense(nn.flatten(x), features=1)


def passes(kernel: tp.Kernel, shape: tuple[int, ...]) -> int:
    """How many loops of a block hand on complex numbers."""
    x = [jnp.ones((3, *shape))]
    code = str(jax.make_jaxpr(lambda a: kernel.functions.block(a, a, {}))(x))
    return len(re.findall(r"c128\[[\d,]*\] = scan\[", code))


LIGHT = {
    "relu": (deep(jax.nn.relu), (5,)),
    "erf": (deep(jax.scipy.special.erf), (5,)),
    "sine": (deep(jnp.sin), (5,)),
    "gelu": (deep(lambda x: jax.nn.gelu(x, approximate=False)), (5,)),
    "residual": (residual, (5,)),
    "positions": (positions, (3, 2)),
}


def inputs(shape: tuple[int, ...]) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((6, *shape))
    x[1], x[2] = 2 * x[0], -x[0]
    return x


@pytest.mark.parametrize("name", everyday(LIGHT, ["erf", "sine", "gelu", "residual"], ["relu"]))
def test_kernels_are_those_without(name: str) -> None:
    net, shape = LIGHT[name]
    kernel = tp.compile(net, jnp.zeros(shape))
    plain = kernel.without("packing")
    assert passes(kernel, shape)
    assert not passes(plain, shape)
    for a, b in zip(kernel(inputs(shape)), plain(inputs(shape)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.parametrize("name", everyday(LIGHT, ["erf", "sine", "gelu", "residual", "positions"], ["relu"]))
def test_slopes_are_those_without(name: str) -> None:
    net, shape = LIGHT[name]
    kernel, x = tp.compile(net, jnp.zeros(shape)), inputs(shape)
    plain = kernel.without("packing")
    slopes = [jax.grad(lambda v, k=k: jnp.sin(k(v, get="ntk")).sum())(jnp.asarray(x)) for k in (kernel, plain)]
    np.testing.assert_allclose(*slopes, rtol=1e-10, atol=1e-11)


@pytest.mark.long
def test_slopes_in_hyperparameters() -> None:
    x = np.random.default_rng(0).standard_normal((4, 3))
    kernel = tp.compile(with_hyperparameter, jnp.zeros(3))
    slopes = [jax.grad(lambda v, k=k: k(x, v=v, get="ntk").sum())(1.3) for k in (kernel, kernel.without("packing"))]
    np.testing.assert_allclose(*slopes, rtol=1e-11)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (windows, (5, 2)),
        pytest.param(deep(lambda x: jax.nn.relu(x - 1)), (3,), marks=pytest.mark.long),
        (deep(jax.nn.silu, 2), (3,)),
    ],
    ids=["sums over windows", "long functions", "quadrature"],
)
def test_what_is_costly_keeps_its_branch(net: Net, shape: tuple[int, ...]) -> None:
    assert not passes(tp.compile(net, jnp.zeros(shape)), shape)
