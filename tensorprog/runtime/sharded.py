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
from tensorprog.runtime.kernel import Functions, Gram, Hypers, Leaves, mirrored

__all__ = ["ShardedGram"]


class ShardedGram(Gram):
    """Whole kernel matrices, their rows spread over the devices of a mesh (over all of its axes). No device holds more of the
    result than its rows, and none waits for another: the inputs are copied to all before."""

    def __init__(self, made: Functions, mesh: Mesh):
        if not isinstance(mesh, Mesh):
            raise InputError(
                f"shard: mesh is a {type(mesh).__name__}, expected a jax.sharding.Mesh, as jax.make_mesh((jax.device_count(),), ('rows',)) "
                "gives"
            )
        super().__init__(made)
        mesh = Mesh(mesh.devices.reshape(-1), ("rows",))
        self._mesh, self._rows = mesh, PartitionSpec("rows")
        local = Gram(made)

        @partial(jax.jit, static_argnames="get")
        def spread(x1: Leaves, x2: Leaves, hypers: Hypers, get: tuple[str, ...]) -> list[jax.Array]:
            own = jax.shard_map(
                lambda part, other, values: local.traced(part, other, values, get),
                mesh=mesh,
                in_specs=(self._rows, PartitionSpec(), PartitionSpec()),
                out_specs=self._rows,
                check_vma=False,
            )
            return own(x1, x2, hypers)

        self._spread = spread
        self._block = self._on_mesh

    def _on_mesh(self, x1: Leaves, x2: Leaves, hypers: Hypers, get: tuple[str, ...]) -> list[jax.Array]:
        placed = jax.device_put(x1, NamedSharding(self._mesh, self._rows))
        everywhere = jax.device_put((x2, hypers), NamedSharding(self._mesh, PartitionSpec()))
        return self._spread(placed, *everywhere, get)

    def __call__(
        self, x1: Leaves, x2: Leaves | None, hypers: Hypers, get: tuple[str, ...],
        progress: Callable[[Iterable[Any], int], Iterable[Any]],
    ) -> list[Any]:  # fmt: skip
        """The matrices named by `get`, sharded by rows. progress: not shown, the devices work at once."""
        n1, n2 = len(x1[0]), len((x1 if x2 is None else x2)[0])
        if n1 == 0 or n2 == 0:
            return super().__call__(x1, x2, hypers, get, progress)
        rows = math.ceil(n1 / self._mesh.size) * self._mesh.size  # the last row again, so that all devices have as many
        padded = [jnp.take(leaf, np.minimum(np.arange(rows), n1 - 1), axis=0) for leaf in x1]
        found = [k[:n1] for k in self._refined(padded, x1 if x2 is None else x2, hypers, get, False)]
        return [mirrored(k) for k in found] if x2 is None else found
