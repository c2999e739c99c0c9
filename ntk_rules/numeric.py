"""The numerical tiers for products of functions of one Gaussian each: E[f(u)] and E[f(u) g(v)].

Smooth factors go through the trapezoidal rule and Mehler's series (`smooth.py`); a kinked factor has
its coefficients
by panels, and the series still converges geometrically as long as one factor is smooth; two kinked
factors need the
plane (`panels.py`); delta functions, which come with derivatives, condition. Whether a tolerance holds,
and up to which variance, is decided at compile time by the same code in float64.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from ntk_rules import far, panels, smooth, special
from ntk_rules.chunks import elementwise
from ntk_rules.detection import WINDOW
from ntk_rules.errors import Declined
from ntk_rules.evaluate import compile_formula
from ntk_rules.factors import Delta, Factor, factor_of, piecewise, separated
from ntk_rules.functions import Opaque
from ntk_rules.law import covariance_symbol, std_symbol
from ntk_rules.method import Compute, Entry, Method, by_correlations, reaches
from ntk_rules.probes import Probes, admissible, judged, probed, up_to
from ntk_rules.question import Question, gaussian_symbols
from ntk_rules.wedges import preferred, wedges

T = TypeVar("T")
_PLANE_CHUNK = 16
_EVERYWHERE = (1 - 1e-6, 0.999, 0.9, 0.0)  # correlations: transitions of every width
_SERIES64, _SERIES32 = 1e-12, 3e-7  # up to where a series is taken, relative to the scale of the answer
_RESOLVED = 0.01  # by how much a mean square may change with the nodes, to be one
THIN = (1, 2, 4)  # by how much the nodes are thinned to see the error


@dataclass(frozen=True)
class Part:
    """One addend: its value, and (estimate of its error, scale of its size), as functions of run-time
    values. probes: what is known of that error already, at the correlations `_EVERYWHERE`.
    """

    compute: Compute
    error: Callable[..., tuple[jax.Array, jax.Array]]
    step: str
    probes: Probes | None = None


def one_gaussian(question: Question) -> Method:
    """E[f(z)]: the trapezoidal rule, or panels between kinks."""
    coefficient, groups = separated(question)
    if len(groups) != 1:
        raise Declined(f"{len(groups)} Gaussians occur")
    ((i, expr),) = groups.items()
    parts = line_parts(factor_of(coefficient * expr, i, question), question)
    return assemble(parts, ((i, i),), question, "one-dimensional quadrature")


def two_separable(question: Question) -> Method:
    """E[f(u) g(v)]: Mehler's series where a factor is smooth, the plane where none is."""
    coefficient, groups = separated(question)
    if len(groups) != 2:
        raise Declined(f"{len(groups)} Gaussians occur")
    (i, left), (j, right) = sorted(groups.items())
    f = factor_of(coefficient * left, i, question)
    g = factor_of(right, j, question)
    if (i, j) in question.independent:
        return _independent_pair(f, g, coefficient * left, right, question)
    parts = []
    tier = "delta functions and one-dimensional quadrature"
    if f.regular != 0 and g.regular != 0:
        part, tier = _regular_pair(f, g, question)
        parts.append(part)
    for delta in f.deltas:
        parts += conditioned(delta, f.index, g, question)
    for delta in g.deltas:
        parts += conditioned(delta, g.index, replace(f, deltas=()), question)
    correlations = (0.9,) if f.deltas or g.deltas or not f.regular or not g.regular else _EVERYWHERE
    return assemble(parts, ((i, i), (i, j), (j, j)), question, tier, correlations)


def assemble(
    parts: list[Part], needs: tuple, question: Question, tier: str, correlations: tuple[float, ...] = (0.9,)
) -> Method:  # fmt: skip
    """The method that adds the parts; its bound is the worst at `correlations`."""

    def compute(covariances, parameters):
        return sum(p.compute(covariances, parameters) for p in parts)

    def together(covariances, parameters):
        pairs = [p.error(covariances, parameters) for p in parts]
        return sum(e for e, _ in pairs), sum(s for _, s in pairs)

    if not parts:
        return zero_method()
    error_and_scale = parts[0].error if len(parts) == 1 else together  # what was looked at before is known
    known = parts[0].probes if len(parts) == 1 and correlations == _EVERYWHERE else None
    bound, how_far = (
        admissible(error_and_scale, needs, question, correlations) if known is None else judged(known, question)
    )
    steps = tuple(dict.fromkeys(p.step for p in parts)) + unknown_functions(question)

    moves = by_correlations(compute, needs)

    def estimate(covariances, parameters):
        return error_and_scale(covariances, parameters)[0] + moves(covariances, parameters)

    return Method(tier, needs, compute, steps, None, bound, up_to(how_far["reach"]), estimate, **how_far)


def unknown_functions(question: Question) -> tuple[str, ...]:
    """A remark for the derivation where a function is known to JAX alone."""
    known = question.expr.atoms(Opaque) if question.expr is not None else ()
    remarks = []
    for f in sorted({f.func for f in known}, key=str):
        remark = f"nothing symbolic is known of {f}: it is a JAX function"
        if f.kinks_detected:
            places = ", ".join(f"{kink:g}" for kink in f.kinks) or "none"
            remark += f"; kinks looked for between -{WINDOW:g} and {WINDOW:g}, found: {places}"
        remarks.append(remark)
    return tuple(remarks)


def zero_method() -> Method:
    """The expectation of what vanishes, as z delta(z)."""

    def compute(covariances, parameters):
        return jnp.zeros(jnp.broadcast_shapes(*(p.shape for p in parameters)))

    return Method("closed form", (), compute, ("z delta(z) = 0",), sp.S.Zero)


def standard_deviation(q: jax.Array) -> jax.Array:
    """sqrt(q), and 0 for variances that rounding has made negative."""
    return jnp.sqrt(jnp.maximum(q, 0))


def _absolute(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda *arguments: jnp.abs(function(*arguments))


def _squared(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda *arguments: function(*arguments) ** 2


def line_parts(f: Factor, question: Question) -> list[Part]:
    """E[f(z)] for one factor."""
    i = f.index
    parts = []
    if f.regular != 0:
        plain = piecewise(f.regular, i, question)
        pieces = plain.resolved() if plain.kinks else plain
        mean = _line_mean(pieces)

        def compute(covariances, parameters):
            return mean(standard_deviation(covariances[(i, i)]), parameters, 1)

        def error(covariances, parameters):
            s = standard_deviation(covariances[(i, i)])
            fine, coarse, coarser = (mean(s, parameters, thin) for thin in THIN)
            scale, hidden = _line_scale(pieces)(s, parameters)
            off = smooth.refined_error(jnp.abs(fine - coarse), jnp.abs(coarse - coarser), scale) + hidden
            unseen = _line_mean(pieces.rounded())(s, parameters, 1) + _out_of_reach(pieces.mapped(_absolute))(
                s, parameters
            )
            return off + unseen, scale

        kind = "trapezoidal rule" if not pieces.kinks else "Gauss-Legendre between the kinks"
        parts.append(Part(compute, error, f"one Gaussian: {kind} for {f.regular}"))
    z, s = gaussian_symbols(question.gaussians)[i], std_symbol(i)
    for delta in f.deltas:
        density = sp.exp(-(z**2) / (2 * s**2)) / (sp.sqrt(2 * sp.pi) * s)
        value = (-1) ** delta.order * sp.diff(density * delta.weight, z, delta.order).xreplace({z: delta.place})
        if value != 0:  # what multiplies it vanishes there
            parts.append(exact_part(value, question))
    return parts


def exact_part(formula: sp.Expr, question: Question) -> Part:
    """A part in closed form, with its rounding."""
    evaluate = compile_formula(formula, question.parameter_symbols())

    def error(covariances, parameters):
        size = jnp.abs(evaluate(covariances, parameters))
        return 4 * jnp.finfo(size.dtype).eps * size, size

    return Part(evaluate, error, "delta function: the integrand at the kink times the density there")


def _line_mean(pieces: panels.Piecewise, shell: float = 0) -> Callable[..., jax.Array]:
    """(s, parameters, thin) -> E[f(s x)], all of it or that of the outermost shell alone."""
    if not pieces.kinks:
        return lambda s, parameters, thin: smooth.mean_one(pieces.functions[0], s, parameters, thin, shell)
    return lambda s, parameters, thin: panels.mean_one(pieces, jnp.zeros_like(s), s, parameters, thin, shell)


def _size(pieces: panels.Piecewise) -> Callable[..., jax.Array]:
    """(s, parameters) -> E[f(s x)^2]^(1/2)."""
    square = _line_mean(pieces.mapped(_squared))
    return lambda s, parameters: jnp.sqrt(square(s, parameters, 1))


def _line_scale(pieces: panels.Piecewise) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(s, parameters) -> E[f(s x)^2]^(1/2), and E[|f(s x)|] where that is not resolved: of |x|^-0.9 it is infinite, and what stands
    for it grows with the nodes, so that no error would be large beside it. Then also the error of E[|f(s x)|], else 0: of tan, whose
    mean does not exist, nodes alike on both sides make a mean of zero.
    """
    square, plain = _line_mean(pieces.mapped(_squared)), _line_mean(pieces.mapped(_absolute))

    def scale(s: jax.Array, parameters: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        fine, coarse = (square(s, parameters, thin) for thin in THIN[:2])
        resolved = jnp.abs(fine - coarse) <= _RESOLVED * fine
        sizes = [plain(s, parameters, thin) for thin in THIN]
        hidden = smooth.refined_error(jnp.abs(sizes[0] - sizes[1]), jnp.abs(sizes[1] - sizes[2]), sizes[0])
        return jnp.where(resolved, jnp.sqrt(fine), sizes[0]), jnp.where(resolved, 0, hidden)

    return scale


def _out_of_reach(pieces: panels.Piecewise) -> Callable[..., jax.Array]:
    """(s, parameters) -> a bound of E[f(s x)] beyond the nodes, f positive."""
    shells = [_line_mean(pieces, depth * panels.SHELL) for depth in (1, 2)]
    return lambda s, parameters: panels.beyond(*(shell(s, parameters, 1) for shell in shells))


def _unseen(pieces: panels.Piecewise) -> Callable[..., jax.Array]:
    """(s, parameters) -> what no comparison of grids shows of E[f^2]^(1/2): rounding of the formula, and what is out of reach."""
    rounding, outside = _size(pieces.rounded()), _out_of_reach(pieces.mapped(_squared))
    return lambda s, parameters: rounding(s, parameters) + jnp.sqrt(outside(s, parameters))


def _hermite(pieces: panels.Piecewise) -> Callable[..., jax.Array]:
    """(s, parameters, thin) -> Hermite coefficients."""
    if not pieces.kinks:
        return lambda s, parameters, thin: smooth.coefficients(pieces.functions[0], s, parameters, thin)
    return lambda s, parameters, thin: panels.coefficients(pieces, s, parameters, thin)


def _pieces_of(f: Factor, g: Factor, question: Question) -> tuple[panels.Piecewise, panels.Piecewise]:
    """Both functions in pieces; one object where they are one function, of whichever Gaussian."""
    zs = gaussian_symbols(question.gaussians)
    left = piecewise(f.regular, f.index, question)
    same = f.regular.xreplace({zs[f.index]: zs[g.index]}) == g.regular
    return left, left if same else piecewise(g.regular, g.index, question)


def _each(functions: Sequence[Callable[..., T]], stds: Sequence[jax.Array], *more: Any) -> list[T]:
    """Of both functions at their standard deviations: once, where both are one function of one variance."""
    if functions[0] is functions[1] and stds[0] is stds[1]:
        return [functions[0](stds[0], *more)] * 2
    return [function(std, *more) for function, std in zip(functions, stds, strict=True)]


def _of_both(made: Callable[[panels.Piecewise], T], left: panels.Piecewise, right: panels.Piecewise) -> list[T]:
    """`made` of two functions, one object where they are one."""
    first = made(left)
    return [first, first if left is right else made(right)]


def _regular_pair(f: Factor, g: Factor, question: Question) -> tuple[Part, str]:
    left, right = _pieces_of(f, g, question)
    if left.kinks and right.kinks:
        part = plane_pair(left, right, f.index, g.index)
        return _with_plane(part, left, right, (f.index, g.index), question), "quadrature split at the kinks"
    i, j = f.index, g.index
    series, sizes_of, unseen = (_of_both(made, left, right) for made in (_hermite, _size, _unseen))

    def compute(covariances, parameters):
        rho, _ = special.correlation(covariances[(i, i)], covariances[(j, j)], covariances[(i, j)])
        a, b = _each(series, _stds(covariances, i, j), parameters, 1)
        return smooth.mehler_sum(a, b, rho)

    def error(covariances, parameters):
        stds = _stds(covariances, i, j)
        runs = list(zip(*(_each(series, stds, parameters, thin) for thin in THIN), strict=True))
        fine = [run[0] for run in runs]
        sizes, more = (_each(functions, stds, parameters) for functions in (sizes_of, unseen))
        off = [_coefficient_error(run, size) + x for run, size, x in zip(runs, sizes, more, strict=True)]
        tails = [smooth.truncation(c, size * size) for c, size in zip(fine, sizes, strict=True)]
        total = tails[0] * tails[1] + off[0] * sizes[1] + off[1] * sizes[0]
        shape = jnp.broadcast_shapes(total.shape, covariances[(i, j)].shape)
        return jnp.broadcast_to(total, shape), jnp.broadcast_to(sizes[0] * sizes[1], shape)

    step = "Mehler's series: E[f(u) g(v)] = sum_k a_k(s_u) b_k(s_v) rho^k, Hermite coefficients by quadrature"
    part = Part(compute, error, step)
    return _with_plane(part, left, right, (i, j), question), "Hermite series"


def _with_plane(usual: Part, left: panels.Piecewise, right: panels.Piecewise, at: Entry, question: Question) -> Part:
    """The usual way up to the variances where it is as good as can be, in each precision, and graded panels beyond; the usual one alone
    where these, which are cut at zero, reach no farther: transitions may be elsewhere.
    """
    if not far.centred(left, right):
        return usual
    i, j = at
    needs = ((i, i), (i, j), (j, j))
    probes = probed(usual.error, needs, question.parameters, _EVERYWHERE)
    _, how_far = judged(probes, question, (_SERIES64, _SERIES32))
    double, single = how_far["near"]
    beyond = far.beyond(left, right, single, double)
    thinned = far.thinned(left, right, THIN)
    sizes_of, unseen = (_of_both(made, left, right) for made in (_size, _unseen))

    def law(covariances):
        q_u, c, q_v = (covariances[e] for e in needs)
        return *_stds(covariances, i, j), *special.correlation(q_u, q_v, c)

    def compute(covariances, parameters):
        value = usual.compute(covariances, parameters)
        return beyond(*special.as_floats(*law(covariances), value))

    def is_far(s_u, s_v):
        return jnp.maximum(s_u, s_v) ** 2 > (double if special.is_double(s_u) else single)

    def error_far(covariances, parameters):
        """The error beyond, and the scale."""
        known = law(covariances)
        fine, coarse, coarser = thinned(is_far(*known[:2]), *known)
        sizes, more = (_each(functions, known[:2], ()) for functions in (sizes_of, unseen))
        scale = jnp.broadcast_to(sizes[0] * sizes[1], fine.shape)
        off = smooth.refined_error(jnp.abs(fine - coarse), jnp.abs(coarse - coarser), scale)
        return off + more[0] * sizes[1] + more[1] * sizes[0], scale

    def error(covariances, parameters):
        there, scale = usual.error(covariances, parameters)
        return jnp.where(is_far(*law(covariances)[:2]), error_far(covariances, parameters)[0], there), scale

    step = f"; variances beyond {single:g} (float32), {double:g} (float64): the plane, cut where f and g have their transitions"
    there = probed(error_far, needs, question.parameters, _EVERYWHERE)  # the rest of `error` is in `probes`
    near = np.sqrt(probes.variances) ** 2 <= double
    found = replace(probes, error=np.where(near, probes.error, there.error))
    alone, joined = (judged(each, question)[1]["near"] for each in (probes, found))
    reaches_farther = all(map(operator.ge, joined, alone))
    return Part(compute, error, usual.step + step, found) if reaches_farther else replace(usual, probes=probes)


def _stds(covariances: Mapping[Entry, jax.Array], i: int, j: int) -> tuple[jax.Array, jax.Array]:
    """The standard deviations of two Gaussians; one object where their variances are."""
    first, second = covariances[(i, i)], covariances[(j, j)]
    std = standard_deviation(first)
    return std, std if first is second else standard_deviation(second)


def _coefficient_error(runs: Sequence[jax.Array], size: jax.Array) -> jax.Array:
    """The error of all coefficients together, from runs with all, half and a quarter of the nodes.

    They are compared in the quarter of the orders that all resolve: what is wrong with f is seen there, and the highest
    of h_k waves twice as fast as the highest of that quarter, on four times the nodes.
    """
    first, second = (jnp.sqrt(jnp.sum((a - b)[: a.shape[0] // 4] ** 2, axis=0)) for a, b in itertools.pairwise(runs))
    return smooth.refined_error(first, second, size)


def plane_pair(left: panels.Piecewise, right: panels.Piecewise, i: int, j: int) -> Part:
    """E[f(z_i) g(z_j)] for two factors with kinks."""
    rules = {thin: elementwise(panels.mean_two(left, right, thin), _PLANE_CHUNK) for thin in THIN}
    found = wedges(left, right)

    def law(covariances):
        q1, c, q2 = covariances[(i, i)], covariances[(i, j)], covariances[(j, j)]
        rho, w = special.correlation(q1, q2, c)
        return standard_deviation(q1), standard_deviation(q2), rho, w

    if found is None:
        best = rules[1]
    else:
        hold = lambda s_u, s_v, *_: found.hold(jnp.maximum(s_u, s_v) ** 2)
        best = elementwise(preferred(hold, found.value, panels.mean_two(left, right)), _PLANE_CHUNK)

    def compute(covariances, parameters):
        return best(*law(covariances), *parameters)

    def error(covariances, parameters):
        fine, coarse, coarser = (rules[thin](*law(covariances), *parameters) for thin in THIN)
        stds = [(p, standard_deviation(covariances[(k, k)])) for p, k in ((left, i), (right, j))]
        size, more = ([each(p)(s, parameters) for p, s in stds] for each in (_size, _unseen))
        scale = size[0] * size[1]
        off = smooth.refined_error(jnp.abs(fine - coarse), jnp.abs(coarse - coarser), scale)
        apart = 0 if found is None else jnp.abs(compute(covariances, parameters) - fine)
        return off + apart + more[0] * size[1] + more[1] * size[0], scale

    step = "both factors have kinks: panels between the kinks, Gauss-Legendre on each"
    if found is not None:
        step += f"; up to variances {found.single:g} (float32), {found.double:g} (float64) wedges of the plane in polar coordinates"
    return Part(compute, error, step)


def _independent_pair(f: Factor, g: Factor, left: sp.Expr, right: sp.Expr, question: Question) -> Method:
    """E[f(u)] E[g(v)]."""
    methods = [one_gaussian(replace(question, expr=e)) for e in (left, right)]

    def compute(covariances, parameters):
        return methods[0].compute(covariances, parameters) * methods[1].compute(covariances, parameters)

    def estimate(covariances, parameters):
        a, b = (abs(m.compute(covariances, parameters)) for m in methods)
        return a * methods[1].error(covariances, parameters) + b * methods[0].error(covariances, parameters)

    needs = tuple(sorted({e for m in methods for e in m.needs}))
    steps = ("independence: E[f(u) g(v)] = E[f(u)] E[g(v)]", *methods[0].steps, *methods[1].steps)
    bound = methods[0].bound + methods[1].bound
    words = methods[0].bound_range
    return Method(methods[0].tier, needs, compute, steps, None, bound, words, estimate, **reaches(methods))


def conditioned(delta: Delta, i: int, g: Factor, question: Question) -> list[Part]:
    """E[delta^(k)(u - a) phi(u) g(v)]: the density at the kink times E[g(v) | u = a]; orders k > 0 by parts.

    E[delta^(k)(u - a) G] = -E[delta^(k-1)(u - a) (G_u + (c/q_u) G_v - (u/q_u) G)].
    """
    z_u, z_v = (gaussian_symbols(question.gaussians)[k] for k in (i, g.index))
    entry = (min(i, g.index), max(i, g.index))
    gain, inverse = covariance_symbol(*entry) / std_symbol(i) ** 2, std_symbol(i) ** -2
    whole = g.regular + sp.Add(*(d.weight * sp.DiracDelta(z_v - d.place, d.order) for d in g.deltas))
    work = [(sp.S.One, delta.order, delta.weight, whole)]
    parts = []
    while work:
        coefficient, order, phi, psi = work.pop()
        if coefficient == 0 or phi == 0 or psi == 0:
            continue
        if order:
            work += [
                (-coefficient, order - 1, sp.diff(phi, z_u), psi),
                (-coefficient * gain, order - 1, phi, sp.diff(psi, z_v)),
                (coefficient * inverse, order - 1, z_u * phi, psi),
            ]
            continue
        at_kink = phi.xreplace({z_u: delta.place})
        if at_kink != 0:
            parts += _at_kink(coefficient * at_kink, delta.place, i, factor_of(psi, g.index, question), question)
    return parts


def _at_kink(weight: sp.Expr, place: sp.Expr, i: int, g: Factor, question: Question) -> list[Part]:
    """weight * p_u(place) * E[g(v) | u = place]."""
    j = g.index
    entry = (min(i, j), max(i, j))
    s_u = std_symbol(i)
    density = weight * sp.exp(-(place**2) / (2 * s_u**2)) / (sp.sqrt(2 * sp.pi) * s_u)
    parts = []
    for d in g.deltas:
        if d.order:
            raise Declined("derivatives of delta functions of two Gaussians at once")
        parts.append(exact_part(joint_density(weight * d.weight, place, d.place, i, j), question))
    if g.regular == 0:
        return parts
    pieces = piecewise(g.regular, j, question).resolved()
    outside = compile_formula(density, question.parameter_symbols())
    where = compile_formula(place, question.parameter_symbols())
    squared = pieces.mapped(_squared)

    def value(h, covariances, parameters, thin):
        q_u, q_v, c = covariances[(i, i)], covariances[(j, j)], covariances[entry]
        _, w = special.correlation(q_u, q_v, c)
        mean = c * special.reciprocal(q_u) * where({}, parameters)
        mean, std = jnp.broadcast_arrays(mean, standard_deviation(q_v) * w)
        return panels.mean_one(h, mean, std, parameters, thin)

    def compute(covariances, parameters):
        return outside(covariances, parameters) * value(pieces, covariances, parameters, 1)

    def error(covariances, parameters):
        out = jnp.abs(outside(covariances, parameters))
        fine, coarse, coarser = (value(pieces, covariances, parameters, thin) for thin in THIN)
        scale = jnp.sqrt(value(squared, covariances, parameters, 1))
        off = smooth.refined_error(jnp.abs(fine - coarse), jnp.abs(coarse - coarser), scale)
        return out * (off + value(pieces.rounded(), covariances, parameters, 1)), out * scale

    step = "delta function: E[delta(u - a) g(v)] = p_u(a) E[g(v) | u = a], one-dimensional quadrature"
    return [*parts, Part(compute, error, step)]


def joint_density(weight: sp.Expr, a: sp.Expr, b: sp.Expr, i: int, j: int) -> sp.Expr:
    """weight times the joint density at u = a, v = b."""
    from ntk_rules.law import correlation_symbol, sine_symbol

    entry = (min(i, j), max(i, j))
    s_i, s_j, rho, w = std_symbol(i), std_symbol(j), correlation_symbol(*entry), sine_symbol(*entry)
    x, y = a / s_i, b / s_j
    return weight * sp.exp(-(x**2 + y**2 - 2 * rho * x * y) / (2 * w**2)) / (2 * sp.pi * s_i * s_j * w)
