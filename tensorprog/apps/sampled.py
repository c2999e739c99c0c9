"""Kernels as means over random networks of finite width, with standard errors.

The NTK of one output of one network strays from its mean by O(1/sqrt(n)). Its NNGP kernel would stray by O(1) if it were
taken as f(x) f(x'); but where f is linear in the Gaussian parameters of its last layer, the mean over these alone is known,
s^2 (df/dw) (df/dw'), which has the same mean and strays by O(1/sqrt(n)) only. Which parameters these are is found by trying.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.apps.checks import check_key, check_whole
from tensorprog.apps.grams import count, precision, widened
from tensorprog.apps.structured import structured
from tensorprog.errors import InputError
from tensorprog.frontend.model import Model, as_model
from tensorprog.frontend.params import Constant, Gaussian
from tensorprog.runtime import KernelResult
from tensorprog.runtime.inputs import check_hypers

__all__ = ["MonteCarlo", "draws", "last_layer", "monte_carlo"]

ENTRIES = 2**26  # of the largest array of a contraction, for one network
CHUNK = 2**24  # parameters that are drawn at a time


class MonteCarlo(NamedTuple):
    """Means over networks and their standard errors, each a `KernelResult`."""

    mean: KernelResult
    error: KernelResult


@dataclass(frozen=True)
class _Sampler:
    """A network at one width: how its parameters are drawn, how fast each moves, how it runs."""

    run: Callable[[Any, Any], jax.Array]
    specs: list[Gaussian | Constant]
    tree: Any

    def draw(self, rng: np.random.Generator, count: int | None = None) -> list[np.ndarray]:
        """Parameters of one network, or of `count` along a leading axis, in float64 or float32: NumPy compiles nothing."""
        lead, kind = ((), np.float64) if count is None else ((count,), np.float32)
        found = []
        for s in self.specs:
            noise = s.std * rng.standard_normal((*lead, *s.shape), kind) if s.std else np.zeros((*lead, *s.shape), kind)
            found.append(np.asarray(noise + s.mean, kind))
        return found


def _sampler(model: Model, width: int, first: tuple[int, ...], hypers: dict[str, float]) -> _Sampler:
    """first: axes of the output along which entries are independent copies; only the first entry is kept."""
    specs, tree = jax.tree.flatten(model.specs(width), is_leaf=lambda s: isinstance(s, (Gaussian, Constant)))

    def run(params: Any, x: Any) -> jax.Array:
        out = model.run(width, params, {**model.hypers, **hypers}, x)
        return out[tuple(0 if axis in first else slice(None) for axis in range(out.ndim))]

    return _Sampler(run, specs, tree)


def monte_carlo(
    net: Any, x: Any, width: int, samples: int, key: jax.Array, *, x2: Any = None, **hypers: float
) -> MonteCarlo:
    """The mean kernels of random networks of one width, with the standard errors of the means.

    net: what `tp.compile` takes. x: inputs (N1, *example); x2: others (N2, *example). width: of the networks. samples: how
    many, at least 2. key: a JAX random key. Outputs of shape O have both their axes, (N1, N2, *O, *O), without those of size one. hypers:
    values of hyperparameters. Memory: 64 MB of networks. Errors fall like 1/sqrt(samples); the mean
    itself differs from the limit by O(1/width).

    Example:
        >>> import jax, jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> net = lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1)[0]
        >>> found = apps.monte_carlo(net, jnp.eye(2), 256, 32, jax.random.key(0))
        >>> limit = tp.compile(net, jnp.zeros(2))(jnp.eye(2))
        >>> bool(jnp.all(abs(found.mean.ntk - limit.ntk) < 5 * found.error.ntk + 0.01))
        True
    """
    _checked(x, width)
    check_key(key, "key")
    for name, given in (("x", x), ("x2", x2)):
        if not all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(given)):
            raise InputError(f"monte_carlo: {name} has NaN or infinity, expected finite numbers")
    model = as_model(net, jax.tree.map(lambda a: np.asarray(a)[0], x))
    check_hypers(hypers, model.hypers, model.nonnegative, np.float32)
    last = last_layer(model, x, width, hypers=hypers)
    found = draws(model, x, width, samples, key, last=last, x2=x2, hypers=hypers)
    kept = [k.reshape(*k.shape[:3], *(size for size in k.shape[3:] if size > 1)) for k in map(np.asarray, found)]
    means = [np.mean(k, 0) for k in kept]
    errors = [np.std(k, 0, ddof=1) / np.sqrt(samples) for k in kept]
    return MonteCarlo(KernelResult(*means), KernelResult(*errors))


def draws(
    model: Model, x: Any, width: int, samples: int, key: jax.Array, *, last: Sequence[int], x2: Any = None,
    first: tuple[int, ...] = (), hypers: Mapping[str, float] | None = None,
) -> KernelResult:  # fmt: skip
    """The kernels of each of `samples` networks: (samples, N1, N2, *O, *O). last: of `last_layer`. first: as for output axes that
    are copies."""
    check_whole(samples, "samples", 2, ": one draw has no standard error")
    _checked(x, width)
    made = _sampler(model, width, first, dict(hypers or {}))
    speeds = [float(s.std if s.tangent_std is None else s.tangent_std) for s in made.specs]
    means = [s.std if i in last else 0.0 for i, s in enumerate(made.specs)]
    with precision(np.float32):
        here = widened(x, np.float32)
        there = here if x2 is None else widened(x2, np.float32)
        shapes = [jax.ShapeDtypeStruct(s.shape, np.float32) for s in made.specs]
        axes = jax.eval_shape(made.run, made.tree.unflatten(shapes), jax.tree.map(lambda a: a[0], here)).shape

        def kernels(leaves: list[jax.Array]) -> list[jax.Array]:
            params = made.tree.unflatten(leaves)
            both = [speeds, means] if last else [speeds]
            ntk, *nngp = structured(made.run, params, both, here, there, full=True, entries=ENTRIES)
            if not nngp:
                a, b = (jax.vmap(lambda one: jnp.ravel(made.run(params, one)))(z) for z in (here, there))
                nngp = [jnp.einsum("io,jp->ijop", a, b)]
            return [k.reshape(*k.shape[:2], *axes, *axes) for k in (*nngp, ntk)]

        size = sum(math.prod(s.shape) for s in made.specs)
        chunk = max(1, min(samples, CHUNK // max(1, size)))
        rng, run = np.random.default_rng(np.ravel(jax.random.key_data(key))), jax.jit(partial(jax.lax.map, kernels))
        parts = [run(made.draw(rng, chunk)) for _ in range(-(-samples // chunk))]
        return KernelResult(
            *(np.concatenate(list(map(np.asarray, k)))[:samples].astype(float) for k in zip(*parts, strict=True))
        )


def _checked(x: Any, width: int) -> None:
    check_whole(width, "width", 1)
    if count(x, "x") == 0:
        raise InputError("x holds no inputs, expected at least one")


def last_layer(
    model: Model, x: Any, width: int, *, first: tuple[int, ...] = (), hypers: Mapping[str, float] | None = None
) -> list[int]:
    """The numbers of the Gaussian parameters of the last layer: the network is linear in them. Empty where there are none.

    Tried with random numbers, in float64: a set counts if the output is linear in it, jointly, and vanishes where it is
    zero.
    """
    _checked(x, width)
    made = _sampler(model, width, first, dict(hypers or {}))
    rng = np.random.default_rng(0)
    leaves, moves = made.draw(rng), made.draw(rng)
    with precision():
        points = widened(x)
        run = jax.jit(lambda p: jax.vmap(lambda one: made.run(made.tree.unflatten(p), one))(points))
        value = np.asarray(run(leaves))
        small = 1e-9 * float(np.abs(value).max())

        def at(chosen: list[int], sign: float) -> np.ndarray:
            both = enumerate(zip(leaves, moves, strict=True))
            return np.asarray(run([p + sign * m if i in chosen else p for i, (p, m) in both]))

        def affine(chosen: list[int]) -> bool:
            return bool(np.abs(at(chosen, 1.0) + at(chosen, -1.0) - 2 * value).max() <= small)

        # Later layers first: in a linear network any one layer will do, and the last is the one that nothing follows.
        chosen: list[int] = []
        for i in reversed([i for i, s in enumerate(made.specs) if isinstance(s, Gaussian) and s.std > 0]):
            if affine([*chosen, i]):
                chosen.append(i)
        empty = np.asarray(run([0.0 * p if i in chosen else p for i, p in enumerate(leaves)]))
        return chosen if chosen and np.abs(empty).max() <= small else []
