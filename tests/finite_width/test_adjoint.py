"""Networks for which the adjoint program alone holds, against sampled finite networks: averages over the width, tied readouts.

The kernels of an average f are f f' and n times the inner product of gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests import sampling

pytestmark = pytest.mark.slow

erf, relu = jax.scipy.special.erf, jax.nn.relu
X = np.random.default_rng(0).standard_normal((3, 4))


def times(w: jax.Array, h: jax.Array) -> jax.Array:
    return w @ h / jnp.sqrt(nn.width())


def deep(x: jax.Array) -> jax.Array:
    """Two trained layers below a wide one; the kink of the last has a delta function as its mean slope."""
    h = relu(nn.dense(x, weight_var=2.0))
    return jnp.mean(relu(nn.dense(h, weight_var=2.0, bias_var=0.1)) + h)


def tied(x: jax.Array) -> jax.Array:
    """An autoencoder with tied weights between an input layer and a squared error."""
    w, h = nn.weight((nn.width(), nn.width())), nn.dense(x)
    return jnp.mean((times(w.T, erf(times(w, h))) - h) ** 2)


def normed(x: jax.Array) -> jax.Array:
    """Averages inside: a layer norm; and a product of averages outside."""
    h = jnp.tanh(nn.dense(nn.layer_norm(erf(nn.dense(x)), 0.1)))
    return jnp.mean(h * h) * jnp.mean(erf(nn.dense(h)) ** 2)


def symmetric(x: jax.Array) -> jax.Array:
    """Both orders of each pair of uses of a symmetric weight count."""
    w, h = nn.symmetric(nn.width()), nn.dense(x)
    return jnp.mean(erf(times(w, h)) ** 2 + times(w, h) * h)


@dataclass(frozen=True)
class Averaged(sampling.Finite):
    """A finite network with an average as its output."""

    def kernels(self, width: int, params: Any) -> sampling.Kernels:
        f = lambda p, x: self.apply(width, p, x)
        outputs = jax.vmap(lambda x: f(params, x))(self.inputs)
        gradients = jax.vmap(lambda x: jax.grad(lambda p: f(p, x))(params))(self.inputs)
        flat = [g.reshape(len(self.inputs), -1) for g in jax.tree.leaves(gradients)]
        return jnp.outer(outputs, outputs), width * sum(g @ g.T for g in flat)


@pytest.mark.parametrize("net", [deep, tied, normed, symmetric])
def test_averages(net: Callable) -> None:
    kernel = tp.compile(net, X[0])
    assert kernel.method == "adjoint" and kernel.ntk_power == 1
    x = jnp.asarray(X, jnp.float32)
    network = Averaged(
        lambda width, key: tp.init(net, x[0], width, key), lambda width, params, x: tp.apply(net, params, x), x
    )
    sampling.check(network, tuple(kernel(X)), (16, 64, 256), (8192, 4096, 1024), resolution=0.02)


@dataclass(frozen=True)
class Tied(sampling.Finite):
    """A finite network of one output, of which one draw has a tangent kernel, but no covariance (formulas for that stand in
    tests/kernel/test_adjoint_alone.py)."""

    def kernels(self, width: int, params: Any) -> sampling.Kernels:
        gradients = jax.vmap(lambda x: jax.grad(lambda p: self.apply(width, p, x)[0])(params))(self.inputs)
        flat = [g.reshape(len(self.inputs), -1) for g in jax.tree.leaves(gradients)]
        ntk = sum(g @ g.T for g in flat)
        return ntk, ntk


def gated(x: jax.Array) -> jax.Array:
    """The readout's weights gate the layer that it reads, below which two more are trained."""
    v = nn.weight((nn.width(),))
    h = nn.dense(erf(nn.dense(x)))
    return (v @ (jnp.cos(v) * erf(h)) / jnp.sqrt(nn.width()))[None]


def embedded(x: jax.Array) -> jax.Array:
    """A readout tied to the weights of the input."""
    w = nn.weight((nn.width(), 4))
    return (jnp.cos(w @ x / 2) @ w / jnp.sqrt(nn.width()))[:1]


@pytest.mark.parametrize("net", [gated, embedded])
def test_tied_readouts(net: Callable) -> None:
    kernel = tp.compile(net, X[0])
    assert kernel.method == "adjoint"
    ntk = kernel(X).ntk
    x = jnp.asarray(X, jnp.float32)
    network = Tied(
        lambda width, key: tp.init(net, x[0], width, key), lambda width, params, x: tp.apply(net, params, x), x
    )
    sampling.check(network, (ntk, ntk), (16, 64, 256), (8192, 4096, 1024), resolution=0.02)
