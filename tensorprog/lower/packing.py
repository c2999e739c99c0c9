"""Two arrays of real numbers as one of complex numbers, which XLA computes in one pass.

XLA fuses operations into the array that they end in, so that on a CPU two arrays, a layer's nngp and its ntk, are two passes over what
they are made of, each with the same roots and arc cosines; and a loop that hands on two arrays copies one, since the second pass still
reads what the first would write over. As the real and the imaginary part of one array they are one pass, in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import sympy as sp
from jax import lax

from ntk_rules.heads import Arcsine
from tensorprog.kernel.graph import Combine, Contract, Expect, Quantity

__all__ = ["fits", "is_light", "packed", "unpacked"]

SHORT = (Arcsine, sp.exp, sp.cos, sp.sin)


def fits(values: Sequence[jax.Array] | Sequence[jax.ShapeDtypeStruct]) -> bool:
    """Are they two arrays of one shape and a dtype that has a complex one?"""
    kinds = {(value.shape, value.dtype) for value in values}
    return len(values) == 2 and len(kinds) == 1 and values[0].dtype in (jnp.float32, jnp.float64)


def packed(values: Sequence[jax.Array]) -> jax.Array:
    """The first as real parts, the second as imaginary parts."""
    return lax.complex(*values)


def unpacked(both: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two arrays of `packed`."""
    return lax.real(both), lax.imag(both)


def is_light(quantity: Quantity) -> bool:
    """Does it need no branch to be shielded: is it a short operation, entry by entry?"""
    match quantity:
        case Expect(expectation=expectation):
            formula = expectation.formula
            return formula is not None and formula.atoms(sp.Function) <= formula.atoms(*SHORT)
        case Contract(spec=spec):
            left, right = spec.split("->")
            return all(set(own) <= {*right, "1"} and len(set(own)) == len(own) for own in left.split(","))
    return isinstance(quantity, Combine)
