"""A function of Gaussian variables, written in instructions of the program, as a JAX function of their values."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, reduce

import jax
import jax.numpy as jnp
import sympy

from ntk_rules.functions import to_jax
from ntk_rules.functions import value_of as without_marks
from ntk_rules.ordered import TIED
from ntk_rules.steps import jumps_of
from tensorprog.ir import LinComb, Node, Nonlin, Phi, PositionMap, topological

__all__ = ["jumping", "plain", "value_of"]


def plain(node: Nonlin) -> Callable[..., jax.Array]:
    """An elementwise instruction as a JAX function of its arguments."""
    return to_jax(_with_ties(node.phi).expr, (*node.phi.vectors, *node.phi.parameters))


@lru_cache(maxsize=4096)
def _with_ties(phi: Phi) -> Phi:
    """Steps of differences that are zero but for rounding, as of two equal positions, as steps of zero: which of two is larger must not
    be another at every use. A step inside of a step's argument makes conditions of conditions, which a `Phi` writes out."""

    def step(argument: sympy.Expr, at_zero: sympy.Expr = sympy.S.Half) -> sympy.Expr:
        if not argument.is_Add:
            return sympy.Heaviside(argument, at_zero)
        size = sum(map(sympy.Abs, argument.args))
        return sympy.Heaviside(sympy.Piecewise((0, sympy.Abs(argument) <= TIED * size), (argument, True)), at_zero)

    return Phi(phi.expr.replace(sympy.Heaviside, step), phi.n_vectors, phi.n_parameters)


def value_of(
    root: Node, scalars: dict[Node, jax.Array], leaves: tuple[Node, ...], *values: jax.Array,
    function: Callable[[Nonlin], Callable[..., jax.Array]] = plain,
) -> jax.Array:  # fmt: skip
    """The root's value, in its shape at unit width, at given deterministic arrays and values of the Gaussians. function: of an
    elementwise instruction."""
    env = scalars | dict(zip(leaves, values, strict=True))
    for node in topological([root], skip=lambda n: n in env):
        match node:
            case LinComb(terms=terms):
                parts = [(env[a] if isinstance(a, Node) else a) * env[x] for a, x in terms]
                env[node] = reduce(jnp.add, parts)
            case PositionMap(op=op, args=args):
                env[node] = op(*(env[a] for a in args))
            case Nonlin(xs=xs, thetas=thetas):
                env[node] = jnp.broadcast_to(function(node)(*(env[x] for x in (*xs, *thetas))), node.type.shape)
            case _:
                raise AssertionError(f"a {type(node).__name__} is no part of a sampled function")
    return env[root]


@lru_cache(maxsize=4096)
def jumping(phi: Phi) -> frozenset[int]:
    """Along which of its arguments, vectors first, a function jumps, or may: where that cannot be read off its form."""
    expr, symbols = without_marks(phi.expr), (*phi.vectors, *phi.parameters)
    return frozenset(k for k, z in enumerate(symbols) if expr.has(z) and jumps_of(expr, z, symbols) != [])
