"""Where a smooth function of one Gaussian changes its sign: all places, proved, or the reason why they are not known.

Affine functions may hold parameters; polynomials are solved exactly; anything else is enclosed. The line is cut until on
every interval the function, or its derivative, is bounded away from zero (`intervals.py`): a simple zero between opposite
signs is then the only one, and bisection finds it. Zeros of higher order are told apart at exact places alone.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import mpmath as mp
import sympy as sp

from ntk_rules.functions import Opaque, elementary, expm1, logistic, softplus
from ntk_rules.intervals import Interval, bounds

DIGITS = 30  # of a place that has no exact name
_EXACT = mp.mpf(10) ** -36  # of a function evaluated with 50 digits: zero
_NARROW = 2.0**-24  # intervals are cut no further, relative to their distance from 0 or to 1
_FAR = 1e12  # kinks beyond are out of reach of every Gaussian
_MOST_CUTS = 20_000
_HIGHEST_ORDER = 8


class NotCuttable(ValueError):
    """The kinks cannot be located; the message says which and why."""


def less(a: sp.Expr, b: sp.Expr) -> bool:
    """Whether a < b, or NotCuttable where parameters leave it open."""
    if a == -sp.oo or b == sp.oo:
        return a != b
    if a == sp.oo or b == -sp.oo:
        return False
    answer = (b - a).is_positive
    if answer is None:
        raise NotCuttable(f"{a} and {b} cannot be ordered")
    return bool(answer)


# Odd and strictly increasing: their sign is the sign of their argument.
_ODD = (expm1, sp.tanh, sp.sinh, sp.asinh, sp.atan, sp.erf, sp.erfinv)
_POSITIVE = (sp.exp, sp.cosh, logistic, softplus)

# Values between these, never at them.
_RANGE = {
    logistic: (0, 1),
    sp.tanh: (-1, 1),
    sp.erf: (-1, 1),
    sp.erfc: (0, 2),
    sp.exp: (0, sp.oo),
    softplus: (0, sp.oo),
}

Changes = tuple[tuple[sp.Expr, ...], bool]


@functools.lru_cache(maxsize=4096)
def sign_changes(switch: sp.Expr, z: sp.Symbol) -> Changes:
    """(the places in order where `switch` changes its sign, whether it is positive before the first).

    >>> z = sp.Symbol("z", real=True)
    >>> sign_changes(z**3 - z, z)
    ((-1, 0, 1), False)
    >>> [round(float(place), 6) for place in sign_changes(z * logistic(z) - 1, z)[0]]
    [1.278465]
    """
    places: list[sp.Expr] = []
    positive = True
    for factor in sp.Mul.make_args(switch):
        found, first = _of_factor(factor, z)
        positive = positive == first
        for place in found:
            places.remove(place) if place in places else places.append(place)
    return tuple(_in_order(places)), positive


def _in_order(places: list[sp.Expr]) -> list[sp.Expr]:
    ordered: list[sp.Expr] = []
    for place in places:
        at = sum(less(other, place) for other in ordered)
        ordered.insert(at, place)
    return ordered


def _of_factor(factor: sp.Expr, z: sp.Symbol) -> Changes:
    if factor.is_positive or isinstance(factor, _POSITIVE):
        return (), True
    if factor.is_negative:
        return (), False
    if isinstance(factor, _ODD):
        return sign_changes(factor.args[0], z)
    if factor.is_Pow and factor.exp.is_Integer and factor.base.is_real is not False:
        return sign_changes(factor.base, z) if factor.exp % 2 else ((), True)
    slope = sp.diff(factor, z)
    if slope == 0:
        if factor.is_zero:
            return (), False
        raise NotCuttable(f"the sign of {factor} is not known")
    if not slope.has(z):
        if not (slope.is_positive or slope.is_negative):
            raise NotCuttable(f"the sign of {slope} is not known")
        return (sp.expand(-factor.xreplace({z: sp.S.Zero}) / slope),), bool(slope.is_negative)
    constant = _sign_by_range(factor)
    if constant is not None:
        return (), constant
    whole = sp.factor_terms(factor)
    if whole.is_Mul:
        return sign_changes(whole, z)
    if factor.free_symbols != {z}:
        return _shifted(factor, z)
    return _polynomial(factor, z) or _enclosed(factor, z)


def _sign_by_range(factor: sp.Expr) -> bool | None:
    """Of k + c f(..), f of bounded range: whether it is positive, None where it may be either."""
    number, rest = factor.as_coeff_Add()
    scale, head = rest.as_coeff_Mul()
    if head.func not in _RANGE or not head.args[0].is_real:
        return None
    low, high = sorted(number + scale * end for end in _RANGE[head.func])
    return True if low >= 0 else False if high <= 0 else None


def _shifted(factor: sp.Expr, z: sp.Symbol) -> Changes:
    """The parameters enter through one affine argument t(z): zeros in t are numbers, and z follows."""
    t = sp.Dummy("t", real=True)
    for inner in sorted(factor.atoms(sp.Add), key=sp.count_ops):
        slope = sp.diff(inner, z)
        if slope.has(z) or not (slope.is_positive or slope.is_negative):
            continue
        offset = inner.xreplace({z: sp.S.Zero})
        plain = (
            factor.xreplace({inner: t})
            if not factor.xreplace({inner: t}).has(z)
            else factor.xreplace({z: (t - offset) / slope})
        )
        plain = sp.expand(plain) if plain.free_symbols != {t} else plain
        if plain.free_symbols == {t}:
            places, positive = sign_changes(plain, t)
            moved = tuple(sp.expand((place - offset) / slope) for place in places)
            if slope.is_positive:
                return moved, positive
            return moved[::-1], positive == (len(moved) % 2 == 0)
    raise NotCuttable(
        f"the kink of {factor} is not affine in {z} and moves with {sorted(map(str, factor.free_symbols - {z}))}; "
        "write it as a kink at an affine function of the Gaussian and the parameters"
    )


def _polynomial(factor: sp.Expr, z: sp.Symbol) -> Changes | None:
    if not factor.is_polynomial(z):
        return None
    poly = sp.Poly(factor, z)
    if not poly.domain.is_QQ and not poly.domain.is_ZZ:
        return None
    odd = [root for root, order in sp.real_roots(poly, multiple=False) if order % 2]
    places = tuple(
        r if r.is_Rational or (r.count_ops() < 8 and not r.has(sp.CRootOf)) else r.evalf(DIGITS) for r in odd
    )
    return places, bool((poly.LC() > 0) == (poly.degree() % 2 == 0))


def _enclosed(factor: sp.Expr, z: sp.Symbol) -> Changes:
    """All sign changes of a smooth function by interval bisection."""
    if factor.has(Opaque):
        names = sorted({str(f.func) for f in factor.atoms(Opaque)})
        raise NotCuttable(f"nothing symbolic is known of {', '.join(names)}, so the zeros of {factor} are not known")
    slope = sp.diff(factor, z)
    work: list[Interval] = [(-math.inf, -1.0), (-1.0, 1.0), (1.0, math.inf)]
    simple, doubtful = [], []
    for _ in range(_MOST_CUTS):
        if not work:
            break
        cell = work.pop()
        value, change = bounds(factor, z, cell), bounds(slope, z, cell)
        if value[0] > 0 or value[1] < 0 or min(map(abs, cell)) > _FAR:
            continue
        if change[0] > 0 or change[1] < 0:
            simple.append(cell)
        elif _narrow(cell):
            doubtful.append(cell)
        else:
            work += _halves(cell)
    else:
        raise NotCuttable(f"the zeros of {factor} are too many, or cannot be told apart")
    crossings = [place for cells in _joined(doubtful) for place in _of_higher_order(factor, z, cells)]
    crossings += _simple_zeros(factor, z, simple, crossings)
    middle = mp.mpf("0.1234567")
    places = sorted(crossings)
    before = sum(place < middle for place in places)
    positive = _at(factor, z, middle) > 0
    return tuple(_named(factor, z, x) for x in places), bool(positive == (before % 2 == 0))


def _narrow(cell: Interval) -> bool:
    low, high = cell
    return math.isfinite(high - low) and high - low <= _NARROW * max(1.0, abs(low), abs(high))


def _halves(cell: Interval) -> list[Interval]:
    low, high = cell
    if math.isinf(high - low):
        return [(low, 3 * high), (3 * high, high)] if math.isinf(low) else [(low, 3 * low), (3 * low, high)]
    middle = low + 0.4871 * (high - low)  # off the round numbers, at which zeros often are
    return [(low, middle), (middle, high)]


def _joined(cells: list[Interval]) -> list[Interval]:
    """Intervals that touch made one."""
    out: list[Interval] = []
    for low, high in sorted(cells):
        if out and low <= out[-1][1]:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return out


def _at(factor: sp.Expr, z: sp.Symbol, x: mp.mpf) -> mp.mpf:
    with mp.workdps(50):
        return mp.mpf(_number(factor, z)(x))


@functools.lru_cache(maxsize=256)
def _number(factor: sp.Expr, z: sp.Symbol):
    return sp.lambdify(z, elementary(factor), "mpmath")


def _of_higher_order(factor: sp.Expr, z: sp.Symbol, cell: Interval) -> list[mp.mpf]:
    """The zero of order m > 1 at an exact place in a narrow interval, if it is a change of sign."""
    low, high = cell
    place = _simple_fraction((low + high) / 2, high - low)
    derivative = factor
    for order in range(_HIGHEST_ORDER + 1):
        near = bounds(derivative, z, cell)
        if near[0] > 0 or near[1] < 0:
            return [mp.mpf(place.numerator) / place.denominator] if order % 2 else []
        with mp.workdps(50):
            if abs(_at(derivative, z, mp.mpf(place.numerator) / place.denominator)) > _EXACT:
                break
        derivative = sp.diff(derivative, z)
    raise NotCuttable(f"{factor} comes so close to zero near {float(place):.6g} that its sign there is in doubt")


def _simple_fraction(x: float, width: float) -> Fraction:
    """The simplest fraction within `width` of x."""
    return next(f for n in range(60) if abs((f := Fraction(x).limit_denominator(2**n)) - Fraction(x)) <= width)


def _simple_zeros(factor: sp.Expr, z: sp.Symbol, cells: list[Interval], known: list[mp.mpf]) -> list[mp.mpf]:
    """The zeros in intervals on which the function is monotone; ends at which it vanishes belong to two of them."""
    found: list[mp.mpf] = []
    for low, high in cells:
        with mp.workdps(50):
            a, b = mp.mpf(max(low, -_FAR)), mp.mpf(min(high, _FAR))
            left, right = _at(factor, z, a), _at(factor, z, b)
            if left * right > 0:
                continue
            rising = right > left
            for _ in range(180):
                middle = (a + b) / 2
                a, b = (a, middle) if (_at(factor, z, middle) > 0) == rising else (middle, b)
            place = (a + b) / 2
            if all(abs(place - other) > mp.mpf(10) ** -30 * (1 + abs(place)) for other in known + found):
                found.append(place)
    return found


def _named(factor: sp.Expr, z: sp.Symbol, place: mp.mpf) -> sp.Expr:
    """A short fraction where that is a zero to 50 digits, else the place with `DIGITS` digits."""
    short = sp.Rational(*Fraction(float(place)).limit_denominator(1000).as_integer_ratio())
    with mp.workdps(50):
        here = mp.mpf(short.p) / short.q
        if abs(here - place) < mp.mpf(10) ** -25 and abs(_at(factor, z, here)) < _EXACT:
            return short
    return sp.Float(mp.nstr(place, DIGITS + 2), DIGITS)
