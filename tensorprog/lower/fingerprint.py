"""A 64-bit fingerprint of an input, to recognise when two inputs are bitwise the same.

Where they are, the kernel is the diagonal's value exactly: inner products from a matrix product and from a sum of squares differ in
the last digit, and arccos-like functions would blow that up to half the digits. Comparing fingerprints costs N^2 integer
comparisons instead of N^2 d. Two different inputs share one with probability 2^-64.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["fingerprint"]

_SEED = 0x7E15_0A96


def fingerprint(leaves: Sequence[jax.Array]) -> jax.Array:
    """Two 32-bit sums of the input's bits with fixed odd random weights: shape (2,), dtype uint32."""
    total = jnp.zeros(2, jnp.uint32)
    for i, leaf in enumerate(leaves):
        words = _words(lax.stop_gradient(leaf))
        rng = np.random.default_rng(_SEED + i)
        weights = rng.integers(0, 2**31, (words.size, 2), dtype=np.uint32) * np.uint32(2) + np.uint32(1)
        mixed = words * jnp.uint32(0x9E37_79B1)
        mixed = mixed ^ (mixed >> 15)
        total = total + jnp.sum(mixed[:, None] * weights, axis=0, dtype=jnp.uint32)
    return total


def _words(leaf: jax.Array) -> jax.Array:
    """The bits of an array as 32-bit words, -0.0 read as 0.0."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        leaf = jnp.where(leaf == 0, jnp.zeros_like(leaf), leaf)
        kind = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[leaf.dtype.itemsize]
        return lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32).reshape(-1)
    return leaf.astype(jnp.uint32).reshape(-1)
