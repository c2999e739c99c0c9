"""How fast each parameter of a network is trained, for those who train one at finite width.

The neural tangent kernel of a program is that of training in which a parameter w moves at the rate tangent_std^2: d w / dt = - s_w^2 dC/dw.
"""

from __future__ import annotations

from typing import Any

import jax

import tensorprog as tp
from tensorprog.errors import InputError
from tensorprog.frontend.model import as_model
from tensorprog.frontend.params import Constant, Gaussian

__all__ = ["speeds"]


def speeds(net: Any, example: Any, width: int) -> Any:
    """The `tangent_std` of every parameter (its `std` where none was given, 0 where it is frozen), a pytree like that of `tp.init`.

    net, example: as for `tp.compile`. A step of gradient descent that the NTK describes subtracts rate * s**2 * gradient; with all of
    them one, as for the layers of `nn`, it is the usual one.

    Example:
        >>> import jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> net = lambda x: nn.dense(jnp.tanh(nn.weight((nn.width(), 3), tangent_std=0.5) @ x), features=1)
        >>> dict(apps.speeds(net, jnp.zeros(3), 8))
        {'dense_0.weight': 1.0, 'weight_0': 0.5}
    """
    if not isinstance(width, int) or width < 1:
        raise InputError(f"speeds: width is {width!r}, expected a positive whole number")
    is_spec = lambda leaf: isinstance(leaf, (Gaussian, Constant))
    specs = jax.tree.leaves(as_model(net, example).specs(width), is_leaf=is_spec)
    like = jax.eval_shape(lambda: tp.init(net, example, width, jax.random.key(0)))
    return jax.tree.unflatten(
        jax.tree.structure(like), [float(s.std if s.tangent_std is None else s.tangent_std) for s in specs]
    )
