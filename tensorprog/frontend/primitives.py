"""The table: JAX primitive -> instructions of the program. A primitive is one row of `RULES`.

A rule takes the equation at both widths and the values of its operands, and returns the value it makes (or a list).
It raises `Refusal` with the reason when the theorem, or this version, does not cover the use. Contractions stand in
`frontend.contract` and `frontend.convolution`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
import sympy

from ntk_rules import functions as nf
from tensorprog.frontend import contract, cutting, joining, moves, reductions, scatter
from tensorprog.frontend.arithmetic import param_arithmetic, reciprocal, squares, symmetrised
from tensorprog.frontend.build import constant, exact, lincomb, nonlin, scaled, to_var
from tensorprog.frontend.clipping import between_parameters, folded, signed
from tensorprog.frontend.convolution import convolution
from tensorprog.frontend.elementwise import ELEMENTWISE, expression
from tensorprog.frontend.logits import has_moment, logits_refusal
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.padding import pad
from tensorprog.frontend.refusals import Refusal, advice
from tensorprog.frontend.stacked import resolved
from tensorprog.frontend.steps import chosen, chosen_along, settled, without_sign
from tensorprog.frontend.values import (
    Complex,
    Known,
    Matrices,
    OwnPlaces,
    Param,
    Squares,
    Value,
    Var,
    aval,
    kind_of,
    layout_of,
)
from tensorprog.ir import Phi, position
from tensorprog.ir.phi import parameter, vector

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["RULES", "elementwise", "kept_parameter", "stop_gradient"]

Rule = Callable[..., Value | list[Value]]


# ---------------------------------------------------------------------------------------- elementwise


def elementwise(eqn: Equation, *values: Value) -> Value:
    """Any row of the elementwise table: a LinComb where it is linear in hidden vectors, else a Nonlin."""
    return settled(eqn, values, _elementwise(eqn, *values))


def _elementwise(eqn: Equation, *values: Value) -> Value:
    name = eqn.primitive
    if (kept := _kept(eqn, values)) is not None:
        return kept
    variables = [to_var(v) for v in values]
    if name in ("lt_to", "le_to"):
        variables = [_of_one_zero(v) for v in variables]
    for rule in (between_parameters, folded, signed):
        if (made := rule(name, variables)) is not None:
            return made
    random = [v for v in variables if v.random]
    if name == "convert_element_type":
        return _convert(eqn, variables[0])
    if random and eqn.out_dtype.kind in "iu" and name in ("div", *_BITWISE):
        if name != "div":
            raise Refusal("it works on the bits of whole numbers made of hidden values", "write it with arithmetic")
        return _whole_quotient(eqn, variables)
    if random and name in ("add", "add_any", "sub", "neg"):
        signs = {"neg": [-1.0], "sub": [1.0, -1.0]}.get(name, [1.0, 1.0])
        return lincomb(list(zip(signs, variables, strict=True)))
    if len(random) == 1 and name == "mul":
        factor = variables[1 - variables.index(random[0])]
        return scaled(random[0], factor)
    if len(random) == 1 and name == "div" and variables[0] is random[0]:
        return scaled(random[0], reciprocal(variables[1]))
    return _function(eqn, variables)


def _of_one_zero(var: Var) -> Var:
    return var if var.det else var.with_blocks([without_sign(node) for _, node in var.blocks])


def _whole_quotient(eqn: Equation, variables: Sequence[Var]) -> Var:
    """Whole numbers divide to whole numbers, rounded towards zero."""
    made = _function(eqn, variables)
    return nonlin(Phi(nf.trunc(vector(0)), 1), [made], [])


def _function(eqn: Equation, variables: Sequence[Var]) -> Var:
    power = _power(eqn, variables)
    xs: list[Var] = []
    thetas: list[Var] = []
    symbols: list[sympy.Expr] = []
    for var in variables:
        number = exact(var)
        if number is not None:
            symbols.append(number)
        elif var.random:
            twin = next((i for i, x in enumerate(xs) if x is var), None) if eqn.primitive in _COMPARISONS else None
            symbols.append(vector(len(xs) if twin is None else twin))
            xs += [var] if twin is None else []
        else:
            symbols.append(parameter(len(thetas)))
            thetas.append(var)
    boolean = np.dtype(aval(eqn.eqns[0].invars[0]).dtype).kind == "b"
    expr = expression(eqn.primitive, eqn.params[0], symbols, boolean)
    expr = sympy.sympify(expr)
    if not xs and not thetas:
        return _in_full(constant(np.float64(expr), (), power), eqn)
    made = nonlin(Phi(expr, len(xs), len(thetas)), xs, thetas, power)
    if not xs and expr.is_number:  # a hyperparameter times zero
        made = constant(np.full(made.shape, float(expr)), made.layout, power)
    return made if xs else _in_full(made, eqn)


def _in_full(var: Var, eqn: Equation) -> Var:
    """A deterministic value with the axes of the result, of which arrays of one number along the width, as `jnp.ones(n)`, had some."""
    shapes = eqn.out_shapes()
    if len(var.layout) == len(shapes[0]) or any(a == b != 1 for a, b in zip(*shapes, strict=True)):
        return var
    return map_positions(var, position("reshape", to=(1,) * len(shapes[0])), layout_of(shapes))


_BITWISE = ("and", "or", "xor", "not")
_HOMOGENEOUS = {"max", "min", "abs", "add", "sub", "neg", "add_any", "convert_element_type"}
_COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "lt_to", "le_to"}


def _power(eqn: Equation, variables: Sequence[Var]) -> Fraction:
    """The power of the width of a function's value, from those of its arguments."""
    powers = [v.power for v in variables]
    name = eqn.primitive
    if not any(powers):
        return Fraction(0)
    match name:
        case "mul":
            return sum(powers, Fraction(0))
        case "div":
            return powers[0] - powers[1]
        case "sqrt":
            return powers[0] / 2
        case "rsqrt":
            return -powers[0] / 2
        case "square":
            return 2 * powers[0]
        case "integer_pow":
            return eqn.params[0]["y"] * powers[0]
        case "sign":
            return Fraction(0)
        case "select_n" if len(set(powers[1:])) == 1 and not powers[0]:
            return powers[1]
    relevant = {v.power for v in variables if exact(v) != 0}
    if name in _HOMOGENEOUS and len(relevant) == 1:
        return relevant.pop()
    if name in _COMPARISONS and len(relevant) == 1:
        return Fraction(0)
    for var in variables:
        if (refusal := logits_refusal(var)) is not None:
            raise refusal
    grown = next(p for p in powers if p)
    raise Refusal(
        f"its argument scales like n^{grown} with the width n",
        "bring it to order one first, such as 1/sqrt(n) before a sum over n coordinates, or 1/n before a sum of products",
    )


def _convert(eqn: Equation, var: Var) -> Var:
    """Numbers of another type. Precisions of real numbers are all the same: the kernel is computed in that of its inputs."""
    before, after = eqn.eqns[0].invars[0], eqn.eqns[0].outvars[0]
    was, to, dtype = kind_of(before), kind_of(after), eqn.out_dtype
    if was == to == "f" or (var.det and aval(before).dtype == dtype):
        return var
    if var.random:
        return _of_another_type(eqn, var, was, to)
    if var.det:
        from tensorprog.ir import ArrayOp

        kind = {"f": "real", "i": "integer", "u": "integer", "b": "boolean", "c": "complex"}[to]
        params = (("bits", 8 * dtype.itemsize), ("signed", to == "i")) if to in "iu" else ()
        return Var.of(ArrayOp(f"to_{kind}", params, (var.node,), var.shape), var.layout, var.power)
    return _function(eqn, [var])


def _of_another_type(eqn: Equation, var: Var, was: str, to: str) -> Var:
    """Whole numbers of hidden values are rounded towards zero, truth values say which are not zero."""
    dtype = eqn.out_dtype
    if to in "uc" or (to == "i" and was != "b" and dtype.itemsize < 4):
        raise Refusal(
            f"it makes {dtype} of hidden values" + (", which end or wrap around at its limits" if to != "c" else ""),
            "keep hidden vectors real, or make whole numbers of 32 bits of them, jnp.clip(h, -127, 127).astype(jnp.int32)",
        )
    if was == to or (was == "i" and to == "f"):
        return var
    if was == "b":
        return _function(eqn, [var])
    if var.power and to == "i":
        raise Refusal(f"it rounds what scales like n^{var.power} with the width n", "bring it to order one first")
    return nonlin(Phi(nf.trunc(vector(0)) if to == "i" else sympy.Ne(vector(0), 0), 1), [var], [])


def _kept(eqn: Equation, values: Sequence[Value]) -> Value | None:
    """An operand as it is, or a parameter that stays one; None where a function is taken."""
    if eqn.primitive == "select_n" and isinstance(values[0], Known) and (chosen := _settled(values)) is not None:
        return chosen
    return squares(eqn, values) or param_arithmetic(eqn, values) or symmetrised(eqn.primitive, values)


def kept_parameter(eqn: Equation, values: Sequence[Value]) -> bool:
    """Do the rules of this table make a parameter of it, the squares of one, or one of its operands as it is?"""
    name, first = eqn.primitive, values[0]
    if name in ELEMENTWISE or name == "select_n":
        return _kept(eqn, values) is not None
    if not isinstance(first, Param):
        return False
    if name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim"):
        return isinstance(RULES[name](eqn, first), Param)
    return name in ("transpose", "slice", "copy", "copy_p", "stop_gradient")


def _settled(values: Sequence[Value]) -> Value | None:
    """select_n with a known predicate that is the same everywhere."""
    predicate = values[0]
    assert isinstance(predicate, Known)
    flat = [np.unique(v) for v in predicate.values]
    if all(len(f) == 1 and f[0] == flat[0][0] for f in flat):
        chosen = values[1 + int(flat[0][0])]
        if not (isinstance(chosen, Known) and chosen.scalar and not predicate.scalar):
            return chosen
    return None


def _select(eqn: Equation, predicate: Value, *cases: Value) -> Value:
    """Where the predicate is deterministic, hidden vectors are masked, linearly."""
    return settled(eqn, (predicate, *cases), _selected(eqn, predicate, *cases))


def _selected(eqn: Equation, predicate: Value, *cases: Value) -> Value:
    if isinstance(predicate, Known) and (chosen := _settled([predicate, *cases])) is not None:
        return chosen
    mask, *variables = map(to_var, (predicate, *cases))
    if mask.random:
        return _by_hidden(eqn, mask, variables)
    if np.dtype(aval(eqn.eqns[0].invars[0]).dtype).kind != "b":
        return _chosen(mask, variables)
    if not any(v.random for v in variables) or len(variables) != 2:
        return _function(eqn, [mask, *variables])
    from tensorprog.ir import ArrayOp

    real = Var.of(ArrayOp("to_real", (), (mask.node,), mask.shape), mask.layout, mask.power)
    other = nonlin(Phi(1 - parameter(0), 0, 1), [], [real])
    return lincomb([(1.0, scatter.masked(v, m)) for v, m in zip(variables, (other, real), strict=True)])


def _by_hidden(eqn: Equation, which: Var, cases: Sequence[Var]) -> Var:
    """A choice by a hidden value: by the first of several truth values that holds, or by number."""
    boolean = np.dtype(aval(eqn.eqns[0].invars[0]).dtype).kind == "b"
    which = which.with_blocks([resolved(node) for _, node in which.blocks])
    if boolean or any(v.power for v in cases):
        return _function(eqn, [which, *cases])
    if (along := chosen_along(which, len(cases))) is not None:
        leaf, function = along
        symbols, xs, thetas = _symbols(cases, [leaf])
        return nonlin(Phi(function(symbols), len(xs), len(thetas)), xs, thetas)
    if (found := chosen(which, cases)) is not None:
        conditions, numbers = found
        symbols, xs, thetas = _symbols([cases[k] for k in numbers], conditions)
        pairs = [(symbol, vector(i)) for i, symbol in enumerate(symbols[:-1])]
        return nonlin(Phi(sympy.Piecewise(*pairs, (symbols[-1], True)), len(xs), len(thetas)), xs, thetas)
    return _function(eqn, [which, *cases])


def _symbols(cases: Sequence[Var], first: Sequence[Var]) -> tuple[list[sympy.Expr], list[Var], list[Var]]:
    """What stands for each case in a function whose first vectors are given, its vectors and its parameters."""
    symbols: list[sympy.Expr] = []
    xs: list[Var] = list(first)
    thetas: list[Var] = []
    for case in cases:
        if (number := exact(case)) is not None:
            symbols.append(number)
        elif case.random:
            symbols.append(vector(len(xs)))
            xs.append(case)
        else:
            symbols.append(parameter(len(thetas)))
            thetas.append(case)
    return symbols, xs, thetas


def _chosen(number: Var, variables: Sequence[Var]) -> Var:
    """Of several arrays the one of this number, place by place."""
    if any(v.random for v in variables):
        among = [
            nonlin(Phi(sympy.Piecewise((1, sympy.Eq(parameter(0), i)), (0, True)), 0, 1), [], [number])
            for i in range(len(variables))
        ]
        return lincomb([(1.0, scatter.masked(v, m)) for v, m in zip(variables, among, strict=True)])
    if len({v.power for v in variables}) > 1:
        raise Refusal("it chooses among arrays that scale with different powers of the width")
    chosen = variables[0]
    for i, case in enumerate(variables[1:], 1):
        expr = sympy.Piecewise((parameter(1), sympy.Eq(parameter(2), i)), (parameter(0), True))
        chosen = nonlin(Phi(expr, 0, 3), [], [chosen, case, number], case.power)
    return chosen


def stop_gradient(eqn: Equation, x: Value) -> Value:
    """The same value, which no tangent passes; a parameter is frozen."""
    if isinstance(x, Param):
        return replace(x, tangent_std=0.0, stopped=x.tangent_std or x.stopped)
    if isinstance(x, (Known, Squares, Matrices, Complex, OwnPlaces)) or (x.det and not has_moment(x.node)):
        return x
    if x.det:  # an average, whose gradient counts where the output is one
        return nonlin(Phi(nf.stop_gradient(parameter(0)), 0, 1), [], [x], x.power)
    return nonlin(Phi(nf.stop_gradient(vector(0)), 1), [x], [], x.power)


def _is_finite(eqn: Equation, x: Value) -> Value:
    """Hidden vectors are finite."""
    return Known(tuple(np.ones(shape, bool) for shape in eqn.out_shapes()))  # type: ignore[arg-type]


def _reduce_precision(eqn: Equation, x: Value) -> Value:
    """The same number where all digits of its type are kept, as JAX asks for between a forward and a backward pass."""
    kept, own = eqn.params[0], jnp.finfo(eqn.out_dtype)
    if kept["exponent_bits"] < own.nexp or kept["mantissa_bits"] < own.nmant:
        raise Refusal(*advice(eqn.primitive))
    return x


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    "select_n": _select,
    "stop_gradient": stop_gradient,
    "is_finite": _is_finite,
    "copy": lambda eqn, x: x,
    "copy_p": lambda eqn, x: x,
    "reduce_precision": _reduce_precision,
    "transpose": moves.transpose,
    "reshape": moves.reshape,
    "squeeze": moves.reshape,
    "expand_dims": moves.reshape,
    "broadcast_in_dim": moves.broadcast,
    "slice": cutting.slice_,
    "dynamic_slice": cutting.dynamic_slice,
    "gather": moves.gather,
    "pad": pad,
    "rev": moves.rev,
    "concatenate": joining.concatenate,
    "scatter": scatter.scatter,
    "scatter-add": scatter.scatter_add,
    "scatter-sub": scatter.scatter_add,
    "scatter-mul": scatter.scatter_mul,
    **dict.fromkeys(("scatter-max", "scatter-min"), scatter.scatter_extremum),
    "dynamic_update_slice": scatter.dynamic_update_slice,
    "split": cutting.split,
    "stack": joining.stack,
    "tile": moves.tile,
    "reduce_sum": reductions.reduce_sum,
    "reduce_max": reductions.reduce_extremum(sympy.Max),
    "reduce_min": reductions.reduce_extremum(sympy.Min),
    "reduce_window_sum": reductions.window_sum,
    "reduce_window_max": reductions.window_max,
    "reduce_window_min": reductions.window_min,
    "cumsum": reductions.cumsum,
    "dot_general": contract.dot_general,
    "conv_general_dilated": convolution,
}
