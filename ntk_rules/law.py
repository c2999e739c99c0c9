"""Covariances of the Gaussians as symbolic expressions that stay accurate when evaluated.

A law keeps, beside the covariances, the 2x2 determinants C_ii C_jj - C_ij^2 as expressions that do not
cancel:
they start as s_i^2 s_j^2 w_ij^2, with s_i a standard deviation and w_ij = sqrt(1 - rho_ij^2), and
conditioning carries
them along in closed form (the matrix determinant lemma).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import combinations

import sympy as sp

from ntk_rules.terms import Form, Vector


def pair_name(i: int, j: int) -> str:
    """Two numbers of Gaussians in the name of a symbol: 01, and 1,10 where one has two digits."""
    return f"{i}{j}" if i < 10 and j < 10 else f"{i},{j}"


def pair_of(name: str) -> tuple[int, int] | None:
    """The two numbers in the name of a covariance, a correlation or a sine; None for any other symbol.

    >>> pair_of("C_01"), pair_of("rho_1,10"), pair_of("s_11")
    ((0, 1), (1, 10), None)
    """
    kind, _, index = name.partition("_")
    numbers = index.split(",") if "," in index else list(index)
    if kind not in ("C", "rho", "w") or len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        return None
    return int(numbers[0]), int(numbers[1])


def numbers_of(symbol: sp.Symbol) -> tuple[int, int]:
    """The two numbers of a covariance, a correlation or a sine."""
    pair = pair_of(symbol.name)
    assert pair is not None, symbol
    return pair


def std_symbol(i: int) -> sp.Symbol:
    """The standard deviation of Gaussian i."""
    return sp.Symbol(f"s_{i}", positive=True)


def covariance_symbol(i: int, j: int) -> sp.Symbol:
    """The covariance C_ij."""
    return sp.Symbol(f"C_{pair_name(i, j)}", real=True)


def correlation_symbol(i: int, j: int) -> sp.Symbol:
    """The correlation rho_ij."""
    return sp.Symbol(f"rho_{pair_name(i, j)}", real=True)


def sine_symbol(i: int, j: int) -> sp.Symbol:
    """w_ij = sqrt(1 - rho_ij^2)."""
    return sp.Symbol(f"w_{pair_name(i, j)}", positive=True)


_LONGEST = 80  # operations of an expression that is still taken apart


@functools.lru_cache(maxsize=4096)
def in_correlations(expr: sp.Expr) -> sp.Expr:
    """`expr`, rational in one covariance, through its correlation and sine: what cancels for every law is gone.

    >>> s0, s1, c = std_symbol(0), std_symbol(1), covariance_symbol(0, 1)
    >>> in_correlations(s1**2 - c**2 / s0**2), in_correlations(c - c * (c + s0**2) / s0**2)
    (s_1**2*w_01**2, -rho_01**2*s_1**2)
    """
    found = [c for c in expr.free_symbols if c.name.startswith("C_")]
    sines = {s for s in expr.free_symbols if s.name.startswith("w_")}
    if len(found) != 1:
        return expr
    i, j = numbers_of(found[0])
    rho, w = correlation_symbol(i, j), sine_symbol(i, j)
    if not sines <= {w} or expr.count_ops() > _LONGEST:
        return expr
    floats = {f: sp.Dummy(positive=bool(f > 0)) for f in expr.atoms(sp.Float)}
    plain = expr.xreplace({**floats, found[0]: rho * std_symbol(i) * std_symbol(j)})
    top, bottom = (_shorter(part, rho, w) for part in sp.fraction(sp.cancel(plain)))
    if top == 0:
        return sp.S.Zero
    back = {dummy: f for f, dummy in floats.items()}
    if bottom.is_Add:
        return sp.cancel(top / bottom).xreplace(back)
    return sp.Add(*(term / bottom for term in sp.Add.make_args(top))).xreplace(back)


def minors_exposed(formula: sp.Expr) -> sp.Expr:
    """`formula` with sums such as s_0^2 - C_01^2/s_1^2 that are one term, s_0^2 w_01^2, written as that: near correlation 1 nothing
    is left of the difference, and what it multiplies is large.

    >>> s0, s1, c = std_symbol(0), std_symbol(1), covariance_symbol(0, 1)
    >>> minors_exposed((s0**2 - c**2 / s1**2) / s0)
    s_0*w_01**2
    """
    swap = {}
    for part in formula.atoms(sp.Add):
        covariances = [c for c in part.free_symbols if c.name.startswith("C_")]
        if len(covariances) != 1 or part.has(sp.Function):
            continue
        short = in_correlations(part)
        if not short.is_Add:
            i, j = numbers_of(covariances[0])
            swap[part] = short.xreplace({correlation_symbol(i, j): covariances[0] / (std_symbol(i) * std_symbol(j))})
    return formula.xreplace(swap)


def _shorter(expr: sp.Expr, rho: sp.Symbol, w: sp.Symbol) -> sp.Expr:
    """`expr` expanded, as it is or with 1 - w^2 for rho^2, whichever has fewer terms and so less to cancel."""
    whole = sp.expand(expr)

    def power(base: sp.Expr, exponent: sp.Expr) -> sp.Expr:
        even = exponent if exponent.is_Integer and exponent > 1 and base == rho else 0
        return base ** (exponent - even + even % 2) * (1 - w**2) ** (even // 2)

    turned = sp.expand(whole.replace(sp.Pow, power))
    return min(turned, whole, key=lambda e: len(sp.Add.make_args(e)))


@dataclass(frozen=True)
class Law:
    """A zero-mean Gaussian: `cov[i][j]`, and `det[(i, j)]` for i < j; `base` marks the unconditioned one."""

    cov: tuple[tuple[sp.Expr, ...], ...]
    det: tuple[tuple[tuple[int, int], sp.Expr], ...]

    def minor(self, i: int, j: int) -> sp.Expr:
        """C_ii C_jj - C_ij^2, without cancellation."""
        return dict(self.det)[(min(i, j), max(i, j))]

    def times(self, slope: Vector) -> Vector:
        """C slope."""
        return tuple(
            sp.Add(*(c * a for c, a in zip(row, slope, strict=True) if a != 0)) for row in self.cov
        )  # fmt: skip

    def between(self, left: Vector, right: Vector) -> sp.Expr:
        """left' C right."""
        return sp.Add(*(a * b for a, b in zip(left, self.times(right), strict=True) if a != 0))

    def variance(self, form: Form) -> sp.Expr:
        """The variance of the form's argument, its noise included."""
        return self.between(form.slope, form.slope) + form.nu


def base_law(n: int, independent: frozenset[tuple[int, int]]) -> Law:
    """The law of the question itself."""
    cov = [[sp.S.Zero] * n for _ in range(n)]
    det = {}
    for i in range(n):
        cov[i][i] = std_symbol(i) ** 2
    for i, j in combinations(range(n), 2):
        det[(i, j)] = std_symbol(i) ** 2 * std_symbol(j) ** 2
        if (i, j) not in independent:
            cov[i][j] = cov[j][i] = covariance_symbol(i, j)
            det[(i, j)] *= sine_symbol(i, j) ** 2
    return Law(tuple(map(tuple, cov)), tuple(det.items()))


def joint_determinant(law: Law, f: Form, g: Form) -> sp.Expr:
    """The determinant of the covariance of two forms, noise included, from minors (Cauchy-Binet)."""
    used = sorted({i for i, (a, b) in enumerate(zip(f.slope, g.slope, strict=True)) if a != 0 or b != 0})
    pairs = list(combinations(used, 2))
    total = f.nu * law.between(g.slope, g.slope) + g.nu * law.between(f.slope, f.slope) + f.nu * g.nu
    for i, j in pairs:
        left = f.slope[i] * g.slope[j] - f.slope[j] * g.slope[i]
        for k, m in pairs:
            right = f.slope[k] * g.slope[m] - f.slope[m] * g.slope[k]
            if left == 0 or right == 0:
                continue
            same = (i, j) == (k, m)
            c = law.cov
            minor = law.minor(i, j) if same else c[i][k] * c[j][m] - c[i][m] * c[j][k]
            total += left * right * minor
    return total


def conditioned(law: Law, form: Form, variance: sp.Expr) -> Law:
    """The law given that the (noisy) argument of `form` is observed; nu > 0, or one Gaussian's worth of
    it fixed.
    """
    n = len(law.cov)
    used = [i for i, a in enumerate(form.slope) if a != 0]
    cov = [[sp.S.Zero] * n for _ in range(n)]
    pinned = used[0] if form.nu == 0 and len(used) == 1 else None
    gain = law.times(form.slope)
    for i in range(n):
        for j in range(i, n):
            if pinned in (i, j):
                continue
            cov[i][j] = cov[j][i] = _conditioned_entry(law, form, variance, gain, i, j)
    det = {}
    for i, j in combinations(range(n), 2):
        if n == 2:
            det[(i, j)] = law.minor(i, j) * form.nu / variance
        elif pinned in (i, j):
            det[(i, j)] = sp.S.Zero
        elif law.cov[i][j] == 0 and cov[i][j] == 0:
            det[(i, j)] = cov[i][i] * cov[j][j]
        else:
            det[(i, j)] = cov[i][i] * cov[j][j] - cov[i][j] ** 2
    return Law(tuple(map(tuple, cov)), tuple(det.items()))


def _conditioned_entry(
    law: Law, form: Form, variance: sp.Expr, gain: Vector, i: int, j: int
) -> sp.Expr:  # fmt: skip
    """C_ij - gain_i gain_j / variance, written without subtraction where the minors allow it."""
    if gain[i] == 0 or gain[j] == 0:
        return law.cov[i][j]
    used = [k for k, a in enumerate(form.slope) if a != 0]
    top = law.cov[i][j] * form.nu
    if len(used) == 1 and i == j:
        (k,) = used
        return (top + form.slope[k] ** 2 * (law.minor(i, k) if i != k else 0)) / variance
    if len(law.cov) == 2:
        a, b = form.slope
        d = law.minor(0, 1)
        if i == j:
            other = b if i == 0 else a
            return (top + other**2 * d) / variance
        return (top - a * b * d) / variance
    return law.cov[i][j] - gain[i] * gain[j] / variance
