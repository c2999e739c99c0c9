"""Kernels of small networks against formulas in NumPy: maps of positions by their own matrices, functions by quadrature."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.ir import Nonlin
from tests.everyday import everyday
from tests.networks import ELEMENTS, NETWORKS, POSITIONS, readout, recurrent, scanned
from tests.references import duals, quadrature
from tests.uncompiled import uncompiled

X = np.random.default_rng(5).standard_normal((3, 4, 3))


@pytest.mark.parametrize("name", POSITIONS)
def test_a_map_of_positions(name: str) -> None:
    """relu(op(W x)), read out: K = L (x x'^T / d) L^T with L the map's own matrix, then the arc-cosine kernels."""
    op = POSITIONS[name]
    found = uncompiled(tp.compile(lambda x: readout(jax.nn.relu(op(nn.dense(x)))), jnp.zeros((4, 3))), X)
    matrix = np.asarray(op(jnp.eye(4))).reshape(-1, 4)
    first = _diagonals(matrix)
    own = np.einsum("iit->it", first)
    args = own[:, None], own[None], first
    nngp = duals.relu.value(*args).mean(-1)
    ntk = nngp + (duals.relu.slope(*args) * first).mean(-1)
    for k, wanted in zip(found, (nngp, ntk), strict=True):
        np.testing.assert_allclose(k, wanted, rtol=0, atol=1e-10 * np.abs(wanted).max())


def _diagonals(matrix: np.ndarray) -> np.ndarray:
    """E[(L W x)_t (L W x')_t] for every pair of inputs, (N, N, T)."""
    moved = np.einsum("ts,isd->itd", matrix, X)
    return np.einsum("itd,jtd->ijt", moved, moved) / X.shape[-1]


FUNCTIONS = [
    "neg", "pow", "sqrt", "rsqrt", "exp2", "expm1", "log1p", "logistic", "sin", "cos", "sinh", "cosh", "atan", "asinh", "erf", "erfc",
]  # fmt: skip


@pytest.mark.parametrize("name", everyday(FUNCTIONS, long=["log1p", "rsqrt", "asinh", "atan", "sqrt"]))
def test_a_function_of_one_vector(name: str) -> None:
    """E[phi(u) phi(u')] in polar coordinates by Gauss-Legendre."""
    net, shape = NETWORKS[name]
    x = 0.7 * np.random.default_rng(6).standard_normal((2, *shape))
    found = uncompiled(tp.compile(net, jnp.zeros(shape)), x).nngp
    (q1, c), (_, q2) = x @ x.T / shape[0]
    phi = lambda u: np.asarray(ELEMENTS[name](jnp.asarray(u), 0.0))
    np.testing.assert_allclose(found[0, 1], quadrature.pair_expectation(phi, phi, q1, q2, c), rtol=1e-10)


EQUAL = {
    "where is relu": (lambda h: jnp.where(h >= 0, h, 0.0), jax.nn.relu),
    "clamp is min of max": (lambda h: jax.lax.clamp(-1.0, h, 0.5), lambda h: jnp.minimum(jnp.maximum(h, -1.0), 0.5)),
    "and is a product": (lambda h: jnp.where((h > 0) & (h < 1), h, 0.0), lambda h: h * (h > 0) * (h < 1)),
    "not": (lambda h: jnp.where(~(h > 0), h, 0.0), lambda h: -jax.nn.relu(-h)),
    "abs is two relus": (jnp.abs, lambda h: jax.nn.relu(h) + jax.nn.relu(-h)),
    "sign is two steps": (jnp.sign, lambda h: 2.0 * (h > 0) - 1),
    "a norm moves no kink": (
        lambda h: jnp.sign(jnp.sinh(h) * jax.lax.rsqrt(jnp.mean(jnp.sinh(h) ** 2) + 1e-3)),
        jnp.sign,
    ),
    "cube": (lambda h: h**3, lambda h: h * jnp.square(h)),
    "max of two": (lambda h: jnp.maximum(h, 0.1 * h), lambda h: jax.nn.leaky_relu(h, 0.1)),
    "a condition chosen by a condition": (lambda h: jnp.where(jnp.where(h > 0, h, 0.1 * h) > 0, h, 0.0), jax.nn.relu),
    "a gradient inside": (jax.vmap(jax.grad(lambda a: a * jnp.sin(a))), lambda h: jnp.sin(h) + h * jnp.cos(h)),
    "exp of log": (lambda h: jnp.exp(jnp.log(jnp.exp(h))), jnp.exp),
}


@pytest.mark.parametrize("name", everyday(EQUAL, ["and is a product", "clamp is min of max"]))
def test_equal_functions_have_equal_kernels(name: str) -> None:
    x = X[:, 0]
    one, two = (
        uncompiled(tp.compile(lambda x, f=f: nn.dense(f(nn.dense(x, bias_var=0.1)), features=1), jnp.zeros(3)), x)
        for f in EQUAL[name]
    )
    np.testing.assert_allclose(one.nngp, two.nngp, rtol=1e-10)
    np.testing.assert_allclose(one.ntk, two.ntk, rtol=1e-10)


SAME = {
    "scan is a loop": (scanned, recurrent, (3, 3)),
    "concatenated halves": (
        lambda x: nn.dense(jnp.tanh(jnp.concatenate([nn.dense(x, width=0.5), nn.dense(x, width=0.5)])), features=1),
        lambda x: nn.dense(jnp.tanh(nn.dense(x)), features=1),
        (3,),
    ),
    "a split layer": (
        lambda x: (lambda a, b: nn.dense(jnp.tanh(a) * jnp.sin(b), features=1))(*jnp.split(nn.dense(x, width=2.0), 2)),
        lambda x: nn.dense(jnp.tanh(nn.dense(x)) * jnp.sin(nn.dense(x)), features=1),
        (3,),
    ),
    "einsum": (
        lambda x: (
            jnp.einsum("fc,tc->tf", nn.weight((1, nn.width())), jnp.tanh(nn.dense(x))).sum() / jnp.sqrt(nn.width())
        ),
        lambda x: (jnp.tanh(nn.dense(x)).sum(0) @ nn.weight((nn.width(), 1)) / jnp.sqrt(nn.width()))[0],
        (4, 3),
    ),
    "the plain form": (
        tp.Network(
            lambda n: {"w": tp.Gaussian((n, 3), std=2.0), "v": tp.Gaussian((1, n), std=n**-0.5)},
            lambda p, x: p["v"] @ jnp.tanh(p["w"] @ x),
        ),
        lambda x: nn.weight((1, nn.width())) @ jnp.tanh(nn.weight((nn.width(), 3), std=2.0) @ x) / jnp.sqrt(nn.width()),
        (3,),
    ),
    "a constant that multiplies the input": (
        lambda x: readout(jax.nn.relu(nn.constant((nn.width(), 3), 0.5, tangent_std=2.0) @ x + nn.bias((nn.width(),)))),
        lambda x: readout(
            jax.nn.relu(nn.constant((nn.width(), 3), tangent_std=2.0) @ x + 0.5 * x.sum() + nn.bias((nn.width(),)))
        ),
        (3,),
    ),
    "a frozen constant of finite size": (
        lambda x: readout(jnp.maximum(h := nn.dense(x), nn.constant((), 0.25, train=False) * h)),
        lambda x: readout(jax.nn.leaky_relu(nn.dense(x), 0.25)),
        (3,),
    ),
    "a constant that is summed over the width": (
        lambda x: nn.constant((nn.width(),), 2.0) @ jax.nn.relu(nn.dense(x)) / nn.width(),
        lambda x: jnp.mean((2.0 + nn.constant((nn.width(),))) * jax.nn.relu(nn.dense(x))),
        (3,),
    ),
}


@pytest.mark.parametrize("name", everyday(SAME, ["a split layer", "concatenated halves", "einsum", "scan is a loop"]))
def test_equal_networks_have_equal_kernels(name: str) -> None:
    one, two, shape = SAME[name]
    x = np.random.default_rng(7).standard_normal((3, *shape))
    for a, b in zip(
        uncompiled(tp.compile(one, jnp.zeros(shape)), x), uncompiled(tp.compile(two, jnp.zeros(shape)), x), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_freezing_all_but_the_readout_gives_the_nngp_kernel() -> None:
    net = lambda x: nn.dense(jnp.tanh(nn.dense(x, train=False, bias_var=0.2)), features=1)
    k = uncompiled(tp.compile(net, jnp.zeros(3)), X[:, 0])
    np.testing.assert_allclose(k.ntk, k.nngp, rtol=1e-12)


def test_a_network_with_nothing_to_train() -> None:
    kernel = tp.compile(lambda x: nn.dense(x, features=1, train=False), jnp.zeros(3))
    assert kernel.tangent_program is None and not np.any(kernel(X[:, 0]).ntk)


def test_a_gain_is_a_constant_that_moves() -> None:
    """g phi(W x), g = 2: the gain adds E[phi phi'] to the NTK; Constant(tangent_std) scales that part."""
    make = lambda std: tp.Network(
        lambda n: {"w": tp.Gaussian((n, 3)), "g": tp.Constant((n,), 2.0, std), "v": tp.Gaussian((n,), tangent_std=0.0)},
        lambda p, x: (p["v"] @ (p["g"] * jax.nn.relu(p["w"] @ x)) / jnp.sqrt(p["v"].size))[None],
    )
    x = X[:, 0]
    still, moving = (uncompiled(tp.compile(make(std), jnp.zeros(3)), x) for std in (0.0, 3.0))
    np.testing.assert_allclose(moving.nngp, still.nngp, rtol=1e-12)
    np.testing.assert_allclose(moving.ntk - still.ntk, 9 * moving.nngp / 4, rtol=1e-10)


@pytest.mark.parametrize("moves", [0.0, 1.0])
def test_a_gain_may_depend_on_the_width(moves: float) -> None:
    """n^-1/2 before a layer and n^1/2 behind it are no gain at all."""

    def net(power: float) -> tp.Kernel:
        def net(x: jax.Array) -> jax.Array:
            n = nn.width()
            gain = nn.constant((n,), 2 * n**-power, tangent_std=moves * n**-power)
            return readout(gain * jax.nn.relu(nn.dense(x))) * n**power

        return tp.compile(net, jnp.zeros(3))

    for found, wanted in zip(net(0.5)(X[:, 0]), net(0.0)(X[:, 0]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_a_matrix_that_starts_at_one_number_is_refused() -> None:
    """It makes an average over the width, which a product with random entries is not."""
    net = lambda x: readout(nn.constant((nn.width(), nn.width()), 1.0) @ jax.nn.relu(nn.dense(x)) / nn.width())
    with pytest.raises(tp.UnsupportedError, match="all entries of the weight 'constant_0' start at 1"):
        tp.compile(net, jnp.zeros(3))


def test_a_hyperparameter_times_zero_is_zero() -> None:
    """The state of a recurrence starts at zero: what a hyperparameter makes of it is no shift of the first function."""

    def net(x: jax.Array) -> jax.Array:
        leak, h = tp.hyper("leak", 0.5), jnp.zeros(nn.width())
        for step in nn.dense(x):
            h = leak * h + step
        return readout(jax.nn.relu(h))

    program = tp.compile(net, jnp.zeros((2, 3))).program
    (function,) = (node for node in program.nodes if isinstance(node, Nonlin))
    assert not function.thetas
    nothing = uncompiled(
        tp.compile(lambda x: readout(jax.nn.relu(nn.dense(0 * x, bias_var=1.0))), jnp.zeros(3)), X[:, 0]
    ).nngp
    np.testing.assert_allclose(nothing, 0.5, rtol=1e-12)


FACTORS = {
    "log": lambda s: jnp.log(s),
    "where": lambda s: jnp.where(s > 1, s, 2.0),
    "power": lambda s: 2**s / abs(s),
    "clip": lambda s: jnp.clip(s, 0.1, 2.5),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_function_of_a_hyperparameter(name: str) -> None:
    """A hyperparameter is an array to functions of JAX's, inside a network; outside of one it is its default."""
    factor, s = FACTORS[name], tp.hyper("s", 2.0)
    kernel = tp.compile(lambda x: factor(s) * readout(jax.scipy.special.erf(nn.dense(x))), jnp.zeros(3))
    plain = tp.compile(lambda x: readout(jax.scipy.special.erf(nn.dense(x))), jnp.zeros(3))
    x = np.ones((1, 3))
    for value in (0.5, 2.0, 3.0):
        found, wanted = kernel(x, s=value), plain(x)
        np.testing.assert_allclose(found.ntk, factor(value) ** 2 * wanted.ntk, rtol=1e-12)
        np.testing.assert_allclose(found.nngp, factor(value) ** 2 * wanted.nngp, rtol=1e-12)
    np.testing.assert_allclose(factor(s), factor(2.0))
