"""E[F(u, v)] for F with kinks along straight lines in the plane of u and v, and for its derivatives.

The regular part is integrated on the regions between the lines (`half_planes.py`). Delta functions, which come with
derivatives, condition on their line: E[delta(l) G] = p_l(0) E[G | l = 0], an integral along the line; those of two lines
pick the point where they cross. Orders above 0 go by parts: E[delta^(k)(l) G] = -E[delta^(k-1)(l) (g . grad G - (L/V) G)],
L the linear part of l, V its variance, g = Cov((u, v), L)/V.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import sympy as sp

from ntk_rules import special
from ntk_rules.chunks import elementwise
from ntk_rules.errors import Declined
from ntk_rules.evaluate import compile_formula
from ntk_rules.half_planes import HalfPlanes, mean, mean_on_line, mean_square, tail
from ntk_rules.law import correlation_symbol, covariance_symbol, sine_symbol, std_symbol
from ntk_rules.method import Compute, Method
from ntk_rules.numeric import THIN, Part, assemble, exact_part, joint_density, standard_deviation
from ntk_rules.pieces import has_kinks
from ntk_rules.question import Question, gaussian_symbols
from ntk_rules.regions import Line, Tree, line_of, lines, regions
from ntk_rules.roundings import rounding_of
from ntk_rules.smooth import refined_error
from ntk_rules.switches import NotCuttable

TIER = "plane quadrature split at the kinks"
_CHUNK = 16
Deltas = tuple[tuple[Line, int], ...]


def kinked_plane(question: Question) -> Method:
    """E[F(u, v)] with kinks and delta functions along straight lines."""
    if question.expr is None:
        raise Declined("only the normal form is known")
    used = tuple(i for i, z in enumerate(gaussian_symbols(question.gaussians)) if question.expr.has(z))
    if len(used) != 2:
        raise Declined(f"{len(used)} Gaussians occur")
    if not has_kinks(question.expr) and not question.expr.has(sp.DiracDelta):
        raise Declined("there are no kinks")
    parts = _parts(question, (used[0], used[1]))
    needs = tuple(e for e in _entries(*used) if e not in question.independent)
    return assemble(parts, needs, question, TIER, correlations=(0.9, -0.5))


def _entries(i: int, j: int) -> tuple[tuple[int, int], ...]:
    return ((i, i), (i, j), (j, j))


def _parts(question: Question, used: tuple[int, int]) -> list[Part]:
    zs = tuple(gaussian_symbols(question.gaussians)[k] for k in used)
    parts = []
    work = list(_by_deltas(question.expr, zs).items())
    gains: dict[sp.Symbol, sp.Expr] = {}
    on_lines: dict[Line, sp.Expr] = {}
    while work:
        deltas, weight = work.pop()
        if not deltas:
            parts.append(_regular(_tree(weight, zs), used, question))
        elif len(deltas) == 2:
            parts += _at_crossing(deltas, weight.xreplace(gains), used, question)
        elif deltas[0][1]:
            work += _lowered(deltas[0], weight, zs, used, gains)
        else:
            on_lines[deltas[0][0]] = on_lines.get(deltas[0][0], sp.S.Zero) + weight
    for line, weight in on_lines.items():
        if not _vanishes_on(line, weight, zs):
            parts.append(_on_line(line, weight, gains, used, question))
    return parts


def _tree(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> Tree:
    try:
        return regions(expr, zs)
    except NotCuttable as reason:
        raise Declined(str(reason)) from None


def _by_deltas(expr: sp.Expr, zs: tuple[sp.Symbol, ...]) -> dict[Deltas, sp.Expr]:
    """`expr` as a polynomial in its delta functions: their products with the weights, () the part without any."""
    nodes = sorted(expr.atoms(sp.DiracDelta), key=str)
    names = {node: sp.Dummy(f"delta_{k}") for k, node in enumerate(nodes)}
    plain = expr.xreplace(names)
    out: dict[Deltas, sp.Expr] = {}
    for powers, weight in sp.Poly(plain, *names.values()).terms() if nodes else [((), plain)]:
        found = [node for node, power in zip(nodes, powers, strict=True) for _ in range(power)]
        deltas, scale = [], sp.S.One
        for node in found:
            order = int(node.args[1]) if len(node.args) > 1 else 0
            line, factor = _normal_line(node.args[0], zs)
            deltas.append((line, order))
            scale *= sp.sign(factor) * factor ** -(order + 1)
        if len({line for line, _ in deltas}) < len(deltas) or len(deltas) > 2:
            raise Declined(f"{len(deltas)} delta functions meet in one product")
        key = tuple(deltas)
        out[key] = out.get(key, sp.S.Zero) + scale * weight
    return {deltas: weight for deltas, weight in out.items() if weight != 0}


def _normal_line(argument: sp.Expr, zs: tuple[sp.Symbol, ...]) -> tuple[Line, sp.Expr]:
    """The line where the argument of a delta function vanishes, and argument / form of that line."""
    try:
        line, factor = line_of(argument, zs)
    except NotCuttable as reason:
        raise Declined(str(reason)) from None
    return line, factor


def _vanishes_on(line: Line, weight: sp.Expr, zs: tuple[sp.Symbol, ...]) -> bool:
    """Whether `weight` is zero all along the line, seen at a few points of it; kinks make no difference to that."""
    lead = 0 if line.slope[0] != 0 else 1
    rest = line.slope[1 - lead] * zs[1 - lead]
    along = weight.xreplace({zs[lead]: (line.offset - rest) / line.slope[lead]})
    others = sorted(along.free_symbols, key=str)
    for k in range(8):
        point = {s: sp.Rational((37 * (k + 2) * (n + 3) + 11 * k) % 101 + 7, 60) for n, s in enumerate(others)}
        if zs[1 - lead] in point:
            point[zs[1 - lead]] *= (-1) ** k
        value = along.xreplace(point)
        if value.has(sp.Symbol) or not abs(sp.N(value, 30)) < 1e-14:
            return False
    return True


def _lowered(
    delta: tuple[Line, int], weight: sp.Expr, zs: tuple[sp.Symbol, ...], used: tuple[int, int], gains: dict[sp.Symbol, sp.Expr]
) -> list[tuple[Deltas, sp.Expr]]:  # fmt: skip
    """E[delta^(k)(l) G] by delta functions of order k - 1; gains and 1/V are run-time values, noted in `gains`."""
    line, order = delta
    (a, b), (i, j) = line.slope, used
    c, q_u, q_v = covariance_symbol(i, j), std_symbol(i) ** 2, std_symbol(j) ** 2
    variance = a**2 * q_u + 2 * a * b * c + b**2 * q_v
    symbols = []
    for value in ((a * q_u + b * c) / variance, (a * c + b * q_v) / variance, 1 / variance):
        known = next((s for s, other in gains.items() if other == value), None)
        symbols.append(known if known is not None else sp.Dummy(f"g{len(gains)}", real=True))
        gains[symbols[-1]] = value
    linear = a * zs[0] + b * zs[1]
    changed = symbols[2] * linear * weight - sum(g * sp.diff(weight, z) for g, z in zip(symbols, zs, strict=False))
    lowered = []
    for deltas, rest in _by_deltas(changed, zs).items():
        if any(other == line for other, _ in deltas):
            raise Declined("a step and a delta function share a line")
        lowered.append((((line, order - 1), *deltas), rest))
    return lowered


def _frame(covariances: dict[tuple[int, int], jax.Array], used: tuple[int, int], *others: jax.Array) -> list[jax.Array]:
    """s_u, s_v, rho, w and `others` as arrays of one shape."""
    q_u, c, q_v = (covariances.get(e, jnp.zeros(())) for e in _entries(*used))
    rho, w = special.correlation(q_u, q_v, c)
    return list(jnp.broadcast_arrays(standard_deviation(q_u), standard_deviation(q_v), rho, w, *others))


def _regular(tree: Tree, used: tuple[int, int], question: Question) -> Part:
    """The part without delta functions."""
    zs = tuple(gaussian_symbols(question.gaussians)[k] for k in used)
    function = HalfPlanes(tree, zs, question.parameter_symbols())
    if not lines(tree):
        raise Declined("the kinks cancel")
    sums = [elementwise(mean(function, thin), _CHUNK) for thin in THIN]
    rounded = HalfPlanes(tree, zs, question.parameter_symbols(), rounding_of)
    square, beyond, rounding = (
        elementwise(f, _CHUNK) for f in (mean_square(function), tail(function), mean(rounded, 1))
    )

    def compute(covariances, parameters):
        return sums[0](*_frame(covariances, used, *parameters))

    def error(covariances, parameters):
        arrays = _frame(covariances, used, *parameters)
        fine, coarse, coarser = (total(*arrays) for total in sums)
        scale = jnp.sqrt(square(*arrays))
        off = refined_error(jnp.abs(fine - coarse), jnp.abs(coarse - coarser), scale)
        return off + beyond(*arrays) + rounding(*arrays), scale

    shown = ", ".join(f"{line.form(zs)} = 0" for line in lines(tree))
    step = f"kinks of two Gaussians: the plane is split along {shown}, Gauss-Legendre between the lines"
    return Part(compute, error, step)


def _on_line(
    line: Line, weight: sp.Expr, gains: dict[sp.Symbol, sp.Expr], used: tuple[int, int], question: Question
) -> Part:  # fmt: skip
    """p_l(0) E[weight | l = 0]."""
    zs = tuple(gaussian_symbols(question.gaussians)[k] for k in used)
    read = tuple(s for s in gains if weight.has(s))
    symbols = (*question.parameter_symbols(), *read)
    runtime: list[Compute] = [compile_formula(gains[s], question.parameter_symbols()) for s in read]
    function = HalfPlanes(_tree(weight, zs), zs, symbols)
    runs = [mean_on_line(function, line, symbols, lambda x: x, thin) for thin in THIN]
    squared = mean_on_line(function, line, symbols, jnp.square, 1)

    def arrays_of(covariances, parameters):
        law = {e: covariances.get(e, jnp.zeros(())) for e in _entries(*used)}
        return _frame(law, used, *parameters, *(f(law, parameters) for f in runtime))

    def on_line(run, arrays):
        return [x.reshape(arrays[0].shape) for x in run(*(a.reshape(-1) for a in arrays))]

    def compute(covariances, parameters):
        density, inside = on_line(runs[0], arrays_of(covariances, parameters))
        return density * inside

    def error(covariances, parameters):
        arrays = arrays_of(covariances, parameters)
        density, square = on_line(squared, arrays)
        fine, coarse, coarser = (on_line(run, arrays)[1] for run in runs)
        scale = jnp.sqrt(square)
        return density * refined_error(jnp.abs(fine - coarse), jnp.abs(coarse - coarser), scale), density * scale

    return Part(compute, error, "delta function: E[delta(l) G] = p_l(0) E[G | l = 0], quadrature along the line l = 0")


def _at_crossing(deltas: Deltas, weight: sp.Expr, used: tuple[int, int], question: Question) -> list[Part]:
    """E[delta(l) delta(m) G]: the density and G at the point where both lines meet."""
    zs = tuple(gaussian_symbols(question.gaussians)[k] for k in used)
    (first, order), (second, other_order) = deltas
    determinant = sp.simplify(first.slope[0] * second.slope[1] - first.slope[1] * second.slope[0])
    if determinant == 0:
        if sp.simplify(first.offset - second.offset).is_nonzero:
            return []
        raise Declined("two delta functions on parallel lines whose distance is a parameter")
    if not determinant.is_number:
        raise Declined("two delta functions on lines whose angle is a parameter")
    point = {
        zs[0]: sp.expand((first.offset * second.slope[1] - second.offset * first.slope[1]) / determinant),
        zs[1]: sp.expand((second.offset * first.slope[0] - first.offset * second.slope[0]) / determinant),
    }
    here = weight.xreplace(point)
    if order or other_order:
        raise Declined("derivatives of delta functions of two Gaussians at once")
    if here == 0 or (here.is_number and abs(float(here)) < 1e-14):
        return []
    density = joint_density(here / abs(determinant), point[zs[0]], point[zs[1]], *used)
    if used in question.independent:
        density = density.xreplace({covariance_symbol(*used): 0, correlation_symbol(*used): 0, sine_symbol(*used): 1})
    return [exact_part(density, question)]


__all__ = ["TIER", "kinked_plane"]
