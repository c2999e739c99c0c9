"""JAX functions run by NumPy: the same values and dtypes as by XLA, whatever NumPy has a row for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ntk_rules import interpreted
from ntk_rules.interpreted import by_numpy

RANDOM = np.random.default_rng(3)
X = RANDOM.uniform(0.1, 0.9, (3, 4))
Y = RANDOM.standard_normal((3, 4))
N = np.array([[3, -5, 0, 7], [1, 2, -9, 4], [8, 8, -2, 1]])

UNARY = (
    jnp.exp, jnp.exp2, jnp.log, jnp.log1p, jnp.expm1, jnp.sqrt, jnp.cbrt, jnp.sin, jnp.cos, jnp.tan, jnp.sinh, jnp.cosh, jnp.tanh,
    jnp.arcsin, jnp.arccos, jnp.arctan, jnp.arcsinh, lambda x: jnp.arccosh(1 + x), jnp.arctanh, lax.rsqrt, jax.nn.sigmoid, jnp.square,
    lambda x: lax.integer_pow(x, -3), lambda x: lax.integer_pow(x, 0), lambda x: lax.integer_pow(x, 11), jnp.floor, jnp.ceil, jnp.sign,
    lambda x: jnp.clip(x, 0.3, 0.6), jnp.isfinite, jnp.cumsum, lambda x: lax.cumsum(x, 1, reverse=True), lambda x: lax.cummax(x, 1),
    lambda x: jnp.cumprod(x, 0), lambda x: jnp.prod(x, 1), lambda x: jnp.max(x, 0), jnp.min, lambda x: x[::-1, 1:3], lambda x: x.T,
    lambda x: jnp.pad(x, ((1, 2), (0, 3)), constant_values=2.0), lambda x: lax.pad(x, x[0, 0], ((1, 0, 2), (0, 1, 1))),
    lambda x: lax.pad(x, x[0, 0], ((-1, 0, 0), (0, 1, 1))), lambda x: jnp.stack([x, 2 * x], 1), lambda x: jnp.concatenate([x, x], 1),
    lambda x: lax.dynamic_slice(x, (5, 1), (2, 2)), lambda x: lax.dynamic_update_slice(x, x[:2, :2], (-1, 3)),
    lambda x: lax.bitcast_convert_type(x, jnp.uint32 if x.dtype == jnp.float32 else jnp.uint64), lambda x: x.astype(jnp.int32),
    lambda x: jnp.where(x > 0.5, x, jnp.arange(4.0)), lambda x: jax.scipy.special.erf(x), lambda x: jnp.sort(x, 1),
    lambda x: x[jnp.array([2, 0])], lambda x: jnp.real(lax.complex(x, 2 * x) * 1j), lambda x: jnp.abs(lax.complex(x, x)),
    lambda x: jnp.real(lax.complex(x, 1 / (x - x))),
    lambda x: jax.random.uniform(jax.random.key(3), (4,)) * x,
    lambda x: lax.optimization_barrier(x) + 1, lambda x: jnp.linspace(0, 1, 5) * x[0, 0],
    lambda x: lax.stop_gradient(x) / 3,
)  # fmt: skip
BINARY = (
    jnp.add, jnp.subtract, jnp.multiply, jnp.divide, jnp.maximum, jnp.minimum, jnp.power, jnp.arctan2, jnp.equal, jnp.less,
    lambda x, y: lax.rem(y, x), lambda x, y: x @ y.T, lambda x, y: jnp.einsum("ij,ij->i", x, y),
    lambda x, y: jnp.einsum("ia,jb->abij", x, y), lambda x, y: jnp.einsum("ij,kj->jik", x, y),
    lambda x, y: jnp.add(*lax.reduce((x, y), (x.dtype.type(2),) * 2, lambda a, b: (a[0] + b[0], a[1] + b[1]), (1,))),
    lambda x, y: jnp.add(*lax.reduce((x, y), (x.dtype.type(2),) * 2, lambda a, b: (a[0] + b[0], a[1] * b[1]), (0,))),
    lambda x, y: (x > y) & ~(y < 0) | (x < 0.2), lambda x, y: jnp.where(jnp.any(x > y, 0), 1.0, jnp.all(x < 2)),
)  # fmt: skip
WHOLE = (
    lambda n: n % 3, lambda n: n // 2, lambda n: n * 5 - 1, lambda n: abs(n), lambda n: n.astype(jnp.uint32) >> 3, lambda n: n ^ 21,
    lambda n: lax.shift_right_logical(n, 2), lambda n: n.astype(float) / 2, lambda n: lax.select_n(n % 3, n, 2 * n, 3 * n),
)  # fmt: skip


def same(found: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def at_once(functions: Sequence[Callable]) -> Callable:
    """The values of all of them, which XLA compiles together: one by one would take it most of the time."""
    return jax.jit(lambda *x: [f(*x) for f in functions])


@pytest.mark.long
def test_every_operation_is_what_it_is_in_jax() -> None:
    """Rows of the table, and what has none."""
    with jax.enable_x64(True):
        for dtype, tolerance in ((np.float32, 3e-6), (np.float64, 1e-14)):
            x, y = X.astype(dtype), Y.astype(dtype)
            same([by_numpy(f)(x) for f in UNARY], at_once(UNARY)(x), tolerance)
            same([by_numpy(f)(x, y) for f in BINARY], at_once(BINARY)(x, y), tolerance)
        same([by_numpy(f)(N) for f in WHOLE], at_once(WHOLE)(N), 0)


@jax.custom_jvp
def doubled(x: jax.Array) -> jax.Array:
    return 2 * x


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2 * tangents[0]))


@jax.custom_batching.custom_vmap
def summed(x: jax.Array) -> jax.Array:
    return x + jnp.sum(x)


@summed.def_vmap
def _summed(size: int, batched: Any, x: jax.Array) -> tuple[jax.Array, bool]:
    return jax.vmap(lambda row: row + jnp.sum(row))(x), True


def backwards(x: jax.Array) -> Any:
    return lax.scan(lambda c, row: (c * 0.5 + row, c), jnp.zeros(4, x.dtype), x, reverse=True)


def halved(x: jax.Array) -> jax.Array:
    return lax.while_loop(lambda s: s[1] > 1, lambda s: (s[0] + 1, s[1] / 2 + x.min()), (0, 100 * x.max()))[1]


def branched(x: jax.Array) -> jax.Array:
    inner = lambda v: lax.cond(v.sum() > 1, lambda u: u * 3, lambda u: u - 1, v)
    return lax.switch(jnp.int32(7), (jnp.sin, jnp.cos, inner), x) + lax.cond(x[0, 0] < 0, jnp.tan, jnp.exp, x)


CONTROL: tuple[Callable[[jax.Array], Any], ...] = (
    backwards, halved, branched, jax.jit(lambda x: jax.jit(jnp.sin)(x) + 1), doubled, summed, jax.vmap(summed),
    jax.grad(lambda x: doubled(x).sum()),
    lambda x: lax.map(lambda row: row * row.sum(), x), lambda x: lax.fori_loop(0, 5, lambda k, c: c + k * x, x), jax.checkpoint(jnp.sin),
    lambda x: {"a": x, "b": (x.sum(), jnp.zeros(()))},
)  # fmt: skip


@pytest.mark.parametrize("much", [1e9, 0])
def test_calls_branches_and_loops(much: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walked into, or left to JAX."""
    monkeypatch.setattr(interpreted, "_MUCH", much)
    x = X.astype(np.float32)
    for f in CONTROL:
        same(by_numpy(f)(x), f(jnp.asarray(x)), 1e-6)


def test_a_branch_that_is_not_taken_is_not_computed() -> None:
    asked = []

    def noted(x: np.ndarray) -> np.ndarray:
        asked.append(1)
        return x

    slow = lambda x: jax.pure_callback(noted, jax.ShapeDtypeStruct((), np.float32), x)
    f = lambda x: lax.cond(x > 0, lambda: x, lambda: slow(x))
    assert by_numpy(f)(np.float32(2)) == 2 and not asked
    assert by_numpy(f)(np.float32(-2)) == -2 and asked == [1]


def test_what_is_made_of_constants_alone_is_made_once() -> None:
    table = jax.jit(lambda n: jnp.sin(n))
    f = lambda x: x + table(np.arange(4.0, dtype=np.float32)) + table(np.arange(4.0, dtype=np.float32))
    program = interpreted._Program(1)
    traced = jax.make_jaxpr(f)(np.zeros(4, np.float32))
    program.add(traced.jaxpr, [0], traced.consts)
    assert (len(program.fixed), len(program.steps)) == (1, 2)
    same(by_numpy(f)(np.zeros(4, np.float32)), f(jnp.zeros(4, np.float32)), 1e-6)


def test_what_is_left_to_jax_is_compiled_once_for_all_its_equations() -> None:
    compiled = interpreted._jitted
    compiled.cache_clear()
    erf = jax.scipy.special.erf
    for _ in range(2):
        found = by_numpy(lambda x: erf(erf(x) + 1) + erf(2 * x))(X)
    np.testing.assert_allclose(found, erf(erf(X) + 1) + erf(2 * X), rtol=1e-14)
    assert compiled.cache_info().currsize == 1


def test_within_a_trace_and_where_constants_are_computed_at_once() -> None:
    """Nothing of it is staged into the function that asks, nor computed by JAX before."""
    f = lambda x: jnp.sum(jnp.tanh(x) * jnp.sin(jnp.arange(3.0)))

    def asking(y: jax.Array) -> jax.Array:
        with jax.ensure_compile_time_eval():
            return y * float(by_numpy(f)(np.ones(3, np.float32)))

    jaxpr = jax.make_jaxpr(asking)(1.0)
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["mul"]
    np.testing.assert_allclose(jax.jit(asking)(1.0), f(jnp.ones(3)), rtol=1e-6)
