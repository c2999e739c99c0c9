"""What a library of modules must provide: the parameters of a model by name, and how to run it with others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.models.laws import Moments

__all__ = ["Door", "building", "one_model", "sample"]

ENTRIES = 1 << 20  # of one parameter at one width, at most drawn (and at least one draw)
DRAWS = 1024


@dataclass(frozen=True)
class Door:
    """A model of any width, seen through its library.

    parameters: `parameters(width, key)` builds the model and gives its trainable arrays by path; it may be traced.
    shapes: their shapes at a width, without drawing them. run: `run(width, params, x)` evaluates the model with
    these arrays in place. keyed: does the model draw from the key it is given? library: for messages.
    """

    library: str
    parameters: Callable[[int, jax.Array], dict[str, jax.Array]]
    shapes: Callable[[int], dict[str, tuple[int, ...]]]
    run: Callable[[int, dict[str, Any], Any], Any]
    keyed: bool


def sample(door: Door, widths: tuple[int, ...], names: set[str], seed: int) -> dict[str, list[Moments]]:
    """Draw the initialisers of the named parameters at every width.

    Small parameters are drawn more often than large ones: in groups of equal count, one compiled function each, in
    which only the initialisers that the group needs are left.
    """
    found: dict[str, list[Moments]] = {name: [] for name in sorted(names)}
    for width in widths:
        sizes = {name: int(np.prod(shape, dtype=int)) for name, shape in door.shapes(width).items() if name in names}
        groups: dict[int, list[str]] = {}
        for name, size in sizes.items():
            groups.setdefault(_draws(size) if door.keyed else 1, []).append(name)
        for count, group in groups.items():
            key = jax.random.fold_in(jax.random.key(seed), width)
            moments = jax.jit(_moments, static_argnums=(0, 1, 2, 4))(door, width, tuple(group), key, count)
            for name, values in moments.items():
                found[name].append(_collected(width, sizes[name], np.asarray(values, float)))
    return found


def _draws(size: int) -> int:
    """How often to draw a parameter: a power of four."""
    count = 1
    while count < DRAWS and 4 * count * max(size, 1) <= ENTRIES:
        count *= 4
    return max(count, 2)


def _moments(door: Door, width: int, names: tuple[str, ...], key: jax.Array, count: int) -> dict[str, jax.Array]:
    def one(key: jax.Array) -> dict[str, jax.Array]:
        params = door.parameters(width, key)
        return {name: _statistics(params[name]) for name in names}

    return jax.vmap(one)(jax.random.split(key, count)) if door.keyed else jax.tree.map(lambda v: v[None], one(key))


def _statistics(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return jnp.stack([x.mean(), jnp.square(x).mean(), (x**4).mean(), x.min(), x.max()])


def _collected(width: int, size: int, draws: np.ndarray) -> Moments:
    mean, square, fourth = (float(v) for v in draws[:, :3].mean(0))
    return Moments(width, size * len(draws), mean, square, fourth, draws[:, 3].min(), draws[:, 4].max(), draws[:, :2])


def one_model(what: str, model: Any) -> InputError:
    """The user gave a model rather than a function that makes one."""
    name = type(model).__name__
    return InputError(
        explain(
            f"{what}: build is a {name}, expected a function that makes the model at a given width",
            reason="the limit is that of a growing width, and one model has one width",
            mend=f"give {what}(lambda width, ...: {name}(...)), with the width where its hidden sizes stand",
        )
    )


def building(what: str, width: int, error: Exception) -> NetworkError:
    """The user's function failed to build the model at a width."""
    return NetworkError(
        explain(
            f"{what}: the model cannot be built at width {width}: {type(error).__name__}: {error}",
            reason=f"it is built at several widths, {width} among them, abstractly (under jax.eval_shape) and under jax.jit",
            mend="let every size be a fixed number or a multiple of the width, and make random numbers from what the function is given",
        )
    )
