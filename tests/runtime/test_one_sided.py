"""What tiles read of one input: a function of two states in two steps is that function, and the second step has no operation of one state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tensorprog as tp
from ntk_rules.interpreted import called
from tensorprog import nn
from tensorprog.runtime.assembly import Ahead
from tensorprog.runtime.one_sided import Parted, Some

RANDOM = np.random.default_rng(5)
N1, N2, NODES = 3, 4, np.linspace(-1, 1, 9)
State = dict[str, Any]


def states(n: int) -> State:
    return {"v": RANDOM.uniform(0.5, 2, n), "x": RANDOM.standard_normal((n, 5)), "each": RANDOM.uniform(0.5, 2, (n, 3))}


@jax.jit
def correlation(c: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return c / jnp.sqrt(a) / jnp.sqrt(b)


@jax.custom_jvp
def ruled(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.exp(x))


ruled.defjvp(lambda primals, tangents: (ruled(primals[0]), tangents[0]))


def plain(a: State, b: State) -> tuple[jax.Array, ...]:
    return correlation(a["x"] @ b["x"], a["v"], b["v"]), ruled(a["v"]) + jnp.where(b["v"] > 1, a["v"] * b["v"], 0)


def loop(a: State, b: State) -> tuple[jax.Array, ...]:
    def step(carry: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        one, other = row
        carry = carry * jnp.sqrt(one) / jnp.log1p(other) + jnp.exp(a["v"])
        return carry, carry * b["v"]

    end, every = lax.scan(step, a["x"] @ b["x"], (a["each"], b["each"]), reverse=True)
    return end, every.sum()


def branches(a: State, b: State) -> tuple[jax.Array, ...]:
    which = (a["v"] > b["v"]).astype(int)
    codes = [lambda x, v, w: x * jnp.sqrt(v) * jnp.sqrt(w), lambda x, v, w: x - w, lambda x, v, w: v]
    return (lax.switch(which, codes, a["x"] @ b["x"], a["v"], b["v"]),)


def series(a: State, b: State) -> tuple[jax.Array, ...]:
    """Coefficients at the nodes of a quadrature are sums, which are kept, of values that are not; and what grows is not."""
    coefficients = [jnp.tanh(s["v"] * NODES) @ (NODES[:, None] ** np.arange(3)) for s in (a, b)]
    grown = jnp.outer(jnp.sin(a["x"]), jnp.sin(b["x"]))
    return (coefficients[0] * coefficients[1]).sum(), (grown + a["v"]).sum()


def sorted_rows(a: State, b: State) -> tuple[jax.Array, ...]:
    found = lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sort(s[1])[::-1]), (0, b["x"]))[1]
    return found @ a["x"], jnp.float64(2.0) * jnp.ones(2), a["v"]


def batched(pair: Callable[..., Any], axes: tuple[Any, Any] = (0, 0)) -> Callable[..., Any]:
    return jax.vmap(jax.vmap(pair, (None, axes[1])), (axes[0], None))


def one_of(state: State) -> State:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), state)


def left(made: Parted, first: Any, second: Any) -> list[str]:
    """The operations of the second step for one pair, calls and bodies taken apart."""
    found: list[str] = []

    def collect(jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            body = called(eqn)
            if body is not None:
                collect(body[0])
            elif eqn.primitive.name == "scan":
                collect(eqn.params["jaxpr"].jaxpr)
            elif eqn.primitive.name == "cond":
                for branch in eqn.params["branches"]:
                    collect(branch.jaxpr)
            else:
                found.append(eqn.primitive.name)

    collect(jax.make_jaxpr(made.two)(first, second).jaxpr)
    return found


@pytest.mark.parametrize("function", [plain, loop, branches, series, sorted_rows], ids=lambda f: f.__name__)
def test_in_two_steps_it_is_the_function(function: Callable[..., Any]) -> None:
    a, b = states(N1), states(N2)
    made = Parted(function, one_of(a))
    kept = [jax.vmap(made.one, out_axes=made.axes)(s) for s in (a, b)]
    for mine, right in zip(batched(made.two, (made.axes, made.axes))(*kept), batched(function)(a, b), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-13)


def nested(a: State, b: State) -> tuple[jax.Array, ...]:
    """A loop in a loop, a stack that is read as a whole too, one whose rows are arrays, and one of both inputs."""

    def step(carry: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        one, other, wide = row
        carry = lax.scan(lambda c, r: (c + jnp.sqrt(r) * other, None), carry, a["each"] * one)[0]
        return carry * jnp.sqrt(one) + (wide * b["x"]).sum(), carry

    wide = a["each"][:, None] * a["x"]
    end, every = lax.scan(step, a["x"] @ b["x"], (a["each"], b["each"], wide))
    again, _ = lax.scan(lambda c, r: (c * r[0] + r[1], None), end, (every, b["each"]), reverse=True)
    return again, every, a["each"] * b["v"]


@pytest.mark.parametrize("function", [plain, loop, branches, series, sorted_rows, nested], ids=lambda f: f.__name__)
@pytest.mark.parametrize("starts", [(0, 0), (2, 1), (4, 2)])
def test_some_pairs_are_those_of_all(function: Callable[..., Any], starts: tuple[int, int]) -> None:
    s = states(N1 + N2)
    made = Parted(function, one_of(s))
    kept = jax.vmap(made.one, out_axes=made.axes)(s)
    found = jax.jit(lambda kept, i, j: made.pairs(Some(kept, i, N1), Some(kept, j, N2)))(kept, *starts)
    first, second = (
        jax.tree.map(lambda a, at=at, n=n: a[at : at + n], s) for at, n in zip(starts, (N1, N2), strict=True)
    )
    for mine, right in zip(found, batched(function)(first, second), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-13)


def test_a_tile_cuts_nothing_out_of_stacks() -> None:
    """Rows are read where they stand, within the loop."""
    s = states(N1)
    made = Parted(loop, one_of(s))
    kept = jax.vmap(made.one, out_axes=made.axes)(s)
    assert 1 in made.axes
    jaxpr = jax.make_jaxpr(lambda kept: made.pairs(Some(kept, 0, N1), Some(kept, 0, 2)))(kept).jaxpr
    outside = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dynamic_slice"]
    assert len(outside) == 2 * made.axes.count(0)


@pytest.mark.parametrize(
    ("function", "before"),
    [
        (plain, {"sqrt", "exp", "gt"}),
        (loop, {"sqrt", "log1p", "exp"}),
        (branches, {"sqrt"}),
        (series, {"tanh", "dot_general", "sin"}),
        (sorted_rows, {"sort", "while"}),
    ],
    ids=lambda f: getattr(f, "__name__", ""),
)
def test_what_is_of_one_state_is_not_left(function: Callable[..., Any], before: set[str]) -> None:
    state = jax.tree.map(lambda a: a[0], states(1))
    made = Parted(function, jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), np.result_type(a)), state))
    kept = made.one(state)
    assert not before & set(left(made, kept, kept))


def test_what_both_sides_ask_is_kept_once() -> None:
    state = one_of(states(1))
    assert len(Parted(lambda a, b: (jnp.sqrt(a["v"]) * jnp.sqrt(b["v"]),), state).axes) == 1
    assert len(Parted(lambda a, b: (jnp.sqrt(a["v"]) * jnp.cbrt(b["v"]),), state).axes) == 2
    table, same = jnp.asarray(NODES), jax.jit(lambda v: jnp.sum(jnp.asarray(NODES) * v))
    assert len(Parted(lambda a, b: (jnp.sum(table * a["v"]) * jnp.sum(table * b["v"]),), state).axes) == 1
    assert len(Parted(lambda a, b: (same(a["v"]) * same(b["v"]),), state).axes) == 1


def test_what_is_larger_than_what_it_is_made_of_is_not_kept() -> None:
    state = states(2)
    made = Parted(lambda a, b: (jnp.sin(a["v"] * NODES) + b["v"],), one_of(state))
    assert all(np.ndim(k) == 1 for k in jax.vmap(made.one)(state))


def test_a_long_chain_in_a_loop_is_read_once() -> None:
    """Each link is read twice by the next: along every path there would be 2^60."""

    def chain(a: State, b: State) -> tuple[jax.Array, ...]:
        def step(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            value = a["v"]
            for _ in range(60):
                value = (value + value) / 2
            return carry * value, None

        return (lax.scan(step, b["v"], None, 2)[0],)

    state = jax.tree.map(lambda a: a[0], states(1))
    made = Parted(chain, jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), np.result_type(a)), state))
    kept = made.one(state)
    np.testing.assert_allclose(made.two(kept, kept)[0], state["v"] ** 3, rtol=1e-13)


def test_numbers_that_are_equal_but_not_the_same() -> None:
    """0.0 and -0.0 are not one constant."""
    state = one_of(states(1))
    made = Parted(lambda a, b: (1 / (a["v"] * 0.0) + b["v"], 1 / (a["v"] * -0.0) + b["v"]), state)
    kept = made.one(jax.tree.map(lambda a: a[0], states(1)))
    assert [float(k) for k in made.two(kept, kept)] == [np.inf, -np.inf]


@pytest.mark.parametrize("phi", [jax.nn.relu, jax.scipy.special.erf, jnp.sin], ids=["relu", "erf", "sin"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kernels_are_the_same_without(phi: Callable[..., Any], dtype: Any) -> None:
    def net(x: jax.Array) -> jax.Array:
        h = x
        for _ in range(3):
            h = phi(nn.dense(h, weight_var=1.7, bias_var=0.2))
        return nn.dense(h, features=1, bias_var=0.1)

    kernel = tp.compile(net, jnp.zeros(6)).without("interpolation")
    x = RANDOM.standard_normal((20, 6)).astype(dtype)
    x[3], x[4], x[5], x[6] = x[0], -x[0], 0, x[1] * (1 + 1e-6)
    for given in ((x,), (x, x[:7])):
        for mine, right in zip(kernel(*given), kernel.without("sides")(*given), strict=True):
            assert np.asarray(mine).dtype == dtype
            np.testing.assert_allclose(mine, right, rtol=1e-12 if dtype == np.float64 else 3e-6)


def test_an_option_that_xla_does_not_know_is_left_out() -> None:
    code = Ahead(lambda x: x + 1, options={"xla_no_such_option": True})
    np.testing.assert_array_equal(code(np.zeros(2))(np.zeros(2)), 1)
