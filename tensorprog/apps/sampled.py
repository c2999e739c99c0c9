"""Kernels as means over random networks of finite width, with standard errors.

The NTK of one output of one network strays from its mean by O(1/sqrt(n)). Its NNGP kernel would stray by O(1) if it were
taken as f(x) f(x'); but where f is linear in the Gaussian parameters of its last layer, the mean over these alone is known,
s^2 (df/dw) (df/dw'), which has the same mean and strays by O(1/sqrt(n)) only. Which parameters these are is found by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.apps.empirical import Empirical
from tensorprog.apps.grams import count, precision, widened
from tensorprog.errors import InputError
from tensorprog.frontend.params import Constant, Gaussian, Model, as_model
from tensorprog.runtime import KernelResult

__all__ = ["MonteCarlo", "draws", "monte_carlo"]


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

    def draw(self, key: jax.Array) -> Any:
        keys = jax.random.split(key, max(1, len(self.specs)))
        return self.tree.unflatten([s.sample(k) for s, k in zip(self.specs, keys, strict=False)])

    @property
    def speeds(self) -> Any:
        return self.tree.unflatten([s.std if s.tangent_std is None else s.tangent_std for s in self.specs])


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
    many, at least 2. key: a JAX random key. Outputs of shape O keep both their axes, (N1, N2, *O, *O). hypers: values
    of hyperparameters. Memory: one network and its Jacobian at a time. Errors fall like 1/sqrt(samples); the mean
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
    found = draws(
        as_model(net, jax.tree.map(lambda a: np.asarray(a)[0], x)), x, width, samples, key, x2=x2, hypers=hypers
    )
    means = [np.mean(k, 0) for k in found]
    errors = [np.std(k, 0, ddof=1) / np.sqrt(samples) for k in found]
    return MonteCarlo(KernelResult(*means), KernelResult(*errors))


def draws(
    model: Model, x: Any, width: int, samples: int, key: jax.Array, *, x2: Any = None, first: tuple[int, ...] = (),
    hypers: Mapping[str, float] | None = None,
) -> KernelResult:  # fmt: skip
    """The kernels of each of `samples` networks: (samples, N1, N2, *O, *O). first: as for output axes that are copies."""
    if not isinstance(width, int) or width < 1:
        raise InputError(f"width is {width!r}, expected a positive whole number")
    if not isinstance(samples, int) or samples < 2:
        raise InputError(f"samples is {samples!r}, expected a whole number >= 2: one draw has no standard error")
    if count(x, "x") == 0:
        raise InputError("x holds no inputs, expected at least one")
    made = _sampler(model, width, first, dict(hypers or {}))
    with precision():
        last = _last_layer(made, widened(x), key)
    with precision(np.float32):
        here = widened(x, np.float32)
        there = here if x2 is None else widened(x2, np.float32)

        def kernels(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            params = made.draw(key)
            of = partial(Empirical, made.run, params, output="full", method="jacobian")
            ntk = of(speeds=made.speeds)(here, there, get="ntk")
            nngp = of()(here, there, get="nngp") if last is None else of(speeds=last)(here, there, get="ntk")
            return nngp, ntk

        found = jax.jit(lambda keys: jax.lax.map(kernels, keys))(jax.random.split(key, samples))
        return KernelResult(*(np.asarray(k, np.float64) for k in found))


def _last_layer(made: _Sampler, x: Any, key: jax.Array) -> Any:
    """Standard deviations of Gaussian parameters in which the network is linear, 0 for all others; None if there are none.

    Tried with random numbers, in float64: a set counts if the output is linear in it, jointly, and vanishes where it is
    zero.
    """
    params, other = made.draw(key), made.draw(jax.random.fold_in(key, 1))
    leaves, moves = jax.tree.leaves(params), jax.tree.leaves(other)
    run = jax.jit(lambda p: jax.vmap(lambda one: made.run(made.tree.unflatten(p), one))(x))
    value = run(leaves)
    small = 1e-9 * float(jnp.abs(value).max())

    def at(chosen: list[int], sign: float) -> jax.Array:
        return run([p + sign * m if i in chosen else p for i, (p, m) in enumerate(zip(leaves, moves, strict=True))])

    def affine(chosen: list[int]) -> bool:
        return bool(jnp.abs(at(chosen, 1.0) + at(chosen, -1.0) - 2 * value).max() <= small)

    # Later layers first: in a linear network any one layer will do, and the last is the one that nothing follows.
    gaussian = [i for i, s in enumerate(made.specs) if isinstance(s, Gaussian) and s.std > 0]
    chosen: list[int] = []
    for i in reversed(gaussian):
        if affine([*chosen, i]):
            chosen.append(i)
    empty = run([jnp.zeros_like(p) if i in chosen else p for i, p in enumerate(leaves)])
    if not chosen or bool(jnp.abs(empty).max() > small):
        return None
    return made.tree.unflatten([s.std if i in chosen else 0.0 for i, s in enumerate(made.specs)])
