"""A 64-bit fingerprint of an input, to recognise when two inputs are bitwise the same.

Where they are, the kernel is the diagonal's value exactly: inner products from a matrix product and from a sum of
squares differ in the last digit, and arccos-like functions would blow that up to half the digits. Comparing
fingerprints costs N^2 integer comparisons instead of N^2 d. Two different inputs share one with probability 2^-64. Inputs of a few
numbers are their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["fingerprint"]

_SEED = 0x7E15_0A96
_SHORT = 4  # numbers that are compared themselves
_FEW = 2**12  # random weights that are kept as constants: a program of their making takes as long to compile as a layer


def fingerprint(leaves: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Two sums of the input's bits with fixed odd random weights, of dtype uint32, or the few numbers of a short input: scalars, which XLA
    compares where it needs them."""
    if 0 < sum(leaf.size for leaf in leaves) <= _SHORT:
        flat = [lax.stop_gradient(leaf).reshape(-1) for leaf in leaves]
        return tuple(lax.index_in_dim(leaf, k, keepdims=False) for leaf in flat for k in range(leaf.size))
    total: tuple[jax.Array, ...] = (jnp.zeros((), jnp.uint32),) * 2
    for i, leaf in enumerate(leaves):
        words = _words(lax.stop_gradient(leaf))
        mixed = words * jnp.uint32(0x9E37_79B1)
        mixed = mixed ^ (mixed >> 15)
        weighted = tuple(mixed * _weights(i, k, words.size) for k in (0, 1))
        total = _plus(total, lax.reduce(weighted, (np.uint32(0),) * 2, _plus, (0,)))  # both in one pass
    return total


def _plus(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _weights(leaf: int, k: int, size: int) -> jax.Array | np.ndarray:
    """Odd pseudo-random numbers, (size,). Many are made where they are used: as constants they would fill the compiled program."""
    xp: Any = np if size <= _FEW else jnp
    seed = np.random.default_rng(_SEED + leaf).integers(0, 2**32, 2, dtype=np.uint32)[k]
    numbers = xp.arange(size, dtype=xp.uint32) * xp.uint32(0x9E37_79B1) + seed
    for shift, factor in (
        (16, 0x85EB_CA6B),
        (13, 0xC2B2_AE35),
    ):  # the finaliser of MurmurHash3 (Appleby, public domain)
        numbers = (numbers ^ (numbers >> xp.uint32(shift))) * xp.uint32(factor)
    return (numbers ^ (numbers >> xp.uint32(16))) | xp.uint32(1)


def _words(leaf: jax.Array) -> jax.Array:
    """The bits of an array as 32-bit words, -0.0 read as 0.0.

    Eight bytes are read as one integer and split by arithmetic: a bitcast that changes the shape cannot be exported
    with an open batch size (StableHLO does not refine it).
    """
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        leaf = jnp.where(leaf == 0, jnp.zeros_like(leaf), leaf)
        leaf = lax.bitcast_convert_type(leaf, {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[leaf.dtype.itemsize])
    parts = [leaf, leaf >> 32] if leaf.dtype.itemsize == 8 else [leaf]
    return jnp.concatenate([part.astype(jnp.uint32).reshape(-1) for part in parts])
