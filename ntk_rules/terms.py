"""The normal form of F: a sum of terms that the rules of `rules.py` can take apart.

A term over Gaussians z is

    coefficient * exp(constant + b'z) * prod z_i^n_i * cos(t'z + phase) * prod forms,

and a form is Phi((a'z + beta)/sqrt(nu)) differentiated `order` times in its argument a'z + beta. With nu = 0
that is the step function H(a'z + beta), its derivatives the delta function and onwards; with nu = 1/2 it is
(1 + erf(a'z + beta))/2, its derivative a Gaussian. So steps, deltas, error functions and Gaussian
factors are one kind of thing: erf is a step of an argument with noise of variance nu added to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sympy as sp

from ntk_rules import heads

Vector = tuple[sp.Expr, ...]


@dataclass(frozen=True)
class Form:
    """d^order/dy^order of Phi(y / sqrt(nu)) at y = slope . z + offset."""

    slope: Vector
    offset: sp.Expr
    nu: sp.Expr
    order: int = 0

    @property
    def is_constant(self) -> bool:
        return not any(self.slope)

    def at_constant(self) -> sp.Expr:
        """The value of a form that depends on no Gaussian."""
        if self.order == 0:
            return heads.cdf(self.offset, sp.sqrt(self.nu))
        if self.nu == 0:
            return sp.DiracDelta(self.offset, self.order - 1)
        return heads.density_derivative(self.offset, self.nu, self.order - 1)


@dataclass(frozen=True)
class Term:
    """One term of the normal form (see the head of this file)."""

    coefficient: sp.Expr
    powers: tuple[int, ...]
    constant: sp.Expr
    tilt: Vector
    wave: tuple[Vector, sp.Expr] | None
    forms: tuple[Form, ...]

    @property
    def variables(self) -> frozenset[int]:
        """Indices of the Gaussians that occur."""
        slopes = [self.tilt, *(f.slope for f in self.forms)] + ([self.wave[0]] if self.wave else [])
        used = {i for slope in slopes for i, a in enumerate(slope) if a != 0}
        return frozenset(used | {i for i, n in enumerate(self.powers) if n})


def constant_term(n: int, value: sp.Expr) -> Term:
    """The term `value`, which depends on none of the n Gaussians."""
    return Term(sp.sympify(value), (0,) * n, sp.S.Zero, (sp.S.Zero,) * n, None, ())


def multiply(left: Term, right: Term) -> list[Term]:
    """The product, as terms: equal steps collapse, products of waves become sums of waves."""
    forms = _merge_forms(left.forms + right.forms)
    if forms is None:
        return []
    product = Term(
        left.coefficient * right.coefficient,
        tuple(a + b for a, b in zip(left.powers, right.powers, strict=True)),
        left.constant + right.constant,
        tuple(a + b for a, b in zip(left.tilt, right.tilt, strict=True)),
        left.wave or right.wave,
        forms,
    )
    if left.wave is None or right.wave is None:
        return [product]
    (t, p), (u, r) = left.wave, right.wave  # cos A cos B = (cos(A + B) + cos(A - B))/2
    half = product.coefficient / 2
    plus = (tuple(a + b for a, b in zip(t, u, strict=True)), p + r)
    minus = (tuple(a - b for a, b in zip(t, u, strict=True)), p - r)
    return [tidy(replace(product, coefficient=half, wave=w)) for w in (plus, minus)]


def _merge_forms(forms: tuple[Form, ...]) -> tuple[Form, ...] | None:
    """Forms with H^2 = H applied; None when two steps exclude each other."""
    kept: list[Form] = []
    for form in forms:
        if form in kept and form.nu == 0 and form.order == 0:
            continue
        opposite = Form(tuple(-a for a in form.slope), -form.offset, form.nu, form.order)
        if form.nu == 0 and form.order == 0 and opposite in kept:
            return None
        kept.append(form)
    return tuple(sorted(kept, key=repr))


def tidy(term: Term) -> Term:
    """`term` with constant waves and constant forms moved into the coefficient."""
    coefficient, wave = term.coefficient, term.wave
    if wave is not None and not any(wave[0]):
        coefficient, wave = coefficient * sp.cos(wave[1]), None
    forms = []
    for form in term.forms:
        if form.is_constant:
            coefficient = coefficient * form.at_constant()
        else:
            forms.append(form)
    if coefficient is term.coefficient and wave is term.wave and len(forms) == len(term.forms):
        return term
    return replace(term, coefficient=coefficient, wave=wave, forms=tuple(forms))


def differentiate(term: Term, i: int) -> list[Term]:
    """d term / d z_i."""
    out = []
    n = term.powers[i]
    if n:
        powers = tuple(p - (j == i) for j, p in enumerate(term.powers))
        out.append(replace(term, coefficient=n * term.coefficient, powers=powers))
    if term.tilt[i] != 0:
        out.append(replace(term, coefficient=term.tilt[i] * term.coefficient))
    if term.wave and term.wave[0][i] != 0:
        out.append(replace(_wave_derivative(term), coefficient=term.wave[0][i] * term.coefficient))
    for k, form in enumerate(term.forms):
        if form.slope[i] != 0:
            out.append(_form_derivative(term, k, form.slope[i]))
    return out


def _wave_derivative(term: Term) -> Term:
    assert term.wave is not None
    slope, phase = term.wave
    return replace(term, wave=(slope, phase + sp.pi / 2))


def _form_derivative(term: Term, k: int, factor: sp.Expr) -> Term:
    form = term.forms[k]
    forms = (*term.forms[:k], replace(form, order=form.order + 1), *term.forms[k + 1 :])
    return replace(term, coefficient=factor * term.coefficient, forms=forms)


def _affine_times(term: Term, slope: Vector, offset: sp.Expr) -> list[Term]:
    """(slope . z + offset) * term."""
    out = []
    for i, a in enumerate(slope):
        if a != 0:
            powers = tuple(p + (j == i) for j, p in enumerate(term.powers))
            out.append(replace(term, coefficient=a * term.coefficient, powers=powers))
    if offset != 0:
        out.append(replace(term, coefficient=offset * term.coefficient))
    return out


def differentiate_parameter(term: Term, a: sp.Symbol) -> list[Term]:
    """d term / d a for a deterministic parameter a (the variances nu must not depend on it)."""
    if any(form.nu.has(a) for form in term.forms):
        return _noise_derivative(term, a)
    out = []
    if (change := sp.diff(term.coefficient, a)) != 0:
        out.append(replace(term, coefficient=change))
    tilt = tuple(sp.diff(b, a) for b in term.tilt)
    out += _affine_times(term, tilt, sp.diff(term.constant, a))
    if term.wave:
        slope, phase = term.wave
        out += _affine_times(_wave_derivative(term), tuple(sp.diff(t, a) for t in slope), sp.diff(phase, a))
    for k, form in enumerate(term.forms):
        changed = _form_derivative(term, k, sp.S.One)
        out += _affine_times(changed, tuple(sp.diff(s, a) for s in form.slope), sp.diff(form.offset, a))
    return out


def _noise_derivative(term: Term, a: sp.Symbol) -> list[Term]:
    """The heat equation: d/d nu of a form is half its second derivative."""
    fixed = tuple(replace(f, nu=sp.Dummy(positive=True)) if f.nu.has(a) else f for f in term.forms)
    back = {new.nu: old.nu for new, old in zip(fixed, term.forms, strict=True)}
    out = [_restore(t, back) for t in differentiate_parameter(replace(term, forms=fixed), a)]
    for k, form in enumerate(term.forms):
        if form.nu.has(a):
            forms = (*term.forms[:k], replace(form, order=form.order + 2), *term.forms[k + 1 :])
            half = sp.diff(form.nu, a) / 2
            out.append(replace(term, coefficient=half * term.coefficient, forms=forms))
    return out


def _restore(term: Term, back: dict[sp.Expr, sp.Expr]) -> Term:
    return replace(term, forms=tuple(replace(f, nu=back.get(f.nu, f.nu)) for f in term.forms))


def shift(term: Term, move: Vector) -> list[Term]:
    """`term` at z + move."""
    if not any(move):
        return [term]

    def along(slope: Vector) -> sp.Expr:
        return sp.Add(*(a * m for a, m in zip(slope, move, strict=True)))

    forms = tuple(replace(f, offset=f.offset + along(f.slope)) for f in term.forms)
    wave = (term.wave[0], term.wave[1] + along(term.wave[0])) if term.wave else None
    base = replace(term, constant=term.constant + along(term.tilt), wave=wave, forms=forms)
    terms = [replace(base, powers=(0,) * len(move))]
    for i, n in enumerate(term.powers):
        if n:
            terms = [
                replace(
                    t,
                    coefficient=t.coefficient * sp.binomial(n, k) * move[i] ** (n - k),
                    powers=tuple(k if j == i else p for j, p in enumerate(t.powers)),
                )
                for t in terms
                for k in (range(n + 1) if move[i] != 0 else (n,))
            ]
    return terms
