"""Closed forms by rewriting: one ordered list of rules, each of which answers or declines with None.

Sources: Stein's lemma E[z_i G] = sum_j C_ij E[d_j G]; Girsanov E[e^{b'z} G(z)] = e^{b'Cb/2} E[G(z + Cb)];
conditioning E[p_nu(a'z + beta) G] = p_{a'Ca + nu}(beta) E[G | a'z + beta + noise = 0], where nu = 0 is a
delta
function and nu > 0 a Gaussian factor. What is left are the base cases of `bases.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import sympy as sp

from ntk_rules import heads
from ntk_rules.bases import (
    Derivation,
    characteristic,
    exponential,
    one_form,
    readable,
    settle,
    three_centred_forms,
    two_forms,
    wave_and_form,
)
from ntk_rules.law import Law, conditioned, joint_determinant
from ntk_rules.terms import Form, Term, differentiate, shift, tidy


def expect(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """E[term] under `law`, or None when no rule reduces it to a base case."""
    term = tidy(term)
    if term.coefficient == 0:
        return sp.S.Zero
    key = (replace(term, coefficient=sp.S.One), law)
    if key not in work.memo:
        work.memo[key] = None
        for rule in RULES:
            answer = rule(key[0], law, work)
            if answer is not None:
                work.memo[key] = answer
                break
    answer = work.memo[key]
    return None if answer is None else term.coefficient * answer


def total(terms: list[Term], law: Law, work: Derivation) -> sp.Expr | None:
    """Linearity: the sum of the expectations, or None when one of them has none."""
    parts = []
    for term in terms:
        part = expect(term, law, work)
        if part is None:
            return None
        parts.append(part)
    return sp.Add(*parts)


def girsanov(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """E[e^{b'z} G(z)] = e^{b'Cb/2} E[G(z + Cb)]."""
    if not any(term.tilt):
        return None
    work.say("Girsanov shift", "E[exp(b'z) G(z)] = exp(b'Cb/2) E[G(z + Cb)]")
    grown = term.constant + law.between(term.tilt, term.tilt) / 2
    flat = replace(term, constant=grown, tilt=(sp.S.Zero,) * len(term.tilt))
    return total(shift(flat, law.times(term.tilt)), law, work)


def condition(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """A delta function or Gaussian factor of a form conditions the law on that form.

    With m derivatives of it, d^m/d offset^m of [N(offset) E[G | form = 0]] by Leibniz's rule.
    """
    k = next((k for k, f in enumerate(term.forms) if f.order), None)
    if k is None:
        return None
    form, rest = term.forms[k], replace(term, forms=term.forms[:k] + term.forms[k + 1 :])
    if form.nu == 0:
        work.say("delta function", "E[delta(y) G] = p_y(0) E[G | y = 0], y = " + readable(form))
        if sum(a != 0 for a in form.slope) > 1:
            return _eliminate(form, rest, law, work)
    else:
        work.say("Gaussian factor", "a factor exp(-y^2/2) changes the covariance, y ~ " + readable(form))
    variance = law.variance(form)
    if variance == 0:
        return sp.S.Zero if form.offset == 0 else None
    back = tuple(-g / variance for g in law.times(form.slope))
    new_law = conditioned(law, form, variance)
    m = form.order - 1
    moved, parts = [rest], []
    scale = 1 / sp.sqrt(2 * sp.pi * variance)
    for j in range(m + 1):
        factor = sp.binomial(m, j) * heads.hermite_factor(form.offset, variance, m - j) * scale
        if factor != 0:
            for t in moved:
                with_density = replace(t, constant=t.constant - form.offset**2 / (2 * variance))
                here = [_pin(s, form) for s in shift(with_density, tuple(b * form.offset for b in back))]
                part = total(here, new_law, work)
                if part is None:
                    return None
                parts.append(factor * part)
        moved = [
            replace(d, coefficient=back[i] * d.coefficient)
            for t in moved for i in range(len(back)) if back[i] != 0 for d in differentiate(t, i)
        ]  # fmt: skip
    return sp.Add(*parts)


def _pin(term: Term, form: Form) -> Term:
    """After a delta function of one Gaussian that Gaussian is constant (zero after the shift): drop it."""
    used = [i for i, a in enumerate(form.slope) if a != 0]
    if form.nu != 0:
        return term
    (i,) = used
    if term.powers[i]:
        return replace(term, coefficient=sp.S.Zero)

    def without(slope: tuple[sp.Expr, ...]) -> tuple[sp.Expr, ...]:
        return tuple(sp.S.Zero if j == i else a for j, a in enumerate(slope))

    forms = tuple(replace(f, slope=without(f.slope)) for f in term.forms)
    wave = (without(term.wave[0]), term.wave[1]) if term.wave else None
    return tidy(replace(term, forms=forms, wave=wave, tilt=without(term.tilt)))


def _eliminate(form: Form, rest: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """A delta function of a combination: change variables so that it is one Gaussian."""
    i = next(k for k, a in enumerate(form.slope) if a != 0)
    n = len(form.slope)
    pivot = form.slope[i]
    # y = slope . z takes the place of z_i = (y - sum_{j != i} slope_j z_j)/pivot.
    moves = [[sp.Integer(j == k) for k in range(n)] for j in range(n)]
    moves[i] = [(1 / pivot if k == i else -form.slope[k] / pivot) for k in range(n)]

    def change(slope: tuple[sp.Expr, ...]) -> tuple[sp.Expr, ...]:
        return tuple(sp.Add(*(slope[j] * moves[j][k] for j in range(n))) for k in range(n))

    unit = tuple(sp.Integer(k == i) for k in range(n))
    new_form = replace(form, slope=unit)
    forms = tuple(replace(f, slope=change(f.slope)) for f in rest.forms)
    wave = (change(rest.wave[0]), rest.wave[1]) if rest.wave else None
    flat = replace(rest, forms=(new_form, *forms), wave=wave, tilt=change(rest.tilt))
    power = flat.powers[i]
    start = replace(flat, powers=tuple(0 if k == i else p for k, p in enumerate(flat.powers)))
    terms = [start]
    for _ in range(power):
        terms = [
            replace(
                t,
                coefficient=t.coefficient * c,
                powers=tuple(p + (j == k) for j, p in enumerate(t.powers)),
            )
            for t in terms for k, c in enumerate(moves[i]) if c != 0
        ]  # fmt: skip
    return total(terms, _transformed(law, form, i), work)


def _transformed(law: Law, form: Form, i: int) -> Law:
    """The law after Gaussian i is replaced by slope . z."""
    n = len(law.cov)
    gain = law.times(form.slope)
    cov = [list(row) for row in law.cov]
    for j in range(n):
        cov[i][j] = cov[j][i] = gain[j]
    cov[i][i] = law.between(form.slope, form.slope)
    det = {}
    unit = [tuple(sp.Integer(j == k) for k in range(n)) for j in range(n)]
    for (a, b), old in law.det:
        if i in (a, b):
            left = Form(form.slope, sp.S.Zero, sp.S.Zero)
            right = Form(unit[b if a == i else a], sp.S.Zero, sp.S.Zero)
            det[(a, b)] = joint_determinant(law, left, right)
        else:
            det[(a, b)] = old
    return Law(tuple(map(tuple, cov)), tuple(det.items()))


def stein(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """E[z_i G] = sum_j C_ij E[d_j G]."""
    i = next((i for i, n in enumerate(term.powers) if n), None)
    if i is None:
        return None
    work.say("Stein's lemma", "E[z_i G] = sum_j C_ij E[d_j G]")
    rest = replace(term, powers=tuple(n - (j == i) for j, n in enumerate(term.powers)))
    terms = [
        replace(d, coefficient=law.cov[i][j] * d.coefficient)
        for j in range(len(law.cov)) if law.cov[i][j] != 0 for d in differentiate(rest, j)
    ]  # fmt: skip
    return total(terms, law, work)


def blocks(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """Independence: factors whose arguments are uncorrelated separate; the wave is one of them."""
    if len(term.forms) + (term.wave is not None) < 2:
        return None
    wave = term.wave
    together = [] if wave else [term.forms[0]]
    slopes = [wave[0]] if wave else [term.forms[0].slope]
    rest = [f for f in term.forms if f not in together]
    grown = True
    while grown:
        linked = [f for f in rest if any(law.between(f.slope, slope) != 0 for slope in slopes)]
        grown = bool(linked)
        together += linked
        slopes += [f.slope for f in linked]
        rest = [f for f in rest if f not in linked]
    if not rest:
        return None
    work.say("independence", "uncorrelated factors separate")
    left = expect(replace(term, forms=tuple(together)), law, work)
    right = expect(replace(term, forms=tuple(rest), wave=None, constant=sp.S.Zero), law, work)
    return None if left is None or right is None else left * right


def two_densities(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """Two Gaussian factors of two Gaussians and nothing else: the density at zero of both arguments with their noise, of determinant det.
    (Of more Gaussians the determinant has minors that cancel.)"""
    if term.wave or any(term.powers) or len(term.forms) != 2:
        return None
    if any(form.order != 1 or form.nu == 0 or form.offset != 0 for form in term.forms):
        return None
    first, second = term.forms
    if sum(a != 0 or b != 0 for a, b in zip(first.slope, second.slope, strict=True)) > 2:
        return None
    work.say("Gaussian factors", f"the density at 0 of {readable(first)} and {readable(second)}, 1/(2 pi sqrt(det))")
    return sp.exp(settle(term.constant)) / (2 * sp.pi * sp.sqrt(joint_determinant(law, first, second)))


# Tried from the top; the first that does not decline answers.
RULES: tuple[Callable[[Term, Law, Derivation], sp.Expr | None], ...] = (
    girsanov,
    two_densities,
    condition,
    stein,
    exponential,
    characteristic,
    blocks,
    wave_and_form,
    one_form,
    two_forms,
    three_centred_forms,
)
