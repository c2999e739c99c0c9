"""Kinks across several Gaussians in coordinates of their own: max(u, v) = v + max(w, 0) with w = u - v.

A function whose kinks lie where linear forms of the Gaussians vanish is asked again in those forms. The rules then see kinks of
single Gaussians, whose variances may be zero without harm: where u and v coincide, w is a zero, where the formula in u
and v would divide by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement

import jax
import jax.numpy as jnp
import sympy as sp

from ntk_rules.errors import Declined
from ntk_rules.evaluate import in_covariances
from ntk_rules.law import pair_name
from ntk_rules.method import Method
from ntk_rules.question import Question, gaussian_symbols

__all__ = ["in_forms"]

_KINKED = (sp.Heaviside, sp.DiracDelta, sp.Max, sp.Min, sp.Abs, sp.sign)
Form = tuple[sp.Expr, ...]


def in_forms(question: Question, closed_form: Callable[[Question], Method]) -> Method:
    """The closed form in the coordinates of the kinks."""
    if question.expr is None:
        raise Declined("only the normal form is known")
    zs = gaussian_symbols(question.gaussians)
    matrix = _coordinates(question.expr, zs)
    inverse = matrix.inv()
    swap = dict(zip(zs, inverse * sp.Matrix(zs), strict=True))
    moved = _tidy(question.expr.xreplace(swap), zs)
    apart = frozenset(
        (i, j)
        for j in range(len(zs))
        for i in range(j)
        if all(
            i2 != j2 and (min(i2, j2), max(i2, j2)) in question.independent
            for i2 in _used(matrix, i)
            for j2 in _used(matrix, j)
        )
    )
    inner = closed_form(replace(question, expr=moved, independent=apart))
    rows = {i: [(k, float(matrix[i, k])) for k in _used(matrix, i)] for i in range(len(zs))}
    read = sorted({k for entry in inner.needs for i in entry for k in _used(matrix, i)})
    needs = tuple(p for p in combinations_with_replacement(read, 2) if p not in question.independent)

    def entry(covariances, i, j):
        return sum(a * b * covariances.get((min(k, m), max(k, m)), 0.0) for k, a in rows[i] for m, b in rows[j])

    def compute(covariances, parameters):
        return inner.compute({(i, j): entry(covariances, i, j) for i, j in inner.needs}, parameters)

    def estimate(covariances, parameters):
        """The rounding of the inner formula, and what that of the new covariances does to it: each moved by its own."""
        known = {(i, j): entry(covariances, i, j) for i, j in inner.needs}
        value = inner.compute(known, parameters)
        total = inner.error(known, parameters)
        for e in inner.needs:
            if len(rows[e[0]]) * len(rows[e[1]]) == 1:
                continue
            size = jnp.abs(known[e]) + sum(
                abs(a * b) * jnp.abs(jnp.asarray(covariances.get((min(k, m), max(k, m)), 0.0)))
                for k, a in rows[e[0]]
                for m, b in rows[e[1]]
            )
            step = 4 * jnp.finfo(size.dtype).eps * size
            moved = [inner.compute({**known, e: known[e] + sign * step}, parameters) for sign in (-1, 1)]
            total = total + jnp.maximum(*(jnp.abs(m - value) for m in moved))
        return total

    names = ", ".join(
        f"{z} for {sum(c * y for c, y in zip(matrix.row(i), zs, strict=True))}"
        for i, z in enumerate(zs)
        if len(rows[i]) > 1
    )
    step = f"coordinates of the kinks: {names}"
    formula = _in_old(inner.formula, matrix)
    return Method("closed form", needs, compute, (step, *inner.steps), formula, estimate=jax.jit(estimate))


def _in_old(formula: sp.Expr | None, matrix: sp.Matrix) -> sp.Expr | None:
    """The formula in the covariances of the old coordinates, for reading."""
    if formula is None:
        return None
    size = matrix.rows
    symbol = lambda i, j: sp.Symbol(
        f"C_{pair_name(min(i, j), max(i, j))}", **({"positive": True} if i == j else {"real": True})
    )
    swap = {}
    for i, j in combinations_with_replacement(range(size), 2):
        terms = (matrix[i, k] * matrix[j, m] * symbol(k, m) for k in _used(matrix, i) for m in _used(matrix, j))
        swap[symbol(i, j)] = sum(terms)
    return in_covariances(formula, size).xreplace(swap)


def _used(matrix: sp.Matrix, row: int) -> list[int]:
    return [k for k in range(matrix.cols) if matrix[row, k] != 0]


def _coordinates(expr: sp.Expr, zs: Sequence[sp.Symbol]) -> sp.Matrix:
    """A matrix whose rows are the forms of the kinks, and single Gaussians for the rest."""
    forms = {form for part in expr.atoms(*_KINKED) for form in _forms(part, zs)}
    if not any(sum(c != 0 for c in form) > 1 for form in forms):
        raise Declined("no kink lies across several Gaussians")
    rows: list[Form] = sorted(forms, key=str)
    if sp.Matrix(rows).rank() < len(rows):
        raise Declined("the kinks lie along more lines than there are Gaussians")
    units = [tuple(sp.Integer(int(i == k)) for i in range(len(zs))) for k in range(len(zs))]
    for unit in units:
        if len(rows) < len(zs) and sp.Matrix([*rows, unit]).rank() > len(rows):
            rows.append(unit)
    return sp.Matrix(rows)


def _forms(part: sp.Expr, zs: Sequence[sp.Symbol]) -> list[Form]:
    """The linear forms that change sign at a kink, the first coefficient one."""
    switches = [part.args[0]]
    if isinstance(part, (sp.Max, sp.Min)):
        switches = [a - b for k, a in enumerate(part.args) for b in part.args[:k]]
    found = []
    for switch in switches:
        switch = sp.expand(switch)
        if not switch.has(*zs):
            continue
        form = tuple(switch.coeff(z) for z in zs)
        rest = switch - sum(c * z for c, z in zip(form, zs, strict=True))
        if rest.has(*zs) or not all(c.is_number for c in form):
            raise Declined("a kink is not affine in the Gaussians")
        first = next(c for c in form if c != 0)
        found.append(tuple(c / first for c in form))
    return found


def _tidy(expr: sp.Expr, zs: Sequence[sp.Symbol]) -> sp.Expr:
    """Kinks written in their one Gaussian."""
    swap = {part: part.func(*(sp.expand(a) for a in part.args)) for part in expr.atoms(*_KINKED)}
    for part in expr.atoms(sp.Max, sp.Min):
        if len(part.args) == 2:
            left, right = part.args
            swap[part] = sp.expand(right) + part.func(sp.expand(left - right), 0)
    return expr.xreplace(swap)
