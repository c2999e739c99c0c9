"""Compositions that a table of layers gets wrong: each by the master theorem, by hand.

The master theorem (Yang 2020, "Tensor Programs III", Theorem 2.10): coordinates of program
vectors behave as the random variables Z, and Z^{phi(x)} = phi(Z^x).  So a product of two
nonlinearities of one pre-activation is one nonlinearity, x + x is 2x, and a pooled layer is a mean
of dependent variables, not of independent ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import erf as _erf

from tests.references import quadrature
from tests.references.duals import Array, Dual, abrelu
from tests.references.gram import Gram, dense, diagonal, scale, spread

Function = Callable[[Array], Array]


def _erf_slope(u: Array) -> Array:
    return 2 / np.sqrt(np.pi) * np.exp(-u * u)


def _step(u: Array) -> Array:
    return (u > 0).astype(float)


def _relu(u: Array) -> Array:
    return np.maximum(u, 0)


# --------------------------------------------------------------------------- one pre-activation

plus_relu = abrelu(1.0, 2.0, "u + relu(u)")
times_erf = quadrature.dual(lambda u: u * _erf(u), lambda u: _erf(u) + u * _erf_slope(u), "u erf(u)")
relu_times_erf = quadrature.dual(
    lambda u: _relu(u) * _erf(u), lambda u: _step(u) * (_erf(u) + u * _erf_slope(u)), "relu(u) erf(u)"
)
relu_of_erf = quadrature.dual(lambda u: _relu(_erf(u)), lambda u: _step(u) * _erf_slope(u), "relu(erf(u))")
erf_of_relu = quadrature.dual(lambda u: _erf(_relu(u)), lambda u: _step(u) * _erf_slope(u), "erf(relu(u))")
tanh = quadrature.dual(np.tanh, lambda u: 1 / np.cosh(u) ** 2, "tanh")
sigmoid_squared = quadrature.dual(
    lambda u: 1 / (1 + np.exp(-u)) ** 2,
    lambda u: 2 * np.exp(-u) / (1 + np.exp(-u)) ** 3,
    "sigmoid(u)^2",
)


# --------------------------------------------------------------------------- residual normalisation


def plus_layer_norm(k: Gram, epsilon: float) -> Gram:
    """h + layer_norm(h) = (1 + 1/s) h - m/s, with m = E h and s^2 = Var h + epsilon."""
    s = np.sqrt(diagonal(k.nngp) - k.mean**2 + epsilon)
    stretched = scale(k, 1 + 1 / s)
    m, shift = stretched.mean, k.mean / s
    outer = lambda a, b: a[:, :, None, None] * b[None, None]
    nngp = stretched.nngp - outer(m, shift) - outer(shift, m) + outer(shift, shift)
    return Gram(nngp, stretched.ntk, m - shift)


def affine_activation(k: Gram, phi: Dual, weighted: Dual, *, gain: bool, shift: bool) -> Gram:
    """phi(g * y + s) of a Gaussian layer y, with g = 1 and s = 0 trainable, per coordinate.

    The tangent of the argument is t(y) + y g' + s' with g', s' standard Gaussian.  Unlike
    t(y), the term y g' is not independent of phi'(y), so it needs E[y phi'(y) y' phi'(y')]:
    ``weighted`` is the dual of u phi'(u).
    """
    q1, q2 = spread(k.nngp)
    slope = phi.slope(q1, q2, k.nngp)
    ntk = slope * (k.ntk + shift) + gain * weighted.value(q1, q2, k.nngp)
    return Gram(phi.value(q1, q2, k.nngp), ntk, phi.mean(diagonal(k.nngp)))


erf_weighted = quadrature.dual(lambda u: u * _erf_slope(u), lambda u: (1 - 2 * u * u) * _erf_slope(u), "u erf'(u)")


# --------------------------------------------------------------------------- one weight, used twice


def tied_sum(k: Gram, phi: Dual, weight_var: float) -> Gram:
    """h1 + h2 with h1 = W z, h2 = W phi(h1), the same W; ``k`` is the Gram of z.

    Cov(h1, h2') = wv E[z phi(h1')] = wv E[z] E[phi(h1')], as h1 is independent of z; in
    the tangents only the fresh direction of W is shared, and gives the same cross term.
    """
    first = dense(k, weight_var)
    q = diagonal(first.nngp)
    q1, q2 = spread(first.nngp)
    state = Gram(phi.value(q1, q2, first.nngp), phi.slope(q1, q2, first.nngp) * first.ntk, phi.mean(q))
    second = dense(state, weight_var)
    cross = weight_var * k.mean[:, :, None, None] * state.mean[None, None]
    cross = cross + np.einsum("npmq->mqnp", cross)
    return Gram(first.nngp + second.nngp + cross, first.ntk + second.ntk + cross, np.zeros_like(k.mean))


# --------------------------------------------------------------------------- nonlinearity after pooling


def pooled_pair(k: Gram, inner: tuple[Function, Function], outer: tuple[Function, Function]) -> Gram:
    """outer(mean of inner(h_1), inner(h_2)) of a centred Gaussian layer with two positions.

    A function is given with its derivative.  ``inner`` is odd and increasing, smooth;
    ``outer`` may have a kink at zero, which the pooled argument crosses where h_1 + h_2 = 0.

      y = f(z), z = (g(h_1) + g(h_2)) / 2,   t(y) = f'(z) (g'(h_1) t_1 + g'(h_2) t_2) / 2
    """
    (g, dg), (f, df) = inner, outer
    n = k.nngp.shape[0]
    nngp, ntk = np.zeros((n, 1, n, 1)), np.zeros((n, 1, n, 1))

    def value(a1: Array, a2: Array, b1: Array, b2: Array) -> Array:
        return f((g(a1) + g(a2)) / 2) * f((g(b1) + g(b2)) / 2)

    def slopes(i: int, j: int) -> Callable[..., Array]:
        def one(*h: Array) -> Array:
            left, right = df((g(h[0]) + g(h[1])) / 2), df((g(h[2]) + g(h[3])) / 2)
            return left * dg(h[i]) * right * dg(h[2 + j]) / 4

        return one

    for a in range(n):
        for b in range(a + 1):
            rows = [(a, 0), (a, 1), (b, 0), (b, 1)]
            c = np.array([[k.nngp[r + s] for s in rows] for r in rows])
            nngp[a, 0, b, 0] = nngp[b, 0, a, 0] = quadrature.folded_expectation(value, c)
            total = sum(
                k.ntk[a, i, b, j] * quadrature.folded_expectation(slopes(i, j), c) for i in range(2) for j in range(2)
            )
            ntk[a, 0, b, 0] = ntk[b, 0, a, 0] = total
    return Gram(nngp, ntk, np.full((n, 1), np.nan))  # the mean is not worked out


ERF = (_erf, _erf_slope)
RELU = (_relu, _step)
TANH = (np.tanh, lambda u: 1 / np.cosh(u) ** 2)


# --------------------------------------------------------------------------- a product of dependent branches


def product_of_dependent(k: Gram, share: float, f: tuple[Function, Function], g: tuple[Function, Function]) -> Gram:
    """f(u) g(share u + v) with u, v two dense layers (weight_var 1) over the layer of ``k``.

    Entire f and g (plain Gauss-Hermite); one position.  Four correlated Gaussians per pair of inputs.

      t(y) = f'(u) g(w) t_u + f(u) g'(w) (share t_u + t_v),  w = share u + v
    """
    (f0, f1), (g0, g1) = f, g
    h = dense(k)
    s, t = h.nngp[:, 0, :, 0], h.ntk[:, 0, :, 0]
    n = len(s)
    nngp, ntk = np.zeros((n, 1, n, 1)), np.zeros((n, 1, n, 1))
    # (u, w) of one input, in terms of independent copies (u, v) of the layer.
    mix = np.array([[1.0, 0.0], [share, 1.0]])

    def branches(u: Array, w: Array) -> list[Array]:
        """Derivatives of y along u and along v."""
        return [f1(u) * g0(w) + share * f0(u) * g1(w), f0(u) * g1(w)]

    for a in range(n):
        for b in range(a + 1):
            block = np.array([[s[a, a], s[a, b]], [s[b, a], s[b, b]]])
            c = np.kron(block, mix @ mix.T)  # order: u_a, w_a, u_b, w_b
            value = quadrature.expectation(lambda u, w, p, r: f0(u) * g0(w) * f0(p) * g0(r), c)
            total = sum(
                quadrature.expectation(lambda u, w, p, r, i=i: branches(u, w)[i] * branches(p, r)[i], c)
                for i in range(2)
            )
            nngp[a, 0, b, 0] = nngp[b, 0, a, 0] = value
            ntk[a, 0, b, 0] = ntk[b, 0, a, 0] = total * t[a, b]
    return Gram(nngp, ntk, np.full((n, 1), np.nan))  # the mean is not worked out
