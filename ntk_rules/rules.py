"""Closed forms by rewriting: one ordered list of rules, each of which answers or declines with None.

Sources: Stein's lemma E[z_i G] = sum_j C_ij E[d_j G]; Girsanov E[e^{b'z} G(z)] = e^{b'Cb/2} E[G(z + Cb)];
conditioning E[p_nu(a'z + beta) G] = p_{a'Ca + nu}(beta) E[G | a'z + beta + noise = 0], where nu = 0 is a
delta
function and nu > 0 a Gaussian factor; base cases: Sheppard's orthant probabilities and the bivariate normal
integral.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import sympy as sp

from ntk_rules import heads
from ntk_rules.law import (
    Law,
    conditioned,
    correlation_symbol,
    covariance_symbol,
    joint_determinant,
    std_symbol,
)
from ntk_rules.terms import Form, Term, differentiate, shift, tidy


@dataclass
class Derivation:
    """The work on one expectation: memo of answers, and the steps worth reading."""

    memo: dict[tuple[Term, Law], sp.Expr | None] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)

    def say(self, rule: str, detail: str = "") -> None:
        line = f"{rule}: {detail}" if detail else rule
        if line not in self.steps and len(self.steps) < 60:
            self.steps.append(line)


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
        work.say("delta function", "E[delta(y) G] = p_y(0) E[G | y = 0], y = " + _readable(form))
        if sum(a != 0 for a in form.slope) > 1:
            return _eliminate(form, rest, law, work)
    else:
        work.say("Gaussian factor", "a factor exp(-y^2/2) changes the covariance, y ~ " + _readable(form))
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


def exponential(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """Base case: what is left is exp(constant)."""
    if term.forms or term.wave:
        return None
    return sp.exp(settle(term.constant))


def characteristic(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """Base case: E[cos(t'z + phase)] = cos(phase) e^{-t'Ct/2}, the real part of the characteristic
    function.
    """
    if term.forms or term.wave is None:
        return None
    slope, phase = term.wave
    work.say("characteristic function", "E[exp(i t'z)] = exp(-t'Ct/2)")
    return sp.cos(phase) * sp.exp(settle(term.constant - law.between(slope, slope) / 2))


def blocks(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """Independence: factors whose arguments are uncorrelated separate."""
    if term.wave or len(term.forms) < 2:
        return None
    first, rest = [term.forms[0]], list(term.forms[1:])
    grown = True
    while grown:
        linked = [f for f in rest if any(law.between(f.slope, g.slope) != 0 for g in first)]
        grown = bool(linked)
        first += linked
        rest = [f for f in rest if f not in linked]
    if not rest:
        return None
    work.say("independence", "uncorrelated factors separate")
    left = expect(replace(term, forms=tuple(first)), law, work)
    right = expect(replace(term, forms=tuple(rest), constant=sp.S.Zero), law, work)
    return None if left is None or right is None else left * right


def one_form(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """Base case: E[Phi(y/sqrt nu)] = Phi(beta / sqrt(a'Ca + nu))."""
    if term.wave or len(term.forms) != 1:
        return None
    (form,) = term.forms
    variance = law.variance(form)
    scale = settle(term.constant)
    if form.offset == 0 or scale == 0:
        return sp.exp(scale) * heads.cdf(form.offset, sp.sqrt(variance))
    if not grows(scale):
        return sp.exp(scale) * heads.cdf(form.offset, sp.sqrt(variance))
    rest = settle(scale - form.offset**2 / (2 * variance))
    return heads.ScaledCdf(scale, form.offset, sp.sqrt(variance), rest)


def two_forms(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """Base case: the bivariate normal integral; an orthant angle when both offsets vanish (Sheppard 1899)."""
    if term.wave or len(term.forms) != 2:
        return None
    f, g = term.forms
    s_f, s_g = sp.sqrt(law.variance(f)), sp.sqrt(law.variance(g))
    r = _ratio(law.between(f.slope, g.slope), s_f * s_g)
    w = sp.sqrt(joint_determinant(law, f, g)) / (s_f * s_g)
    scale = settle(term.constant)
    if f.offset == 0 and g.offset == 0:
        work.say("orthant probability", "P(x > 0, y > 0) = 1/4 + arcsin(rho)/(2 pi)")
        return sp.exp(scale) * _orthant(r, w)
    work.say("bivariate normal integral", f"of {_readable(f)} and {_readable(g)}")
    rest, outside = sp.S.Zero, sp.S.One
    if scale != 0 and not grows(scale):
        scale, outside = sp.S.Zero, sp.exp(scale)
    if scale != 0:
        h, k = f.offset, g.offset
        cross = law.between(f.slope, g.slope)
        distance = (h**2 * law.variance(g) + k**2 * law.variance(f) - 2 * cross * h * k) / (
            law.variance(f) * law.variance(g) - cross**2
        )
        rest = settle(scale - distance / 2)
    return outside * heads.BivariateCdf(f.offset, s_f, g.offset, s_g, r, w, scale, rest)


def three_centred_forms(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """Base case: P(x, y, z > 0) = 1/8 + (the three arcsines)/(4 pi) for centred forms."""
    if term.wave or len(term.forms) != 3 or any(f.offset != 0 for f in term.forms):
        return None
    angles = sp.S.Zero
    for a, b in ((0, 1), (0, 2), (1, 2)):
        f, g = term.forms[a], term.forms[b]
        s = sp.sqrt(law.variance(f)) * sp.sqrt(law.variance(g))
        w = sp.sqrt(joint_determinant(law, f, g)) / s
        angles += _arcsine(_ratio(law.between(f.slope, g.slope), s), w)
    work.say("orthant probability", "in three dimensions, 1/8 + the three arcsines/(4 pi)")
    return sp.exp(settle(term.constant)) * (sp.Rational(1, 8) + angles / (4 * sp.pi))


# Tried from the top; the first that does not decline answers.
RULES: tuple[Callable[[Term, Law, Derivation], sp.Expr | None], ...] = (
    girsanov,
    condition,
    stein,
    exponential,
    characteristic,
    blocks,
    one_form,
    two_forms,
    three_centred_forms,
)


def _orthant(r: sp.Expr, w: sp.Expr) -> sp.Expr:
    return sp.Rational(1, 4) + _arcsine(r, w) / (2 * sp.pi)


def _arcsine(r: sp.Expr, w: sp.Expr) -> sp.Expr:
    if r == 0:
        return sp.S.Zero
    if r.could_extract_minus_sign():
        return -heads.Arcsine(-r, w)
    return heads.Arcsine(r, w)


def _ratio(cov: sp.Expr, scale: sp.Expr) -> sp.Expr:
    """cov / scale; a plain correlation becomes its symbol."""
    replacements = {}
    for c in cov.free_symbols:
        if c.name.startswith("C_"):
            i, j = map(int, c.name[2:])
            replacements[covariance_symbol(i, j)] = correlation_symbol(i, j) * std_symbol(i) * std_symbol(j)
    plain = cov.xreplace(replacements) / scale
    short = not any(s.name.startswith("s_") for s in plain.free_symbols)
    return plain if short else cov / scale


def settle(expr: sp.Expr) -> sp.Expr:
    """`expr`, or 0 where it is identically zero, as seen at random laws."""
    return sp.S.Zero if expr != 0 and all(abs(x) < 1e-13 for x in sampled(expr)) else expr


def grows(expr: sp.Expr) -> bool:
    """Whether an exponent is positive for some law (sampled)."""
    return any(x > 1e-13 for x in sampled(expr))


def sampled(expr: sp.Expr) -> list[float]:
    """Values of `expr` relative to its size, at a few random laws and parameters, fixed once and for all."""
    values = []
    for seed in range(4):
        known = {s: _sample(s.name, seed) for s in expr.free_symbols}
        number = complex(expr.xreplace({s: sp.Float(x, 30) for s, x in known.items()}).evalf(20))
        values.append(number.real)
    return values


def _sample(name: str, seed: int) -> sp.Expr:
    """A value for a symbol of a law; correlations, sines and covariances fit together."""
    kind, _, index = name.partition("_")
    if kind in ("rho", "w", "C") and len(index) == 2:
        rho = sp.Rational(hash_of(index, seed) % 180 - 90, 100)
        if kind == "C":
            return rho * _sample(f"s_{index[0]}", seed) * _sample(f"s_{index[1]}", seed)
        return rho if kind == "rho" else sp.sqrt(1 - rho**2).evalf(30)
    return sp.Rational(hash_of(name, seed) % 997 + 100, 300)


def hash_of(text: str, seed: int) -> int:
    """A small deterministic hash (Python's own changes from run to run)."""
    return zlib.crc32(f"{text}/{seed}".encode())


def _readable(form: Form) -> str:
    inner = sp.Add(*(a * sp.Symbol(f"z_{i}") for i, a in enumerate(form.slope))) + form.offset
    return str(inner) if form.nu == 0 else f"{inner} + noise of variance {form.nu}"
