"""What a library of modules must provide: the parameters of a model by name, and how to run it with others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ntk_rules.interpreted import called
from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.models.laws import Moments

__all__ = ["Door", "building", "concrete", "draws_when_called", "one_model", "running_statistics", "sample", "unmoved"]

ENTRIES = 1 << 20  # of all parameters of a model at one width, to be drawn by building it again and again
BUILT = (2, 16)  # but at least and at most so often
MORE = 1 << 16  # entries of one parameter below which the models built gave too few
DRAWN = 1 << 19  # entries of it that are drawn then
AT_MOST = 1 << 28  # entries of the model drawn for it, unless MORE asks for them
HELD = 1 << 24  # entries held at once
# The draws are few and the sizes many: compiling is what costs time.
QUICKLY: dict[str, Any] = {"xla_backend_optimization_level": 0}


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


def sample(
    door: Door, widths: tuple[int, ...], names: set[str], seed: int
) -> tuple[dict[str, list[Moments]], list[dict[str, np.ndarray]]]:
    """Draw the initialisers of the named parameters at every width: the model is built some times as it stands. Returns the moments at
    every width, and the draws themselves at the first.

    What is random and of few entries, as a bias of the output, is drawn more often in a compiled function, in which only
    its own initialiser is left.
    """
    found: dict[str, list[Moments]] = {name: [] for name in sorted(names)}
    first: list[dict[str, np.ndarray]] = []
    for width in widths:
        key = jax.random.fold_in(jax.random.key(seed), width)
        total = sum(math.prod(shape) for shape in door.shapes(width).values())
        keys = jax.random.split(key, min(max(ENTRIES // total, BUILT[0]), BUILT[1])) if door.keyed else [key]
        built = [_numbers(door.parameters(width, one), found) for one in keys]
        draws = {name: [_statistics(arrays[name], np) for arrays in built] for name in found}
        first = first or built
        sizes = {name: math.prod(door.shapes(width)[name]) for name in found}
        for name, rows in draws.items():
            if door.keyed and _too_few(np.stack(rows), sizes[name] * len(rows)):
                wanted = min(DRAWN // sizes[name], AT_MOST // total)
                rows[:] = _many(door, width, name, key, max(wanted, MORE // sizes[name], 2))
            found[name].append(_collected(width, sizes[name], np.stack(rows)))
    return found, first


def _numbers(arrays: Mapping[str, jax.Array], names: Iterable[str]) -> dict[str, np.ndarray]:
    return {name: np.asarray(arrays[name], float) for name in names}


def _too_few(draws: np.ndarray, entries: int) -> bool:
    """Would the law be read badly off these? A bounded law shows its bound in few entries."""
    low, high, square = draws[:, 3].min(), draws[:, 4].max(), draws[:, 1].mean()
    if low == high:
        return False
    bounded = max(low * low, high * high) < 5.5 * square
    return entries < (MORE // 64 if bounded else MORE)


def _many(door: Door, width: int, name: str, key: jax.Array, count: int) -> np.ndarray:
    one = lambda key: _statistics(door.parameters(width, key)[name].astype(jnp.float32), jnp)
    entries = sum(map(math.prod, door.shapes(width).values()))  # it may be made of all of them, as a norm is
    run = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=max(HELD // entries, 1)))
    return np.asarray(run.lower(keys := jax.random.split(key, count)).compile(QUICKLY)(keys), float)


def _statistics(x: Any, xp: Any) -> Any:
    return xp.stack([x.mean(), (x**2).mean(), (x**4).mean(), x.min(), x.max()])


def _collected(width: int, size: int, draws: np.ndarray) -> Moments:
    mean, square, fourth = (float(v) for v in draws[:, :3].mean(0))
    low, high = float(draws[:, 3].min()), float(draws[:, 4].max())
    return Moments(width, size * len(draws), mean, square, fourth, low, high, draws[:, :2])


def concrete(make: Callable[[], list[jax.Array]]) -> list[jax.Array]:
    """The arrays that `make` makes, also where JAX is tracing around us. Compiled, nothing is left of what they do not
    depend on, such as large parameters made beside them."""
    return jax.jit(make).lower().compile(QUICKLY)()


def unmoved(function: Callable[..., tuple[Sequence[Any], Sequence[Any]]], *args: Any) -> list[bool]:
    """A function gives what some variables held before and after. Which of them hold the same argument, whatever calls and loops that went
    through?"""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    found = [_origin(jaxpr, v) for v in jaxpr.outvars]
    count = len(found) // 2
    return [a is not None and a is b for a, b in zip(found[:count], found[count:], strict=True)]


def _origin(jaxpr: Any, value: Any) -> Any:
    """The argument of a traced function that one of its values is; None where it is computed."""
    if isinstance(value, jex.Literal):
        return None
    eqn = next((eqn for eqn in jaxpr.eqns if any(v is value for v in eqn.outvars)), None)
    if eqn is None:
        return value if any(v is value for v in jaxpr.invars) else None
    place = next(k for k, v in enumerate(eqn.outvars) if v is value)
    body = eqn.params["jaxpr"].jaxpr if eqn.primitive.name == "scan" else called(eqn)
    if body is None:
        return None
    inner = body[0] if isinstance(body, tuple) else body
    origin = _origin(inner, inner.outvars[place])
    at = next((k for k, v in enumerate(inner.invars) if v is origin), None)
    return None if at is None else _origin(jaxpr, eqn.invars[at])


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


def draws_when_called(what: str, drawn: str, mend: str) -> NetworkError:
    """The model is random beyond its parameters."""
    return NetworkError(
        explain(
            f"{what}: the model draws random numbers when it is called ({drawn}), as dropout in train mode does",
            reason="a kernel belongs to one function of the input, and a random mask makes another at every call",
            mend=f"{mend}; the kernel with dropout on is that of a network written with tensorprog.nn.dropout",
        )
    )


def running_statistics(what: str, names: list[str]) -> NetworkError:
    """Batch norm uses statistics that no data went into, or another layer what it keeps from call to call."""
    if not all(name.rsplit(".", 1)[-1] in ("mean", "var") for name in names):
        return NetworkError(
            explain(
                f"{what}: the model uses statistics without updating them ({', '.join(names)}), as spectral norm does",
                reason="they start as numbers that say nothing of the parameters or of data, one for each coordinate or for all, and a limit "
                "of the model would be one with these",
                mend="leave the layer out, or normalise by what the model computes in the same call",
            )
        )
    return NetworkError(
        explain(
            f"{what}: batch norm uses its running statistics ({', '.join(names)})",
            reason="at initialisation these are the constants zero and one, not statistics of any data, so that the limit would be "
            "that of a network without normalisation",
            mend="normalise by the batch itself, use_running_average=False, and compile on a whole batch as the example, whose "
            "members are then positions",
        )
    )
