"""Functions with a derivative of their own: `jax.custom_jvp` and `jax.custom_vjp`.

Values are those of the function's body, the tangent kernel is that of its rule, as in JAX. Most rules restate the body's derivative
in a stabler way, and the body alone says it all. Others choose the slope at a kink (that of `jax.nn.relu` is 0 at 0, where a
maximum's is 1/2: it counts where a preactivation is exactly zero), or replace the derivative altogether, as straight-through estimators do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import sympy
from jax.extend import core as jex

from ntk_rules import functions as nf
from ntk_rules.constants import snap
from tensorprog.frontend.build import exact, nonlin, to_var
from tensorprog.frontend.elementwise import ELEMENTWISE, expression
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.trace import from_library
from tensorprog.frontend.values import Known, Value, Var, aval
from tensorprog.ir import Phi
from tensorprog.ir.phi import parameter, vector

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["CUSTOM", "with_own_slopes"]

# Where each kind of function keeps its body.
CUSTOM = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr"}


def with_own_slopes(eqn: Equation, values: Sequence[Value], results: list[Value]) -> list[Value]:
    """`results`, which the body made of `values`, with the slopes of the function's rule where they are others."""
    if all(isinstance(v, Known) for v in values) or not any(isinstance(r, Var) for r in results):
        return results
    ruled = _ruled(eqn.eqns[0])
    if ruled is None:
        return results
    return [_marked(result, values, *one) for result, one in zip(results, ruled, strict=True)]


def _marked(result: Value, values: Sequence[Value], body: sympy.Expr, slopes: Sequence[sympy.Expr] | None) -> Value:
    """slopes: None where those of `body` are right."""
    if not isinstance(result, Var):
        return result
    arguments = [to_var(v) for v in values]
    power = next((v.power for v in arguments if v.power), None)
    if power and slopes is None:
        return result
    if power and slopes and not all(_scale_free(s) for s in slopes):
        raise Refusal(
            f"its argument scales like n^{power} with the width n, and its derivative is given by a rule",
            "bring it to order one first, such as 1/sqrt(n) before a sum over n coordinates",
        )
    xs: list[Var] = []
    thetas: list[Var] = []

    def symbol(var: Var) -> sympy.Expr:
        if (number := exact(var)) is not None:
            return number
        mine, name = (xs, vector) if var.random else (thetas, parameter)
        mine.append(var)
        return name(len(mine) - 1)

    value = symbol(result) if power else body  # the walk through the body has kept count of powers of the width
    names = {place: symbol(var) for place, var in zip(_places(len(arguments)), arguments, strict=True)}
    value = value.xreplace(names)
    if slopes is not None:
        rule = [part.xreplace(names) for pair in zip(names, slopes, strict=True) for part in pair]
        value = nf.by_rule(value, *rule)
    return nonlin(Phi(value, len(xs), len(thetas)), xs, thetas, result.power)


def _places(n: int) -> tuple[sympy.Symbol, ...]:
    """The symbols that stand for a function's arguments."""
    return tuple(sympy.Symbol(f"r{i}", real=True) for i in range(n))


def _scale_free(expr: sympy.Expr) -> bool:
    """Is it the same at x and at every positive multiple of x? So are the slopes of a function of degree one."""
    larger = {r: 3 * r for r in expr.free_symbols}
    return _agree(expr, expr.xreplace(larger), sorted(expr.free_symbols, key=str), _GENERIC)


# ------------------------------------------------------------------------------------------ the rule against the body


Ruled = list[tuple[sympy.Expr, list[sympy.Expr] | None]]


def _ruled(eqn: jex.JaxprEqn) -> Ruled | None:
    """Every result, and the rule's slopes in every argument, in the symbols of `_places`; None where the body's slopes are the same, and
    nothing is gained by taking the body as one function.
    """
    body = _body(eqn)
    if not from_library(body):
        return _compared(eqn, body)
    key = (eqn.primitive.name, body.jaxpr.debug_info.func_src_info, str(body))
    if key not in _KNOWN:
        _KNOWN[key] = _compared(eqn, body)
    return _KNOWN[key]


def _body(eqn: jex.JaxprEqn) -> jex.ClosedJaxpr:
    return _closed(eqn.params[CUSTOM[eqn.primitive.name]])


def _alone(eqn: jex.JaxprEqn) -> Callable[..., list[jax.Array]]:
    """The function, rule and all."""
    inner = _body(eqn).jaxpr
    alone = inner.replace(constvars=[], outvars=list(eqn.outvars), eqns=[eqn.replace(invars=list(inner.invars))])
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, ()))


def _closed(jaxpr: jex.Jaxpr | jex.ClosedJaxpr) -> jex.ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, jex.ClosedJaxpr) else jex.ClosedJaxpr(jaxpr, ())


# A body bends and the whole does not: JAX writes log(exp(c) + exp(d)) with a maximum and the modulus of c - d.
_BENDS = ("max", "min", "abs", "select_n")
_KINKED = (sympy.Max, sympy.Min, sympy.Abs, sympy.Piecewise, sympy.sign, sympy.Heaviside)
_KNOWN: dict[Any, Ruled | None] = {}  # of JAX's own functions: there the body and its name say all


def _compared(eqn: jex.JaxprEqn, body: jex.ClosedJaxpr) -> Ruled | None:
    rs = _places(len(eqn.invars))
    values = _expressions(body, rs)
    slopes = None if values is None else _rule(eqn, rs)
    if values is None or slopes is None:
        _check_numbers(eqn, body)
        return None
    ours = [[_derivative(value, r) for r in rs] for value in values]
    pairs = list(zip(itertools.chain(*ours), itertools.chain(*slopes), strict=True))
    if all(_agree(a, b, rs, (*_GENERIC, *_special(body))) for a, b in pairs):
        healed = not any(value.has(*_KINKED) for value in values) and any(
            e.primitive.name in _BENDS for e in body.jaxpr.eqns
        )
        return [(value, None) for value in values] if healed else None
    return [(value, [_in_steps(s) for s in row]) for value, row in zip(values, slopes, strict=True)]


def _derivative(value: sympy.Expr, r: sympy.Symbol) -> sympy.Expr:
    z = vector(0)
    return Phi(value.xreplace({r: z}), 1).diff(0).xreplace({z: r})


def _rule(eqn: jex.JaxprEqn, rs: Sequence[sympy.Symbol]) -> list[list[sympy.Expr]] | None:
    """By results, the rule's slopes in every argument; None where they are not functions of single numbers."""
    structs = [jax.ShapeDtypeStruct(aval(v).shape, aval(v).dtype) for v in eqn.invars]
    columns = []
    for i, struct in enumerate(structs):
        if not jnp.issubdtype(struct.dtype, jnp.floating):
            columns.append([sympy.S.Zero] * len(eqn.outvars))
            continue
        column = _expressions(jax.make_jaxpr(_slope(eqn, i))(*structs), rs)
        if column is None:
            return None
        columns.append(column)
    return [list(row) for row in zip(*columns, strict=True)]


def _slope(eqn: jex.JaxprEqn, i: int) -> Callable[..., list[jax.Array]]:
    """The derivative of every result in the i-th argument, coordinate by coordinate, by the function's own rule."""

    call = _alone(eqn)

    def forward(*xs: jax.Array) -> list[jax.Array]:
        return jax.jvp(lambda x: call(*xs[:i], x, *xs[i + 1 :]), (xs[i],), (jnp.ones_like(xs[i]),))[1]

    def backward(*xs: jax.Array) -> list[jax.Array]:
        results, pull = jax.vjp(lambda x: call(*xs[:i], x, *xs[i + 1 :]), xs[i])
        zeros = [jnp.zeros_like(r) for r in results]
        return [pull([*zeros[:k], jnp.ones_like(r), *zeros[k + 1 :]])[0] for k, r in enumerate(results)]

    return forward if eqn.primitive.name == "custom_jvp_call" else backward


def _check_numbers(eqn: jex.JaxprEqn, body: jex.ClosedJaxpr) -> None:
    """Refuse a function of whole arrays whose rule gives other derivatives than its body, seen at random numbers."""
    if from_library(body):  # a softmax, a logsumexp: the same derivative, written more stably
        return
    rng = np.random.default_rng(0)
    places = [i for i, v in enumerate(eqn.invars) if aval(v).dtype.kind == "f"]
    xs = [jnp.asarray(np.zeros(aval(v).shape), aval(v).dtype) for v in eqn.invars]
    for i in places:
        xs[i] = jnp.asarray(rng.standard_normal(xs[i].shape))

    def pulled(function: Callable[..., list[jax.Array]]) -> list[jax.Array]:
        results, pull = jax.vjp(lambda *moved: function(*_put(xs, places, moved)), *(xs[i] for i in places))
        directions = np.random.default_rng(1)
        return pull([jnp.asarray(directions.standard_normal(r.shape), r.dtype) for r in results])

    for by_body, by_rule in zip(pulled(jex.jaxpr_as_fun(body)), pulled(_alone(eqn)), strict=True):
        if not np.allclose(by_body, by_rule, rtol=1e-6, atol=1e-6 * float(jnp.abs(by_body).max(initial=0.0))):
            raise Refusal(
                "its own rule gives another derivative than its body has, and it is no function of single coordinates",
                "give rules of their own to functions of single coordinates alone, or leave the rule out",
            )


def _put(xs: Sequence[jax.Array], places: Sequence[int], moved: Sequence[jax.Array]) -> list[jax.Array]:
    new = dict(zip(places, moved, strict=True))
    return [new.get(i, x) for i, x in enumerate(xs)]


# ------------------------------------------------------------------------------------------ as expressions


_WALKED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", **CUSTOM}
_SAME = {"broadcast_in_dim", "copy", "copy_p", "reshape", "squeeze"}  # of a number for all places


def _expressions(jaxpr: jex.ClosedJaxpr, args: Sequence[sympy.Expr]) -> list[sympy.Expr] | None:
    """What a jaxpr computes in every coordinate; None where a coordinate reads others."""
    env: dict[Any, sympy.Expr] = dict(zip(jaxpr.jaxpr.invars, args, strict=True))
    for var, const in zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True):
        array = np.asarray(const)
        if array.size == 0 or not (array == array.ravel()[0]).all():
            return None
        env[var] = _number(array.ravel()[0])

    def read(atom: Any) -> sympy.Expr:
        return _number(atom.val) if isinstance(atom, jex.Literal) else env[atom]

    for eqn in jaxpr.jaxpr.eqns:
        name, values = named(eqn) or eqn.primitive.name, [read(v) for v in eqn.invars]
        if name in _WALKED:
            made = _expressions(_closed(eqn.params[_WALKED[name]]), values)
            if made is None:
                return None
        elif name in _SAME and (
            aval(eqn.invars[0]).size == 1 or aval(eqn.invars[0]).shape == aval(eqn.outvars[0]).shape
        ):
            made = [values[0]]
        elif name in ELEMENTWISE:
            made = [sympy.sympify(expression(name, eqn.params, values, aval(eqn.invars[0]).dtype == bool))]
        else:
            return None
        env.update(zip(eqn.outvars, made, strict=True))
    return [read(v) for v in jaxpr.jaxpr.outvars]


_NAMED = ("exp_neg_sq", "has_rank", "order_statistic")


def named(eqn: jex.JaxprEqn) -> str | None:
    """The row of a function of JAX's own that works on the bits of its argument and has a rule for its derivative, or of ours."""
    if eqn.primitive.name != "custom_jvp_call" or not from_library(body := _closed(eqn.params["call_jaxpr"])):
        return None
    name = str(body.jaxpr.debug_info.func_src_info).partition(" at ")[0]
    return name if name in _NAMED else None


def _number(value: Any) -> sympy.Expr:
    array = np.asarray(value)
    return sympy.sympify(bool(array)) if array.dtype.kind == "b" else snap(float(array))


def _in_steps(slope: sympy.Expr) -> sympy.Expr:
    """`where(x > 0, 1, 0)` as a step that is 0 at 0."""

    def steps(*cases: Any) -> sympy.Expr:
        if len(cases) != 2 or cases[0][0] != 1 or cases[1][0] != 0 or cases[1][1] != sympy.true:
            return sympy.Piecewise(*cases)
        made = sympy.S.One
        for part in sympy.And.make_args(cases[0][1]):
            if not isinstance(part, (sympy.Gt, sympy.Lt, sympy.Ge, sympy.Le)):
                return sympy.Piecewise(*cases)
            made *= sympy.Heaviside(part.gts - part.lts, int(isinstance(part, (sympy.Ge, sympy.Le))))
        return made

    return slope.replace(sympy.Piecewise, steps)


_GENERIC = (0.7310585, -1.2071067, 2.3025851, -0.3217505, 7.3890561, -9.1801)


def _special(body: jex.ClosedJaxpr) -> tuple[float, ...]:
    """Where kinks are likely: zero, and the numbers that stand in the body."""
    found = {0.0}
    for eqn in body.jaxpr.eqns:
        found.update(float(v.val) for v in eqn.invars if isinstance(v, jex.Literal) and np.ndim(v.val) == 0)
        for inner in (eqn.params.get(key) for key in set(_WALKED.values())):
            if inner is not None:
                found.update(_special(_closed(inner)))
    return tuple(sorted(x for value in found for x in (value, -value) if np.isfinite(x)))


def _agree(left: sympy.Expr, right: sympy.Expr, symbols: Sequence[sympy.Symbol], places: Sequence[float]) -> bool:
    """Are two expressions equal at all combinations of places (all pairs of two arguments, the diagonal of more)?"""
    if left == right:
        return True
    f, g = _evaluated(left, tuple(symbols)), _evaluated(right, tuple(symbols))
    repeat = max(len(symbols), 1)
    points = itertools.product(places, repeat=repeat) if repeat <= 2 else ((p,) * repeat for p in places)
    return all(_close(f(*point[: len(symbols)]), g(*point[: len(symbols)])) for point in points)


def _close(a: mpmath.mpf | None, b: mpmath.mpf | None) -> bool:
    """Where the body's derivative has no value, the rule is right."""
    return a is None or (b is not None and abs(a - b) <= 1e-9 * (1 + abs(a)))


@lru_cache(maxsize=256)
def _evaluated(expr: sympy.Expr, symbols: tuple[sympy.Symbol, ...]) -> Callable[..., mpmath.mpf | None]:
    plain = nf.elementary(nf.value_of(expr)).replace(sympy.Heaviside, _step)
    if plain.has(*nf.JAX_ALONE):
        return _by_jax(nf.value_of(expr), symbols)
    function = sympy.lambdify(symbols, plain, "mpmath")

    def value(*point: float) -> mpmath.mpf | None:
        try:
            made = mpmath.mpmathify(function(*map(mpmath.mpf, point)))
        except (ZeroDivisionError, ValueError, OverflowError):
            return None
        return made if mpmath.isfinite(made) else None

    return value


def _by_jax(expr: sympy.Expr, symbols: tuple[sympy.Symbol, ...]) -> Callable[..., mpmath.mpf | None]:
    """The same for functions that only JAX evaluates."""
    function = nf.to_jax(expr, symbols)

    def value(*point: float) -> mpmath.mpf | None:
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            made = float(function(*map(jnp.asarray, map(float, point))))
        return mpmath.mpf(made) if np.isfinite(made) else None

    return value


def _step(x: sympy.Expr, at_zero: sympy.Expr = sympy.S.Half) -> sympy.Expr:
    return sympy.Piecewise((1, x > 0), (0, x < 0), (at_zero, True))
