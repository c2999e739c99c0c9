"""Functions of samples, whose derivatives stand for those of an expectation: only where they do not jump.

    d/dC E[F(L z)] = E[F'(L z) dL/dC z]

holds for continuous F. A jump adds the density at it, which no sample's slope shows: the derivative would be wrong, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ntk_rules import functions as nf
from ntk_rules.steps import jumps_of
from tensorprog.errors import UnsupportedError, explain
from tensorprog.ir import Nonlin, Phi
from tensorprog.kernel.body import plain

__all__ = ["of_samples"]


def of_samples(node: Nonlin) -> Callable[..., jax.Array]:
    """The JAX function of an instruction's arguments, to be applied to samples. Along an argument in which it jumps it has no derivative:
    the mean of a jump moves with the law, and no sample's slope shows it."""
    function, jumps = plain(node), _jumping(node.phi)
    if not jumps:
        return function
    guarded = jax.custom_jvp(function)

    def rule(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        still = [isinstance(t, SymbolicZero) or t.dtype == jax.dtypes.float0 for t in tangents]
        if not all(still[k] for k in jumps):
            raise UnsupportedError(
                explain(
                    "a derivative of a kernel with a sampled expectation", where=str(node.source or ""),
                    reason=f"`{node.phi.expr}`, which is sampled there, jumps (so does the slope of relu, which the tangent kernel has): its "
                    "mean moves with the variances, and the samples' slopes do not show it",
                    mend="use a smooth nonlinearity; or take differences of the kernel's values; where the function is the slope of one "
                    'without jumps, `get="nngp"` has derivatives',
                )
            )  # fmt: skip
        moves = [jnp.zeros_like(x) if fixed else t for x, t, fixed in zip(primals, tangents, still, strict=True)]
        return jax.jvp(function, primals, tuple(moves))

    guarded.defjvp(rule, symbolic_zeros=True)
    return guarded


@lru_cache(maxsize=4096)
def _jumping(phi: Phi) -> frozenset[int]:
    """Along which of its arguments a function jumps, or may: where that cannot be read off its form."""
    expr, symbols = nf.value_of(phi.expr), (*phi.vectors, *phi.parameters)
    return frozenset(k for k, z in enumerate(symbols) if expr.has(z) and jumps_of(expr, z, symbols) != [])
