"""The vocabulary of F: SymPy functions of our own, and the one table that says what each function means
in JAX.

A new function is one row of `MEANING` (and, when SymPy has no such function, one class with its derivative).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import sympy as sp
import sympy.tensor.tensor  # which SymPy itself imports at its first sum, in the middle of a derivation
from jax.scipy import special as jsp

from ntk_rules import special
from ntk_rules.detection import kinks_of
from ntk_rules.further import FURTHER
from ntk_rules.further import betainc as betainc
from ntk_rules.further import igamma as igamma
from ntk_rules.further import igammac as igammac
from ntk_rules.heads import powered
from ntk_rules.ordered import ORDERED
from ntk_rules.ordered import has_rank as has_rank
from ntk_rules.ordered import order_statistic as order_statistic
from ntk_rules.products import guarded_product
from ntk_rules.whole import ROUNDING
from ntk_rules.whole import Rounding as Rounding
from ntk_rules.whole import ceiling as ceiling
from ntk_rules.whole import floor as floor
from ntk_rules.whole import round_away as round_away
from ntk_rules.whole import round_even as round_even
from ntk_rules.whole import trunc as trunc

JUMPING = (
    Rounding,
    sp.atan2,
    has_rank,
)  # functions that jump at infinitely many places, or along lines of several arguments


class _Elementary(sp.Function):
    """Base of functions that SymPy can write out in its own: real for real arguments, and numbers for numbers."""

    nargs = 1

    def written_out(self) -> sp.Expr:
        """The same in SymPy's functions."""
        raise NotImplementedError

    def _eval_is_real(self) -> bool | None:
        return self.args[0].is_real

    def _eval_evalf(self, precision: int) -> sp.Expr:
        return self.written_out()._eval_evalf(precision)


class stop_gradient(_Elementary):
    """x, with derivative zero: what is not to be differentiated."""

    def written_out(self) -> sp.Expr:
        return self.args[0]

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return sp.S.Zero


class by_rule(sp.Function):
    """by_rule(value, x, slope, ...): `value`, whose derivative in x is `slope` by a rule of its own, whatever the value's may be.

    >>> x = sp.Symbol("x", real=True)
    >>> sp.diff(by_rule(sp.sign(x), x, sp.S.One), x)
    1
    """

    @classmethod
    def eval(cls, value: sp.Expr, *rule: sp.Expr) -> sp.Expr | None:
        return None if any(x.free_symbols for x in rule[::2]) else value

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return self.args[argindex] if argindex % 2 == 0 else sp.S.Zero

    def _eval_is_real(self) -> bool | None:
        return self.args[0].is_real

    def _latex(self, printer: Any) -> str:
        return printer.doprint(self.args[0])


@functools.lru_cache(maxsize=4096)
def value_of(expr: sp.Expr) -> sp.Expr:
    """`expr` without its marks for derivatives: what stop_gradient stops, and the values of functions with a rule of their own.

    >>> x = sp.Symbol("x", real=True)
    >>> value_of(stop_gradient(x) + by_rule(sp.sign(x), x, sp.S.One))
    x + sign(x)
    """
    return expr.replace(stop_gradient, lambda x: x).replace(by_rule, lambda value, *_: value)


class logistic(_Elementary):
    """1 / (1 + exp(-x))."""

    def written_out(self) -> sp.Expr:
        return 1 / (1 + sp.exp(-self.args[0]))

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return logistic(self.args[0]) * logistic(-self.args[0])

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        return powered(rf"\operatorname{{sigmoid}}\left({printer.doprint(self.args[0])}\right)", exp)


class softplus(_Elementary):
    """log(1 + exp(x))."""

    def written_out(self) -> sp.Expr:
        return sp.log(1 + sp.exp(self.args[0]))

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return logistic(self.args[0])


class log1p(_Elementary):
    """log(1 + x)."""

    @classmethod
    def eval(cls, x: sp.Expr) -> sp.Expr | None:
        return softplus(x.args[0]) if isinstance(x, sp.exp) else None

    def written_out(self) -> sp.Expr:
        return sp.log(1 + self.args[0])

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return 1 / (1 + self.args[0])


class expm1(_Elementary):
    """exp(x) - 1."""

    def written_out(self) -> sp.Expr:
        return sp.exp(self.args[0]) - 1

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return sp.exp(self.args[0])


def exponentials_exposed(expr: sp.Expr) -> sp.Expr:
    """`expr` with expm1, erfc, sinh, cosh written through exp and erf, which the rules know."""
    return expr.replace(expm1, lambda x: sp.exp(x) - 1).replace(sp.erfc, lambda x: 1 - sp.erf(x)).replace(
        sp.sinh, lambda x: (sp.exp(x) - sp.exp(-x)) / 2
    ).replace(sp.cosh, lambda x: (sp.exp(x) + sp.exp(-x)) / 2)  # fmt: skip


def differences_kept(expr: sp.Expr) -> sp.Expr:
    """`expr` with differences of nearly equal numbers written without: f exp(x) - f as f expm1(x), and 1 - tanh(x)^2 as a product of
    sigmoids, which has digits at large x.

    >>> x = sp.Symbol("x")
    >>> differences_kept(2 * sp.exp(x) - 2), differences_kept(x * sp.exp(x) - x + 1)
    (2*expm1(x), x*expm1(x) + 1)
    >>> differences_kept(1 - sp.tanh(x) ** 2), differences_kept(x * sp.tanh(x) ** 2 - x)
    (4*logistic(-2*x)*logistic(2*x), -4*x*logistic(-2*x)*logistic(2*x))
    """
    if expr.has(sp.tanh):
        expr = expr.replace(lambda part: part.is_Add and part.has(sp.tanh), lambda total: _joined(total, *_TANH))
    if not expr.has(sp.exp):
        return expr
    return expr.replace(lambda part: part.is_Add and part.has(sp.exp), lambda total: _joined(total, *_EXP))


def _joined(total: sp.Add, near_one: Callable[[sp.Expr], bool], difference: Callable[[sp.Expr], sp.Expr]) -> sp.Expr:
    """A sum with its addends a g and -a as one, a times `difference` of g, which is g - 1; for factors g that are `near_one`."""
    addends = list(total.args)
    for addend in total.args:
        factors = [g for g in sp.Mul.make_args(addend) if near_one(g)]
        if len(factors) != 1 or addend not in addends or (other := -addend / factors[0]) not in addends:
            continue
        addends.remove(addend)
        addends.remove(other)
        addends.append(-other * difference(factors[0]))
    return sp.Add(*addends)


_EXP = (lambda g: isinstance(g, sp.exp), lambda g: expm1(g.args[0]))
_TANH = (
    lambda g: g.is_Pow and g.exp == 2 and isinstance(g.base, sp.tanh),
    lambda g: -4 * logistic(2 * g.base.args[0]) * logistic(-2 * g.base.args[0]),
)


def elementary(expr: sp.Expr) -> sp.Expr:
    """`expr` with our own functions written out in SymPy's, for symbolic and high-precision work."""
    return expr.replace(lambda part: isinstance(part, _Elementary | Rounding), lambda part: part.written_out())


class Opaque(sp.Function):
    """Base of the functions that only JAX knows; made by `opaque`."""

    jax_function: Callable[[jax.Array], jax.Array]
    kinks: tuple[float, ...] = ()
    kinks_detected = False


def opaque(
    function: Callable[[jax.Array], jax.Array], name: str = "f", kinks: Sequence[float] | None = None
) -> type[Opaque]:  # fmt: skip
    """A SymPy function standing for a scalar JAX function that SymPy cannot express.

    `kinks` are the arguments at which it, or a derivative, jumps; where they are not given they are looked for
    (`detection.py`). Its derivative is taken by `jax.jvp`.

    >>> import jax.numpy as jnp, sympy as sp
    >>> z = sp.Symbol("z")
    >>> f = opaque(lambda x: jnp.tanh(x) ** 3, "cube_tanh")
    >>> float(to_jax(sp.diff(f(z), z), (z,))(0.0))
    0.0
    """

    places = kinks_of(function) if kinks is None else tuple(kinks)

    def derivative(x: jax.Array) -> jax.Array:
        return jax.jvp(function, (x,), (jnp.ones_like(x),))[1]

    prime: list[type[Opaque]] = []

    def fdiff(self: sp.Function, argindex: int = 1) -> sp.Expr:
        if not prime:
            prime.append(opaque(derivative, name + "'", places))
            prime[0].kinks_detected = kinks is None
        return prime[0](self.args[0])

    body = {
        "fdiff": fdiff, "jax_function": staticmethod(function), "kinks": places, "kinks_detected": kinks is None, "nargs": 1,
    }  # fmt: skip
    return type(name, (Opaque,), body)


# Functions of JAX's that SymPy has not, by name.
NAMED = {name: opaque(getattr(jax.lax, name), name, kinks=(0.0,)) for name in ("bessel_i0e", "bessel_i1e")}


JAX_ALONE = (Opaque, igamma, igammac, betainc, *ORDERED)  # what is evaluated in JAX, and nowhere else


def _heaviside(x: jax.Array, at_zero: jax.Array | float = 0.5) -> jax.Array:
    return jnp.where(x > 0, 1.0, jnp.where(x < 0, 0.0, at_zero)).astype(jnp.result_type(x))


BEYOND = 1e-3


def _within(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """`function`, which is clipped to [-1, 1], for arguments that rounding may have brought out of there; NaN for others, as in JAX.

    Correlations of deep networks in float32 may be off by many units in the last place; of a Gaussian beyond 1 more than these are beyond.
    """

    def value(x: jax.Array) -> jax.Array:
        (x,) = special.as_floats(x)
        return jnp.where(jnp.abs(x) <= 1 + BEYOND, function(x), jnp.nan)

    return value


# What each SymPy function computes; arguments are JAX arrays.
MEANING: dict[type, Callable[..., jax.Array]] = {
    sp.exp: jnp.exp, sp.log: jnp.log, sp.sin: jnp.sin, sp.cos: jnp.cos, sp.tan: jnp.tan,
    sp.sinh: jnp.sinh, sp.cosh: jnp.cosh, sp.tanh: jnp.tanh, sp.atan: jnp.arctan, sp.asin: _within(special.asin),
    sp.acos: _within(special.acos), sp.asinh: jnp.arcsinh, sp.acosh: jnp.arccosh, sp.atanh: jnp.arctanh,
    sp.atan2: jnp.arctan2, sp.erf: jsp.erf, sp.erfc: jsp.erfc, sp.erfinv: jsp.erfinv,
    sp.Abs: jnp.abs, sp.sign: jnp.sign, sp.floor: jnp.floor, sp.ceiling: jnp.ceil,
    sp.loggamma: jsp.gammaln, sp.digamma: jsp.digamma, sp.gamma: jsp.gamma,
    sp.Heaviside: _heaviside, stop_gradient: lambda x: x, by_rule: lambda value, *_: value, logistic: jax.nn.sigmoid, softplus: jax.nn.softplus,
    log1p: jnp.log1p, expm1: jnp.expm1, sp.sinc: lambda x: jnp.sinc(x / jnp.pi),
    sp.StrictGreaterThan: jnp.greater, sp.GreaterThan: jnp.greater_equal, sp.StrictLessThan: jnp.less,
    sp.LessThan: jnp.less_equal, sp.Equality: jnp.equal, sp.Unequality: jnp.not_equal,
    sp.Not: jnp.logical_not, **ROUNDING, **FURTHER, **ORDERED,
}  # fmt: skip

# Functions of any number of arguments, folded in pairs.
FOLDED: dict[type, Callable[..., jax.Array]] = {
    sp.Add: jnp.add, sp.Mul: jnp.multiply, sp.Max: jnp.maximum, sp.Min: jnp.minimum,
    sp.And: jnp.logical_and, sp.Or: jnp.logical_or,
}  # fmt: skip


def _evaluate_power(base: Any, exponent: sp.Expr, value: Any, guarded: bool) -> Any:
    base = jnp.asarray(base)
    if guarded and exponent.is_number and exponent.is_negative:
        inverse = special.reciprocal(_evaluate_power(base, -exponent, None, False))
        return inverse if exponent >= -2 else jnp.minimum(inverse, jnp.finfo(inverse.dtype).max)
    if exponent.is_Integer:
        return jax.lax.integer_pow(special.as_floats(base)[0], int(exponent))
    if exponent.is_Rational and exponent.q == 2:
        root = jnp.sqrt(special.as_floats(base)[0])
        return root if exponent.p == 1 else jax.lax.integer_pow(root, int(exponent.p))
    return jnp.power(base, float(exponent) if exponent.is_number else value)


def _base_and_exponent(node: sp.Pow, children: list[Any]) -> tuple[Any, sp.Expr, Any]:
    return children[0], node.exp, children[1]


def _apply(node: sp.Expr, children: list[Any], guarded: bool) -> Any:
    head = node.func
    if head is sp.Pow:
        return _evaluate_power(*_base_and_exponent(node, children), guarded)
    if head in FOLDED:
        total = children[0]
        for child in children[1:]:
            total = FOLDED[head](total, child)
        return total
    if head in MEANING:
        return MEANING[head](*(float(c) if type(c) is int else c for c in children))  # exact 0 of an exact point
    if issubclass(head, Opaque):
        return head.jax_function(jnp.asarray(children[0]))
    raise ValueError(
        f"to_jax: the function {head.__name__} in {node} has no meaning in JAX; "
        "add a row to ntk_rules.functions.MEANING"
    )


def to_jax(expr: sp.Expr, symbols: Sequence[sp.Symbol], *, guarded: bool = False) -> Callable[..., jax.Array]:
    """The JAX function of `symbols` that evaluates `expr`; equal subexpressions are computed once.

    Arguments broadcast. With `guarded`, negative powers of zero are zero (see `special.reciprocal`).
    Raises ValueError for a function without a row in `MEANING` or an unknown symbol.

    >>> x = sp.Symbol("x")
    >>> float(to_jax(softplus(x) - x, (x,))(100.0))
    0.0
    """
    symbols = tuple(symbols)
    order = in_order(sp.sympify(expr))

    def evaluate(*arguments: jax.Array) -> jax.Array:
        if len(arguments) != len(symbols):
            raise ValueError(f"to_jax: {len(symbols)} arguments expected, {len(arguments)} given")
        known: dict[Any, Any] = dict(zip(symbols, arguments, strict=True))
        for node in order:
            if node not in known:
                known[node] = node_value(node, known, guarded)
        dtype = jnp.result_type(*arguments, 0.0) if arguments else None
        return jnp.asarray(known[order[-1]], dtype)

    return evaluate


def node_value(node: sp.Expr, known: dict[Any, Any], guarded: bool) -> Any:
    """One node in JAX, the values of its arguments being `known`."""
    if node.is_Symbol:
        raise ValueError(f"to_jax: the symbol {node} is not among the arguments")
    if node in (sp.true, sp.false):
        return bool(node)
    if (node.is_number and not node.args) or (node.is_number and not node.has(sp.Function)):
        return int(node) if node.is_Integer else float(node)
    if isinstance(node, sp.Piecewise):
        return _piecewise(node, known)
    if guarded and node.is_Mul:
        return guarded_product(node, known)
    return _apply(node, [known[a] for a in node.args], guarded)


def _piecewise(node: sp.Piecewise, known: dict[Any, Any]) -> Any:
    *cases, (last, condition) = node.args
    total = known[last] if condition == sp.true else jnp.where(known[condition], known[last], jnp.nan)
    for expr, condition in reversed(cases):
        total = jnp.where(known[condition], known[expr], total)
    return total


def in_order(expr: sp.Expr) -> list[Any]:
    """Each distinct subexpression once, arguments before their users, without recursion."""
    done: dict[Any, None] = {}
    stack: list[tuple[Any, bool]] = [(expr, False)]
    while stack:
        node, expanded = stack.pop()
        if node in done:
            continue
        if expanded or not node.args:
            done[node] = None
            continue
        stack.append((node, True))
        children = [x for pair in node.args for x in pair.args] if isinstance(node, sp.Piecewise) else node.args
        stack.extend((child, False) for child in children)
    return list(done)
