"""The few special functions that closed forms end in, as SymPy functions with LaTeX and a meaning in JAX.

`cdf` and friends are the constructors the rules call; they simplify what can be simplified exactly. The
meaning in JAX is in `special.py`; `evaluate.py` joins the two.
"""

from __future__ import annotations

from typing import Any

import sympy as sp


def powered(text: str, exponent: str | None) -> str:
    """LaTeX of a function, or of a power of it: SymPy hands the exponent of a function to what prints the function."""
    return text if exponent is None else rf"\left({text}\right)^{{{exponent}}}"


class NormalCdf(sp.Function):
    """P(mean + std x > 0) for standard Gaussian x."""

    nargs = 2

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        mean, std = self.args
        return powered(rf"\Phi\left({printer.doprint(mean / std)}\right)", exp)


class CentredCdf(sp.Function):
    """2 P(mean + std x > 0) - 1, which is small where the mean is."""

    nargs = 2

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        mean, std = self.args
        return powered(rf"\operatorname{{erf}}\left({printer.doprint(mean / std / sp.sqrt(2))}\right)", exp)


class ScaledCdf(sp.Function):
    """exp(k) P(mean + std x > 0); the fourth argument is k - mean^2/(2 std^2), simplified."""

    nargs = 4

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        k, mean, std, _ = self.args
        return powered(rf"e^{{{printer.doprint(k)}}} \Phi\left({printer.doprint(mean / std)}\right)", exp)


class Arcsine(sp.Function):
    """The angle in [-pi/2, pi/2] of sine r and cosine w."""

    nargs = 2

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        return powered(rf"\arcsin\left({printer.doprint(self.args[0])}\right)", exp)


class Turns(sp.Function):
    """The same in full turns, as formulas are computed: no number is left to be multiplied in orthant probabilities, 1/4 + Turns(r, w)."""

    nargs = 2


def in_turns(formula: sp.Expr) -> sp.Expr:
    """`formula` with its angles in turns, and numbers multiplied into the sums that have some."""
    angles = formula.atoms(Arcsine)
    if not angles:
        return formula
    turned = formula.xreplace({angle: 2 * sp.pi * Turns(*angle.args) for angle in angles})
    return turned.replace(lambda part: part.is_Mul and part.has(Turns), _number_inside)


def _number_inside(product: sp.Mul) -> sp.Expr:
    number, rest = product.as_coeff_Mul()
    sums = [factor for factor in rest.args if factor.is_Add and factor.has(Turns)] if rest.is_Mul else []
    if number == 1 or not sums:
        return product
    inside = sp.Add(*(number * addend for addend in sums[0].args))
    return sp.Mul(inside, *(factor for factor in rest.args if factor != sums[0]))


class BivariateCdf(sp.Function):
    """exp(k) P(m1 + s1 x > 0, m2 + s2 y > 0), corr(x, y) = r, w = sqrt(1 - r^2); arguments
    (m1, s1, m2, s2, r, w, k, rest), rest = k less half the squared Mahalanobis distance of the corner."""

    nargs = 8

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        m1, s1, m2, s2, r, _, k, _ = self.args
        scale = rf"e^{{{printer.doprint(k)}}} " if k != 0 else ""
        inside = ", ".join(printer.doprint(x) for x in (m1 / s1, m2 / s2, r))
        return powered(rf"{scale}\Phi_2\left({inside}\right)", exp)


class WaveCdf(sp.Function):
    """The real part of exp(k + i phase) Phi((mean + i shift)/std); arguments (k, phase, mean, shift, std, rest),
    rest = k + (shift^2 - mean^2)/(2 std^2), simplified."""

    nargs = 6

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        k, phase, mean, shift, std, _ = self.args
        turn, inside = printer.doprint(k + sp.I * phase), printer.doprint((mean + sp.I * shift) / std)
        return powered(rf"\operatorname{{Re}}\left[e^{{{turn}}} \Phi\left({inside}\right)\right]", exp)


class ExpDifference(sp.Function):
    """exp(x) - exp(y); the third argument is x - y, simplified."""

    nargs = 3


class ExpDifferences(sp.Function):
    """exp(x) - exp(y) + exp(z) - exp(t); arguments (x, y, z, t, x - y, z - t, x - t, z - y), the differences simplified."""

    nargs = 8


def differences_joined(formula: sp.Expr) -> sp.Expr:
    """`formula` with addends a exp(x) - a exp(y) joined, a - a exp(x) too, as x and y are nearly equal at small variances, or at
    huge ones. Four of one factor are joined together: which of them nearly cancel, only run time knows.
    """
    sums: dict[sp.Expr, dict[sp.Expr, sp.Expr]] = {}
    out = []
    for addend in _addends(formula):
        coefficient, rest = addend.as_coeff_Mul()
        factors = sp.Mul.make_args(rest)
        exponentials = [f for f in factors if isinstance(f, sp.exp)]
        if len(exponentials) > 1:
            out.append(addend)
            continue
        exponent = exponentials[0].args[0] if exponentials else sp.S.Zero
        same = sums.setdefault(sp.Mul(*(f for f in factors if not isinstance(f, sp.exp))), {})
        same[exponent] = same.get(exponent, sp.S.Zero) + coefficient
    for factor, exponents in sums.items():
        out += [factor * joined for joined in _differences(exponents)]
    return sp.Add(*out)


def centred(formula: sp.Expr) -> sp.Expr:
    """`formula` with 2 Phi - 1 as one function: of an error function of a small argument the difference has no digits.

    >>> m, s, x = sp.symbols("m s x")
    >>> centred(x - 2 * x * NormalCdf(m, s) + 1)
    -x*CentredCdf(m, s) + 1
    """
    return formula.replace(lambda part: part.is_Add and part.has(NormalCdf), _centred)


def _centred(total: sp.Add) -> sp.Expr:
    addends = list(total.args)
    for addend in total.args:
        found = [f for f in sp.Mul.make_args(addend) if isinstance(f, NormalCdf)]
        if len(found) == 1 and (half := -addend / found[0] / 2) in addends:
            addends.remove(addend)
            addends.remove(half)
            addends.append(-half * CentredCdf(*found[0].args))
    return sp.Add(*addends)


def _differences(exponents: dict[sp.Expr, sp.Expr]) -> list[sp.Expr]:
    """sum_k c_k exp(x_k) for {x_k: c_k}: as much of it as can be in differences."""
    positive, negative = ({x: c for x, c in exponents.items() if sign * c > 0} for sign in (1, -1))
    pairs: dict[sp.Expr, list[tuple[sp.Expr, sp.Expr]]] = {}
    while positive and negative:
        (x, c), (y, d) = next(iter(positive.items())), next(iter(negative.items()))
        common = min(c, -d)
        pairs.setdefault(common, []).append((x, y))
        for side, e, left in ((positive, x, c - common), (negative, y, d + common)):
            side.pop(e)
            if left != 0:
                side[e] = left
    out = [c * sp.exp(x) for x, c in (*positive.items(), *negative.items())]
    for common, found in pairs.items():
        for (x, y), (z, t) in zip(found[::2], found[1::2], strict=False):
            apart = (sp.expand(e) for e in (x - y, z - t, x - t, z - y))
            out.append(common * ExpDifferences(x, y, z, t, *apart))
        if len(found) % 2:
            x, y = found[-1]
            out.append(common * ExpDifference(x, y, sp.expand(x - y)))
    return out


def _addends(formula: sp.Expr) -> list[sp.Expr]:
    """The addends of `formula`, products multiplied out over the sums that have exponentials in them, and over no others."""
    out: list[sp.Expr] = []
    work = [formula]
    while work:
        part = work.pop()
        if part.is_Add:
            work += reversed(part.args)
            continue
        factors = sp.Mul.make_args(part)
        inner = next((f for f in factors if f.is_Add and f.has(sp.exp)), None)
        if inner is None:
            out.append(part)
        else:
            rest = sp.Mul(*(f for f in factors if f is not inner))
            work += [rest * a for a in reversed(inner.args)]
    return out


class PairExponent(sp.Function):
    """-(x^2 + y^2 - 2 r x y)/(2 w^2), w = sqrt(1 - r^2), by what parts x from +-y; 0 at w = 0; arguments (x, y, r, w)."""

    nargs = 4


class Residue(sp.Function):
    """The sum of its arguments after the first, a standard deviation; 0 where that is 0 and only rounding is left of the sum.

    At correlation 1 a mean such as a - a C_01/C_00 decides between 0, 1/2 and 1, and must not be a unit of rounding.
    """

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        return powered(printer.doprint(sp.Add(*self.args[1:])), exp)


def residue(mean: sp.Expr, std: sp.Expr) -> sp.Expr:
    """`mean`, whose addends may cancel up to rounding where `std` is 0."""
    return Residue(std, *mean.args) if mean.is_Add and not std.is_number else mean


def means_parted(formula: sp.Expr) -> sp.Expr:
    """`formula` with means that are linear in a correlation written through what parts it from +-1: a + b rho has few digits of its own
    where it nearly vanishes, a + b sign(rho) and -b sign(rho) w^2/(1 + |rho|) have all.
    """
    return formula.replace(Residue, _parted)


def _parted(std: sp.Expr, *addends: sp.Expr) -> sp.Expr:
    mean = sp.expand(sp.Add(*addends))
    found = [s for s in mean.free_symbols if s.name.startswith("rho_")]
    if len(found) != 1 or not mean.is_polynomial(found[0]) or sp.degree(mean, found[0]) != 1:
        return Residue(std, *addends)
    (rho,) = found
    slope = mean.coeff(rho)
    rest, sine = mean - slope * rho, sp.Symbol(rho.name.replace("rho", "w"), positive=True)
    ends = slope * sp.sign(rho)
    return Residue(std, *sp.Add.make_args(rest), ends, -ends * sine**2 / (1 + sp.Abs(rho)))


def densities_parted(formula: sp.Expr) -> sp.Expr:
    """`formula` with the exponents of normal densities of two Gaussians, -(x^2 + y^2 - 2 rho x y)/(2 w^2), as `PairExponent`."""
    swap = {
        part: part.func(*map(_square_parted, part.args))
        for part in formula.atoms(sp.exp, ExpDifference, ExpDifferences)
    }
    return formula.xreplace({old: new for old, new in swap.items() if old != new})


def _square_parted(exponent: sp.Expr) -> sp.Expr:
    sines = [s for s in exponent.free_symbols if s.name.startswith("w_")]
    if len(sines) != 1:
        return exponent
    (sine,) = sines
    rho = sp.Symbol(sine.name.replace("w", "rho"), real=True)
    addends = sp.Add.make_args(sp.expand(exponent))
    steep = sp.Add(*(a * sine**2 for a in addends if a.as_powers_dict().get(sine) == -2))
    slope = steep.coeff(rho)
    squares = sp.Add.make_args(steep - slope * rho)
    if len(squares) != 2 or sp.Add(*squares).has(rho) or slope == 0:
        return exponent
    x, y = (sp.sqrt(-2 * a) for a in squares)
    turn = sp.simplify(slope / (x * y))
    if turn not in (1, -1) or not (x.is_positive and y.is_positive):
        return exponent
    rest = sp.Add(*(a for a in addends if a.as_powers_dict().get(sine) != -2))
    return rest + PairExponent(x, turn * y, rho, sine)


def cdf(mean: sp.Expr, std: sp.Expr) -> sp.Expr:
    """P(mean + std x > 0)."""
    if mean == 0:
        return sp.Rational(1, 2)
    if std == 0:
        return sp.Heaviside(mean, sp.Rational(1, 2))
    return NormalCdf(mean, std)


def density_derivative(mean: sp.Expr, variance: sp.Expr, order: int) -> sp.Expr:
    """The order-th derivative in `mean` of the density of N(0, variance) there."""
    factor = hermite_factor(mean, variance, order)
    return factor * sp.exp(-(mean**2) / (2 * variance)) / sp.sqrt(2 * sp.pi * variance)


def hermite_factor(mean: sp.Expr, variance: sp.Expr, order: int) -> sp.Expr:
    """N^(order)(mean) / N(mean) for N the density of variance `variance`: (-1)^j He_j(mean/std) / std^j."""
    if order == 0:
        return sp.S.One
    previous, current = sp.S.One, -mean / variance
    for j in range(1, order):
        previous, current = current, sp.expand(-(mean * current + j * previous) / variance)
    return current


CANCELLING = (NormalCdf, ScaledCdf, BivariateCdf)  # what may be far larger than a sum of them
