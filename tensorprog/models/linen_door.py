"""`from_linen`: a Flax Linen module, unmodified, as a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.errors import InputError, NetworkError
from tensorprog.models.door import Door, building, concrete, draws_when_called, one_model, running_statistics, unmoved
from tensorprog.models.network import ModelNetwork, network_of
from tensorprog.models.training import Given, Training

__all__ = ["from_linen"]


def from_linen(
    build: Callable[[int], Any], example: Any, *, call: Callable[..., Any] | None = None, batch_axis: int | None = None,
    parametrization: str = "ntk", at_width: int | None = None, init: Mapping[str, Given] | None = None,
    widths: tuple[int, ...] | None = None, seed: int = 0,
) -> ModelNetwork:  # fmt: skip
    """The network of a Flax Linen module, for `tp.compile`.

    build: `build(width)` makes the module at a width. example: an input, from whose shape Linen makes the parameters (with its
    batch axis where `batch_axis` is None and the module wants one). call: what `module.init` and `module.apply` run, as their `method`:
    `call(module, x)`, `module(x)` by default. The other arguments are those of `tp.from_flax`.

    The collection "params" is trained; others, as batch statistics, are constants. Raises NetworkError where the module
    cannot be built at several widths, where an initial law cannot be read, for dropout in train mode and for batch norm with
    running statistics.

    Example:
        >>> import jax.numpy as jnp, tensorprog as tp
        >>> from flax import linen
        >>> build = lambda width: linen.Sequential([linen.Dense(width), linen.relu, linen.Dense(1)])
        >>> net = tp.from_linen(build, jnp.zeros(3), init={"layers_0.kernel": tp.Gaussian(std=0.5)})
        >>> print(net.table(jnp.zeros(3)))
        parameter        shape   starts as         variance  moves with
        layers_0.bias    (n)     constant 0        0         1
        layers_0.kernel  (3, n)  Gaussian          1/4       1/4         given
        layers_2.bias    (1)     constant 0        0         1
        layers_2.kernel  (n, 1)  truncated normal  1/n       1/n         same limit as Gaussian
        ...
    """
    try:
        from flax import errors, linen
    except ImportError:
        raise InputError("from_linen: Flax is not installed\n  to mend: pip install 'tensorprog[flax]'") from None
    if isinstance(build, linen.Module):
        raise one_model("from_linen", build)
    if batch_axis not in (None, 0):
        raise InputError(f"from_linen: batch_axis is {batch_axis!r}, expected 0 or None")
    training = Training.of("from_linen", parametrization, at_width)
    batched = (lambda x: jax.tree.map(lambda leaf: leaf[None], x)) if batch_axis == 0 else (lambda x: x)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf)), example)

    def made(width: int, key: jax.Array) -> dict[str, Any]:
        module = build(width)
        if not isinstance(module, linen.Module):
            raise InputError(f"from_linen: build gives a {type(module).__name__}, expected a flax.linen.Module")
        return {"params": {}} | dict(_drawing(errors, lambda: module.init(key, batched(zeros), method=call)))

    def parameters(width: int, key: jax.Array) -> dict[str, jax.Array]:
        return _named(made(width, key)["params"])

    @cache
    def skeleton(width: int) -> tuple[Any, Any, Any]:
        """The parameters' shapes at a width, and the other collections as they are."""
        try:
            shapes = jax.eval_shape(lambda: made(width, jax.random.key(seed)))
            rest = {name: value for name, value in shapes.items() if name != "params"}
            others = lambda: jax.tree.leaves({name: made(width, jax.random.key(seed))[name] for name in rest})
            leaves = concrete(others) if jax.tree.leaves(rest) else []
        except (InputError, NetworkError):
            raise
        except Exception as error:
            raise building("from_linen", width, error) from error
        return shapes["params"], jax.tree.structure(rest), leaves

    def evaluate(width: int, params: dict[str, Any], x: Any) -> Any:
        tree, structure, leaves = skeleton(width)
        arrays = [params[name] for name in _named(tree)]
        rest = jax.tree.unflatten(structure, leaves)
        module = build(width)

        def called(statistics: Any, arrays: list[Any], x: Any) -> tuple[Any, Any]:
            variables = {"params": jax.tree.unflatten(jax.tree.structure(tree), arrays), **rest, **statistics}
            return _drawing(
                errors, lambda: module.apply(variables, batched(x), method=call, mutable=list(rest))
            )  # what it gives, and the collections after it

        def before_and_after(statistics: Any, arrays: list[Any], x: Any) -> tuple[list[Any], list[Any]]:
            after = {name: value for name, value in called(statistics, arrays, x)[1].items() if name in statistics}
            return jax.tree.leaves(statistics), jax.tree.leaves(after)

        statistics = {name: value for name, value in rest.items() if name == "batch_stats"}
        if statistics:
            same = zip(_named(statistics["batch_stats"]), unmoved(before_and_after, statistics, arrays, x), strict=True)
            if kept := sorted(name for name, unchanged in same if unchanged):
                raise running_statistics("from_linen", kept)
        y, _ = called(statistics, arrays, x)
        return y if batch_axis is None else y[0]

    @cache
    def shapes(width: int) -> dict[str, tuple[int, ...]]:
        return {name: tuple(leaf.shape) for name, leaf in _named(skeleton(width)[0]).items()}

    return network_of("from_linen", Door("flax", parameters, shapes, evaluate, True), training, init, widths, seed)


def _named(tree: Any) -> dict[str, Any]:
    """The arrays of a collection by path, in the order of its leaves."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def _drawing(errors: Any, run: Callable[[], Any]) -> Any:
    """Run a module that is given no random numbers but those of its parameters."""
    try:
        return run()
    except errors.InvalidRngError as error:
        mend = "turn dropout off: linen.Dropout(rate, deterministic=True), or call=lambda module, x: module(x, train=False)"
        raise draws_when_called("from_linen", str(error).split("(")[0].strip(), mend) from error
