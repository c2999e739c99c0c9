"""`from_equinox`: an Equinox module, unmodified, as a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.models.door import Door, building, concrete, one_model
from tensorprog.models.network import ModelNetwork, network_of
from tensorprog.models.training import Given, Training

__all__ = ["from_equinox"]


def from_equinox(
    build: Callable[[int, jax.Array], Any], *, call: Callable[[Any, Any], Any] | None = None, batch_axis: int | None = None,
    parametrization: str = "ntk", at_width: int | None = None, init: Mapping[str, Given] | None = None,
    widths: tuple[int, ...] | None = None, seed: int = 0,
) -> ModelNetwork:  # fmt: skip
    """The network of an Equinox module, for `tp.compile`.

    build: `build(width, key)` makes the module at a width. call: `call(model, x)` runs it, `model(x)` by default. The
    other arguments are those of `tp.from_flax`.

    Every array of real numbers is trained (`eqx.is_inexact_array`) but those of an `eqx.nn.State`, which are constants. The
    layers of Equinox draw weights and biases uniformly with the variance 1/(3 fan-in): the biases of wide layers vanish in the
    limit and have no part in it unless `init` gives them one.

    Raises NetworkError where the module cannot be built at several widths, or an initial law cannot be read.

    Example:
        >>> import equinox as eqx, jax, jax.numpy as jnp, tensorprog as tp
        >>> build = lambda width, key: eqx.nn.MLP(3, 1, width, depth=1, key=key)
        >>> net = tp.from_equinox(build, init={"layers.0.weight": tp.Gaussian(std=0.5), "layers.0.bias": tp.Gaussian(std=0.1)})
        >>> print(net.table(jnp.zeros(3)))
        parameter        shape   starts as   variance  moves with
        layers.0.bias    (n)     Gaussian    1/100     1/100       given
        layers.0.weight  (n, 3)  Gaussian    1/4       1/4         given
        layers.1.bias    (1)     uniform     1/(3 n)   1/(3 n)     same limit as Gaussian
        layers.1.weight  (1, n)  uniform     1/(3 n)   1/(3 n)     same limit as Gaussian
        ...
        >>> tp.compile(net, jnp.zeros(3))(jnp.eye(3)).ntk.shape
        (3, 3)
    """
    try:
        import equinox as eqx
    except ImportError:
        raise InputError(
            "from_equinox: Equinox is not installed\n  to mend: pip install 'tensorprog[equinox]'"
        ) from None
    if isinstance(build, eqx.Module):
        raise one_model("from_equinox", build)
    if batch_axis not in (None, 0):
        raise InputError(f"from_equinox: batch_axis is {batch_axis!r}, expected 0 or None")
    training = Training.of("from_equinox", parametrization, at_width)
    run = call or (lambda model, x: model(x))

    def divided(model: Any) -> tuple[Any, Any]:
        """What is trained, and the rest: an `eqx.nn.State`, as the running statistics of a batch norm, is carried and not trained."""
        state = lambda part: isinstance(part, eqx.nn.State)
        return eqx.partition(model, jax.tree.map(lambda part: not state(part) and _is_real(part), model, is_leaf=state))

    def parameters(width: int, key: jax.Array) -> dict[str, jax.Array]:
        named = _named(divided(build(width, key))[0])
        _check_shared(named)
        return named

    @cache
    def skeleton(width: int) -> tuple[Any, Any]:
        """The module at a width: its parameters as shapes, and the rest as it is."""
        made = lambda: build(width, jax.random.key(seed))
        try:
            model = eqx.filter_eval_shape(made)
            shapes, rest = divided(model)
            arrays, static = eqx.partition(rest, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
            if jax.tree.leaves(arrays):
                found = lambda: jax.tree.leaves(eqx.filter(divided(made())[1], eqx.is_array))
                rest = eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), concrete(found)), static)
        except Exception as error:
            raise building("from_equinox", width, error) from error
        return shapes, rest

    def evaluate(width: int, params: dict[str, Any], x: Any) -> Any:
        tree, rest = skeleton(width)
        arrays = jax.tree.unflatten(jax.tree.structure(tree), [params[name] for name in _named(tree)])
        model = eqx.combine(arrays, rest)
        if batch_axis is None:
            return run(model, x)
        return run(model, jax.tree.map(lambda leaf: leaf[None], x))[0]

    @cache
    def shapes(width: int) -> dict[str, tuple[int, ...]]:
        return {name: tuple(leaf.shape) for name, leaf in _named(skeleton(width)[0]).items()}

    door = Door("equinox", parameters, shapes, evaluate, True)
    return network_of("from_equinox", door, training, init, widths, seed)


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, (jax.ShapeDtypeStruct, jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _named(tree: Any) -> dict[str, Any]:
    """The arrays of a tree by path, in the order of its leaves."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def _check_shared(named: Mapping[str, Any]) -> None:
    seen: dict[int, str] = {}
    for name, leaf in named.items():
        first = seen.setdefault(id(leaf), name)
        if first != name:
            raise NetworkError(
                explain(
                    f"from_equinox: {first!r} and {name!r} are one array in two places",
                    reason="Equinox trains the two places separately, from the same start: they are neither one parameter nor two "
                    "independent ones",
                    mend="share the layer with eqx.nn.Shared, or make two layers from different keys",
                )
            )
