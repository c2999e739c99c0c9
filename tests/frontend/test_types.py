"""Arrays of other types inside a network: whole numbers, truth values, half precision, complex numbers, arrays without entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests.frontend.test_scatter import same
from tests.uncompiled import uncompiled

X = jax.random.normal(jax.random.key(0), (3, 4))


def net(h: jax.Array) -> jax.Array:
    return nn.dense(jax.nn.relu(nn.dense(h, bias_var=0.2)), features=1)


def of_inputs(inside: Callable, x: jax.Array) -> None:
    """The kernel with `inside` in the network is that of inputs on which JAX has done the same before."""
    outside = jax.vmap(lambda one: jnp.asarray(inside(one), float))(x)
    wanted = uncompiled(tp.compile(net, outside[0]), outside)
    for method in ("tangent", "adjoint"):
        found = uncompiled(tp.compile(lambda one: net(inside(one)), x[0], method=method), x)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * float(jnp.abs(b).max()))


INSIDE = {
    "the size of a spectrum": (lambda x: jnp.abs(jnp.fft.rfft(x)), X),
    "a complex function": (lambda x: jnp.real(jnp.exp(1j * x) * x), X),
    "narrow whole numbers": (lambda x: x.astype(jnp.int8), jnp.arange(-6, 6).reshape(3, 4) * 50),
    "narrow whole numbers without sign": (lambda x: x.astype(jnp.uint8), jnp.arange(-6, 6).reshape(3, 4) * 50),
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_is_done_to_inputs_is_done_as_jax_does_it(name: str) -> None:
    """The size of a spectrum was that of its real part; narrow whole numbers did not wrap around."""
    of_inputs(*INSIDE[name])


def test_weights_that_are_made_whole_numbers() -> None:
    """They were taken as they are, so that the kernel was wrong. A first weight is a function of Gaussians, which is sampled: truth values of
    weights are all true, so that relu(sum x) is left."""
    first = lambda kind: lambda x: nn.dense(jax.nn.relu(nn.weight((nn.width(), 4)).astype(kind) @ x), features=1)
    hidden = lambda kind: lambda x: net(nn.weight((nn.width(), nn.width())).astype(kind) @ nn.dense(x) / nn.width())
    for made, reason in ((first, "many positions"), (hidden, "rounds the entries of a matrix")):
        for kind in (int, bool):
            with pytest.raises(tp.UnsupportedError, match=reason):
                tp.compile(made(kind), X[0])
    total = np.maximum(X.sum(1), 0)
    true = uncompiled(tp.compile(first(bool), X[0], tolerance=1e-2), X)
    np.testing.assert_allclose(true.nngp, np.outer(total, total), atol=1e-5)
    np.testing.assert_allclose(true.ntk, true.nngp, atol=1e-12)


def test_complex_numbers_of_hidden_values() -> None:
    """exp(i h) has the real part cos(h), and |i h| is |h| = sqrt(h^2)."""
    same(
        lambda x: nn.dense(jnp.real(jnp.exp(1j * nn.dense(x))), features=1),
        lambda x: nn.dense(jnp.cos(nn.dense(x)), features=1),
        X,
    )


def test_half_precision_inside_is_that_of_the_inputs() -> None:
    """bfloat16 was no number to the front end."""

    def half(x: jax.Array) -> jax.Array:
        w = nn.weight((nn.width(), 4)).astype(jnp.bfloat16)
        return nn.dense(jax.nn.relu(w @ x.astype(jnp.bfloat16)).astype(jnp.float32), features=1)

    same(half, lambda x: nn.dense(jax.nn.relu(nn.weight((nn.width(), 4)) @ x), features=1), X)


def test_arrays_without_entries() -> None:
    x = {"a": jnp.zeros((3, 0)), "b": X}
    joined = tp.compile(lambda x: net(jnp.concatenate([x["a"], x["b"]])), jax.tree.map(lambda leaf: leaf[0], x))
    np.testing.assert_array_equal(uncompiled(joined, x).ntk, uncompiled(tp.compile(net, X[0]), X).ntk)
    bias = lambda x: nn.dense(jax.nn.relu(nn.weight((nn.width(), 0)) @ x + nn.bias((nn.width(),))), features=1)
    np.testing.assert_allclose(tp.compile(bias, jnp.zeros(0))(x["a"]).nngp, np.full((3, 3), 0.5), rtol=1e-12)


def test_a_term_with_the_factor_zero() -> None:
    """As Horner's scheme has it, which starts with 0 h + a: it divided by zero."""
    horner = lambda h: jnp.polyval(jnp.stack([0.3, 0.1, 1.0]), h)
    written = lambda h: 0.3 * h**2 + 0.1 * h + 1.0
    same(*(lambda x, f=f: nn.dense(f(nn.dense(x)), features=1) for f in (horner, written)), X)


def test_numbers_drawn_inside_are_constants() -> None:
    """A mask over positions from a fixed key, which ended in an error from within; one over the width has no limit."""
    drawn = lambda shape: jax.random.bernoulli(jax.random.key(3), 0.5, shape)
    mask = np.asarray(drawn((3, 1)), float)
    assert 0 < mask.sum() < 3
    layers = lambda mask: lambda x: nn.dense((jax.nn.relu(nn.dense(x[:, None])) * mask()).sum(0), features=1)
    same(layers(lambda: drawn((3, 1))), layers(lambda: mask), X[:, :3])
    with pytest.raises(tp.UnsupportedError, match="vary along the width"):
        tp.compile(layers(lambda: drawn((1, nn.width()))), X[0])


def test_numbers_drawn_in_single_precision_are_those_of_their_type() -> None:
    """Of one key JAX draws other numbers in double precision, in which networks are read: the kernel was that of other constants."""
    dense = lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1)

    def looped(x: jax.Array) -> jax.Array:
        scaled = lambda h, key: (h * jax.random.uniform(key, (4,)), None)
        return dense(jax.lax.scan(scaled, x, jax.random.split(jax.random.key(0), 2))[0])

    with jax.enable_x64(False):
        x, key = jnp.asarray(X, jnp.float32), jax.random.key(5)
        draws = {
            "normal": lambda: jax.random.normal(key, (4, 2)),
            "bernoulli": lambda: jax.random.bernoulli(key, 0.5, (4, 2)),
            "randint": lambda: jax.random.randint(key, (4, 2), 0, 9),
        }
        for drawn in draws.values():
            with pytest.raises(tp.NetworkError, match=rf"draws random numbers(?s:.*)at .*{__name__.split('.')[-1]}"):
                tp.compile(lambda x, drawn=drawn: dense(x @ drawn()), x[0])
            fixed = drawn()
            assert tp.compile(lambda x, fixed=fixed: dense(x @ fixed), x[0])(x).nngp.shape == (3, 3)
        with pytest.raises(tp.NetworkError, match="draws random numbers"):
            tp.compile(looped, x[0])
        typed = lambda x: dense(x @ jax.random.normal(key, (4, 2), jnp.float32))
        fixed = jax.random.normal(key, (4, 2))
        places = lambda x: dense(x[jax.random.permutation(key, 4)])  # whose bits are the same
        order = jax.random.permutation(key, 4)
        for found, right in ((typed, lambda x: dense(x @ fixed)), (places, lambda x: dense(x[order]))):
            np.testing.assert_allclose(*(tp.compile(f, x[0])(x).ntk for f in (found, right)), rtol=1e-6)


def test_integers_that_wrap_around_in_single_precision_are_refused() -> None:
    """As a hash of positions: networks are read with 64 bits, where it is another."""
    dense = lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1)

    def hashed(dtype: Any) -> Any:
        return lambda x: dense(
            x * (jnp.arange(4, dtype=dtype) * jnp.asarray(40503, dtype) * jnp.asarray(65537, dtype) % 7)
        )

    with jax.enable_x64(False):
        x = jnp.asarray(X, jnp.float32)
        with pytest.raises(tp.NetworkError, match=r"more than 32 bits hold(?s:.*)at .*test_types"):
            tp.compile(hashed(int), x[0])
        fixed = jnp.arange(4) * 40503 * 65537 % 7
        found, right = (tp.compile(f, x[0])(x).ntk for f in (hashed(jnp.int32), lambda x: dense(x * fixed)))
        np.testing.assert_allclose(found, right, rtol=1e-6)
    tp.compile(hashed(int), X[0])  # in double precision they are what they are


@pytest.mark.long
def test_inputs_of_half_precision_are_rounded() -> None:
    """JAX has the normal distribution function for single and double precision only."""
    x = jnp.asarray([[0.5, 1.0], [-1.0, 0.25]], jnp.float16)
    net = lambda x: nn.dense(jnp.floor(nn.dense(x)), features=1)
    kernel = tp.compile(net, x[0])
    found, wanted = kernel(x).nngp, kernel(x.astype(jnp.float32)).nngp
    assert found.dtype == jnp.float16
    assert float(jnp.abs(found - wanted).max()) < 4e-3 * float(wanted.max())
