"""Kernels of Equinox modules as one writes them: a perceptron, a convolutional network, attention, a GRU.

    python examples/equinox_models.py

For each the table of its parameters, with the initial laws sampled from the module's own initialisers, and both kernels.
"""

from __future__ import annotations

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp

import tensorprog as tp


class ConvNet(eqx.Module):
    """Two convolutions on (channels, height, width)."""

    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    pool: eqx.nn.AvgPool2d
    readout: eqx.nn.Linear

    def __init__(self, width: int, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.conv1 = eqx.nn.Conv2d(1, width, 3, padding=1, key=keys[0])
        self.conv2 = eqx.nn.Conv2d(width, width, 3, padding=1, key=keys[1])
        self.pool = eqx.nn.AvgPool2d(2, 2)
        self.readout = eqx.nn.Linear(width, 1, key=keys[2])

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.pool(jax.nn.relu(self.conv1(x)))
        return self.readout(jax.nn.relu(self.conv2(h)).mean((1, 2)))


class Encoder(eqx.Module):
    """Self-attention over (time, features) with a residual connection; logits are q.k/d."""

    embed: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    readout: eqx.nn.Linear

    def __init__(self, width: int, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Linear(3, width, key=keys[0])
        self.norm = eqx.nn.LayerNorm(width)
        self.attention = eqx.nn.MultiheadAttention(2, width, key=keys[1])
        self.readout = eqx.nn.Linear(width, 1, key=keys[2])

    def __call__(self, x: jax.Array) -> jax.Array:
        h = jax.vmap(self.embed)(x)
        y = jax.vmap(self.norm)(h)
        h = h + self.attention(y, y, y, process_heads=tp.mean_logits_heads)
        return self.readout(jax.nn.relu(h).mean(0))


class Recurrent(eqx.Module):
    """The state of a GRU after (time, features)."""

    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, width: int, key: jax.Array):
        k1, k2 = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(3, width, key=k1)
        self.readout = eqx.nn.Linear(width, 1, key=k2)

    def __call__(self, xs: jax.Array) -> jax.Array:
        step = lambda state, x: (self.cell(x, state), None)
        last, _ = jax.lax.scan(step, jnp.zeros(self.cell.hidden_size), xs)
        return self.readout(last)


def show(name: str, net: tp.ModelNetwork, xs: jax.Array, tolerance: float | None = None) -> None:
    """Print the table and the kernels."""
    print(f"\n{name}\n\n{net.table(xs[0])}\n")
    nngp, ntk = tp.compile(net, xs[0], tolerance=tolerance)(xs)
    print(f"NNGP kernel:\n{nngp}\nneural tangent kernel:\n{ntk}")


def main() -> None:
    """Every model in turn."""
    warnings.simplefilter("ignore", tp.LawWarning)  # the table says it
    inputs = lambda *shape: jax.random.normal(jax.random.key(0), (2, *shape))
    mlp = tp.from_equinox(lambda width, key: eqx.nn.MLP(4, 1, width, depth=2, key=key))
    show("Perceptron", mlp, inputs(4))
    show("Convolutional network", tp.from_equinox(ConvNet), inputs(1, 6, 6))
    show("Attention", tp.from_equinox(Encoder), inputs(4, 3))
    # Equinox draws the input weights with variance 1/(3 hidden size): without a law of ours the input would vanish. A GRU
    # mixes three Gaussians in one function and more at every step: its expectations are sampled.
    gru = tp.from_equinox(Recurrent, init={"cell.weight_ih": tp.Gaussian(std=3**-0.5)})
    show("GRU", gru, inputs(1, 3), tolerance=5e-3)


if __name__ == "__main__":
    main()
