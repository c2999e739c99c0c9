"""Kernels of the modules themselves at finite width: built by their own initialisers, run by their own library.

Nothing of `tensorprog.models` takes part but the scale in which each parameter is trained. Parameters whose law the
limit depends on are drawn again as Gaussians of the same standard deviation, unless a test is about just that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import tensorprog as tp
from tests.models.zoo import Model
from tests.sampling import Kernels, Report, Sample, Z, bias_exponent, extrapolate, scaled_entries, spread_exponent


def path_name(path: Any) -> str:
    return ".".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path).removesuffix(
        ".value"
    )


def kernels(
    case: Model, width: int, key: jax.Array, scales: Mapping[str, float], redrawn: Mapping[str, float], xs: jax.Array
) -> Kernels:
    """NNGP (a mean over as many features as the model is wide) and NTK (of one feature) of one draw. scales: what
    the gradient of each parameter is multiplied by."""
    own, fresh = jax.random.split(key)
    if case.door is tp.from_flax:
        graph, params, rest = nnx.split(case.build(width, nnx.Rngs(own), features=width), nnx.Param, ...)
        run = lambda params, x: case.call(nnx.merge(graph, params, rest, copy=True), x)
    else:
        params, rest = eqx.partition(case.build(width, own, features=width), eqx.is_inexact_array)
        run = lambda params, x: case.call(eqx.combine(params, rest), x)
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [path_name(path) for path, _ in flat]
    keys = jax.random.split(fresh, len(names))
    leaves = [
        redrawn[name] * jax.random.normal(k, leaf.shape) if name in redrawn else leaf
        for name, k, (_, leaf) in zip(names, keys, flat, strict=True)
    ]
    params = jax.tree.unflatten(tree, leaves)
    outputs = jax.vmap(lambda x: run(params, x))(xs)
    gradients = jax.tree.leaves(jax.vmap(lambda x: jax.grad(lambda p: run(p, x)[0])(params))(xs))
    rows = [scales[name] * g.reshape(len(xs), -1) for name, g in zip(names, gradients, strict=True)]
    return outputs @ outputs.T / outputs.shape[-1], sum(g @ g.T for g in rows)


def report(
    case: Model,
    scales: Any,
    redrawn: Mapping[str, float],
    limit: Kernels,
    widths: Sequence[int],
    draws: Sequence[int],
    xs: np.ndarray,
) -> Report:
    """Draw the module at every width and compare with the limit. scales: `scales(width)`."""
    units = tuple(float(np.abs(k).max()) for k in limit)
    target = scaled_entries(tuple(np.asarray(k, float) for k in limit), units)
    samples = []
    with jax.enable_x64(False):
        for width, count in zip(widths, draws, strict=True):
            one = lambda key, width=width: kernels(
                case, width, key, scales(width), redrawn, jnp.asarray(xs, jnp.float32)
            )
            found = jax.jit(lambda keys, one=one: jax.lax.map(one, keys))(
                jax.random.split(jax.random.key(width), count)
            )
            samples.append(Sample(width, scaled_entries(found, units)))
    offset, error = extrapolate(samples, target)
    return Report(offset, error, bias_exponent(samples, target), spread_exponent(samples))


def check(found: Report, resolution: float, spread: float = 0.5) -> None:
    """The limit is met, what one draw strays by falls like n^-spread, and the bias like 1/n where it can be told."""
    assert found.error.max() <= resolution, f"too few draws to tell: {found}"
    assert np.all(np.abs(found.offset) <= Z * found.error), f"the limit is not met: {found}"
    assert spread in found.spread, f"the fluctuation does not fall like n^-{spread}: {found}"
    assert 0.0 not in found.spread, f"too few draws to see the fluctuation fall: {found}"
    if found.bias is not None:
        assert 1.0 in found.bias, f"the bias does not fall like 1/n: {found}"
