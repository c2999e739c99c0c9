"""Kernels of Flax NNX modules as one writes them: a perceptron, convolutional networks, a transformer block, a GRU.

    python -m examples.flax_models
    python -m examples.flax_models "batch norm"

For each the table of its parameters, with the initial laws sampled from the module's own initialisers, and both kernels.
`features`, the size of the output, is there for the tests, which average over many outputs.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import tensorprog as tp
from examples.models import Model, main


class MLP(nnx.Module):
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


def evaluated(width: int, rngs: nnx.Rngs, features: int = 1) -> MLP:
    """The perceptron with its dropout off."""
    model = MLP(width, rngs, features)
    model.eval()
    return model


class CNN(nnx.Module):
    """Two convolutions, the second with strides, on a batch (batch, height, width, channels)."""

    def __init__(self, width: int, rngs: nnx.Rngs, features: int = 1):
        self.conv1 = nnx.Conv(2, width, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), strides=2, rngs=rngs)
        self.readout = nnx.Linear(width, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.avg_pool(nnx.relu(self.conv1(x)), (2, 2))
        return self.readout(nnx.relu(self.conv2(x)).mean((1, 2)))


class BatchNormCNN(nnx.Module):
    """Batch norm and max pooling, on a batch (batch, height, width, channels)."""

    def __init__(self, width: int, rngs: nnx.Rngs, features: int = 1):
        self.conv1 = nnx.Conv(2, width, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.readout = nnx.Linear(width, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.max_pool(nnx.relu(self.norm(self.conv1(x))), (2, 2), (2, 2))
        return self.readout(nnx.relu(self.conv2(x)).mean((1, 2)))


class Encoder(nnx.Module):
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


def encoder(width: int, rngs: nnx.Rngs, features: int = 1) -> Encoder:
    """The block with logits that are means, as a kernel of finitely many heads needs them."""
    return Encoder(width, rngs, features, attention_fn=tp.mean_logits_attention)


class Recurrent(nnx.Module):
    """The last state of a GRU over (time, features)."""

    def __init__(self, width: int, rngs: nnx.Rngs, features: int = 1):
        self.cell = nnx.GRUCell(3, width, rngs=rngs)
        self.readout = nnx.Linear(width, features, rngs=rngs)

    def __call__(self, xs: jax.Array) -> jax.Array:
        h = jnp.zeros(self.cell.hidden_features)
        for x in xs:
            h, _ = self.cell(h, x)
        return self.readout(h)


MODELS = {
    "perceptron": Model(tp.from_flax, evaluated, (5,)),
    "convolutions": Model(tp.from_flax, CNN, (4, 4, 2), lambda model, x: model(x[None])[0]),
    # The input is a batch, whose members share statistics; the output that of its first member. A maximum of four is sampled.
    "batch norm": Model(tp.from_flax, BatchNormCNN, (2, 4, 4, 2), lambda model, x: model(x)[0], tolerance=1e-2),
    "transformer": Model(tp.from_flax, encoder, (3, 3)),
    # A GRU carries its state on by gates: a population of neurons is sampled.
    "gru": Model(tp.from_flax, Recurrent, (5, 3), tolerance=1e-2),
}

if __name__ == "__main__":
    main(MODELS, sys.argv[1:])
