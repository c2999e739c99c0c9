"""Base cases of the rules: the terms whose expectation is known, in the functions of `heads.py`.

Sources: W. F. Sheppard's orthant probabilities (1899); the bivariate normal integral; the characteristic function, and
the normal integral at complex arguments where a wave meets a step or an error function.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import sympy as sp

from ntk_rules import heads
from ntk_rules.law import (
    Law,
    correlation_symbol,
    covariance_symbol,
    in_correlations,
    joint_determinant,
    numbers_of,
    pair_of,
    std_symbol,
)
from ntk_rules.terms import Form, Term


@dataclass
class Derivation:
    """The work on one expectation: memo of answers, and the steps worth reading."""

    memo: dict[tuple[Term, Law], sp.Expr | None] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)

    def say(self, rule: str, detail: str = "") -> None:
        line = f"{rule}: {detail}" if detail else rule
        if line not in self.steps and len(self.steps) < 60:
            self.steps.append(line)


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


def wave_and_form(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """Base case: E[cos(t'z + phase) Phi(y/sqrt nu)], the real part of a complex Girsanov shift.

    E[e^{i t'z} G(z)] = e^{-t'Ct/2} E[G(z + i C t)], so that the normal integral is taken at (beta + i a'Ct)/sigma.
    """
    if term.wave is None or len(term.forms) != 1:
        return None
    (slope, phase), (form,) = term.wave, term.forms
    work.say("complex Girsanov shift", "E[exp(i t'z) G(z)] = exp(-t'Ct/2) E[G(z + i C t)]")
    variance, alone = law.variance(form), Form(slope, sp.S.Zero, sp.S.Zero)
    scale = settle(term.constant - law.between(slope, slope) / 2)
    along = joint_determinant(law, alone, form) / variance  # the variance of t'z given the form
    rest = settle(term.constant - along / 2 - form.offset**2 / (2 * variance))
    mean, std = _mean_and_std(form, variance)
    return heads.WaveCdf(scale, phase, mean, law.between(form.slope, slope), std, rest)


def one_form(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """Base case: E[Phi(y/sqrt nu)] = Phi(beta / sqrt(a'Ca + nu))."""
    if term.wave or len(term.forms) != 1:
        return None
    (form,) = term.forms
    variance = law.variance(form)
    mean, std = _mean_and_std(form, variance)
    scale = settle(term.constant)
    if form.offset == 0 or scale == 0 or not grows(scale):
        return sp.exp(scale) * heads.cdf(mean, std)
    rest = settle(scale - form.offset**2 / (2 * variance))
    return heads.ScaledCdf(scale, mean, std, rest)


def two_forms(term: Term, law: Law, work: Derivation) -> sp.Expr | None:
    """Base case: the bivariate normal integral; an orthant angle when both offsets vanish (Sheppard 1899)."""
    if term.wave or len(term.forms) != 2:
        return None
    f, g = term.forms
    (m_f, s_f), (m_g, s_g) = (_mean_and_std(form, law.variance(form)) for form in (f, g))
    r = _ratio(law.between(f.slope, g.slope), s_f * s_g)
    w = sp.sqrt(joint_determinant(law, f, g)) / (s_f * s_g)
    scale = settle(term.constant)
    if f.offset == 0 and g.offset == 0:
        work.say("orthant probability", "P(x > 0, y > 0) = 1/4 + arcsin(rho)/(2 pi)")
        return sp.exp(scale) * _orthant(r, w)
    work.say("bivariate normal integral", f"of {readable(f)} and {readable(g)}")
    rest, outside = sp.S.Zero, sp.S.One
    if scale != 0 and not grows(scale):
        scale, outside = sp.S.Zero, sp.exp(scale)
    if scale != 0:
        h, k = f.offset, g.offset
        cross = law.between(f.slope, g.slope)
        distance = (h**2 * law.variance(g) + k**2 * law.variance(f) - 2 * cross * h * k) / joint_determinant(law, f, g)
        rest = settle(scale - distance / 2)
    return outside * heads.BivariateCdf(m_f, s_f, m_g, s_g, r, w, scale, rest)


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


def _mean_and_std(form: Form, variance: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    std = sp.sqrt(variance)
    return heads.residue(in_correlations(form.offset), std), std


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
            i, j = numbers_of(c)
            replacements[covariance_symbol(i, j)] = correlation_symbol(i, j) * std_symbol(i) * std_symbol(j)
    plain = cov.xreplace(replacements) / scale
    short = not any(s.name.startswith("s_") for s in plain.free_symbols)
    return plain if short else cov / scale


def settle(expr: sp.Expr) -> sp.Expr:
    """`expr` in correlations, or 0 where it is identically zero, as seen at random laws."""
    expr = in_correlations(expr)
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
    if (pair := pair_of(name)) is not None:
        rho = sp.Rational(hash_of(index, seed) % 180 - 90, 100)
        if kind == "C":
            return rho * _sample(f"s_{pair[0]}", seed) * _sample(f"s_{pair[1]}", seed)
        return rho if kind == "rho" else sp.sqrt(1 - rho**2).evalf(30)
    return sp.Rational(hash_of(name, seed) % 997 + 100, 300)


def hash_of(text: str, seed: int) -> int:
    """A small deterministic hash (Python's own changes from run to run)."""
    return zlib.crc32(f"{text}/{seed}".encode())


def readable(form: Form) -> str:
    """The argument of a form in words, for the steps of a derivation."""
    inner = sp.Add(*(a * sp.Symbol(f"z_{i}") for i, a in enumerate(form.slope))) + form.offset
    return str(inner) if form.nu == 0 else f"{inner} + noise of variance {form.nu}"
