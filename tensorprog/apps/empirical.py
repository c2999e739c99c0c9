"""The kernels of one network of finite width, at its parameters of the moment.

The empirical NTK of f at parameters p is the sum over parameters w of s_w^2 (df(x)/dw) (df(x')/dw), with s_w the speed at
which w is trained (its `tangent_std`). Three ways lead to it, compared by Novak, Sohl-Dickstein and Schoenholz 2022 (Fast
finite width neural tangent kernel, section 3): contracting Jacobians; NTK-vector products, which never hold a Jacobian; and
structured derivatives, which are the factors of Jacobians at every use of a parameter (`apps.structured`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.apps.checks import check_params, check_whole, output_of
from tensorprog.apps.grams import as_numpy, check_number, count
from tensorprog.apps.structured import cost, structured
from tensorprog.errors import InputError
from tensorprog.runtime import KernelResult
from tensorprog.runtime.inputs import is_traced
from tensorprog.runtime.kernel import check_get

__all__ = ["METHODS", "OUTPUTS", "Empirical", "operations"]

METHODS = ("auto", "structured", "jacobian", "products")
OUTPUTS = ("trace", "diagonal", "full")
BYTES = 2**29  # what `auto` lets the Jacobians of two batches fill, or the largest array of a structured contraction


class Empirical:
    """The empirical NNGP kernel and NTK of a network, called like a compiled kernel.

    f: f(params, x), for one example, any JAX, Flax or Equinox function. params: a pytree of arrays. speeds: a pytree like
    params of numbers, or one number: the `tangent_std` of each (default 1, 0 leaves a parameter out; `apps.speeds`). output: for outputs of
    shape O, "trace" averages over them, (N1, N2); "diagonal" is (N1, N2, *O); "full" is (N1, N2, *O, *O), which
    is what `Training` takes for targets (N, *O). method: "structured", "jacobian", "products" (NTK-vector products), or "auto": the
    one of fewest operations by count, if its memory allows. batch: how many inputs at a time, of both sides.

    `params` may be set anew, as while training. Values have the dtype of the outputs; nothing here changes JAX's
    precision. Raises InputError for unknown names.

    Example:
        >>> import jax, jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> net = lambda x: nn.dense(jnp.tanh(nn.dense(x)), features=1)
        >>> params = tp.init(net, jnp.zeros(3), 256, jax.random.key(0))
        >>> kernel = apps.Empirical(lambda p, x: tp.apply(net, p, x), params)
        >>> kernel(jnp.eye(3), jnp.ones((2, 3))).ntk.shape
        (3, 2)
    """

    def __init__(
        self, f: Callable[[Any, Any], Any], params: Any, *, speeds: Any = 1.0, output: str = "trace", method: str = "auto",
        batch: int | None = None,
    ):  # fmt: skip
        if output not in OUTPUTS:
            raise InputError(f"Empirical: output is {output!r}, expected one of {', '.join(OUTPUTS)}")
        if method not in METHODS:
            raise InputError(f"Empirical: method is {method!r}, expected one of {', '.join(METHODS)}")
        if batch is not None:
            check_whole(batch, "Empirical: batch", 1, ", or None")
        if not callable(f):
            raise InputError(f"Empirical: f is a {type(f).__name__}, expected a function f(params, x)")
        check_params(params, "Empirical: params")
        self.f, self.params, self.output, self.method, self.batch = f, params, output, method, batch
        self._speeds = self._read(speeds)
        self._block = jax.jit(self._both, static_argnames=("get", "method"))

    def __getstate__(self) -> dict[str, Any]:
        """What other processes need, who compile it anew. Arrays as NumPy has them: where JAX runs in 32 bits it would round others."""
        own = {name: value for name, value in self.__dict__.items() if name != "_block"}
        return {**own, "params": as_numpy(self.params)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._block = jax.jit(self._both, static_argnames=("get", "method"))

    def _read(self, speeds: Any) -> Any:
        speed = lambda value: check_number(value, "Empirical: a speed")
        if isinstance(speeds, str) or (np.ndim(speeds) == 0 and jax.tree_util.all_leaves([speeds])):
            known = speed(speeds)
            return jax.tree.map(lambda _: known, self.params)
        if isinstance(speeds, Mapping) and isinstance(self.params, Mapping):
            # By name: mappings of two kinds are flattened in two orders.
            named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(speeds)}
            names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(self.params)]
            if set(named) == set(names):
                return jax.tree.unflatten(jax.tree.structure(self.params), [speed(named[name]) for name in names])
        if str(jax.tree.structure(speeds)) != str(jax.tree.structure(self.params)):
            raise InputError(
                f"Empirical: speeds has the structure {jax.tree.structure(speeds)}, expected one number, or that of params, "
                f"{jax.tree.structure(self.params)}"
            )
        return jax.tree.map(speed, speeds)

    def __call__(self, x1: Any, x2: Any = None, *, get: Any = None) -> Any:
        """The kernel matrices of the inputs x1 (N1, *example) and x2, as of a compiled kernel."""
        names = check_get(get, "Empirical")
        first = jax.tree.map(jnp.asarray, x1)
        second = first if x2 is None else jax.tree.map(jnp.asarray, x2)
        for name, x in (("x1", first), ("x2", second)):
            count(x, name)
            bad = [a for a in jax.tree.leaves(x) if not is_traced(a) and not np.isfinite(a).all()]
            if bad:
                raise InputError(f"Empirical: {name} has NaN or infinity, expected finite numbers")
            output_of(self.f, self.params, _one(x), f"Empirical: {name}")
        method = self.chosen(first, second) if self.method == "auto" else self.method
        found = self._tiles(first, second, names, method)
        if get is None:
            return KernelResult(*found)
        return found[0] if isinstance(get, str) else tuple(found)

    def chosen(self, x1: Any, x2: Any) -> str:
        """The method that "auto" takes for these inputs: fewer counted operations within the memory."""
        counted = {name: operations for name, (operations, bytes_) in self.costs(x1, x2).items() if bytes_ <= BYTES}
        return min(counted, key=lambda name: counted[name], default="products")

    def costs(self, x1: Any, x2: Any) -> dict[str, tuple[float, float]]:
        """For each method the operations for these inputs, and the bytes of the largest arrays it holds, both counted."""
        one, full = _one(jax.tree.map(jnp.asarray, x1)), self.output == "full"
        out = jax.eval_shape(self.f, self.params, one)
        forward = operations(self.f, self.params, one)
        size, outputs = sum(np.size(p) for p in jax.tree.leaves(self.params)), math.prod(out.shape)
        n1, n2 = (count(x, "x") for x in (x1, x2))
        tile = min(n1, self.batch or n1), min(n2, self.batch or n2)
        tiles = n1 * n2 / max(1, tile[0] * tile[1])
        # A reverse pass costs two forward ones, for derivatives by hidden values and by parameters; the structured one has the former.
        jacobian = (n1 + n2) * (1 + 2 * outputs) * forward
        jacobian += 2 * n1 * n2 * size * outputs * (outputs if full else 1)
        products = n1 * n2 * outputs * 6 * forward  # a reverse and a forward derivative for each pair and output
        speeds = jax.tree.leaves(self._speeds)
        found = cost(self.f, self.params, speeds, one, (*tile, outputs), full=full, entries=BYTES / out.dtype.itemsize)
        factors = (n1 + n2) * (1 + outputs) * forward + tiles * found.operations
        entries = {"structured": found.largest, "jacobian": sum(tile) * outputs * size, "products": 0}
        counted = {"structured": factors, "jacobian": jacobian, "products": products}
        return {name: (counted[name], entries[name] * out.dtype.itemsize) for name in counted}

    # ---- tiles

    def _tiles(self, x1: Any, x2: Any, names: tuple[str, ...], method: str) -> list[jax.Array]:
        n1, n2 = count(x1, "x1"), count(x2, "x2")
        step = self.batch or max(n1, n2, 1)
        parts = [
            [
                self._block(self.params, _rows(x1, i, step), _rows(x2, j, step), get=names, method=method)
                for j in range(0, n2, step)
            ]
            for i in range(0, n1, step)
        ]
        if not parts or not parts[0]:
            shapes = jax.eval_shape(partial(self._both, get=names, method=method), self.params, x1, x2)
            return [jnp.zeros(s.shape, s.dtype) for s in shapes]
        joined = [[jnp.concatenate([part[k] for part in row], 1) for row in parts] for k in range(len(names))]
        return [jnp.concatenate(rows, 0) for rows in joined]

    def _both(self, params: Any, x1: Any, x2: Any, *, get: Sequence[str], method: str) -> list[jax.Array]:
        """Compiled with the parameters as an argument: `params` may be set anew between two calls."""
        ways = {"structured": self._structured, "jacobian": self._jacobian, "products": self._products}
        made = {"nngp": self._nngp, "ntk": ways[method]}
        return [made[name](params, x1, x2) for name in get]

    # ---- kernels of one tile

    def _flat(self, params: Any, x: Any) -> jax.Array:
        return jnp.ravel(self.f(params, x))

    def _outputs(self, x: Any) -> tuple[int, ...]:
        return jax.eval_shape(self.f, self.params, _one(x)).shape

    def _shaped(self, kernel: jax.Array, x: Any) -> jax.Array:
        """(N1, N2, O) as "trace" or "diagonal", (N1, N2, O, O) as "full"."""
        axes = self._outputs(x)
        if self.output == "trace":
            return jnp.mean(kernel, axis=2)
        return kernel.reshape(*kernel.shape[:2], *axes, *(axes if self.output == "full" else ()))

    def _nngp(self, params: Any, x1: Any, x2: Any) -> jax.Array:
        a, b = (jax.vmap(lambda x: self._flat(params, x))(x) for x in (x1, x2))
        return self._shaped(jnp.einsum("io,jp->ijop" if self.output == "full" else "io,jo->ijo", a, b), x1)

    def _jacobian(self, params: Any, x1: Any, x2: Any) -> jax.Array:
        rows = [jax.vmap(lambda x: jax.jacrev(self._flat)(params, x))(x) for x in (x1, x2)]
        total: Any = 0.0
        for a, b, speed in zip(*map(jax.tree.leaves, (*rows, self._speeds)), strict=True):
            if speed:
                flat = [j.reshape(*j.shape[:2], -1) for j in (a, b)]
                total = total + speed**2 * jnp.einsum(
                    "iok,jpk->ijop" if self.output == "full" else "iok,jok->ijo", *flat
                )
        return self._shaped(total if np.ndim(total) else jnp.zeros_like(self._pairs(x1, x2)), x1)

    def _structured(self, params: Any, x1: Any, x2: Any) -> jax.Array:
        if not count(x1, "x1") or not count(x2, "x2"):
            return self._shaped(self._pairs(x1, x2), x1)
        speeds, full = jax.tree.leaves(self._speeds), self.output == "full"
        entries = BYTES / jax.eval_shape(self.f, params, _one(x1)).dtype.itemsize
        return self._shaped(structured(self.f, params, [speeds], x1, x2, full=full, entries=entries)[0], x1)

    def _pairs(self, x1: Any, x2: Any) -> jax.Array:
        o = math.prod(self._outputs(x1))
        return jnp.zeros((count(x1, "x1"), count(x2, "x2"), o, *([o] if self.output == "full" else [])))

    def _products(self, params: Any, x1: Any, x2: Any) -> jax.Array:
        """Theta e_o, one output at a time: a reverse derivative at x', carried forward at x."""
        size = math.prod(self._outputs(x1))

        def column(x: Any, other: Any, basis: jax.Array) -> jax.Array:
            _, pull = jax.vjp(lambda p: self._flat(p, other), params)
            moved = jax.tree.map(lambda g, s: s**2 * g, pull(basis)[0], self._speeds)
            return jax.jvp(lambda p: self._flat(p, x), (params,), (moved,))[1]

        dtype = jax.eval_shape(self._flat, params, _one(x1)).dtype
        every = jax.vmap(column, (None, None, 0))  # (O of x', O of x)
        pairs = jax.vmap(jax.vmap(every, (None, 0, None)), (0, None, None))(x1, x2, jnp.eye(size, dtype=dtype))
        full = jnp.swapaxes(pairs, 2, 3)
        return self._shaped(full if self.output == "full" else jnp.einsum("ijoo->ijo", full), x1)


def _one(x: Any) -> Any:
    """One example of a batch, of zeros: only its shape is looked at."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), x)


def _rows(x: Any, start: int, step: int) -> Any:
    return jax.tree.map(lambda a: a[start : start + step], x)


def operations(f: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of one call, by the compiler's count; by the size of the parameters where it has none."""
    analysis = jax.jit(f).lower(*args).cost_analysis() or {}
    return float(analysis.get("flops", 0.0)) or 2.0 * sum(np.size(p) for p in jax.tree.leaves(args[0]))
