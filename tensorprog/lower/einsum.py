"""Contractions of covariance arrays, in the dialect of the kernel graph.

A 1 in an operand's letters is an axis of size one, dropped first. A letter twice in one operand takes the diagonal;
a letter only in the result repeats along it; a letter twice in the result makes a diagonal matrix (the identity).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

__all__ = ["contract"]


def contract(
    spec: str, operands: Sequence[jax.Array], scale: float, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
    """scale * einsum(spec, operands) in the dialect above; `shape` is the result's."""
    left, right = spec.split("->")
    letters = left.split(",") if operands else []
    squeezed, names = [], []
    for operand, own in zip(operands, letters, strict=True):
        ones = tuple(i for i, c in enumerate(own) if c == "1")
        squeezed.append(jnp.squeeze(operand, ones) if ones else operand)
        names.append(own.replace("1", ""))
    unique = "".join(dict.fromkeys(right))
    present = "".join(c for c in unique if any(c in own for own in names))
    value = _einsum(names, squeezed, present, dtype)
    if scale != 1.0:
        value = value * jnp.asarray(scale, dtype)
    return _spread(value, present, right, shape)


def _einsum(names: list[str], operands: list[jax.Array], out: str, dtype: jnp.dtype) -> jax.Array:
    if not operands:
        return jnp.ones((), dtype)
    summed = set("".join(names)) - set(out)
    if not summed and all(len(set(own)) == len(own) for own in names):
        product = None
        for own, operand in zip(names, operands, strict=True):
            aligned = _aligned(operand, own, out)
            product = aligned if product is None else product * aligned
        assert product is not None
        return product
    return jnp.einsum(f"{','.join(names)}->{out}", *operands, precision=jax.lax.Precision.HIGHEST)


def _aligned(operand: jax.Array, own: str, out: str) -> jax.Array:
    """Axes in the order of `out`, with axes of size one for what is missing."""
    order = [own.index(c) for c in out if c in own]
    moved = operand if order == sorted(order) else jnp.transpose(operand, order)
    missing = tuple(i for i, c in enumerate(out) if c not in own)
    return jnp.expand_dims(moved, missing) if missing and moved.ndim else moved


def _spread(value: jax.Array, present: str, right: str, shape: tuple[int, ...]) -> jax.Array:
    if present == right:
        return value
    new = [i for i, c in enumerate(right) if right.index(c) != i or c not in present]
    value = jnp.broadcast_to(jnp.expand_dims(value, tuple(new)), shape)
    for i, c in enumerate(right):
        first = right.index(c)
        if first != i:
            along = [1] * len(shape)
            along[first] = along[i] = shape[i]
            value = value * jnp.eye(shape[i], dtype=value.dtype).reshape(along)
    return value
