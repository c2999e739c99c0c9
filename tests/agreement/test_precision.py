"""float32 against float64, repeated inputs, near-duplicates, and whatever sits at the ends of the cosine."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tests.agreement.common import compiled, relative
from tests.cases import composition, convolution, fully_connected, normalised, recurrent
from tests.references import duals
from tests.references import fully_connected as reference

pytestmark = pytest.mark.slow

ALL = {
    case.name: case
    for module in (fully_connected, convolution, recurrent, normalised, composition)
    for case in module.CASES
}
DEEP = [
    "fc-relu-depth20-wv2.0-bv0.1",
    "fc-erf-depth20-wv1.5-bv0.2",
    "residual-erf-10-normed",
    "conv-bias-global",
    "rnn-scan-erf-last",
    "one-relu-times-erf",
]
SEVERAL = [
    "fc-relu-depth3-wv2.0-bv0.1",
    "fc-erf-depth3-wv1.5-bv0.2",
    "conv-bias-global",
    "rnn-loop-relu-average",
    "residual-relu-3-normed",
]


@pytest.mark.parametrize("name", DEEP)
def test_float32_is_near_float64(name: str, tolerance: Callable) -> None:
    case = ALL[name]
    x = case.inputs(4).astype(np.float32)
    kernel = compiled(case)
    single, double = kernel(x), kernel(x.astype(np.float64))
    for one, two in zip(single, double, strict=True):
        assert one.dtype == np.float32
        assert two.dtype == np.float64
        assert relative(one, np.asarray(two)) <= tolerance("float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SEVERAL)
def test_repeated_inputs_give_the_diagonal_exactly(name: str, dtype: str) -> None:
    """Within one batch, between two batches, and whatever else shares the batch: one number."""
    case = ALL[name]
    x = case.inputs(3).astype(dtype)
    batch = x[[0, 1, 0, 2]]
    kernel = compiled(case)
    gram, cross = kernel(batch), kernel(batch, x[[1, 0, 2, 0]])
    for g, c in zip(gram, cross, strict=True):
        g, c = np.asarray(g), np.asarray(c)
        assert g[0, 0] == g[2, 2] == g[0, 2] == g[2, 0] == c[0, 1] == c[2, 3] == c[0, 3]
        assert g[1, 1] == c[1, 0]
        np.testing.assert_array_equal(g, g.T)


def near_duplicates(dimension: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """One input, and the same moved by a relative distance of 1e-7 to 1e-1 across and along itself."""
    rng = np.random.default_rng(11)
    x, side = rng.standard_normal((2, dimension))
    side -= x * (side @ x) / (x @ x)
    side *= np.linalg.norm(x) / np.linalg.norm(side)
    steps = 10.0 ** np.arange(-7, 0)
    moved = np.concatenate([x + steps[:, None] * side, x * (1 + steps[:, None])])
    return x[None].astype(dtype), moved.astype(dtype)


@pytest.mark.parametrize("weight_var, bias_var", [(2.0, 0.0), (2.0, 0.1)])
@pytest.mark.parametrize("depth", [1, 3, 10])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_near_duplicates(dtype: str, depth: int, weight_var: float, bias_var: float) -> None:
    """ReLU's angle loses half the digits of a rounded cosine: the witness is the recursion in longdouble.

    float32: 1e-4, all that is asked where 1 - cosine is not carried. float64: 3e-7, half of its digits
    in each of ten layers.
    """
    x, moved = near_duplicates(16, dtype)
    net = fully_connected.net(jax.nn.relu, depth, weight_var, bias_var)
    kernel = tp.compile(lambda v: net(tp.nn, v), jnp.zeros(16))
    both = np.concatenate([x, moved]).astype(np.longdouble)
    wanted = reference.kernels(both, duals.relu, depth, weight_var, bias_var)
    for got, want in zip(kernel(x, moved), wanted, strict=True):
        want = want[:1, 1:]
        assert relative(got, want) <= {"float32": 1e-4, "float64": 3e-7}[dtype]


def test_antipodal_and_zero_inputs() -> None:
    """x, -x, 0 and multiples of x: the cosine is exactly -1, undefined, or 1 up to rounding."""
    x = fully_connected.CASES[0].inputs(1)[0]
    batch = np.stack([x, -x, 0 * x, 2 * x, x / 3])
    for phi, dual in [fully_connected.PHI["relu"], fully_connected.PHI["erf"]]:
        net = fully_connected.net(phi, 3, 2.0, 0.1)
        got = tp.compile(lambda v, net=net: net(tp.nn, v), jnp.zeros(7))(batch)
        for a, b in zip(got, reference.kernels(batch, dual, 3, 2.0, 0.1), strict=True):
            assert relative(a, b) < 1e-10


def test_without_bias_zero_has_a_zero_kernel() -> None:
    net = fully_connected.net(jax.nn.relu, 3, 2.0, 0.0)
    x = np.stack([np.zeros(7), np.ones(7), -np.ones(7)])
    for k in tp.compile(lambda v: net(tp.nn, v), jnp.zeros(7))(x):
        assert np.all(np.isfinite(k))
        assert np.all(np.asarray(k)[0] == 0)


@pytest.mark.parametrize("size", [1e-12, 1e-4, 1e4, 1e8])
def test_scale_of_the_input(size: float) -> None:
    """ReLU without biases is homogeneous: the kernel scales with both norms."""
    net = fully_connected.net(jax.nn.relu, 4, 2.0, 0.0)
    kernel = tp.compile(lambda v: net(tp.nn, v), jnp.zeros(7))
    x = fully_connected.CASES[0].inputs(3)
    for small, k in zip(kernel(size * x), kernel(x), strict=True):
        assert relative(np.asarray(small) / size**2, np.asarray(k)) < 1e-12
