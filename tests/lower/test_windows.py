"""Sums over windows by both ways against their definition, and expectations that share one branch."""

from __future__ import annotations

from itertools import product

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.ir.positions import patch_starts, position
from tensorprog.kernel.graph import Operand, Shifts, Zero
from tensorprog.lower.windows import at_once, axis_by_axis


def defined(q: Shifts, value: np.ndarray) -> np.ndarray:
    """sum_k K[s + k, t + k] entry by entry, for strides and base dilations of one."""
    kw = q.op.kw
    total = np.zeros(q.shape)
    for where in np.ndindex(*q.shape):
        for offset in product(*map(range, kw["window"])):
            at = list(where)
            for places, o, pad, dilation in zip(q.axes, offset, kw["padding"], kw["dilation"], strict=True):
                for axis in places:
                    at[axis] += o * dilation - pad[0]
            if all(0 <= i < n for i, n in zip(at, value.shape, strict=True)):
                total[where] += value[tuple(at)]
    return total


@st.composite
def window_sums(draw: st.DrawFn) -> tuple[Shifts, tuple[int, ...]]:
    """Windows along one or two axes, of pairs of positions or their diagonal, beside an axis that they leave alone or not."""
    axes, paired, beside = draw(st.integers(1, 2)), draw(st.booleans()), draw(st.booleans())
    sizes = draw(st.lists(st.integers(2, 4), min_size=axes, max_size=axes))
    shape = (*sizes, *(sizes if paired else ()))
    places = [(a, a + axes) if paired else (a,) for a in range(axes)]
    order = draw(st.permutations(range(len(shape) + beside)))
    shape = (*shape, 3) if beside else shape
    mixed = tuple(shape[order.index(i)] for i in range(len(shape)))
    window = tuple(draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes)))
    dilation = tuple(draw(st.lists(st.integers(1, 2), min_size=axes, max_size=axes)))
    spans = [(k - 1) * d for k, d in zip(window, dilation, strict=True)]
    low = [draw(st.integers(-1, span + 1)) for span in spans]
    padding = tuple((a, span - a) for a, span in zip(low, spans, strict=True))  # as many windows as positions
    ones = (1,) * axes
    op = position(
        "patches", axes=tuple(range(axes)), window=window, strides=ones, padding=padding, dilation=dilation, base_dilation=ones
    )  # fmt: skip
    moved = tuple(tuple(order[p] for p in own) for own in places)
    return Shifts(op, (Operand(Zero(mixed)),), moved, mixed, True), mixed


@hypothesis.given(window_sums())
@hypothesis.settings(max_examples=8)  # each is compiled
def test_sums_over_windows_are_what_is_defined(drawn: tuple[Shifts, tuple[int, ...]]) -> None:
    q, shape = drawn
    value = np.random.default_rng(0).standard_normal(shape)
    value[(0,) * value.ndim] = 1e300  # what comes over an edge is left out, not multiplied by zero
    expected = defined(q, value)
    for found in jax.jit(lambda v: (axis_by_axis(q, v), at_once(q, v)))(value):
        np.testing.assert_allclose(np.reshape(found, expected.shape), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("stride", "size"), [(2, 3), (1, 5)])
def test_other_windows_go_axis_by_axis(stride: int, size: int) -> None:
    """Strides, which leave positions out, and windows of many shifts."""
    pad, ones = (size // 2, size // 2), (1, 1)
    op = position(
        "patches", axes=(0, 1), window=(size, size), strides=(stride, stride), padding=(pad, pad), dilation=ones, base_dilation=ones
    )  # fmt: skip
    n = patch_starts(4, window=size, stride=stride, padding=pad, dilation=1, base_dilation=1)
    assert at_once(Shifts(op, (Operand(Zero((4, 4))),), ((0,), (1,)), (n, n), True), jnp.ones((4, 4))) is None


def pooled(x: jax.Array) -> jax.Array:
    h = nn.conv(x, (3, 3), weight_var=2.0, bias_var=0.1)
    h = h + nn.conv(jax.nn.relu(h), (3, 2), padding="SAME")
    h = nn.conv(jax.nn.relu(h), (3, 2), strides=(2, 1))
    return nn.dense(nn.global_avg_pool(h), features=1)


def flattened(x: jax.Array) -> jax.Array:
    for _ in range(3):
        x = jax.nn.relu(nn.conv(x, 3, weight_var=2.0))
    return nn.dense(nn.flatten(x), features=1)


@pytest.mark.parametrize(
    ("net", "shape"), [(pooled, (4, 3, 2)), pytest.param(flattened, (5, 2), marks=pytest.mark.long)]
)
def test_kernels_and_slopes_are_those_without(net, shape) -> None:  # type: ignore[no-untyped-def]
    kernel = tp.compile(net, jnp.zeros(shape))
    x = np.random.default_rng(0).standard_normal((4, *shape))
    plain = kernel.without("windows", "together")
    for a, b in zip(kernel(x), plain(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)
    if net is pooled:  # its slopes take long to compile
        return
    slopes = [jax.grad(lambda v, k=k: k(v, get="ntk").sum())(jnp.asarray(x)) for k in (kernel, plain)]
    np.testing.assert_allclose(*slopes, rtol=1e-11, atol=1e-12)


def test_a_layer_and_its_slope_share_a_branch() -> None:
    """Of a loop over three layers after the first: one branch for both expectations, and one for each sum over windows."""
    kernel = tp.compile(flattened, jnp.zeros((5, 2)))

    def branches(*off: str) -> int:
        made = kernel.without("loops", *off).functions
        x = [jnp.ones((2, 5, 2))]
        return str(jax.make_jaxpr(lambda a: made.block(a, a, {}))(x)).count("cond[")

    assert branches("together") - branches() == 2 * 3  # of pairs and of inputs with themselves
