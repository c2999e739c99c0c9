"""The methods, tried in one visible order: closed form, smooth, kinked, many arguments.

A tier is a function of the question that answers with a `Method` or raises `Declined` with its reason.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import sympy as sp

from ntk_rules.bases import Derivation
from ntk_rules.conditioning import rounding_bound
from ntk_rules.coordinates import in_forms
from ntk_rules.errors import Declined, NoRule
from ntk_rules.evaluate import compile_formula, entries_read
from ntk_rules.functions import JUMPING
from ntk_rules.heads import centred, densities_parted, differences_joined, in_turns, means_parted
from ntk_rules.kinked_plane import kinked_plane
from ntk_rules.law import base_law, minors_exposed
from ntk_rules.many import SAMPLED, plane, quasi_monte_carlo
from ntk_rules.method import Method, reaches
from ntk_rules.numeric import one_gaussian, two_separable
from ntk_rules.parse import Unparsed, parse
from ntk_rules.points import as_written
from ntk_rules.question import Question, gaussian_symbols
from ntk_rules.ranges import kept_accurate
from ntk_rules.rules import total
from ntk_rules.special import as_floats
from ntk_rules.stairs import one_stepped, two_stairs


def closed_form(question: Question) -> Method:
    """The rewriting rules of `rules.py`, in the coordinates of the kinks where these lie across several Gaussians."""
    if question.terms is None:
        try:
            return in_forms(question, _rewritten)
        except Declined:
            pass
    return kept_accurate(question, _rewritten(question))


def _rewritten(question: Question) -> Method:
    try:
        known = question.terms
        terms = tuple(parse(question.expr, gaussian_symbols(question.gaussians)) if known is None else known)
    except Unparsed as reason:
        raise Declined(f"outside the normal form: {reason}") from None
    work = Derivation()
    formula = total(list(terms), base_law(question.gaussians, question.independent), work)
    if formula is None:
        raise Declined("no base case for what is left of the normal form")
    if formula.has(sp.nan, sp.zoo):
        raise Declined("it is no number somewhere, as 0 times infinity, the slope of sqrt(relu(h)) below zero")
    joined = densities_parted(means_parted(tidy_formula(centred(differences_joined(minors_exposed(formula))))))
    computed = in_turns(joined)
    evaluate, once = (compile_formula(computed, question.parameter_symbols(), together) for together in (False, True))
    formula = tidy_formula(formula)
    return Method(
        "closed form", entries_read(formula), evaluate, tuple(work.steps), formula, once=once, terms=terms,
        estimate=jax.jit(rounding_bound(joined, question.parameter_symbols())),
    )  # fmt: skip


@functools.lru_cache(maxsize=64)
def tidy_formula(formula: sp.Expr) -> sp.Expr:
    """Like terms collected; nothing that could cancel digits."""
    return sp.factor_terms(formula) if formula.count_ops() < 200 else formula


def choose(question: Question) -> Method:
    """The first tier that answers, jumps of arguments that cannot move as F is written; NoRule with every tier's reason when none does."""
    return as_written(question, _first(replace(question, written=None)), choose)


def _first(question: Question) -> Method:
    reasons: list[tuple[str, Declined]] = []
    rounds = question.expr is not None and question.expr.has(*JUMPING)
    for name, tier in STEPPED if rounds else TIERS:
        try:
            return tier(question)
        except Declined as reason:
            reasons.append((name, reason))
    raise NoRule(
        lambda: "\n".join(
            [f"E[{question.expr}] has no rule. What each tier answered:", *(f"  {n}: {r}" for n, r in reasons)]
        )
    )


def independence(question: Question) -> Method:
    """The product of the expectations of mutually independent factors."""
    if question.expr is None or not question.independent:
        raise Declined("no Gaussians are known to be independent")
    zs = gaussian_symbols(question.gaussians)
    blocks = independent_blocks(sp.Mul.make_args(question.expr), zs, question.independent)
    if len(blocks) < 2:
        raise Declined("the factors do not separate")
    try:
        methods = [_first(replace(question, expr=sp.Mul(*block))) for block in blocks]
    except NoRule as reason:
        raise Declined(partial("a factor has no rule:\n{}".format, reason)) from None

    def compute(covariances, parameters):
        return math.prod(m.compute(covariances, parameters) for m in methods)

    def estimate(covariances, parameters):
        sizes = [abs(m.compute(covariances, parameters)) for m in methods]
        errors = [m.error(covariances, parameters) for m in methods]
        return math.prod(s + e for s, e in zip(sizes, errors, strict=True)) - math.prod(sizes)

    needs = tuple(sorted({e for m in methods for e in m.needs}))
    worst = max(methods, key=lambda m: m.bound)
    steps = ("independence: the factors one by one", *dict.fromkeys(s for m in methods for s in m.steps))
    tier = " * ".join(sorted({m.tier for m in methods}))
    bound = sum(m.bound for m in methods)
    return Method(tier, needs, compute, steps, None, bound, worst.bound_range, estimate, **reaches(methods))


def independent_blocks(
    factors: Sequence[sp.Expr], zs: Sequence[sp.Symbol], independent: frozenset[tuple[int, int]]
) -> list[list[sp.Expr]]:
    """The factors in groups, such that Gaussians of different groups are independent."""
    groups: list[tuple[set[int], list[sp.Expr]]] = []
    for factor in factors:
        used = {i for i, z in enumerate(zs) if factor.has(z)}
        joined, members = set(used), [factor]
        apart = []
        for other, others in groups:
            linked = any(i == j or (min(i, j), max(i, j)) not in independent for i in used for j in other)
            if linked or not used or not other:
                joined, members = joined | other, members + others
            else:
                apart.append((other, others))
        groups = [*apart, (joined, members)]
    return [members for _, members in groups]


def linearity(question: Question) -> Method:
    """The sum of the expectations of the addends, each by its own best tier."""
    if question.terms is not None or question.expr is None:
        raise Declined("a normal form is not split again")
    expanded = sp.expand_mul(question.expr)
    if not expanded.is_Add:
        raise Declined("a single product")
    if not question.expr.has(sp.DiracDelta) and _needs_sampling(expanded, question):
        raise Declined("the addends mix Gaussians; together they are sampled once")
    zs = gaussian_symbols(question.gaussians)
    addends = _pooled(_addends(expanded, zs), zs)
    if len(addends) == 1:
        raise Declined("the addends mix Gaussians; together they are integrated once")
    parts = [(c, replace(question, expr=e)) for c, e in addends]
    try:
        methods = [_first(part) for _, part in parts]
    except NoRule as reason:
        raise Declined(partial("an addend has no rule:\n{}".format, reason)) from None
    coefficients = [compile_formula(sp.sympify(c), question.parameter_symbols()) for c, _ in parts]
    needs = tuple(sorted({e for m in methods for e in m.needs}))

    def compute(covariances, parameters):
        return sum(
            _times(c({}, parameters), m.compute(covariances, parameters))
            for c, m in zip(coefficients, methods, strict=True)
        )

    def estimate(covariances, parameters):
        """The addends' errors, and the rounding of their sum, in which they may cancel."""
        parts = []
        for c, m in zip(coefficients, methods, strict=True):
            value = jnp.abs(as_floats(m.compute(covariances, parameters))[0])
            off = m.error(covariances, parameters) + 8 * jnp.finfo(value.dtype).eps * value
            parts.append(_times(abs(c({}, parameters)), off))
        return sum(parts)

    worst = max(methods, key=lambda m: m.bound)
    names = " + ".join(sorted({m.tier for m in methods}))
    steps = ("linearity: the addends one by one", *dict.fromkeys(s for m in methods for s in m.steps))
    bound = sum(m.bound * (abs(float(c)) if c.is_number else 1.0) for (c, _), m in zip(parts, methods, strict=True))
    return Method(names, needs, compute, steps, None, bound, worst.bound_range, estimate, **reaches(methods))


def _times(coefficient: jax.Array, value: jax.Array) -> jax.Array:
    """Their product; 0 where the coefficient is, as of a case that is not chosen, whatever the value, which may be no number there."""
    return jnp.where(jnp.equal(coefficient, 0), 0, coefficient * value)


def _needs_sampling(expanded: sp.Expr, question: Question) -> bool:
    """Whether more than two Gaussians are mixed by an addend that is not in the normal form."""
    zs = gaussian_symbols(question.gaussians)
    for addend in expanded.args:
        if sum(addend.has(z) for z in zs) > 2:
            try:
                parse(addend, zs)
            except Unparsed:
                return True
    return False


def _addends(expanded: sp.Expr, zs: tuple[sp.Symbol, ...]) -> list[tuple[sp.Expr, sp.Expr]]:
    """(coefficient free of Gaussians, rest) of each addend, equal rests joined."""
    sums: dict[sp.Expr, sp.Expr] = {}
    for addend in expanded.args:
        coefficient, rest = addend.as_independent(*zs, as_Add=False)
        sums[rest] = sums.get(rest, sp.S.Zero) + coefficient
    return [(c, rest) for rest, c in sums.items() if c != 0]


def _pooled(addends: list[tuple[sp.Expr, sp.Expr]], zs: tuple[sp.Symbol, ...]) -> list[tuple[sp.Expr, sp.Expr]]:
    """The addends; an integral in the plane that one of them needs takes in all the others in its Gaussians."""
    planes = {frozenset(z for z in zs if rest.has(z)) for _, rest in addends if _needs_the_plane(rest, zs)}
    pools: dict[frozenset[sp.Symbol], sp.Expr] = {}
    alone = []
    for coefficient, rest in addends:
        home = next((p for p in planes if p >= {z for z in zs if rest.has(z)}), None)
        if home is None:
            alone.append((coefficient, rest))
        else:
            pools[home] = pools.get(home, sp.S.Zero) + coefficient * rest
    return alone + [(sp.S.One, pool) for pool in pools.values()]


def _needs_the_plane(addend: sp.Expr, zs: tuple[sp.Symbol, ...]) -> bool:
    """Whether two Gaussians are mixed within a factor, outside the normal form."""
    used = [z for z in zs if addend.has(z)]
    if len(used) != 2 or all(sum(f.has(z) for z in used) < 2 for f in sp.Mul.make_args(addend)):
        return False
    try:
        parse(addend, zs)
    except Unparsed:
        return True
    return False


TIERS: tuple[tuple[str, Callable[[Question], Method]], ...] = (
    ("closed form", closed_form),
    ("independence", independence),
    ("one Gaussian", one_gaussian),
    ("Hermite series", two_separable),
    ("linearity", linearity),
    ("plane quadrature", plane),
    ("kinks in the plane", kinked_plane),
    (SAMPLED, quasi_monte_carlo),
)

# Of functions that round to whole numbers, which jump at infinitely many places.
STEPPED: tuple[tuple[str, Callable[[Question], Method]], ...] = (
    ("independence", independence),
    ("one Gaussian", one_stepped),
    ("sums over jumps", two_stairs),
    ("linearity", linearity),
    (SAMPLED, quasi_monte_carlo),
)
