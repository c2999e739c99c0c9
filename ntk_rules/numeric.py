"""The tiers for smooth functions of one and of two Gaussians (`smooth.py` has the mathematics).

The order is not fixed here: at run time the series stops where its tail falls below working precision. What is decided
at compile time is whether the tolerance holds, and up to which variance, by computing the error at variances up
to 16 with the same code in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ntk_rules import smooth, special
from ntk_rules.functions import to_jax
from ntk_rules.method import Declined, Method
from ntk_rules.pieces import NotCuttable, cut, has_kinks
from ntk_rules.question import Question, gaussian_symbols

DEFAULT_TOLERANCE = 1e-12
_VARIANCES = (16.0, 8.0, 4.0, 2.0, 1.0)
_SMALL_VARIANCES = (1.0, 0.3, 0.01)


@dataclass(frozen=True)
class Factor:
    """f(z_i), smooth, with its JAX function of (z, *parameters)."""

    index: int
    expr: sp.Expr
    function: Callable[..., jax.Array]


def smooth_factor(expr: sp.Expr, i: int, question: Question) -> Factor:
    """The factor as JAX function, or Declined when it has a kink."""
    z = gaussian_symbols(question.gaussians)[i]
    if expr.has(sp.DiracDelta):
        raise Declined(f"{expr} has a delta function")
    if has_kinks(expr):
        try:
            pieces = cut(expr, z)
        except NotCuttable as reason:
            raise Declined(str(reason)) from None
        if len(pieces) > 1 or has_kinks(pieces[0].expr):
            raise Declined(f"{expr} has kinks")
        expr = pieces[0].expr
    return Factor(i, expr, to_jax(expr, (z, *question.parameter_symbols())))


def separated(question: Question) -> tuple[sp.Expr, dict[int, sp.Expr]]:
    """(coefficient, {i: the factors in z_i}) of a product of functions of one Gaussian each, or Declined."""
    if question.expr is None:
        raise Declined("only the normal form is known")
    zs = gaussian_symbols(question.gaussians)
    coefficient, groups = sp.S.One, {}
    for factor in sp.Mul.make_args(question.expr):
        used = [i for i, z in enumerate(zs) if factor.has(z)]
        if len(used) > 1:
            raise Declined(f"{factor} mixes {len(used)} Gaussians")
        if not used:
            coefficient = coefficient * factor
        else:
            groups[used[0]] = groups.get(used[0], sp.S.One) * factor
    return coefficient, groups


def _std(q: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.maximum(q, 0))


def one_gaussian(question: Question) -> Method:
    """E[f(z)], f smooth: the trapezoidal rule."""
    coefficient, groups = separated(question)
    if len(groups) != 1:
        raise Declined(f"{len(groups)} Gaussians occur")
    ((i, expr),) = groups.items()
    factor = smooth_factor(coefficient * expr, i, question)

    def error_at(s, parameters):
        fine = smooth.mean_one(factor.function, s, parameters)
        coarse = smooth.mean_one(factor.function, s, parameters, stride=2)
        scale = jnp.sqrt(smooth.mean_one(lambda *a: factor.function(*a) ** 2, s, parameters))
        return smooth.refined_error(jnp.abs(fine - coarse), scale), scale

    bound, reach = admissible(lambda s, p: error_at(s, p), question)

    def compute(covariances, parameters):
        return smooth.mean_one(factor.function, _std(covariances[(i, i)]), parameters)

    def estimate(covariances, parameters):
        return error_at(_std(covariances[(i, i)]), parameters)[0]

    steps = (f"smooth function of one Gaussian: trapezoidal rule for {factor.expr}",)
    return Method("trapezoidal rule", ((i, i),), compute, steps, None, bound, reach, estimate)


def two_separable(question: Question) -> Method:
    """E[f(u) g(v)], both smooth: Mehler's series with coefficients by the trapezoidal rule."""
    coefficient, groups = separated(question)
    if len(groups) != 2:
        raise Declined(f"{len(groups)} Gaussians occur")
    (i, left), (j, right) = sorted(groups.items())
    f = smooth_factor(coefficient * left, i, question)
    g = smooth_factor(right, j, question)
    if (i, j) in question.independent:
        return _independent_pair(f, g, question)

    def error_at(s_f, s_g, parameters):
        pairs = [(smooth.coefficients(h.function, s, parameters), smooth.coefficients(h.function, s, parameters, 2))
                 for h, s in ((f, s_f), (g, s_g))]  # fmt: skip
        (a, a2), (b, b2) = pairs
        size_a, size_b = (jnp.sqrt(jnp.sum(c * c, axis=0)) for c in (a, b))
        tail = size_a * smooth.relative_tails(a)[-2] * size_b * smooth.relative_tails(b)[-2]
        off_a, off_b = (
            smooth.refined_error(jnp.sqrt(jnp.sum((c - d) ** 2, axis=0)), size)
            for c, d, size in ((a, a2, size_a), (b, b2, size_b))
        )
        return tail + off_a * size_b + off_b * size_a, size_a * size_b

    bound, reach = admissible(lambda s, p: error_at(s, s, p), question)

    def compute(covariances, parameters):
        q1, c, q2 = covariances[(i, i)], covariances[(i, j)], covariances[(j, j)]
        rho, _ = special.correlation(q1, q2, c)
        a = smooth.coefficients(f.function, _std(q1), parameters)
        b = smooth.coefficients(g.function, _std(q2), parameters)
        return smooth.mehler_sum(a, b, rho)

    def estimate(covariances, parameters):
        error = error_at(_std(covariances[(i, i)]), _std(covariances[(j, j)]), parameters)[0]
        return jnp.broadcast_to(error, jnp.broadcast_shapes(error.shape, covariances[(i, j)].shape))

    steps = (
        "Mehler's series: E[f(u) g(v)] = sum_k a_k(s_u) b_k(s_v) rho^k, Hermite coefficients by the trapezoidal rule",
    )
    return Method("Hermite series", ((i, i), (i, j), (j, j)), compute, steps, None, bound, reach, estimate)


def _independent_pair(f: Factor, g: Factor, question: Question) -> Method:
    """E[f(u)] E[g(v)]."""
    from dataclasses import replace

    left, right = (one_gaussian(replace(question, expr=h.expr)) for h in (f, g))

    def compute(covariances, parameters):
        return left.compute(covariances, parameters) * right.compute(covariances, parameters)

    def estimate(covariances, parameters):
        a, b = (abs(m.compute(covariances, parameters)) for m in (left, right))
        return a * right.error(covariances, parameters) + b * left.error(covariances, parameters)

    needs = tuple(sorted({*left.needs, *right.needs}))
    steps = ("independence: E[f(u) g(v)] = E[f(u)] E[g(v)]", *left.steps, *right.steps)
    bound = max(left.bound, right.bound)
    return Method("trapezoidal rule", needs, compute, steps, None, bound, left.bound_range, estimate)


def admissible(
    error_at: Callable[[jax.Array, tuple[jax.Array, ...]], tuple[jax.Array, jax.Array]], question: Question
) -> tuple[float, str]:
    """(bound relative to the scale of the answer, the variances it holds for), or Declined."""
    wanted = question.tolerance or DEFAULT_TOLERANCE
    with jax.enable_x64(True):
        s = jnp.sqrt(jnp.asarray(_VARIANCES + _SMALL_VARIANCES[1:]))
        probes = tuple(jnp.ones_like(s) for _ in range(question.parameters))
        error, scale = map(np.asarray, error_at(s, probes))
    if not np.all(np.isfinite(scale[len(_VARIANCES) - 1 :])):
        raise Declined("the function grows too fast: its square has no finite mean at variance 1")
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(scale > 0, error / np.where(scale > 0, scale, 1), 0.0)
    small = relative[len(_VARIANCES) :].max()
    for k, variance in enumerate(_VARIANCES):
        bound = max(relative[k : len(_VARIANCES)].max(), small)
        if bound <= wanted:
            return float(bound), f"relative to the scale of the answer, for variances up to {variance:g}"
    raise Declined(f"reaches {max(relative[len(_VARIANCES) - 1], small):.1e} at variance 1, wanted {wanted:.1e}")
