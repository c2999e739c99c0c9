"""A recurrent network written with `lax.scan`: its kernels, beside sampled networks of growing width.

One matrix acts at every time step, so time steps are correlated through it.
Run `python examples/recurrent.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog import nn


def recurrent(xs: jax.Array) -> jax.Array:
    """h_t = erf(W h_{t-1} / sqrt(n) + U x_t / sqrt(d) + 0.3 b) over a sequence (time, d), then a readout."""
    n, d = nn.width(), xs.shape[-1]
    W, U, b = nn.weight((n, n), name="W"), nn.weight((n, d), name="U"), nn.bias((n,), name="b")

    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        return jax.scipy.special.erf(W @ h / jnp.sqrt(n) + U @ x / jnp.sqrt(d) + 0.3 * b), None

    h, _ = jax.lax.scan(step, jnp.zeros(n), xs)
    return nn.dense(h, features=1)


def empirical_ntk(width: int, key: jax.Array, xs: jax.Array) -> jax.Array:
    """The NTK of one sampled network, (N, N)."""
    params = tp.init(recurrent, xs[0], width, key)
    gradients = jax.vmap(lambda x: jax.grad(lambda p: tp.apply(recurrent, p, x)[0])(params))(xs)
    return sum(g.reshape(len(xs), -1) @ g.reshape(len(xs), -1).T for g in jax.tree.leaves(gradients))


def main() -> None:
    """Print the program, the kernels, and the error of sampled networks."""
    xs = jax.random.normal(jax.random.key(0), (3, 4, 2))  # three sequences of four vectors
    kernel = tp.compile(recurrent, xs[0])
    print(kernel.program)
    nngp, ntk = kernel(xs)
    print(f"\nNNGP kernel:\n{np.round(nngp, 4)}\nNTK:\n{np.round(ntk, 4)}\n")
    print("relative error of one sampled network's NTK:")
    for width in (32, 128, 512):
        keys = jax.random.split(jax.random.key(width), 16)
        errors = [jnp.sum((empirical_ntk(width, key, xs) - ntk) ** 2) for key in keys]
        print(f"  width {width:4d}: {float(jnp.sqrt(jnp.mean(jnp.stack(errors))) / jnp.linalg.norm(ntk)):.3f}")


if __name__ == "__main__":
    main()
