"""Modules as users write them, with the initialisers of their library, and how each is given to tensorprog."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tensorprog as tp


class FlaxMLP(nnx.Module):
    """Layer norm, GELU and dropout."""

    def __init__(self, width: int, rngs: nnx.Rngs, features: int = 1):
        self.layers = nnx.List([nnx.Linear(5, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)])
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.readout = nnx.Linear(width, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.dropout(nnx.gelu(norm(layer(x)), approximate=False))
        return self.readout(x)


def flax_mlp(width: int, rngs: nnx.Rngs, features: int = 1) -> FlaxMLP:
    model = FlaxMLP(width, rngs, features)
    model.eval()
    return model


class FlaxCNN(nnx.Module):
    """Batch norm and max pooling; x: (batch, height, width, channels)."""

    def __init__(self, width: int, rngs: nnx.Rngs, features: int = 1):
        self.conv1 = nnx.Conv(2, width, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.readout = nnx.Linear(width, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.max_pool(nnx.relu(self.norm(self.conv1(x))), (2, 2), (2, 2))
        return self.readout(nnx.relu(self.conv2(x)).mean((1, 2)))


class FlaxPlainCNN(nnx.Module):
    """Average pooling and no norm; x: (batch, height, width, channels)."""

    def __init__(self, width: int, rngs: nnx.Rngs, features: int = 1):
        self.conv1 = nnx.Conv(2, width, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), strides=2, rngs=rngs)
        self.readout = nnx.Linear(width, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.avg_pool(nnx.relu(self.conv1(x)), (2, 2))
        return self.readout(nnx.relu(self.conv2(x)).mean((1, 2)))


class FlaxBlock(nnx.Module):
    """A transformer encoder block over tokens (time, features), with a mean over time and a readout."""

    def __init__(self, width: int, rngs: nnx.Rngs, features: int = 1, heads: int = 2, **options: Any):
        self.embed = nnx.Linear(3, width, rngs=rngs)
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs, **options)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)
        self.readout = nnx.Linear(width, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.embed(x)
        h = h + self.attention(self.norm1(h))
        h = h + self.down(nnx.relu(self.up(self.norm2(h))))
        return self.readout(h.mean(0))


class FlaxGRU(nnx.Module):
    """The last state of a GRU over (time, features)."""

    def __init__(self, width: int, rngs: nnx.Rngs, features: int = 1):
        self.cell = nnx.GRUCell(3, width, rngs=rngs)
        self.readout = nnx.Linear(width, features, rngs=rngs)

    def __call__(self, xs: jax.Array) -> jax.Array:
        h = jnp.zeros(self.cell.hidden_features)
        for x in xs:
            h, _ = self.cell(h, x)
        return self.readout(h)


class EquinoxConv(eqx.Module):
    """Convolution, channels first."""

    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    pool: eqx.nn.AvgPool2d
    readout: eqx.nn.Linear

    def __init__(self, width: int, key: jax.Array, features: int = 1):
        keys = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(2, width, 3, padding=1, key=keys[0])
        self.conv2 = eqx.nn.Conv2d(width, width, 3, padding=1, key=keys[1])
        self.pool = eqx.nn.AvgPool2d(2, 2)
        self.readout = eqx.nn.Linear(width, features, key=keys[2])

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.pool(jax.nn.relu(self.conv1(x)))
        return self.readout(jax.nn.relu(self.conv2(h)).mean((1, 2)))


class EquinoxGRU(eqx.Module):
    """The last state of a GRU over (time, features)."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, width: int, key: jax.Array, features: int = 1):
        k1, k2 = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(3, width, key=k1)
        self.readout = eqx.nn.Linear(width, features, key=k2)

    def __call__(self, xs: jax.Array) -> jax.Array:
        step = lambda state, x: (self.cell(x, state), None)
        last, _ = jax.lax.scan(step, jnp.zeros(self.cell.hidden_size), xs)
        return self.readout(last)


class EquinoxAttention(eqx.Module):
    """Self-attention over tokens (time, features), residual, with a mean over time and a readout."""

    embed: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    readout: eqx.nn.Linear

    def __init__(self, width: int, key: jax.Array, features: int = 1, heads: int = 2):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Linear(3, width, key=keys[0])
        self.norm = eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(heads, width, key=keys[1])
        self.readout = eqx.nn.Linear(width, features, key=keys[2])

    def __call__(self, x: jax.Array, process_heads: Any = None) -> jax.Array:
        h = jax.vmap(self.embed)(x)
        y = jax.vmap(self.norm)(h)
        h = jax.nn.relu(h + self.attention(y, y, y, process_heads=process_heads))
        return self.readout(h.mean(0))


def equinox_mlp(width: int, key: jax.Array, features: int = 1) -> eqx.nn.MLP:
    return eqx.nn.MLP(5, features, width, depth=2, key=key)


# ------------------------------------------------------------------------------------------ how each is run


@dataclass(frozen=True)
class Case:
    """A model: how it is built with a number of output features, how it is called, an input's shape."""

    build: Callable[..., Any]
    shape: tuple[int, ...]
    call: Callable[[Any, Any], Any] = lambda model, x: model(x)
    init: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float | None = None
    flax: bool = True

    def network(self, **options: Any) -> tp.ModelNetwork:
        """The model as a network, its initialisers sampled."""
        door = tp.from_flax if self.flax else tp.from_equinox
        return door(self.build, call=self.call, init={**self.init, **options.pop("init", {})}, **options)

    def inputs(self, count: int = 3) -> np.ndarray:
        return np.random.default_rng(0).standard_normal((count, *self.shape))


def flax_block(width: int, rngs: nnx.Rngs, features: int = 1) -> FlaxBlock:
    return FlaxBlock(width, rngs, features, attention_fn=tp.mean_logits_attention)


# Equinox draws the input weights of a GRU with variance 1/(3 n), so that its input vanishes with the width.
GRU_INPUT = {"cell.weight_ih": tp.Gaussian(std=3**-0.5)}

CASES: dict[str, Case] = {
    "flax mlp": Case(flax_mlp, (5,)),
    "flax cnn": Case(FlaxPlainCNN, (4, 4, 2), lambda model, x: model(x[None])[0]),
    "flax transformer": Case(flax_block, (3, 3)),
    "flax gru": Case(FlaxGRU, (1, 3), tolerance=5e-3),
    "equinox mlp": Case(equinox_mlp, (5,), flax=False),
    "equinox conv": Case(EquinoxConv, (2, 4, 4), flax=False),
    "equinox gru": Case(EquinoxGRU, (1, 3), init=GRU_INPUT, tolerance=5e-3, flax=False),
    "equinox attention": Case(EquinoxAttention, (3, 3), lambda model, x: model(x, tp.mean_logits_heads), flax=False),
}
