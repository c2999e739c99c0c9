"""Functions of samples, whose derivatives stand for those of an expectation: only where they do not jump.

    d/dC E[F(L z)] = E[F'(L z) dL/dC z]

holds for continuous F. A jump adds the density at it, which no sample's slope shows: the derivative would be wrong, and is NaN. That
concerns the tangent kernels of sampled networks with relu, whose slope jumps. Nothing can be raised: both kernels are computed
together, and the derivative of the other one is right.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from tensorprog.ir import Nonlin
from tensorprog.kernel.body import jumping, plain

__all__ = ["of_samples"]


def of_samples(node: Nonlin) -> Callable[..., jax.Array]:
    """The JAX function of an instruction's arguments, to be applied to samples. Along an argument in which it jumps its derivative is NaN."""
    function, jumps = plain(node), jumping(node.phi)
    if not jumps:
        return function
    guarded = jax.custom_jvp(function)

    def rule(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        still = [isinstance(t, SymbolicZero) or t.dtype == jax.dtypes.float0 for t in tangents]
        moves = [jnp.zeros_like(x) if fixed else t for x, t, fixed in zip(primals, tangents, still, strict=True)]
        value, slope = jax.jvp(function, primals, tuple(moves))
        for k in jumps:
            if not still[k]:
                slope = slope + jnp.broadcast_to(_unknown(moves[k]), slope.shape)
        return value, slope

    guarded.defjvp(rule, symbolic_zeros=True)
    return guarded


def _unknown(t: jax.Array) -> jax.Array:
    """NaN, but for what does not move or is not asked for. It stands as the solution of a linear equation, which is what JAX takes as linear
    without looking."""
    found = lambda _, b: jnp.where(b == 0, jnp.zeros_like(b), jnp.nan)
    return lax.custom_linear_solve(lambda x: x, t, found, found)
