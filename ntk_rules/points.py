"""What a function with a jump is worth where its argument cannot move: F(0) as it is written, not halfway.

The rules know a jump by its two sides, which is all an argument of positive variance can tell. One of variance zero sits on
the jump, and `where(z > 0, 1, 0)` is 0 there, `where(z >= 0, 1, 0)` is 1: what a finite network has at an input of zeros. So
E[F] is asked again with the argument put to its mean, wherever that could make a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import sympy as sp

from ntk_rules import special
from ntk_rules.functions import JUMPING, Opaque
from ntk_rules.method import Compute, Entry, Method
from ntk_rules.pieces import KINKED
from ntk_rules.question import Question, gaussian_symbols
from ntk_rules.steps import canonical_kinks

__all__ = ["as_written"]

_SAMPLES = (sp.Rational(37, 61), sp.Rational(-73, 83), sp.Rational(139, 97))


@dataclass(frozen=True)
class _Fixed:
    """A linear form of the Gaussians, and F where that form is zero."""

    slopes: tuple[tuple[int, sp.Expr], ...]
    written: sp.Expr

    def entries(self, independent: frozenset[Entry]) -> set[Entry]:
        used = [i for i, _ in self.slopes]
        return {(i, j) for i in used for j in used if i <= j and (i, j) not in independent}

    def holds(self, covariances: dict[Entry, jax.Array]) -> jax.Array:
        """Whether the form has no variance: of one Gaussian exactly, of several but for rounding, as `special.correlation` has it."""
        (first, a), *others = self.slopes
        if not others:
            return covariances[(first, first)] <= 0
        ((second, b),) = others
        q_u, q_v = covariances[(first, first)], covariances[(second, second)]
        c = covariances.get((first, second), jnp.zeros_like(q_u))
        rho, w = special.correlation(q_u, q_v, c)
        left, right = float(a) * jnp.sqrt(jnp.maximum(q_u, 0)), float(b) * jnp.sqrt(jnp.maximum(q_v, 0))
        meet = jnp.abs(left + jnp.sign(rho) * right) <= 8 * jnp.finfo(w.dtype).eps * (jnp.abs(left) + jnp.abs(right))
        return ((w == 0) & meet) | ((q_u <= 0) & (q_v <= 0))


def as_written(question: Question, method: Method, choose: Callable[[Question], Method]) -> Method:
    """`method` with F as it is written where an argument of a jump has variance zero; itself where F jumps nowhere that matters."""
    for fixed in _where_it_matters(question):
        here = replace(
            question, expr=canonical_kinks(fixed.written, gaussian_symbols(question.gaussians)), written=fixed.written
        )
        method = _joined(question, method, fixed, choose(here))
    return method


def _joined(question: Question, method: Method, fixed: _Fixed, there: Method) -> Method:
    needs = tuple(sorted({*method.needs, *there.needs, *fixed.entries(question.independent)}))

    def chosen(usual: Compute, other: Compute) -> Compute:
        def value(covariances: dict[Entry, jax.Array], parameters: tuple[jax.Array, ...]) -> jax.Array:
            at_rest = fixed.holds(covariances)
            values = special.as_floats(usual(covariances, parameters), other(covariances, parameters))
            dtype = jnp.result_type(*covariances.values(), *parameters)
            return jnp.where(at_rest, values[1], values[0]).astype(dtype)

        return value

    zs = gaussian_symbols(question.gaussians)
    name = sp.Add(*(a * zs[i] for i, a in fixed.slopes))
    step = f"at zero variance of {name}: the mean of {fixed.written}, F as it is written there"
    return replace(
        method, needs=needs, compute=chosen(method.compute, there.compute), steps=(*method.steps, step, *there.steps[-1:]),
        estimate=chosen(method.error, there.error), once=None,
    )  # fmt: skip


def _where_it_matters(question: Question) -> list[_Fixed]:
    """The linear forms at whose zeros F, as it is written, is not halfway between its sides."""
    written, standard = question.written, question.expr
    if written is None or standard is None or written.has(Opaque, *JUMPING):
        return []
    zs = gaussian_symbols(question.gaussians)
    found = []
    for slopes, places in _forms(standard, written, zs).items():
        lead, a = slopes[0]
        rest = sp.Add(*(b * zs[i] for i, b in slopes[1:]))
        centred = {zs[lead]: -rest / a}
        at_zero = _there(written, centred)
        moved = [{zs[lead]: (place - rest) / a} for place in places] if question.parameters else [centred]
        if at_zero is None:
            continue
        if any(_differ(_there(written, m), _there(standard, m)) for m in moved) or _jumps_on(question, at_zero):
            found.append(_Fixed(slopes, at_zero))
    return found


def _there(expr: sp.Expr, values: dict[sp.Expr, sp.Expr]) -> sp.Expr | None:
    """`expr` with symbols replaced, None where it has no value, as z/|z| at 0: the finite network has none either."""
    try:
        value = expr.xreplace(values)
    except TypeError:  # a comparison with what is no number
        return None
    return None if value.has(sp.nan, sp.zoo, sp.oo, -sp.oo) else value


def _jumps_on(question: Question, at_zero: sp.Expr) -> bool:
    """Whether what is left of F, one form being zero, itself depends on how it is written: 1[u + v > 0] at u = 0."""
    zs = gaussian_symbols(question.gaussians)
    if not at_zero.has(*zs):
        return False
    inner = replace(question, expr=canonical_kinks(at_zero, zs), written=at_zero)
    return bool(_where_it_matters(inner))


Slopes = tuple[tuple[int, sp.Expr], ...]


def _forms(standard: sp.Expr, written: sp.Expr, zs: Sequence[sp.Symbol]) -> dict[Slopes, list[sp.Expr]]:
    """The forms of one or two Gaussians that jumps are at, and the places (in numbers and parameters) of the form."""
    out: dict[Slopes, list[sp.Expr]] = {((i, sp.S.One),): [sp.S.Zero] for i, z in enumerate(zs) if written.has(z)}
    mixed = [f for f in written.atoms(*KINKED) if sum(f.has(z) for z in zs) > 1]
    parts = (standard, *(canonical_kinks(f, tuple(zs)) for f in mixed))  # steps whose product is zero are in no other
    for step in sorted(set().union(*(part.atoms(sp.Heaviside) for part in parts)), key=str):
        argument = sp.expand(step.args[0])
        slopes = tuple((i, a) for i, z in enumerate(zs) if (a := argument.coeff(z)) != 0)
        if not 1 <= len(slopes) <= 2:
            continue
        place = -(argument - sp.Add(*(a * zs[i] for i, a in slopes)))
        if place.has(*zs) or not all(a.is_number for _, a in slopes):
            continue
        lead = slopes[0][1]
        key = tuple((i, a / lead) for i, a in slopes)
        out.setdefault(key, [sp.S.Zero]).append(sp.expand(place / lead))
    return out


def _differ(left: sp.Expr | None, right: sp.Expr | None) -> bool:
    """Whether two expressions differ, seen at points where neither has a jump; what has a value and no number is taken to differ."""
    if left is None or right is None or left == right:
        return False
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    for shift in _SAMPLES:
        point = {
            s: abs(shift + sp.Rational(k, 7)) if s.is_positive else shift + sp.Rational(k, 7)
            for k, s in enumerate(symbols)
        }
        values = [sp.N(side.xreplace(point), 30) for side in (left, right)]
        if not all(v.is_number and v.is_finite for v in values):
            return True
        gap, size = abs(values[0] - values[1]), abs(values[0]) + abs(values[1])
        if not gap <= sp.Float(1e-15) * size:
            return True
    return False
