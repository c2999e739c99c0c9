"""Kernels of Flax NNX modules as one writes them: a perceptron, a convolutional network, a transformer block, a GRU.

    python examples/flax_models.py

For each the table of its parameters, with the initial laws sampled from the module's own initialisers, and both kernels.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
from flax import nnx

import tensorprog as tp


class MLP(nnx.Module):
    """Layer norm and dropout."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.List([nnx.Linear(4, width, rngs=rngs), nnx.Linear(width, width, rngs=rngs)])
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            x = self.dropout(nnx.gelu(norm(layer(x)), approximate=False))
        return self.readout(x)


def evaluated(width: int, rngs: nnx.Rngs) -> MLP:
    """The perceptron with its dropout off."""
    model = MLP(width, rngs)
    model.eval()
    return model


class CNN(nnx.Module):
    """Two convolutions on a batch (batch, height, width, channels)."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.avg_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        return self.readout(nnx.relu(self.conv2(x)).mean((1, 2)))


class Encoder(nnx.Module):
    """A transformer encoder block over (time, features)."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.embed = nnx.Linear(3, width, rngs=rngs)
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, width, decode=False, attention_fn=tp.mean_logits_attention, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.embed(x)
        h = h + self.attention(self.norm1(h))
        h = h + self.down(nnx.relu(self.up(self.norm2(h))))
        return self.readout(h.mean(0))


class Recurrent(nnx.Module):
    """The state of a GRU after (time, features)."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.cell = nnx.GRUCell(3, width, rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, xs: jax.Array) -> jax.Array:
        h = jnp.zeros(self.cell.hidden_features)
        for x in xs:
            h, _ = self.cell(h, x)
        return self.readout(h)


def show(name: str, net: tp.ModelNetwork, xs: jax.Array, tolerance: float | None = None) -> None:
    """Print the table and the kernels."""
    print(f"\n{name}\n\n{net.table(xs[0])}\n")
    nngp, ntk = tp.compile(net, xs[0], tolerance=tolerance)(xs)
    print(f"NNGP kernel:\n{nngp}\nneural tangent kernel:\n{ntk}")


def main() -> None:
    """Every model in turn."""
    warnings.simplefilter("ignore", tp.LawWarning)  # the table says it
    inputs = lambda *shape: jax.random.normal(jax.random.key(0), (2, *shape))
    show("Perceptron with layer norm and dropout", tp.from_flax(evaluated), inputs(4))
    show("Convolutional network", tp.from_flax(CNN, batch_axis=0), inputs(6, 6, 1))
    show("Transformer block", tp.from_flax(Encoder), inputs(4, 3))
    # A GRU mixes three Gaussians in one function and more at every step: its expectations are sampled.
    show("GRU", tp.from_flax(Recurrent), inputs(1, 3), tolerance=5e-3)


if __name__ == "__main__":
    main()
