"""The same network at finite width: sample parameters, evaluate."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import jax

from tensorprog.errors import InputError
from tensorprog.frontend.model import collect
from tensorprog.frontend.params import Constant, Gaussian, Network
from tensorprog.frontend.recording import run

__all__ = ["Parameters", "apply", "init"]


@jax.tree_util.register_pytree_with_keys_class
class Parameters(dict[str, jax.Array]):
    """A network's parameters by name, with the width they were made for."""

    def __init__(self, arrays: Any, width: int):
        super().__init__(arrays)
        self.width = width

    def tree_flatten_with_keys(self) -> tuple[Iterable[tuple[Any, Any]], tuple[tuple[str, ...], int]]:
        """For JAX: leaves in the order of their names."""
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], (names, self.width)

    @classmethod
    def tree_unflatten(cls, aux: tuple[tuple[str, ...], int], leaves: Iterable[Any]) -> Parameters:
        """For JAX."""
        names, width = aux
        return cls(zip(names, leaves, strict=True), width)


def init(net: Any, example: Any, width: int, key: jax.Array) -> Any:
    """Sample the parameters of `net` at a finite width.

    net: a function written with `tensorprog.nn`, or a `Network`. example: one input. key: a JAX random key.
    Returns a dict of arrays by name (the pytree of `Network.init` for a `Network`), for `apply`.

    Example:
        >>> import jax, jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import nn
        >>> net = lambda x: nn.dense(jnp.tanh(nn.dense(x)), features=1)
        >>> params = tp.init(net, jnp.zeros(3), 128, jax.random.key(0))
        >>> {name: array.shape for name, array in params.items()}
        {'dense_0.weight': (128, 3), 'dense_1.weight': (1, 128)}
        >>> tp.apply(net, params, jnp.ones(3)).shape
        (1,)
    """
    if not isinstance(width, int) or width < 1:
        raise InputError(f"init: width is {width!r}, expected a positive whole number")
    is_spec = lambda leaf: isinstance(leaf, (Gaussian, Constant))
    specs = net.init(width) if isinstance(net, Network) else collect(net, example, width).specs
    leaves, tree = jax.tree.flatten(specs, is_leaf=is_spec)
    keys = list(jax.random.split(key, max(1, len(leaves))))[: len(leaves)]
    arrays = jax.tree.unflatten(tree, [spec.sample(k) for spec, k in zip(leaves, keys, strict=True)])
    return arrays if isinstance(net, Network) else Parameters(arrays, width)


def apply(net: Any, params: Any, x: Any, *, width: int | None = None, **hypers: float) -> Any:
    """Evaluate `net` on one input at finite width.

    params: from `init`. width: needed only when `params` is a plain dict. hypers: values of `tp.hyper` numbers.
    """
    if isinstance(net, Network):
        _check_known(hypers, ())
        return net.apply(params, x)
    width = getattr(params, "width", width)
    if width is None:
        raise InputError(
            "apply: params is a plain dict, expected what tp.init returns\n  to mend: give width=.. as well"
        )
    out, recorder = run(net, width, dict(params), hypers, x)
    _check_known(hypers, recorder.hyper_defaults)
    return out


def _check_known(hypers: dict[str, float], known: Collection[str]) -> None:
    if unknown := [name for name in hypers if name not in known]:
        raise InputError(
            f"apply: unknown hyperparameter {unknown[0]!r}, expected {', '.join(map(repr, sorted(known))) or 'none'}\n"
            "  to mend: name a number in a network written with tensorprog.nn by tp.hyper"
        )
