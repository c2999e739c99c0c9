"""The steps that every recursion is made of, on joint covariances.

A :class:`Gram` holds, for N inputs and P positions, the covariances of one layer's
coordinates over all pairs (input, position), shape (N, P, N, P):

  nngp   E[Z^h Z^h'], second moments of the layer (its NNGP kernel)
  ntk    E[Z^t Z^t'], the same of its tangent t = (derivative of h along a random
         direction of all trainable parameters): the neural tangent kernel of h
  mean   E[Z^h], shape (N, P), for layer norm

Sources: Yang 2020, "Tensor Programs II", the NTK of any architecture, in the form with
the sum over weights done on the way forward; for a layer h = sqrt(wv / n) W z + sqrt(bv) b this is
Jacot et al. 2018, Theorem 1:  ntk(h) = wv (nngp(z) + ntk(z)) + bv.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.references.duals import Array, Dual


@dataclass(frozen=True)
class Gram:
    """Covariances of one layer over (input, position) pairs; see the module."""

    nngp: Array
    ntk: Array
    mean: Array


def inputs(x: Array) -> Gram:
    """Raw inputs of shape (N, P, channels): inner products over the channels, no tangent."""
    x = np.asarray(x)
    if x.ndim != 3:
        raise ValueError(f"expected (inputs, positions, channels), got shape {x.shape}")
    nngp = np.einsum("npc,mqc->npmq", x, x) / x.shape[-1]
    return Gram(nngp, np.zeros_like(nngp), x.mean(-1))


def dense(k: Gram, weight_var: float = 1.0, bias_var: float = 0.0) -> Gram:
    """One Gaussian matrix applied at every position, and a bias shared by them."""
    nngp = weight_var * k.nngp + bias_var
    return Gram(nngp, weight_var * (k.nngp + k.ntk) + bias_var, np.zeros_like(k.mean))


def diagonal(nngp: Array) -> Array:
    """E[h^2] of every (input, position)."""
    return np.einsum("npnp->np", nngp)


def spread(nngp: Array) -> tuple[Array, Array]:
    """The variances of the two members of every pair, each of shape (N, P, N, P)."""
    q = diagonal(nngp)
    ones = np.ones_like(nngp)
    return q[:, :, None, None] * ones, q[None, None] * ones


def activation(k: Gram, phi: Dual) -> Gram:
    """phi of a centred Gaussian layer: TP-II, ntk' = E[phi'(u) phi'(v)] ntk."""
    q1, q2 = spread(k.nngp)
    return Gram(phi.value(q1, q2, k.nngp), phi.slope(q1, q2, k.nngp) * k.ntk, phi.mean(diagonal(k.nngp)))


def positions(k: Gram, matrix: Array) -> Gram:
    """A linear map of the positions, matrix (P', P): pooling, shifts, gathers, copies."""
    both = lambda a: np.einsum("ap,npmq,bq->namb", matrix, a, matrix, optimize=True)
    return Gram(both(k.nngp), both(k.ntk), k.mean @ matrix.T)


def scale(k: Gram, factor: Array) -> Gram:
    """Multiplication by a number that depends on (input, position), shape (N, P) or ()."""
    factor = np.broadcast_to(factor, k.mean.shape)
    pair = factor[:, :, None, None] * factor[None, None]
    return Gram(pair * k.nngp, pair * k.ntk, factor * k.mean)


def add(*terms: Gram) -> Gram:
    """A sum of layers that end in different weights, at most one of them with a mean."""
    if sum(bool(np.any(t.mean)) for t in terms) > 1:
        raise ValueError("cross terms of the means are missing here")
    return Gram(sum(t.nngp for t in terms), sum(t.ntk for t in terms), sum(t.mean for t in terms))


def product(a: Gram, b: Gram) -> Gram:
    """The elementwise product of two independent layers (different last weights).

    t(ab) = t(a) b + a t(b), and E[t(a) t(b)'] = 0.
    """
    return Gram(a.nngp * b.nngp, a.ntk * b.nngp + a.nngp * b.ntk, a.mean * b.mean)


def concat_width(*parts: tuple[Gram, float]) -> Gram:
    """Concatenation along the width of (layer, relative width): a mean weighted by width.

    Right for whatever averages over the coordinates (a dense layer, layer norm).  It does
    not matter whether the parts are independent or the same.
    """
    total = sum(width for _, width in parts)
    mix = lambda get: sum(get(k) * (width / total) for k, width in parts)
    return Gram(mix(lambda k: k.nngp), mix(lambda k: k.ntk), mix(lambda k: k.mean))


def layer_norm(k: Gram, epsilon: float) -> Gram:
    """(h - E h) / sqrt(Var h + epsilon) over the width (Ba et al. 2016; limit: TP-II).

    The statistics are moments, deterministic in the limit, and their tangents vanish
    because every tangent is odd in weights that nothing else contains.
    """
    centred = k.nngp - k.mean[:, :, None, None] * k.mean[None, None]
    moved = Gram(centred, k.ntk, np.zeros_like(k.mean))
    return scale(moved, 1 / np.sqrt(diagonal(centred) + epsilon))


def layer_norm_positions(k: Gram, epsilon: float) -> Gram:
    """Layer norm over the width and all positions together."""
    mean = k.mean.mean(-1, keepdims=True) * np.ones_like(k.mean)
    second = diagonal(k.nngp).mean(-1, keepdims=True)
    outer = lambda a, b: a[:, :, None, None] * b[None, None]
    centred = k.nngp - outer(k.mean, mean) - outer(mean, k.mean) + outer(mean, mean)
    factor = 1 / np.sqrt(second - mean[:, :1] ** 2 + epsilon)
    return scale(Gram(centred, k.ntk, k.mean - mean), factor)


def flatten(k: Gram) -> Gram:
    """All positions side by side as one vector: a mean over equal positions."""
    mean_of_equal = lambda a: np.einsum("npmp->nm", a)[:, None, :, None] / a.shape[1]
    return Gram(mean_of_equal(k.nngp), mean_of_equal(k.ntk), k.mean.mean(-1, keepdims=True))


def readout(k: Gram, weight_var: float = 1.0, bias_var: float = 0.0) -> tuple[Array, Array]:
    """A dense layer with finitely many outputs on the one position left: (nngp, ntk), each (N, N)."""
    if k.nngp.shape[1] != 1:
        raise ValueError(f"a readout needs one position, got {k.nngp.shape[1]}: flatten or pool first")
    out = dense(k, weight_var, bias_var)
    return out.nngp[:, 0, :, 0], out.ntk[:, 0, :, 0]


def average(count: int) -> Array:
    """The matrix of the mean over ``count`` positions."""
    return np.full((1, count), 1 / count)
