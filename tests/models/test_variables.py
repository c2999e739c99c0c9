"""What modules of Flax keep from call to call, also where a call goes through transformations of Flax: statistics and random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tensorprog as tp
from tensorprog.models.door import unmoved

CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "plain": lambda model, x: model(x),
    "jit": lambda model, x: nnx.jit(lambda model, x: model(x))(model, x),
    "remat": lambda model, x: nnx.remat(lambda model, x: model(x))(model, x),
    "jit in jit": lambda model, x: nnx.jit(CALLS["jit"])(model, x),
}
LIFTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda module: module,
    "jit": flax.linen.jit,
    "remat": flax.linen.remat,
}
X = np.random.default_rng(0).standard_normal((2, 4, 3))


class Net(nnx.Module):
    """middle: makes the layer between the two weights, of a width."""

    def __init__(self, width: int, rngs: nnx.Rngs, middle: Callable[..., Any]):
        self.hidden = nnx.Linear(3, width, rngs=rngs)
        self.middle = middle(width, rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.readout(nnx.relu(self.middle(self.hidden(x))))


INIT = {"hidden.kernel": tp.Gaussian(std=0.5), "readout.kernel": lambda width: tp.Gaussian(std=width**-0.5)}


def kernel(middle: Callable[..., Any], call: str) -> tp.Kernel:
    net = tp.from_flax(lambda width, rngs: Net(width, rngs, middle), call=CALLS[call], init=INIT)
    return tp.compile(net, jnp.zeros((4, 3)))


def norm(running: bool) -> Callable[..., Any]:
    return lambda width, rngs: nnx.BatchNorm(width, use_running_average=running, rngs=rngs)


def dropout(off: bool) -> Callable[..., Any]:
    return lambda width, rngs: nnx.Dropout(0.5, deterministic=off, rngs=rngs)


@pytest.mark.parametrize("call", CALLS)
def test_running_statistics_are_refused(call: str) -> None:
    with pytest.raises(tp.NetworkError, match=r"batch norm uses its running statistics \(middle.mean, middle.var\)"):
        kernel(norm(running=True), call)


@pytest.mark.parametrize("call", CALLS)
def test_dropout_is_refused_where_it_is_on(call: str) -> None:
    with pytest.raises(tp.NetworkError, match=r"draws random numbers when it is called \(middle.rngs.count\)"):
        kernel(dropout(off=False), call)


@pytest.mark.parametrize("call", list(CALLS)[1:])
def test_dropout_that_is_off_is_nothing(call: str) -> None:
    found, wanted = kernel(dropout(off=True), call)(X), kernel(lambda width, rngs: lambda h: h, "plain")(X)
    np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-12)


@pytest.mark.parametrize("call", list(CALLS)[1:])
def test_statistics_of_the_batch_pass(call: str) -> None:
    found, wanted = (kernel(norm(running=False), c) for c in (call, "plain"))
    assert str(found.program) == str(wanted.program)


class LinenNet(flax.linen.Module):
    width: int
    running: bool
    lift: Callable[[Any], Any]

    @flax.linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.lift(flax.linen.BatchNorm)(use_running_average=self.running, name="norm")(
            flax.linen.Dense(self.width)(x)
        )
        return flax.linen.Dense(1)(flax.linen.relu(h))


@pytest.mark.parametrize("lift", LIFTS)
def test_running_statistics_of_linen_are_refused(lift: str) -> None:
    init = {"Dense_0.kernel": tp.Gaussian(std=0.5), "Dense_1.kernel": INIT["readout.kernel"]}

    def made(running: bool) -> tp.Kernel:
        net = tp.from_linen(lambda width: LinenNet(width, running, LIFTS[lift]), jnp.zeros((4, 3)), init=init)
        return tp.compile(net, jnp.zeros((4, 3)))

    with pytest.raises(tp.NetworkError, match=r"batch norm uses its running statistics \(norm.mean, norm.var\)"):
        made(running=True)
    assert made(running=False).program.output is not None


def test_what_a_call_leaves_as_it_is() -> None:
    def loop(values: list[Any], x: Any) -> tuple[list[Any], list[Any]]:
        """A carry that stays, one that changes, rows that stay, rows of another's place, and a swap."""

        def body(carry: Any, row: Any) -> tuple[Any, Any]:
            stays, grows = carry
            return (stays, grows + x), (row[0], row[0])

        (a, b), (c, _) = jax.lax.scan(body, (values[0], values[1]), (values[2], values[2]))
        after = [a, b, c, values[4], values[3], jax.jit(lambda v: v)(values[5]), values[6] + 0.0]
        return values, after

    values = [jnp.zeros(()), jnp.zeros(()), jnp.zeros(3), *(jnp.zeros(()) for _ in range(4))]
    assert unmoved(loop, values, 1.0) == [True, False, True, False, False, True, False]
