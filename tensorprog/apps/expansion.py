"""Networks expanded in their parameters: linear, and to any order.

Source: Lee et al. 2019, equation 5 for the linearised network; Taylorized training, Bai et al. 2020, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.apps.checks import check_params, check_whole
from tensorprog.errors import InputError

__all__ = ["linearised", "taylor"]


def linearised(f: Callable[[Any, Any], Any], params: Any) -> Callable[[Any, Any], Any]:
    """f(params_0, x) + (d f / d params) (params - params_0), as a function of params and x.

    f: f(params, x), any JAX function. params: a pytree of arrays, the point of expansion.

    Example:
        >>> import jax.numpy as jnp
        >>> from tensorprog import apps
        >>> line = apps.linearised(lambda p, x: p**2 * x, jnp.array(1.0))
        >>> float(line(jnp.array(1.5), 1.0))
        2.0
    """
    return taylor(f, params, 1)


def taylor(f: Callable[[Any, Any], Any], params: Any, order: int) -> Callable[[Any, Any], Any]:
    """The Taylor polynomial of f in its parameters about `params`, of this order, as a function of params and x.

    Its cost grows like 2^order evaluations of f. Raises InputError for an order that is not a whole number >= 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from tensorprog import apps
        >>> cube = apps.taylor(lambda p, x: p**3 * x, jnp.array(1.0), 2)
        >>> float(cube(jnp.array(2.0), 1.0))  # 1 + 3 + 3
        7.0
    """
    check_whole(order, "taylor: order", 0)
    if not callable(f):
        raise InputError(f"taylor: f is a {type(f).__name__}, expected a function f(params, x)")
    check_params(params, "taylor: params")
    origin = jax.tree.map(jnp.asarray, params)

    def expanded(moved: Any, x: Any) -> Any:
        if str(jax.tree.structure(moved)) != str(jax.tree.structure(origin)):
            raise InputError(
                f"params has the structure {jax.tree.structure(moved)}, expected that of the point of expansion, "
                f"{jax.tree.structure(origin)}"
            )
        shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (moved, origin)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"params has arrays of shapes {shapes[0]}, expected those of the point of expansion, {shapes[1]}"
            )
        step = jax.tree.map(lambda a, b: a - b, moved, origin)

        def along(t: jax.Array) -> Any:
            return f(jax.tree.map(lambda a, d: a + t.astype(a.dtype) * d, origin, step), x)

        derivative: Callable[[Any], Any] = along
        total = None
        for k in range(order + 1):
            value = derivative(jnp.zeros(()))
            term = jax.tree.map(lambda v, k=k: v / math.factorial(k), value)
            total = term if total is None else jax.tree.map(jnp.add, total, term)
            derivative = _slope(derivative)
        return total

    return expanded


def _slope(g: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The derivative of a function of one number."""
    return lambda t: jax.jvp(g, (t,), (jnp.ones_like(t),))[1]
