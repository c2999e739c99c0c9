"""Kernels of Equinox modules as one writes them: a perceptron, a convolutional network, attention, a GRU.

    python -m examples.equinox_models
    python -m examples.equinox_models attention

For each the table of its parameters, with the initial laws sampled from the module's own initialisers, and both kernels.
`features`, the size of the output, is there for the tests, which average over many outputs.
"""

from __future__ import annotations

import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import tensorprog as tp
from examples.models import Model, main


def perceptron(width: int, key: jax.Array, features: int = 1) -> eqx.nn.MLP:
    """Two hidden layers."""
    return eqx.nn.MLP(5, features, width, depth=2, key=key)


class ConvNet(eqx.Module):
    """Two convolutions on (channels, height, width)."""

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


class Encoder(eqx.Module):
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


class Recurrent(eqx.Module):
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


# Equinox draws the input weights of a GRU with variance 1/(3 n): without a law of ours its input would vanish.
GRU_INPUT = {"cell.weight_ih": tp.Gaussian(std=3**-0.5)}

MODELS = {
    "perceptron": Model(tp.from_equinox, perceptron, (5,)),
    "convolutions": Model(tp.from_equinox, ConvNet, (2, 4, 4)),
    "attention": Model(tp.from_equinox, Encoder, (3, 3), lambda model, x: model(x, tp.mean_logits_heads)),
    # A GRU carries its state on by gates: a population of neurons is sampled.
    "gru": Model(tp.from_equinox, Recurrent, (5, 3), init=GRU_INPUT, tolerance=1e-2),
}

if __name__ == "__main__":
    main(MODELS, sys.argv[1:])
