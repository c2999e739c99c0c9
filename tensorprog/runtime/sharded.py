"""Kernel matrices over many devices: each computes its share of the rows, with all columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tensorprog.errors import InputError
from tensorprog.runtime.assembly import Pairs, turned, upper
from tensorprog.runtime.gram import SHARP, Gram, refined
from tensorprog.runtime.kernel import GET, Functions, Hypers, Leaves, float_dtype
from tensorprog.runtime.refine import in_float64, stds_of

__all__ = ["ShardedGram"]


class ShardedGram(Gram):
    """Whole kernel matrices, their rows spread over the devices of a mesh (over all of its axes). No device holds more of the
    result than its rows, and none waits for another: the inputs are copied to all before."""

    def __init__(self, made: Functions, mesh: Mesh, average: bool = False):
        if not isinstance(mesh, Mesh):
            raise InputError(
                f"shard: mesh is a {type(mesh).__name__}, expected a jax.sharding.Mesh, as jax.make_mesh((jax.device_count(),), ('rows',)) "
                "gives"
            )
        super().__init__(made, average=average)
        self._mesh = Mesh(mesh.devices.reshape(-1), ("rows",))
        self._refine, self._sharp = refined(made), None if made.sharp is None else jax.jit(made.sharp)
        local, rows = Gram(made), PartitionSpec("rows")

        @partial(jax.jit, static_argnames="get")
        def spread(x1: Leaves, x2: Leaves, hypers: Hypers, get: tuple[str, ...]) -> list[jax.Array]:
            own = jax.shard_map(
                lambda some, other, values: local.traced(some, other, values, get),
                mesh=self._mesh,
                in_specs=(rows, PartitionSpec(), PartitionSpec()),
                out_specs=rows,
                check_vma=False,
            )
            return own(x1, x2, hypers)

        self._spread = spread

    def __call__(
        self, x1: Leaves, x2: Leaves | None, hypers: Hypers, get: tuple[str, ...],
        progress: Callable[[Iterable[Any], int], Iterable[Any]], loose: bool = False,
    ) -> list[Any]:  # fmt: skip
        """The matrices named by `get`, sharded by rows. progress: not shown, the devices work at once. loose: nothing is checked."""
        other = x1 if x2 is None else x2
        n1, n2 = len(x1[0]), len(other[0])
        if n1 == 0 or n2 == 0:
            return super().__call__(x1, x2, hypers, get, progress)
        if float_dtype(x1) == np.float32 and self._asks_for_float64(x1, x2, hypers, get):
            return in_float64(lambda a, b, values: self(a, b, values, get, progress), x1, x2, hypers)
        refine = self._refine if "ntk" in get and float_dtype(x1) == np.float32 else None
        names = get if refine is None else GET
        found = dict(zip(names, self._rows_of(x1, other, hypers, names), strict=True))
        if refine is not None:
            (own1, ntk), (own2, _) = (self.diagonal(x, hypers) for x in (x1, other))
            pairs = Pairs(*np.nonzero(np.asarray(refine.near(found["nngp"], stds_of(own1), stds_of(own2)))))
            if len(pairs.i):
                itself = refine.near_itself(np.asarray(own1))
                mended = refine.mended(x1, other, np.asarray(ntk), itself, hypers, pairs)
                found["ntk"] = found["ntk"].at[pairs.i, pairs.j].set(mended)
        kernels = [found[name] for name in get]
        return [_mirrored(k) for k in kernels] if x2 is None else kernels

    def _asks_for_float64(self, x1: Leaves, x2: Leaves | None, hypers: Hypers, get: tuple[str, ...]) -> bool:
        sides = [x for x in (x1, x2) if x is not None]
        sharp = self._sharp is not None and any(float(self._sharp(x, hypers).max()) > SHARP for x in sides)
        return sharp or not set(get).isdisjoint(self._in_float64)

    def _rows_of(self, x1: Leaves, x2: Leaves, hypers: Hypers, get: tuple[str, ...]) -> list[jax.Array]:
        """Whole matrices, an equal number of rows on each device."""
        n = len(x1[0])
        rows = math.ceil(n / self._mesh.size) * self._mesh.size  # the last row again, so that all devices have as many
        padded = [jnp.take(leaf, np.minimum(np.arange(rows), n - 1), axis=0) for leaf in x1]
        placed = jax.device_put(padded, NamedSharding(self._mesh, PartitionSpec("rows")))
        everywhere = jax.device_put((x2, hypers), NamedSharding(self._mesh, PartitionSpec()))
        return [k[:n] for k in self._spread(placed, *everywhere, get)]


@jax.jit
def _mirrored(matrix: jax.Array) -> jax.Array:
    """With what stands above the diagonal below it: sums in another order differ in the last digit."""
    return jnp.where(upper(matrix.shape, 0, 0), matrix, turned(matrix, (matrix.ndim - 2) // 2))
