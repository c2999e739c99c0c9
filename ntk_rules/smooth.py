"""Smooth functions without closed form: Mehler's series, and the trapezoidal rule it rests on.

For one Gaussian of standard deviation s, E[f(s x)] is a trapezoidal sum, which converges geometrically
for analytic
f (L. N. Trefethen, J. A. C. Weideman, "The exponentially convergent trapezoidal rule", SIAM Review 56, 2014).
For two, E[f(u) g(v)] = sum_k a_k(s_u) b_k(s_v) rho^k with a_k(s) = E[f(s x) h_k(x)], h_k the
orthonormal Hermite
polynomials (Mehler 1866): everything expensive is per variance, a pair costs two multiplications per
order. By Cauchy
and Schwarz the error of stopping at K is at most (sum_{k>=K} a_k^2 sum_{k>=K} b_k^2)^(1/2) |rho|^K.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ntk_rules import special

BLOCK = 16
Function = Callable[..., jax.Array]


@dataclass(frozen=True)
class Grid:
    """Trapezoidal nodes on [-reach, reach] and the largest Hermite order they resolve."""

    reach: float
    nodes: int
    orders: int


# As many orders in single precision: how far a series reaches depends on them alone, and a bound shown in double precision holds in both.
GRID64 = Grid(13.0, 1024, 768)
GRID32 = Grid(9.0, 640, 768)
_LINE = 1024  # intervals of the sum over one Gaussian, in either precision
_BEND = 1.0  # the distance from zero at which its nodes begin to part


def grid_for(x: jax.Array) -> Grid:
    """The grid for the dtype of `x`."""
    return GRID64 if special.is_double(x) else GRID32


@functools.cache
def nodes_and_step(grid: Grid, thin: int) -> tuple[np.ndarray, float]:
    """Nodes and their distance, float64; of a thinned grid about one in `thin`.

    Thinned grids are not parts of the whole one: what one takes for something else by sampling too rarely, the others
    take for other things.
    """
    intervals = grid.nodes // thin + 11 * (thin - 1)
    return np.linspace(-grid.reach, grid.reach, intervals + 1), 2 * grid.reach / intervals


@functools.partial(jax.jit, static_argnums=1)
def hermite_rows(x: jax.Array, orders: int) -> jax.Array:
    """(orders, *x.shape): h_k(x) exp(-x^2/4), h_k the orthonormal Hermite polynomials, by their recurrence.

    Computed in the compiled function rather than stored, so that artefacts stay small; jitted, so that it is traced once.
    """
    roots = jnp.sqrt(jnp.arange(orders + 1, dtype=x.dtype))

    def step(state, root):
        previous, current = state
        this, following = root
        return (current, (x * current - this * previous) / following), current

    start = (jnp.zeros_like(x), jnp.exp(-x * x / 4))
    return jax.lax.scan(step, start, (roots[:-1], roots[1:]))[1]


def mean_one(
    f: Function, s: jax.Array, parameters: tuple[jax.Array, ...], thin: int = 1, shell: float = 0
) -> jax.Array:  # fmt: skip
    """E[f(s x)]: the trapezoidal sum, `parameters` broadcasting against s; of the outermost nodes alone if `shell` is their depth.

    The sum is over t, s x = max(s, 1) sinh(t): at large s the nodes lie dense where f has its transition, on its own scale, and ever
    farther apart on the way to where the density falls. In t both are analytic in a strip whose width does not depend on s (of the density
    it is pi/4), so that as many nodes do for every variance.
    """
    reach = grid_for(s).reach
    unit, step = nodes_and_step(Grid(1.0, _LINE, 0), thin)
    bend = _BEND / jnp.maximum(s, _BEND)[..., None]  # in standard deviations
    length = jnp.arcsinh(reach / bend)
    x = bend * jnp.sinh(length * jnp.asarray(unit, s.dtype))
    weights = length * step * jnp.sqrt(bend * bend + x * x) * jnp.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    if shell:
        weights = jnp.where(jnp.abs(x) > reach - shell, weights, 0)
    return jnp.sum(f(s[..., None] * x, *(p[..., None] for p in parameters)) * weights, axis=-1)


def coefficients(f: Function, s: jax.Array, parameters: tuple[jax.Array, ...], thin: int = 1) -> jax.Array:
    """a_k(s) for all orders of the grid, the order axis first.

    Nodes lie alike on both sides of zero: the even orders see the even part of f alone, and the odd ones the odd part, on half the nodes.
    """
    grid = grid_for(s)
    x, step = nodes_and_step(grid, thin)
    right = x[len(x) // 2 :]
    weights = step * np.exp(-right * right / 4) / math.sqrt(2 * math.pi)
    weights[0] /= 1 + len(x) % 2  # a node at zero is on both sides
    table = hermite_rows(jnp.asarray(right, s.dtype), grid.orders) * weights.astype(s.dtype)
    both = np.concatenate([right, -right]).astype(s.dtype)
    samples = f(s[..., None] * both, *(p[..., None] for p in parameters))
    one, other = samples[..., : len(right)], samples[..., len(right) :]
    found = [
        jnp.matmul(part, rows.T, precision=jax.lax.Precision.HIGHEST)
        for part, rows in ((one + other, table[::2]), (one - other, table[1::2]))
    ]
    return jnp.moveaxis(jnp.stack(found, -1).reshape(*samples.shape[:-1], grid.orders), -1, 0)


def relative_tails(a: jax.Array) -> jax.Array:
    """sqrt(sum_{j >= k} a_j^2 / sum_j a_j^2) at the start of each block: (blocks, ...)."""
    squares = jnp.sum((a * a).reshape(-1, BLOCK, *a.shape[1:]), axis=1)
    tails = jnp.cumsum(squares[::-1], axis=0)[::-1]
    return jnp.sqrt(tails / jnp.where(tails[0] == 0, 1, tails[0]))


def truncation(a: jax.Array, square: jax.Array) -> jax.Array:
    """A bound of sqrt(sum_{k >= K} a_k^2) for coefficients a_k, k < K, of a function with E[f^2] = `square`.

    By Parseval the sum is E[f^2] - sum_{k < K} a_k^2; where rounding leaves nothing of that, what the power law
    through the middle and the last coefficients adds up to, which is more than any faster decay.
    """
    count = a.shape[0]
    rounding = 16 * jnp.finfo(a.dtype).eps * square
    missing = jnp.maximum(square - jnp.sum(a * a, axis=0), 0)
    middle = jnp.mean(a[count // 2 - BLOCK : count // 2 + BLOCK] ** 2, axis=0)
    last = jnp.mean(a[-2 * BLOCK :] ** 2, axis=0)
    power = jnp.log2(jnp.maximum(middle / jnp.where(last == 0, 1, last), 1))
    rest = count * last / jnp.maximum(power - 1, 0.1)
    return jnp.sqrt(jnp.where(missing > 4 * rounding, missing + rounding, jnp.minimum(missing + rounding, rest)))


@jax.custom_batching.custom_vmap
def mehler_sum(a: jax.Array, b: jax.Array, rho: jax.Array) -> jax.Array:
    """sum_k a_k b_k rho^k, stopping at the block after which both tails are below working precision.

    `a`, `b` have the order axis first and broadcast against `rho` behind it. Under vmap the batch
    becomes one more
    broadcast axis, so that one stopping test serves the whole batch and a_k, b_k stay as small as they were.
    """
    small = jnp.sqrt(jnp.finfo(rho.dtype).eps) / 4
    tail_a, tail_b = relative_tails(a), relative_tails(b)
    blocks = a.shape[0] // BLOCK
    shape = jnp.broadcast_shapes(a.shape[1:], b.shape[1:], rho.shape)

    def more(state):
        k = jnp.minimum(state[0], blocks - 1)
        unfinished = jnp.any(tail_a[k] > small) | jnp.any(tail_b[k] > small)
        return (state[0] < blocks) & unfinished

    def step(state):
        block, power, total = state
        left = jax.lax.dynamic_slice_in_dim(a, block * BLOCK, BLOCK)
        right = jax.lax.dynamic_slice_in_dim(b, block * BLOCK, BLOCK)
        part = jnp.zeros(shape, rho.dtype)
        for i in reversed(range(BLOCK)):
            part = part * rho + left[i] * right[i]
        return block + 1, power * rho**BLOCK, total + power * part

    start = (0, jnp.ones_like(rho), jnp.zeros(shape, rho.dtype))
    return jax.lax.while_loop(more, step, start)[2]


@mehler_sum.def_vmap
def _mehler_sum_batched(size, batched, a, b, rho):
    rank = max(a.ndim - 1 - batched[0], b.ndim - 1 - batched[1], rho.ndim - batched[2])

    def spread(x, is_batched, orders):
        lead = x.shape[is_batched : is_batched + orders]
        inner = x.shape[is_batched + orders :]
        padded = (1,) * (rank - len(inner)) + inner
        if not is_batched:
            return x.reshape(*lead, 1, *padded)
        x = x.reshape(size, *lead, *padded)
        return jnp.moveaxis(x, 0, orders)

    out = mehler_sum(spread(a, batched[0], 1), spread(b, batched[1], 1), spread(rho, batched[2], 0))
    return jnp.broadcast_to(out, (size, *out.shape[1:])), True


ROUNDING = 256  # units of rounding in sums of hundreds of terms, relative to the scale of the answer


def refined_error(first: jax.Array, second: jax.Array, scale: jax.Array) -> jax.Array:
    """The error of a sum from its distance to the sum with half the nodes (`first`) and theirs to a quarter (`second`).

    Geometric convergence, A r^n with n nodes, makes them A r^(n/2) and A r^(n/4), so that the error is
    first * (first/second)^2: a factor 10 of margin in the ratio, and rounding. Where the distances shrink more slowly, convergence is
    algebraic, A n^-a, as at a singularity on an edge: every further doubling leaves first/second = 2^-a of the distance, and all of them
    together a geometric series, which is long where a is small. Where they do not shrink at all, nothing is resolved.
    """
    unit = jnp.finfo(scale.dtype).eps
    ratio = first / jnp.where(second == 0, jnp.finfo(scale.dtype).tiny, second)
    seen = jnp.where(
        first > ROUNDING * unit * scale, first, 0
    )  # what is less is rounding, and no sign of slow convergence
    slow = 2 * seen * ratio / jnp.maximum(1 - ratio, 1e-3)
    error = jnp.where(10 * ratio < 1, first * (10 * ratio) ** 2, jnp.maximum(4 * jnp.maximum(first, second), slow))
    return jnp.minimum(error, 2 * scale) + ROUNDING * unit * scale
