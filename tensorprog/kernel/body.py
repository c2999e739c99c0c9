"""A function of Gaussian variables, written in instructions of the program, as a JAX function of their values."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp

from ntk_rules.functions import to_jax
from tensorprog.ir import LinComb, Node, Nonlin, PositionMap, topological

__all__ = ["plain", "value_of"]


def plain(node: Nonlin) -> Callable[..., jax.Array]:
    """An elementwise instruction as a JAX function of its arguments."""
    return to_jax(node.phi.expr, (*node.phi.vectors, *node.phi.parameters))


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
