"""Sampled networks that mix positions: the tangent program and the adjoint program sample the same slopes at the same points.

What is equal by construction is so at any number of points; few make the tests quick. That the values are right is looked at by
tests/kernel and, against networks of finite width, by tests/architectures/test_sampled.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tensorprog as tp
from tensorprog import nn
from tensorprog.kernel import fields, population
from tests.everyday import everyday
from tests.uncompiled import uncompiled

erf, relu, softmax = jax.scipy.special.erf, jax.nn.relu, jax.nn.softmax
POSITIONS, TOLERANCE = 3, 3e-2


@pytest.fixture(autouse=True, scope="module")
def few_points():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "FEWEST_POINTS", 2**10)
        patch.setattr(population, "FEWEST", 2**10)
        yield


# ------------------------------------------------------------------------------------------ steps of networks


def pooled(h: jax.Array, window: int, padding: str = "VALID") -> jax.Array:
    """Max pooling along the positions."""
    return lax.reduce_window(h, -jnp.inf, lax.max, (window, 1), (1, 1), padding)


def shared() -> jax.Array:
    return nn.weight((nn.width(), nn.width())) / jnp.sqrt(nn.width())


def readout(h: jax.Array) -> jax.Array:
    return nn.dense(h, features=1)


STEPS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "dense": lambda a, b, w: nn.dense(a, bias_var=0.1),
    "conv": lambda a, b, w: nn.conv(a, 2),
    "weight": lambda a, b, w: a @ w,
    "transpose": lambda a, b, w: a @ w.T,
    "relu": lambda a, b, w: relu(a),
    "tanh": lambda a, b, w: jnp.tanh(a),
    "add": lambda a, b, w: a + b,
    "reverse": lambda a, b, w: a[::-1],
    "sum": lambda a, b, w: jnp.cumsum(a, 0),
    "layer norm": lambda a, b, w: nn.layer_norm(a, 0.1),
    "scale": lambda a, b, w: b * jnp.mean(jnp.tanh(a) ** 2),
    "attention": lambda a, b, w: softmax(a @ b.T / nn.width(), -1) @ a,
    "largest": lambda a, b, w: b * 0.5 + a.max(0),
    "pool": lambda a, b, w: pooled(a, 3, "SAME"),
    "softmax": lambda a, b, w: softmax(a, 0) * b,
    "norm": lambda a, b, w: a / jnp.sqrt((a**2).sum(0) + 0.5),
    "mean": lambda a, b, w: jnp.tanh(b + relu(a).mean(0)),
    "argmax": lambda a, b, w: jnp.where(a == a.max(0), b, 0.0),
    "median": lambda a, b, w: b - jnp.median(a, 0),
    "sort": lambda a, b, w: jnp.sort(a, 0),
    "product": lambda a, b, w: erf(a) * erf(a[::-1]) * erf(b),
}
READOUTS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "mean": lambda h: readout(h.mean(0)),
    "all": lambda h: readout(h.reshape(-1)),
    "each": readout,
    "pooled": lambda h: readout(h.max(0)),
}
MIXING = ("largest", "pool", "softmax", "norm", "mean", "argmax", "median", "sort", "product")
Step = tuple[str, int, int]


def network(steps: Sequence[Step], out: str) -> Callable[[jax.Array], jax.Array]:
    """Steps on registers of (positions, width); the first is a layer of the input."""

    def net(x: jax.Array) -> jax.Array:
        w, registers = shared(), [nn.dense(x, weight_var=1.5, bias_var=0.1)]
        for kind, i, j in steps:
            a, b = (registers[k % len(registers)] for k in (i, j))
            registers.append(STEPS[kind](a, b, w))
        return READOUTS[out](registers[-1])

    return net


# ------------------------------------------------------------------------------------------ the two kernels


def difference(net: Callable, shape: tuple[int, ...] = (POSITIONS, 2)) -> float | None:
    """The largest difference of the two tangent kernels, in units of sqrt(K(x, x) K(x', x')) of the entries of the output. None where
    nothing is sampled."""
    x = np.random.default_rng(1).standard_normal((2, *shape))
    kernels = [tp.compile(net, x[0], method=method, tolerance=TOLERANCE) for method in ("tangent", "adjoint")]
    assert [kernel.method for kernel in kernels] == ["tangent", "adjoint"]
    if not any(kernel.sampled for kernel in kernels):
        return None
    tangent, adjoint = (_matrix(uncompiled(kernel, x).ntk) for kernel in kernels)
    size = np.sqrt(np.diag(tangent))
    assert np.all(size > 0)
    return float(np.max(np.abs(adjoint - tangent) / np.outer(size, size)))


def _matrix(kernel: np.ndarray) -> np.ndarray:
    """(inputs and entries of the output) by the same."""
    count, entries = len(kernel), math.prod(kernel.shape[2 : 2 + (kernel.ndim - 2) // 2])
    return kernel.reshape(count, count, entries, entries).transpose(0, 2, 1, 3).reshape(count * entries, -1)


NAMED: dict[str, tuple[Sequence[Step], str]] = {
    "pooled windows of a convolution": ([("conv", 0, 0), ("pool", 1, 1), ("conv", 2, 2)], "mean"),
    "two pooled layers": ([("conv", 0, 0), ("pool", 1, 1), ("dense", 2, 2)], "pooled"),
    "softmax over positions": ([("dense", 0, 0), ("softmax", 0, 1)], "mean"),
    "a nonlinearity after a mean": ([("mean", 0, 0), ("dense", 1, 1), ("mean", 2, 2)], "all"),
    "outputs at every position": ([("mean", 0, 0)], "each"),
    "two softmaxes of one layer": ([("softmax", 0, 0), ("dense", 1, 1), ("softmax", 2, 2)], "all"),
    "a weight, a pool and its transpose": ([("weight", 0, 0), ("largest", 1, 1), ("transpose", 2, 2)], "all"),
    "a norm of maxima": ([("dense", 0, 0), ("largest", 1, 0), ("dense", 2, 2), ("norm", 3, 3)], "all"),
    "the place of the largest": ([("dense", 0, 0), ("argmax", 0, 1)], "mean"),
    "a product of positions": ([("product", 0, 0)], "mean"),
    "a median": ([("dense", 0, 0), ("median", 1, 1)], "all"),
    "sorted positions": ([("sort", 0, 0)], "each"),
}
LONG = {"outputs at every position", "pooled windows of a convolution", "softmax over positions"}


@pytest.mark.parametrize("name", everyday(NAMED, NAMED.keys() - LONG, LONG))
def test_named_ones(name: str) -> None:
    found = difference(network(*NAMED[name]))
    assert found is not None and found < 1e-12


def states_below_a_pool(x: jax.Array) -> jax.Array:
    """The backward pass has twice as many weights one above the other: it keeps no state that the forward pass does not."""
    h = relu(nn.conv(x, 2))
    for _ in range(2):
        h = relu(h + nn.conv(relu(nn.conv(h, 2)), 2))
    return readout(h.max(0))


def image(x: jax.Array) -> jax.Array:
    """Max pooling of squares."""
    h = lax.reduce_window(nn.conv(x, (2, 2)), -jnp.inf, lax.max, (2, 2, 1), (2, 2, 1), "VALID")
    return readout(nn.dense(relu(h)).mean((0, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(("net", "shape"), [(states_below_a_pool, (3, 2)), (image, (4, 4, 2))])
def test_networks(net: Callable, shape: tuple[int, ...]) -> None:
    found = difference(net, shape)
    assert found is not None and found < 1e-12


place = st.integers(0, 3)
QUICK = ("largest", "pool", "softmax", "mean", "argmax", "median", "product")
mixing = st.tuples(st.sampled_from(QUICK), place, place)
PLAIN = [kind for kind in STEPS if kind not in MIXING]
OF_AVERAGES = ("layer norm", "scale", "attention")
plain = st.tuples(st.sampled_from([kind for kind in PLAIN if kind not in OF_AVERAGES]), place, place)


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Step], str]:
    """A step that mixes positions, and up to two others. Norms, sorting and two maxima one above the other take minutes each: some of
    them are among the named ones."""
    steps = draw(st.lists(plain, max_size=2))
    steps.insert(draw(st.integers(0, len(steps))), draw(mixing))
    return steps, draw(st.sampled_from(("all", "each", "mean")))


def check_random(program: tuple[list[Step], str], shape: tuple[int, ...] = (POSITIONS, 2)) -> None:
    try:
        found = difference(network(*program), shape)
    except tp.UnsupportedError as refusal:
        hypothesis.event(f"refused: {str(refusal).splitlines()[0][:60]}")
        hypothesis.reject()
    hypothesis.assume(found is not None)
    assert found < 1e-12  # type: ignore[operator]


@pytest.mark.slow
@hypothesis.given(programs())
@hypothesis.settings(max_examples=10, suppress_health_check=list(hypothesis.HealthCheck))
def test_random_programs(program: tuple[list[Step], str]) -> None:
    check_random(program)


@st.composite
def mixed_twice(draw: st.DrawFn) -> tuple[list[Step], str]:
    """Two steps that mix positions, norms and sorting among them, and up to two others between and around them, of averages too."""
    steps = draw(st.lists(st.tuples(st.sampled_from(PLAIN), place, place), max_size=2))
    for _ in range(2):
        kind = draw(st.sampled_from((*QUICK, "norm", "sort")))
        steps.insert(draw(st.integers(0, len(steps))), (kind, draw(st.just(-1) | place), draw(place)))
    return steps, draw(st.sampled_from(("all", "each", "mean")))


@pytest.mark.slow
@hypothesis.given(mixed_twice())
@hypothesis.settings(max_examples=4, suppress_health_check=list(hypothesis.HealthCheck))
def test_random_programs_that_mix_twice(program: tuple[list[Step], str]) -> None:
    """Of two positions: of more, each takes minutes."""
    check_random(program, (2, 2))
