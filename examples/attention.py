"""An attention layer with 1/n logits: its kernels, beside sampled networks of growing width.

Logits that are inner products over n coordinates, divided by n, concentrate on their expectations (Yang 2020,
Tensor Programs II), so that attention becomes a map of tokens whose coefficients depend on the input. Keys and
queries share a weight, as independent ones would attend uniformly in the limit.
Run `python examples/attention.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog import nn


def encoder(tokens: jax.Array) -> jax.Array:
    """Self-attention over tokens (length, features), a hidden layer, the mean over tokens, a readout."""
    keys = nn.dense(tokens, name="keys")
    logits = keys @ keys.T / keys.shape[-1]
    mixed = jax.nn.softmax(logits) @ nn.dense(tokens, name="values")
    hidden = jax.nn.relu(nn.dense(mixed, weight_var=2.0, name="hidden"))
    return nn.dense(nn.global_avg_pool(hidden), features=1, name="readout")


def empirical_ntk(width: int, key: jax.Array, tokens: jax.Array) -> jax.Array:
    """The NTK of one sampled network, (N, N)."""
    params = tp.init(encoder, tokens[0], width, key)
    gradients = jax.vmap(lambda x: jax.grad(lambda p: tp.apply(encoder, p, x)[0])(params))(tokens)
    return sum(g.reshape(len(tokens), -1) @ g.reshape(len(tokens), -1).T for g in jax.tree.leaves(gradients))


def main() -> None:
    """Print the program, the kernels, and the error of sampled networks."""
    tokens = 1.5 * jax.random.normal(jax.random.key(0), (3, 5, 4))  # three sentences of five tokens
    kernel = tp.compile(encoder, tokens[0])
    print(kernel.program)
    nngp, ntk = kernel(tokens)
    print(f"\nNNGP kernel:\n{np.round(nngp, 4)}\nNTK:\n{np.round(ntk, 4)}\n")
    print("relative error of one sampled network's NTK:")
    for width in (32, 128, 512):
        keys = jax.random.split(jax.random.key(width), 16)
        errors = [jnp.sum((empirical_ntk(width, key, tokens) - ntk) ** 2) for key in keys]
        print(f"  width {width:4d}: {float(jnp.sqrt(jnp.mean(jnp.stack(errors))) / jnp.linalg.norm(ntk)):.3f}")


if __name__ == "__main__":
    main()
