"""`from_flax`: a Flax NNX module, unmodified, as a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.models.door import (
    Door,
    building,
    concrete,
    draws_when_called,
    one_model,
    running_statistics,
    unmoved,
)
from tensorprog.models.network import ModelNetwork, network_of
from tensorprog.models.training import Given, Training

__all__ = ["from_flax"]


def from_flax(
    build: Callable[..., Any], *, call: Callable[[Any, Any], Any] | None = None, batch_axis: int | None = None,
    parametrization: str = "ntk", at_width: int | None = None, init: Mapping[str, Given] | None = None,
    widths: tuple[int, ...] | None = None, seed: int = 0,
) -> ModelNetwork:  # fmt: skip
    """The network of a Flax NNX module, for `tp.compile`.

    build: `build(width, rngs)` makes the module at a width, drawing from the `nnx.Rngs` it is given (`build(width)` that
    makes its own is taken as well; then every width is drawn once, and more widths are). call: `call(model, x)` runs it, `model(x)` by
    default. batch_axis: 0 for a module that wants a batch axis in front: it is run on a batch of one. parametrization:
    "ntk" (every parameter moves by as much as it starts with, constants by one), "standard" (plain gradient
    descent, the kernel divided by the width; or, with `at_width`, at that width) or "mup" (see docs/models.md). init: laws of
    parameters by path, in place of the sampled ones: `tp.Gaussian(std=...)`, `tp.Constant(value=...)`, or a function of the width
    that gives one. widths, seed: where the initialisers are sampled.

    Every `nnx.Param` is trained; batch statistics and other variables are constants. Raises NetworkError where the
    module cannot be built at several widths, where an initial law cannot be read, for dropout in train mode and
    for batch norm with running statistics.

    Example:
        >>> import jax.numpy as jnp, tensorprog as tp
        >>> from flax import nnx
        >>> class Net(nnx.Module):
        ...     def __init__(self, width, rngs):
        ...         self.hidden = nnx.Linear(3, width, rngs=rngs)
        ...         self.readout = nnx.Linear(width, 1, rngs=rngs)
        ...     def __call__(self, x):
        ...         return self.readout(nnx.relu(self.hidden(x)))
        >>> print(tp.from_flax(Net).table(jnp.zeros(3)))
        parameter       shape   starts as         variance  moves with
        hidden.bias     (n)     constant 0        0         1
        hidden.kernel   (3, n)  truncated normal  1/3       1/3         TAKEN AS GAUSSIAN
        readout.bias    (1)     constant 0        0         1
        readout.kernel  (n, 1)  truncated normal  1/n       1/n         same limit as Gaussian
        ...
    """
    try:
        from flax import nnx
    except ImportError:
        raise InputError("from_flax: Flax is not installed\n  to mend: pip install 'tensorprog[flax]'") from None
    if isinstance(build, nnx.Module):
        raise one_model("from_flax", build)
    if batch_axis not in (None, 0):
        raise InputError(f"from_flax: batch_axis is {batch_axis!r}, expected 0 or None")
    training = Training.of("from_flax", parametrization, at_width)
    keyed = _takes_rngs(build)
    run = call or (lambda model, x: model(x))

    def made(width: int, key: jax.Array) -> Any:
        model = build(width, nnx.Rngs(key)) if keyed else build(width)
        if not isinstance(model, nnx.Module):
            raise _no_module(model)
        return nnx.split(model, nnx.Param, ...)

    def parameters(width: int, key: jax.Array) -> dict[str, jax.Array]:
        return _named(made(width, key)[1])

    @cache
    def skeleton(width: int) -> tuple[Any, Any, Any, Any]:
        """The module at a width without its parameters: structure, shapes, and the other variables as they are."""
        try:
            graph, params, rest = nnx.eval_shape(lambda: made(width, jax.random.key(seed)))
            leaves = (
                concrete(lambda: jax.tree.leaves(made(width, jax.random.key(seed))[2])) if jax.tree.leaves(rest) else []
            )
        except NetworkError:
            raise
        except Exception as error:
            raise building("from_flax", width, error) from error
        return graph, params, jax.tree.structure(rest), leaves

    def evaluate(width: int, params: dict[str, Any], x: Any) -> Any:
        graph, shapes, tree, leaves = skeleton(width)
        arrays = [params[name] for name in _named(shapes)]
        structure = jax.tree.structure(shapes)

        def merged(arrays: list[Any]) -> Any:
            state = jax.tree.unflatten(tree, [_as_wide(leaf, arrays) for leaf in leaves])
            return nnx.merge(graph, jax.tree.unflatten(structure, arrays), state)

        def called(model: Any, x: Any) -> Any:
            return run(model, x) if batch_axis is None else run(model, jax.tree.map(lambda leaf: leaf[None], x))[0]

        def before_and_after(variables: Any, arrays: list[Any], x: Any) -> tuple[list[Any], list[Any]]:
            model = merged(arrays)
            nnx.update(model, variables)
            before = _values(nnx, _variables(nnx, model))
            called(model, x)
            return before, _values(nnx, _variables(nnx, model))

        model = merged(arrays)
        if variables := _variables(nnx, model):
            _check_variables(nnx, variables, unmoved(before_and_after, variables, arrays, x))
        return called(model, x)

    @cache
    def shapes(width: int) -> dict[str, tuple[int, ...]]:
        return {name: tuple(leaf.shape) for name, leaf in _named(skeleton(width)[1]).items()}

    door = Door("flax", parameters, shapes, evaluate, keyed)
    return network_of("from_flax", door, training, init, widths, seed)


def _takes_rngs(build: Callable[..., Any]) -> bool:
    """Does the builder take random numbers beside the width?"""
    try:
        inspect.signature(build).bind(0, 0)
    except TypeError:
        return False
    return True


def _no_module(model: Any) -> NetworkError:
    name = f"{type(model).__module__}.{type(model).__name__}"
    linen = "linen" in name or hasattr(model, "init_with_output")
    mend = "take tp.from_linen, which needs an example input" if linen else (
        "return the module itself from the function, with its parameters made"
    )  # fmt: skip
    return NetworkError(
        explain(
            f"from_flax: build gives a {name}, expected an nnx.Module",
            reason="parameters are read off an NNX module",
            mend=mend,
        )
    )


def _named(state: Any) -> dict[str, Any]:
    """The arrays of a state by path, in the order of its leaves."""
    flat = jax.tree_util.tree_flatten_with_path(state)[0]
    named = {".".join(_part(k) for k in path if not _is_value(k)): leaf for path, leaf in flat}
    assert len(named) == len(flat)
    return named


def _is_value(key: Any) -> bool:
    return isinstance(key, jax.tree_util.GetAttrKey)


def _part(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", key)))


def _as_wide(leaf: jax.Array, arrays: list[Any]) -> jax.Array:
    """A variable in the precision of the parameters, so that what is computed with them can be stored in it."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return leaf.astype(jnp.result_type(leaf.dtype, *(a.dtype for a in arrays)))


def _variables(nnx: Any, model: Any) -> Any:
    """The variables that a call may change, as a state."""
    return nnx.state(model, nnx.Any(nnx.BatchStat, nnx.RngCount))


def _values(nnx: Any, variables: Any) -> list[Any]:
    return [variable.get_value() for _, variable in nnx.to_flat_state(variables)]


def _check_variables(nnx: Any, variables: Any, same: Sequence[bool]) -> None:
    """Refuse what the state gives away: random numbers drawn, or statistics used without being updated. same: which variables a call leaves
    as they are."""
    found = zip(nnx.to_flat_state(variables), same, strict=True)
    kinds = [(".".join(map(str, path)), isinstance(variable, nnx.BatchStat), kept) for (path, variable), kept in found]
    drawn = sorted(name for name, statistics, kept in kinds if not statistics and not kept)
    if drawn:
        mend = (
            "turn dropout off: model.set_attributes(nnx.Dropout, deterministic=True) or model.eval() before build returns it, "
            "or call=lambda model, x: model(x, deterministic=True); to an nnx.RNN, which draws its initial state even where that is zero, give "
            "one, model(x, initial_carry=jnp.zeros(size, jnp.float32))"
        )
        raise draws_when_called("from_flax", ", ".join(drawn), mend)
    running = sorted(name for name, statistics, kept in kinds if statistics and kept)
    if running:
        raise running_statistics("from_flax", running)
