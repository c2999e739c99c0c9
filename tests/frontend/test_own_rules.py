"""Derivatives that code chooses: at kinks, and by rules of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.errors import UnsupportedError
from tensorprog.ir.text import parse_program, print_program
from tests.uncompiled import uncompiled

_AT = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.5, -1.0]])


def _net(phi):
    """phi(W x + b) with a trained b that starts at zero, so that its argument is exactly zero at an input of zeros."""

    def net(x):
        h = nn.dense(x, weight_var=2.0) + nn.constant((nn.width(),))
        return nn.dense(phi(h), features=1)

    return net


@pytest.mark.parametrize(
    "phi",
    [
        jax.nn.relu,
        pytest.param(jax.nn.relu6, marks=pytest.mark.long),
        jnp.abs,
        lambda x: jnp.maximum(x, 0.0),
        lambda x: jax.nn.relu(x) ** 2 + jax.nn.relu(-x),
        lambda x: jnp.where(x >= 0, x, 0.25 * x),
        lambda x: jax.nn.relu(x) + jnp.minimum(x, 0.0),
    ],
    ids=["relu", "relu6", "abs", "maximum", "sum", "where", "mixed"],
)
def test_slopes_at_zero_are_those_of_jax(phi):
    kernel = tp.compile(_net(phi), _AT[0])
    slope, value = jax.grad(phi)(0.0), phi(0.0)
    assert float(uncompiled(kernel, _AT[:1]).ntk[0, 0]) == pytest.approx(float(value**2 + slope**2), abs=1e-12)


@pytest.mark.long
def test_clamp_has_slope_zero_at_its_bounds():
    kernel = tp.compile(_net(lambda x: jax.lax.clamp(0.0, x, 1.0)), _AT[0])
    assert uncompiled(kernel, _AT[:1]).ntk[0, 0] == 0.0


def test_relu_elsewhere_is_a_maximum():
    relu, maximum = (tp.compile(_net(phi), _AT[0]) for phi in (jax.nn.relu, lambda h: jnp.maximum(h, 0.0)))
    x = jax.random.normal(jax.random.key(0), (5, 3))
    for a, b in zip(uncompiled(relu, x), uncompiled(maximum, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def _sign_with_slope_one(by):
    if by == "jvp":
        f = jax.custom_jvp(jnp.sign)
        f.defjvps(lambda g, _, x: g)
    else:
        f = jax.custom_vjp(jnp.sign)
        f.defvjp(lambda x: (jnp.sign(x), None), lambda _, g: (g,))
    return f


@pytest.mark.parametrize("by", ["jvp", "vjp"])
@pytest.mark.parametrize("method", ["tangent", "adjoint"])
def test_straight_through(by, method):
    """NTK = E[sign u sign v] + E[slope slope] (K + 1), the slope being the rule's, not that of the sign."""
    kernel = tp.compile(_net(_sign_with_slope_one(by)), _AT[0], method=method)
    x = jax.random.normal(jax.random.key(0), (4, 3))
    below = 2 * x @ x.T / 3
    size = jnp.sqrt(jnp.diag(below))
    signs = 2 / jnp.pi * jnp.arcsin(jnp.clip(below / size[:, None] / size, -1, 1))
    signs = jnp.fill_diagonal(signs, 1.0, inplace=False)  # a cosine rounded below one is off by the root of that
    k = uncompiled(kernel, x)
    np.testing.assert_allclose(k.nngp, signs, atol=1e-12)
    np.testing.assert_allclose(k.ntk, signs + below + 1, atol=1e-12)


def test_straight_through_at_finite_width():
    """The tangent kernel of sampled networks, whose distance falls like one over the root of the width."""
    net = _net(_sign_with_slope_one("vjp"))
    limit = uncompiled(tp.compile(net, _AT[0]), _AT).ntk[1, 1]
    errors = []
    for n in (128, 8192):

        def drawn(key, n=n):
            slopes = jax.grad(lambda p: tp.apply(net, p, _AT[1], width=n)[0])(tp.init(net, _AT[1], n, key))
            return sum(jnp.sum(s**2) for s in jax.tree.leaves(slopes))

        gaps = jax.jit(lambda keys: jax.lax.map(drawn, keys))(jax.vmap(jax.random.key)(jnp.arange(8))) - limit
        errors.append(np.sqrt(np.mean(np.square(gaps))))
    assert errors[1] < 0.4 * errors[0]  # 0.125 but for 8 samples
    assert errors[1] < 0.1 * limit


def test_a_rule_that_restates_the_derivative_leaves_the_program():
    @jax.custom_jvp
    def swish(x):
        return x * jax.nn.sigmoid(x)

    swish.defjvps(lambda g, _, x: g * jax.nn.sigmoid(x) * (1 + x * (1 - jax.nn.sigmoid(x))))
    assert "by_rule" not in str(tp.compile(_net(swish), _AT[0]).program)


def test_the_text_form_names_relu():
    program = tp.compile(_net(jax.nn.relu), _AT[0]).program
    text = print_program(program)
    assert 'Nonlin("relu(z0)"' in text
    assert print_program(parse_program(text)) == text


def test_a_rule_between_a_weight_and_its_transpose_does_not_count():
    """The mean derivative in a Zdot is that of the function: backpropagation has no part in it."""

    def tied(phi):
        def net(x):
            w = nn.weight((nn.width(), nn.width()), train=False) / np.sqrt(nn.width())
            h = phi(w @ nn.dense(x))
            return nn.dense(w.T @ h, features=1)

        return uncompiled(tp.compile(net, _AT[0]), _AT[1:]).nngp

    ruled = jax.custom_jvp(jnp.tanh)
    ruled.defjvps(lambda g, _, x: g)
    np.testing.assert_allclose(tied(ruled), tied(jnp.tanh), rtol=1e-12)


def test_a_rule_of_whole_arrays():
    """Taken where it restates the body's derivative, refused where it does not."""

    def layer(slope):
        f = jax.custom_jvp(lambda x: x - x.mean())

        @f.defjvp
        def rule(primals, tangents):
            return f(*primals), slope(tangents[0])

        return lambda x: nn.dense(jax.nn.relu(f(nn.dense(x))), features=1)

    tp.compile(layer(lambda t: t - t.mean()), _AT[0])
    with pytest.raises(UnsupportedError, match="another derivative than its body"):
        tp.compile(layer(lambda t: 2 * t), _AT[0])
