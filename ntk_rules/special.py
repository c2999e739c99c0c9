"""Special functions at working precision, vectorised: the numerical floor the closed forms stand on.

XLA's `acos` and `atan2` cost some 50 times a short polynomial on CPU, and JAX has no bivariate normal
integral. Everything here broadcasts, runs in float32 and float64 (coefficients and orders follow the dtype),
and has right, finite derivatives at the singular points.

Sources: Chebyshev interpolation of acos(x)/sqrt(1-x^2) on [0, 1] (its nearest singularity, x = -1, makes the
error fall like 5.83^-degree); D. B. Owen, "Tables for computing bivariate normal probabilities", Ann. Math.
Stat. 27 (1956), eqs 2.1-2.4 for the bivariate normal integral through the T function.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import erf
from jax.scipy.special import ndtr as wide_ndtr

# acos(x) / sqrt(1 - x^2) = sum_k a_k (2x - 1)^k on [0, 1]; tests compare with mpmath.
_ACOS_FLOAT32 = (
    1.2091995896960857, -0.2636001456042563, 0.0697325164400052, -0.019836931218929134,
    0.005866975845382606, -0.0017746354449429645, 0.0005301560954843185, -0.00016464391855919086,
    6.891023548397362e-05, -2.1802391066794472e-05,
)  # fmt: skip
_ACOS_FLOAT64 = (
    1.2091995761561452, -0.26360014128128495, 0.06973319205204695, -0.01983714692248039,
    0.005861628974956424, -0.0017729284610749304, 0.0005447739881451526, -0.00016930994773843924,
    5.307370313295116e-05, -1.6749141348338966e-05, 5.314287553477724e-06, -1.693645350595314e-06,
    5.418573662468843e-07, -1.738726839235579e-07, 5.575856152633174e-08, -1.7981407551034205e-08,
    6.03216110510682e-09, -1.9534432391641623e-09, 4.685720068252139e-10, -1.5191199602630045e-10,
    1.1880721779819627e-10, -3.872398020190798e-11,
)  # fmt: skip

# (1 + 2x) exp(x^2) erfc(x) = sum_k b_k ((x - 3)/(x + 3))^k for x >= 0.
_ERFCX_FLOAT32 = (
    1.2530080563514496, -0.13562110005839803, -0.047562156146354076, 0.1296447209153884,
    -0.11927528136881009, 0.06831319671956372, -0.023763559702172088, 0.0025067786718598333,
    0.001875060245867973, -0.0007340820503933423, -9.25376912641456e-05, 8.007454974776248e-05,
)  # fmt: skip
_ERFCX_FLOAT64 = (
    1.2530080582697296, -0.13562110612458117, -0.04756229435345087, 0.1296451587027606,
    -0.11927366341530699, 0.06830802734397848, -0.023770514918645888, 0.002529391816066239,
    0.0018886903591561553, -0.0007798322721083991, -0.00010515979981501177, 0.00012509935235563107,
    4.949484992570595e-06, -2.0100567931289227e-05, -7.315105164159062e-07, 3.472414602875686e-06,
    3.5683839153992204e-07, -6.166496077604353e-07, -1.4160064940265987e-07, 1.0187000600072885e-07,
    4.180784698845582e-08, -1.3326364813003834e-08, -8.500397929772615e-09, 9.885798831139365e-10,
    8.864219016427092e-10,
)  # fmt: skip


def ndtr(x: jax.Array) -> jax.Array:
    """The normal distribution function, of half precision too, which JAX's has not."""
    return wide_ndtr(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)


def is_double(x: jax.Array) -> bool:
    """True where `x` has eight-byte floats."""
    return jnp.asarray(x).dtype == jnp.float64


def as_floats(*values: object) -> tuple[jax.Array, ...]:
    """The values as JAX arrays of one common floating dtype (not broadcast)."""
    dtype = jnp.result_type(*values)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    return tuple(jnp.asarray(v, dtype) for v in values)


def horner(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    """sum_k coefficients[k] x^k. (JAX traces operations of `lax` sooner than those of `jnp`.)"""
    total = jnp.full_like(x, coefficients[-1])
    for c in np.asarray(coefficients[-2::-1], x.dtype):
        total = lax.add(lax.mul(total, x), c)
    return total


def by_parity(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    """The same by its even and its odd part: two chains, which a processor computes side by side, where in one every product waits for the
    last."""
    square = x * x
    return horner(coefficients[::2], square) + x * horner(coefficients[1::2], square)


def reciprocal(x: jax.Array) -> jax.Array:
    """1/x, and 0 where x = 0: the symmetric limit taken at degenerate covariances."""
    return 1 / jnp.where(x == 0, jnp.inf, x)


def angle(r: jax.Array, w: jax.Array) -> jax.Array:
    """The angle in [0, pi] whose cosine is `r` and whose sine is `w >= 0`, both of one unit vector.

    Taking both avoids acos's loss of half the digits at |r| = 1.

    >>> float(angle(jnp.float32(0.5), jnp.float32(0.75) ** 0.5))  # doctest: +ELLIPSIS
    1.0471...
    """
    r, w = as_floats(r, w)
    size = jnp.abs(r)
    table = _ACOS_FLOAT64 if is_double(r) else _ACOS_FLOAT32
    acute = w * by_parity(table, 2 * size - 1)
    return jnp.where(r < 0, math.pi - acute, acute)


def signed_angle(r: jax.Array, w: jax.Array) -> jax.Array:
    """The angle in [-pi/2, pi/2] whose sine is `r` and whose cosine is `w >= 0`: arcsin without its losses.

    >>> round(float(signed_angle(jnp.float32(-0.5), jnp.float32(0.75) ** 0.5)), 4)
    -0.5236
    """
    r, w = as_floats(r, w)
    return r * by_parity(_ACOS_FLOAT64 if is_double(r) else _ACOS_FLOAT32, 2 * w - 1)  # sign(r) angle(w, |r|)


_TURNS_FLOAT32, _TURNS_FLOAT64 = (tuple(a / (2 * math.pi) for a in table) for table in (_ACOS_FLOAT32, _ACOS_FLOAT64))


def signed_turns(r: jax.Array, w: jax.Array) -> jax.Array:
    """`signed_angle` as a part of a full turn, in [-1/4, 1/4]: the polynomial has the number.

    >>> round(float(signed_turns(jnp.float32(-0.5), jnp.float32(0.75) ** 0.5)), 6)
    -0.083333
    """
    r, w = as_floats(r, w)
    return r * by_parity(_TURNS_FLOAT64 if is_double(r) else _TURNS_FLOAT32, 2 * w - 1)


@jax.custom_jvp
def acos(x: jax.Array) -> jax.Array:
    """Arc cosine, clipped to [-1, 1]; its derivative at the ends is taken as 0 (see `reciprocal`).

    >>> float(acos(1.0)), bool(jax.grad(acos)(1.0) == 0)
    (0.0, True)
    """
    (x,) = as_floats(x)
    x = jnp.clip(x, -1, 1)
    return angle(x, jnp.sqrt((1 - x) * (1 + x)))


@acos.defjvp
def _acos_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return acos(x), -dx * reciprocal(jnp.sqrt(jnp.maximum((1 - x) * (1 + x), 0)))


@jax.custom_jvp
def asin(x: jax.Array) -> jax.Array:
    """Arc sine, clipped to [-1, 1]: small arguments keep their relative accuracy. Its derivative at the ends is taken as 0.

    >>> float(asin(0.0))
    0.0
    """
    (x,) = as_floats(x)
    x = jnp.clip(x, -1, 1)
    return signed_angle(x, jnp.sqrt((1 - x) * (1 + x)))


@asin.defjvp
def _asin_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return asin(x), dx * reciprocal(jnp.sqrt(jnp.maximum((1 - x) * (1 + x), 0)))


def orthant(*correlations: jax.Array) -> jax.Array:
    """P(x > 0), P(x, y > 0) or P(x, y, z > 0) for standard Gaussians of the given correlations.

    correlations: none, that of (x, y), or those of (x, y), (x, z), (y, z). Source: Sheppard 1899.

    >>> float(orthant()), round(float(orthant(0.5)), 6), round(float(orthant(0.5, 0.5, 0.5)), 6)
    (0.5, 0.333333, 0.25)
    """
    if len(correlations) not in (0, 1, 3):
        raise ValueError(f"orthant: {len(correlations)} correlations given, expected 0, 1 or 3")
    dimension = {0: 1, 1: 2, 3: 3}[len(correlations)]
    angles = sum((asin(r) for r in correlations), start=jnp.zeros(()))
    return 2.0**-dimension + angles / (2.0 ** (dimension - 1) * math.pi)


def correlation(q1: jax.Array, q2: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The correlation of two Gaussians, clipped to [-1, 1], and sqrt(1 - correlation^2).

    `q1`, `q2` are variances, `c` the covariance. Zero variance gives correlation 0. Within four units of rounding of 1 or -1
    it counts as that, so for q1 = q2 = c it is exactly 1: what rounding alone has parted, such as one variable by two ways of
    computing it, would otherwise differ by an angle of half the digits.
    """
    q1, q2, c = as_floats(q1, q2, c)
    # each variance by itself: of a matrix of pairs, a root and a quotient for each input, not for each pair
    rho = c * _inverse_root(q1) * _inverse_root(q2)
    rho = jnp.where(1 - jnp.abs(rho) < 4 * jnp.finfo(rho.dtype).eps, jnp.where(rho < 0, -1.0, 1.0), rho)
    return rho, jnp.sqrt((1 - rho) * (1 + rho))


def _inverse_root(q: jax.Array) -> jax.Array:
    """1/sqrt(q), and 0 where q is not positive."""
    return 1 / jnp.sqrt(jnp.where(q > 0, q, jnp.inf))


def exp_difference(x: jax.Array, y: jax.Array, difference: jax.Array) -> jax.Array:
    """exp(x) - exp(y) where x - y is known better than from x and y.

    >>> float(exp_difference(0.0, -1e-20, 1e-20))
    1e-20
    """
    x, y, difference = as_floats(x, y, difference)
    return -jnp.sign(difference) * jnp.exp(jnp.maximum(x, y)) * jnp.expm1(-jnp.abs(difference))


def exp_differences(
    x: jax.Array, y: jax.Array, z: jax.Array, t: jax.Array, xy: jax.Array, zt: jax.Array, xt: jax.Array, zy: jax.Array
) -> jax.Array:
    """exp(x) - exp(y) + exp(z) - exp(t), where the differences x - y, z - t, x - t, z - y are known better than from these.

    >>> float(exp_differences(0.0, -99.0, -99.0, -1e-20, 99.0, -99.0, 1e-20, 0.0))
    1e-20
    """
    x, y, z, t, xy, zt, xt, zy = as_floats(x, y, z, t, xy, zt, xt, zy)
    straight = jnp.abs(xy) + jnp.abs(zt) <= jnp.abs(xt) + jnp.abs(zy)  # pairs of what is nearly equal
    near, far = jnp.where(straight, y, t), jnp.where(straight, t, y)
    first = exp_difference(x, near, jnp.where(straight, xy, xt))
    return first + exp_difference(z, far, jnp.where(straight, zt, zy))


def pair_exponent(x: jax.Array, y: jax.Array, r: jax.Array, w: jax.Array) -> jax.Array:
    """-(x^2 + y^2 - 2 r x y)/(2 w^2) with w = sqrt(1 - r^2); 0 where w is 0.

    Near r = 1 these are three huge terms that cancel; -(x - y)^2/(2 w^2) - x y/(1 + r) is the same, and likewise near -1.

    >>> round(float(pair_exponent(3.0, 3.0, 1.0, 1e-6)), 6)
    -4.5
    """
    x, y, r, w = as_floats(x, y, r, w)
    side = jnp.where(r < 0, -1, 1)
    degenerate = w == 0
    apart = (x - side * y) / jnp.where(degenerate, 1, w)
    return jnp.where(degenerate, 0, -apart * apart / 2 - side * x * y / (1 + jnp.abs(r)))


def residue(std: jax.Array, *addends: jax.Array) -> jax.Array:
    """The sum of `addends`, and 0 where `std` is 0 and the sum is no more than their rounding.

    >>> float(residue(jnp.float32(0), 0.3, -0.1, -0.2)), round(float(residue(jnp.float32(0), 0.3, -0.1)), 4)
    (0.0, 0.2)
    """
    std, *parts = as_floats(std, *addends)
    total, size = sum(parts), sum(map(jnp.abs, parts))
    return jnp.where((std == 0) & (jnp.abs(total) <= 16 * jnp.finfo(std.dtype).eps * size), 0, total)


@jax.jit
def normal_cdf(mean: jax.Array, std: jax.Array) -> jax.Array:
    """P(mean + std x > 0) for standard Gaussian x; 0, 1/2 or 1 where std = 0."""
    mean, std = as_floats(mean, std)
    zero = std == 0
    return jnp.where(zero, (1 + jnp.sign(mean)) / 2, ndtr(mean / jnp.where(zero, 1, std)))


@jax.jit
def centred_cdf(mean: jax.Array, std: jax.Array) -> jax.Array:
    """2 P(mean + std x > 0) - 1, with all digits where that is small; -1, 0 or 1 where std = 0."""
    mean, std = as_floats(mean, std)
    zero = std == 0
    return jnp.where(zero, jnp.sign(mean), erf(mean / jnp.where(zero, 1, std) * math.sqrt(0.5)))


@functools.cache
def gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the n-point Gauss-Legendre rule on [0, 1], float64.

    NumPy's lose digits with n (1e-13 at n = 320); two steps of Newton's method in long double give them back.
    """
    x: np.ndarray = np.polynomial.legendre.leggauss(n)[0].astype(np.longdouble)
    slope = np.ones_like(x)
    for _ in range(2):
        before, here = np.ones_like(x), x
        for k in range(1, n):
            before, here = here, ((2 * k + 1) * x * here - k * before) / (k + 1)
        slope = n * (before - x * here) / ((1 - x) * (1 + x))
        x = x - here / slope
    return ((x + 1) / 2).astype(float), (1 / ((1 - x) * (1 + x) * slope**2)).astype(float)


def owen_t(h: jax.Array, y: jax.Array) -> jax.Array:
    """Owen's T(h, a) with a = y/h, for h >= 0; finite also for h = 0 (there a = +-inf, unless y = 0)."""
    flip = jnp.abs(y) > h
    far = jnp.where(flip, jnp.abs(y), h)
    near = jnp.where(flip, h, jnp.abs(y))
    slope = near / jnp.where(far == 0, 1, far)
    core = _owen_core(far, slope)
    size = jnp.abs(y)
    # T(h,a) = (Phi(h) + Phi(ah))/2 - Phi(h) Phi(ah) - T(ah, 1/a), written with tails so that nothing cancels.
    tail_h, tail_y = ndtr(-h), ndtr(-size)
    flipped = (tail_h + tail_y) / 2 - tail_h * tail_y - core
    return jnp.where(y < 0, -1, 1) * jnp.where(flip, flipped, core)


def _owen_core(h: jax.Array, a: jax.Array) -> jax.Array:
    """int_0^a exp(-h^2 (1+x^2)/2) / (1+x^2) dx / (2 pi), 0 <= a <= 1, by Gauss-Legendre.

    Where h is large the Gaussian factor cuts the range, so the rule is applied on [0, min(a, cut/h)].
    """
    a = jnp.minimum(a, (9.0 if is_double(h) else 6.0) / jnp.maximum(h, 1))
    square, decay = a * a, -0.5 * h * h

    def integrand(x):
        t = 1 + square * (x * x)
        return jnp.exp(decay * t) / t

    return quadrature(integrand, 26 if is_double(h) else 10, a) * a / (2 * math.pi)


def quadrature(integrand: Callable[[jax.Array], jax.Array], n: int, like: jax.Array) -> jax.Array:
    """int_0^1 integrand by the n-point Gauss-Legendre rule, as a loop of short compiled steps.

    `integrand` takes a scalar node and gives an array of the shape of `like`.
    """
    nodes, weights = (jnp.asarray(t, like.dtype) for t in gauss_legendre(n))
    return jax.lax.fori_loop(
        0, n, lambda k, total: total + weights[k] * integrand(nodes[k]), jnp.zeros_like(like), unroll=2
    )


@jax.custom_jvp
def bivariate_cdf(h: jax.Array, k: jax.Array, r: jax.Array, w: jax.Array) -> jax.Array:
    """P(x < h, y < k) for standard Gaussians of correlation `r`, with w = sqrt(1 - r^2).

    Passing `w` keeps full accuracy at |r| -> 1. Infinite limits are allowed. Derivatives: h, k, r are
    independent, `w` follows r.

    >>> round(float(bivariate_cdf(0.0, 0.0, 0.5, 0.75 ** 0.5)), 6)
    0.333333
    """
    return bivariate_value(h, k, r, w)


@jax.jit
def bivariate_value(h: jax.Array, k: jax.Array, r: jax.Array, w: jax.Array) -> jax.Array:
    """`bivariate_cdf` with the derivatives of its code, in which `w` does not follow r."""
    h, k, r, w = as_floats(h, k, r, w)
    big = 40.0
    h, k = jnp.clip(h, -big, big), jnp.clip(k, -big, big)
    tiny = 1e-30
    centre = (h == 0) & (k == 0)
    h, k = jnp.where(centre, tiny, h), jnp.where(centre, tiny, k)
    degenerate = w == 0
    safe = jnp.where(degenerate, 1, w)
    y_h, y_k = beyond(k, h, r, w) / safe, beyond(h, k, r, w) / safe
    side_h, side_k = jnp.where(h < 0, -1, 1), jnp.where(k < 0, -1, 1)
    wedges = owen_t(jnp.abs(h), side_h * y_h) + owen_t(jnp.abs(k), side_k * y_k)
    value = (ndtr(h) + ndtr(k)) / 2 - wedges - jnp.where(side_h * side_k < 0, 0.5, 0.0)
    together = ndtr(jnp.minimum(h, k))
    apart = jnp.maximum(jnp.where(h > k, ndtr(k) - ndtr(-h), ndtr(h) - ndtr(-k)), 0)  # the smaller numbers
    return jnp.where(degenerate, jnp.where(r >= 0, together, apart), jnp.clip(value, 0, 1))


def beyond(k: jax.Array, h: jax.Array, r: jax.Array, w: jax.Array) -> jax.Array:
    """k - r h without cancellation near |r| = 1: there 1 - |r| = w^2/(1 + |r|)."""
    sign = jnp.where(r < 0, -1, 1)
    return (k - sign * h) + sign * (w * w / (1 + jnp.abs(r))) * h


@bivariate_cdf.defjvp
def _bivariate_cdf_jvp(primals, tangents):
    h, k, r, w = as_floats(*primals)
    dh, dk, dr, _ = tangents
    inverse = reciprocal(w)
    y_h, y_k = (k - r * h) * inverse, (h - r * k) * inverse
    density_h = jnp.exp(-h * h / 2) / math.sqrt(2 * math.pi) * ndtr(y_h)
    density_k = jnp.exp(-k * k / 2) / math.sqrt(2 * math.pi) * ndtr(y_k)
    joint = jnp.exp(-(h * h + y_h * y_h) / 2) * inverse / (2 * math.pi)
    return bivariate_cdf(*primals), density_h * dh + density_k * dk + joint * dr


def erfcx(x: jax.Array) -> jax.Array:
    """exp(x^2) erfc(x) for x >= 0 (smaller x is taken as 0), without overflow.

    (1 + 2x) erfcx(x) is a short polynomial in (x - 3)/(x + 3) (M. M. Shepherd, J. G. Laframboise, "Chebyshev
    approximation of (1 + 2x) exp(x^2) erfc x", Math. Comp. 36, 1981; coefficients our own).

    >>> float(erfcx(0.0))
    1.0
    """
    (x,) = as_floats(x)
    x = jnp.maximum(x, 0)
    t = jnp.where(x < 1e30, (x - 3) / (x + 3), 1)
    return horner(_ERFCX_FLOAT64 if is_double(x) else _ERFCX_FLOAT32, t) / (1 + 2 * x)


@jax.jit
def scaled_cdf(log_scale: jax.Array, mean: jax.Array, std: jax.Array, rest: jax.Array) -> jax.Array:
    """exp(log_scale) P(mean + std x > 0), where rest = log_scale - mean^2/(2 std^2) is known exactly.

    In the tail (mean < 0) the product is exp(rest) erfcx(-mean/(std sqrt 2))/2, so that neither factor
    over- or underflows.
    """
    log_scale, mean, std, rest = as_floats(log_scale, mean, std, rest)
    zero = std == 0
    x = mean / jnp.where(zero, 1, std)
    tail = jnp.exp(rest) * erfcx(jnp.maximum(-x, 0) * math.sqrt(0.5)) / 2
    body = jnp.exp(log_scale) * ndtr(jnp.maximum(x, 0))
    point = jnp.exp(log_scale) * (1 + jnp.sign(mean)) / 2
    return jnp.where(zero, point, jnp.where(x < 0, tail, body))


@jax.jit
def scaled_bivariate_cdf(
    h: jax.Array, k: jax.Array, r: jax.Array, w: jax.Array, log_scale: jax.Array, rest: jax.Array
) -> jax.Array:
    """exp(log_scale) P(x < h, y < k), where rest = log_scale - (Mahalanobis distance of (h, k))^2/2 is known.

    Of the four quadrants about the corner (h, k) one has the corner as its likeliest point; its probability is
    exp(rest) times a moderate integral, and ours is that, or a half plane's less that, so that a huge factor never
    meets a vanishing probability. Close to the centre nothing is huge, and Owen's formula serves.
    """
    h, k, r, w, log_scale, rest = as_floats(h, k, r, w, log_scale, rest)
    degenerate = w == 0
    safe = jnp.where(degenerate, 1, w)
    y_h, y_k = (beyond(*pair, r, w) / safe for pair in ((k, h), (h, k)))
    one_point = degenerate & (jnp.abs(h - jnp.sign(r) * k) <= 8 * jnp.finfo(h.dtype).eps * jnp.abs(h))
    rest_h = jnp.where(degenerate & ~one_point, log_scale - h * h / 2, rest + jnp.where(degenerate, 0, y_h * y_h / 2))
    rest_k = jnp.where(degenerate & ~one_point, log_scale - k * k / 2, rest + jnp.where(degenerate, 0, y_k * y_k / 2))
    one = jnp.ones_like(h)
    half_h, half_k = scaled_cdf(log_scale, h, one, rest_h), scaled_cdf(log_scale, k, one, rest_k)
    past_h, past_k = scaled_cdf(log_scale, -h, one, rest_h), scaled_cdf(log_scale, -k, one, rest_k)  # of x > h, y > k
    strip = jnp.where(h < k, half_h - past_k, half_k - past_h)  # where the quadrants beyond h and k are disjoint
    in_line = jnp.where(r >= 0, jnp.where(h < k, half_h, half_k), jnp.where(one_point, 0, jnp.maximum(strip, 0)))
    over_h, over_k = y_k >= 0, y_h >= 0  # reflect x, y to put the mode of the quadrant into its corner
    corner = jnp.exp(jnp.minimum(rest, log_scale)) * (
        jnp.where((h < 0) ^ over_h, 1, -1) * _half_wedge(jnp.abs(h), jnp.abs(y_h))
        + jnp.where((k < 0) ^ over_k, 1, -1) * _half_wedge(jnp.abs(k), jnp.abs(y_k))
    )
    far = jnp.where(
        over_h, jnp.where(over_k, strip + corner, half_k - corner), jnp.where(over_k, half_h - corner, corner)
    )
    near = h * h + y_h * y_h < 4
    plain = jnp.exp(jnp.where(near, log_scale, 0)) * bivariate_cdf(h, k, r, w)
    return jnp.where(degenerate, in_line, jnp.where(near, plain, far))


def _half_wedge(h: jax.Array, y: jax.Array) -> jax.Array:
    """exp((h^2 + y^2)/2) P(x > h, Y > y x / h) for independent x, Y, with h, y >= 0 not both small.

    It is h/(2 pi) int_0^inf exp(-y u - u^2/2) / (h^2 + (y + u)^2) du (Owen's integral from its other end).
    """
    digits = 38.0 if is_double(h) else 18.0
    end = 2 * digits / (y + jnp.sqrt(y * y + 2 * digits))  # there the exponent is -digits

    def integrand(t):
        u = end * t
        return jnp.exp(-u * (y + u / 2)) / (h * h + (y + u) ** 2)

    size = jnp.zeros(jnp.broadcast_shapes(h.shape, y.shape), h.dtype)
    return h * end * quadrature(integrand, 32 if is_double(h) else 12, size) / (2 * math.pi)
