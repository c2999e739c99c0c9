"""The text form of programs: prints and parses back.

One instruction a line, in the syntax of Python calls, read by a parser that evaluates nothing:

    tensorprog 1
    x0 = Input("x", (64,), "float64")
    W0 = Weight("dense.weight", (n, 64), std=1.0, tangent_std=1.0)
    v0 = MatMul("ab,b->a", W0, x0)                             # (n,)
    v1 = Nonlin("z0*Heaviside(z0)", [v0], [])                  # (n,)
    return v1

A width axis is written n, or n(3/2) when its size is 3/2 of n, and 64*n when 64 positions were flattened into it.
What follows # is a comment: the variable's shape, and the line of the user's code that made it.
"""

from __future__ import annotations

import ast
import base64
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import sympy
from jax import lax

from tensorprog.errors import ProgramError
from tensorprog.ir.nodes import (
    ArrayOp,
    Const,
    Hyper,
    Input,
    LinComb,
    Literal,
    MatMul,
    Moment,
    Node,
    Nonlin,
    PositionMap,
    Trsp,
    Type,
    Weight,
)  # fmt: skip
from tensorprog.ir.phi import Phi, parse_expression
from tensorprog.ir.positions import position
from tensorprog.ir.program import Program
from tensorprog.ir.verify import RULES, matmul_complaints

__all__ = ["VERSION", "name_nodes", "parse_program", "print_program"]

VERSION = 1
_INLINE = 16  # constants up to this many entries are written out, longer ones as base64


class Width:
    """A width axis in a written shape: `positions` finite entries times `relative` n."""

    def __init__(self, positions: int, relative: Fraction):
        self.positions, self.relative = positions, relative


def name_nodes(program: Program) -> dict[Node, str]:
    """Short names by kind, numbered in program order."""
    counts: dict[str, int] = {}
    names = {}
    for node in program.nodes:
        letter = _letter(node)
        names[node] = f"{letter}{counts.setdefault(letter, 0)}"
        counts[letter] += 1
    return names


def _letter(node: Node) -> str:
    match node:
        case Input():
            return "x"
        case Const():
            return "c"
        case Hyper():
            return "h"
        case Weight():
            return "W"
        case _:
            return {"matrix": "M", "vector": "v", "scalar": "s"}[node.type.kind]


# ---------------------------------------------------------------------------------------------- printing


def print_program(program: Program, *, comments: bool = True) -> str:
    """The program as text. `parse_program(print_program(p)) == p`."""
    lines = [f"tensorprog {VERSION}"]
    for node in program.nodes:
        line = f"{program.names[node]} = {_print_node(node, program.names)}"
        if comments and not isinstance(node, (Input, Const, Hyper, Weight)):
            where = f"  {node.source}" if node.source else ""
            line = f"{line:<64}  # {node.type}{where}"
        lines.append(line)
    mirrored = f", mirrored={list(program.mirrored)}" if program.mirrored else ""
    lines.append(f"return_({program.names[program.output]}{mirrored})")
    return "\n".join(lines) + "\n"


def _print_node(node: Node, names: dict[Node, str]) -> str:
    def refs(nodes: tuple[Node, ...]) -> str:
        return "[" + ", ".join(names[n] for n in nodes) + "]"

    match node:
        case Input(name=name, shape=shape, dtype=dtype):
            return f"Input({_quote(name)}, {shape}, {_quote(dtype)})"
        case Hyper(name=name, default=default, nonnegative=nonnegative):
            return f"Hyper({_quote(name)}, {default!r}{', nonnegative=True' if nonnegative else ''})"
        case Const(value=value):
            return f"Const({_print_array(value)})"
        case Weight():
            return _print_weight(node)
        case Trsp(matrix=matrix):
            return f"Trsp({names[matrix]})"
        case MatMul(spec=spec, weight=weight, x=x):
            return f"MatMul({_quote(spec)}, {names[weight]}, {names[x]})"
        case LinComb(terms=terms):
            written = (f"({names[a] if isinstance(a, Node) else repr(a)}, {names[x]})" for a, x in terms)
            return f"LinComb({', '.join(written)})"
        case PositionMap(op=op, args=args, result=result):
            kw = "".join(f", {k}={_print_value(v)}" for k, v in op.params)
            return f"PositionMap({_quote(op.name)}, {refs(args)}, {_quote(result.kind)}, {result}{kw})"
        case Nonlin(phi=phi, xs=xs, thetas=thetas):
            return f"Nonlin({_quote(str(phi))}, {refs(xs)}, {refs(thetas)})"
        case Moment(phi=phi, xs=xs, thetas=thetas):
            return f"Moment({_quote(str(phi))}, {refs(xs)}, {refs(thetas)})"
        case ArrayOp(primitive=primitive, params=params, args=args, shape=shape):
            return f"ArrayOp({_quote(primitive)}, {refs(args)}, {shape}, {_print_value(params)})"
    raise TypeError(f"no text form for {type(node).__name__}")


def _quote(text: str) -> str:
    """A string literal on one line, whatever it holds."""
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain) + '"'


def _print_array(value: Literal) -> str:
    array = value.array()
    if array.size <= _INLINE and np.all(np.isfinite(array)):
        return f"{array.tolist()!r}, {_quote(value.dtype)}, {value.shape}"
    return f"{_quote(base64.b64encode(value.data).decode())}, {_quote(value.dtype)}, {value.shape}"


def _print_weight(node: Weight) -> str:
    extra = ", primed=True" if node.primed else ""
    extra += ", per_input=True" if node.per_input else ""
    extra += ", symmetric=True" if node.symmetric else ""
    extra += f", stopped={node.stopped!r}" if node.stopped else ""
    if node.region != _whole(node.shape, node.widths):
        extra += ", region=[" + ", ".join(f"({a}, {b})" for a, b in node.region) + "]"
    return f"Weight({_quote(node.name)}, {node.dims}, std={node.std!r}, tangent_std={node.tangent_std!r}{extra})"


def _whole(shape: tuple[int, ...], widths: tuple[Fraction | None, ...]) -> tuple[tuple[Fraction, Fraction], ...]:
    return tuple((Fraction(0), Fraction(n) * (w or 1)) for n, w in zip(shape, widths, strict=True))


def _print_value(value: Any) -> str:
    """Parameters of operations: numbers, strings, nested tuples, and the enums and dimension numbers of jax.lax."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, int, float, str)) or value is None:
        return _quote(value) if isinstance(value, str) else repr(value)
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return f"dtype({_quote(np.dtype(value).name)})"
    if isinstance(value, lax.GatherDimensionNumbers):
        keys = (
            "offset_dims",
            "collapsed_slice_dims",
            "start_index_map",
            "operand_batching_dims",
            "start_indices_batching_dims",
        )
        return f"GatherDimensionNumbers({', '.join(f'{k}={getattr(value, k)}' for k in keys)})"
    if isinstance(value, lax.ConvDimensionNumbers):
        return f"ConvDimensionNumbers({value.lhs_spec}, {value.rhs_spec}, {value.out_spec})"
    if isinstance(value, lax.GatherScatterMode):
        return f"GatherScatterMode({_quote(value.name)})"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(_print_value(v) for v in value)
        return f"({inner}{',' if len(value) == 1 else ''})"
    raise ProgramError(
        f"a parameter of type {type(value).__name__} has no text form: {value!r}\n"
        "  to mend: compute this part of the network outside, and give its result as an input"
    )


# ---------------------------------------------------------------------------------------------- parsing


def parse_program(text: str) -> Program:
    """Read a program from its text form.

    Raises `ProgramError`, naming the line, for anything that is not one.
    """
    lines = text.splitlines()
    if not lines or lines[0].strip() != f"tensorprog {VERSION}":
        first = lines[0] if lines else ""
        raise ProgramError(
            f"line 1: expected 'tensorprog {VERSION}', found {first[:60]!r}: not a program, or of another version"
        )
    env: dict[str, Node] = {}
    for number, line in enumerate(lines[1:], start=2):
        try:
            for statement in ast.parse(line.strip()).body:
                if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                    env[statement.targets[0].id] = _checked(_make(statement.value, env))
                elif isinstance(statement, ast.Expr):
                    return _finish(statement.value, env)
                else:
                    raise ProgramError("expected 'name = Instruction(..)' or 'return_(name)'")
        except ProgramError as error:
            raise ProgramError(f"line {number}: {error}\n  {line.strip()[:160]}") from None
        except _UNREADABLE as error:
            raise ProgramError(f"line {number}: cannot be read ({error})\n  {line.strip()[:160]}") from error
    raise ProgramError("the program has no return_ line: it is incomplete")


_UNREADABLE = (
    SyntaxError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError, AssertionError, RecursionError, MemoryError,
)  # fmt: skip


def _checked(node: Node) -> Node:
    """The instruction, if the verifier has no complaint."""
    for rule in RULES:
        for complaint in rule(node):
            raise ProgramError(complaint)
    return node


def _finish(call: ast.expr, env: dict[str, Node]) -> Program:
    name, args, kw = _call(call, env)
    if name != "return_" or len(args) != 1 or not isinstance(args[0], Node):
        raise ProgramError("expected 'return_(name)'")
    inputs = tuple(node for node in env.values() if isinstance(node, Input))
    return Program(inputs, args[0], tuple(kw.get("mirrored", ())))


def _make(expr: ast.expr, env: dict[str, Node]) -> Node:
    name, args, kw = _call(expr, env)
    maker = _MAKERS.get(name)
    if maker is None:
        raise ProgramError(f"unknown instruction {name!r}: one of {', '.join(_MAKERS)}")
    return maker(*args, **kw)


def _call(expr: ast.expr, env: dict[str, Node]) -> tuple[str, list[Any], dict[str, Any]]:
    if not isinstance(expr, ast.Call) or not isinstance(expr.func, ast.Name):
        raise ProgramError("expected an instruction, written as a call")
    args = [_value(a, env) for a in expr.args]
    return expr.func.id, args, {k.arg: _value(k.value, env) for k in expr.keywords if k.arg}


def _value(expr: ast.expr, env: dict[str, Node]) -> Any:
    match expr:
        case ast.Constant(value=value):
            return value
        case ast.Name(id="n"):
            return Width(1, Fraction(1))
        case ast.Name(id="nan" | "inf" as name):
            return getattr(math, name)
        case ast.Name(id=name):
            if name not in env:
                raise ProgramError(f"{name!r} is used before it is made")
            return env[name]
        case ast.Tuple(elts=items):
            return tuple(_value(i, env) for i in items)
        case ast.List(elts=items):
            return [_value(i, env) for i in items]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, env)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return Fraction(_value(left, env), _value(right, env))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            width = _value(right, env)
            return Width(_value(left, env) * width.positions, width.relative)
        case ast.Call(func=ast.Name(id="n"), args=[relative]):
            return Width(1, Fraction(_value(relative, env)))
        case ast.Call(func=ast.Name(id=name)) if name in _VALUES:
            _, args, kw = _call(expr, env)
            return _VALUES[name](*args, **kw)
    raise ProgramError(f"{ast.unparse(expr)!r} is not part of the language of programs")


_VALUES: dict[str, Callable[..., Any]] = {
    "dtype": np.dtype,
    "GatherDimensionNumbers": lax.GatherDimensionNumbers,
    "ConvDimensionNumbers": lax.ConvDimensionNumbers,
    "GatherScatterMode": lambda name: lax.GatherScatterMode[name],
}


def _shape(dims: tuple[Any, ...]) -> tuple[tuple[int, ...], tuple[Fraction | None, ...]]:
    sizes = tuple(d.positions if isinstance(d, Width) else d for d in dims)
    return sizes, tuple(d.relative if isinstance(d, Width) else None for d in dims)


def _type(kind: str, dims: tuple[Any, ...]) -> Type:
    sizes, widths = _shape(dims)
    axes = [i for i, w in enumerate(widths) if w is not None]
    return Type(kind, sizes, axes[0], widths[axes[0]]) if axes else Type(kind, sizes)


def _make_weight(
    name: str,
    dims: Any,
    *,
    std: float,
    tangent_std: float,
    region: Any = None,
    primed: bool = False,
    per_input: bool = False,
    symmetric: bool = False,
    stopped: float = 0.0,
) -> Weight:
    shape, widths = _shape(dims)
    parts = _whole(shape, widths) if region is None else tuple((Fraction(a), Fraction(b)) for a, b in region)
    return Weight(
        name, shape, widths, float(std), float(tangent_std), parts, primed, per_input, symmetric, float(stopped)
    )


def _make_const(data: Any, dtype: str, shape: tuple[int, ...]) -> Const:
    kind = np.dtype(dtype)
    if isinstance(data, str):
        raw = base64.b64decode(data, validate=True)
        if len(raw) != kind.itemsize * int(np.prod(shape, dtype=int)):
            raise ProgramError("a constant whose bytes do not fill its shape")
        return Const(Literal(raw, dtype, shape))
    return Const(Literal.of(np.array(data, dtype=kind).reshape(shape)))


def _make_phi(text: str, xs: list[Node], thetas: list[Node]) -> tuple[Phi, tuple[Node, ...], tuple[Node, ...]]:
    phi = Phi(parse_expression(text), len(xs), len(thetas))
    unknown = phi.expr.free_symbols - set(phi.vectors) - set(phi.parameters)
    if unknown:
        names = ", ".join(sorted(str(s) for s in unknown if isinstance(s, sympy.Symbol)))
        raise ProgramError(f"{names} stand in {text!r} but there are {len(xs)} vectors and {len(thetas)} scalars")
    return phi, tuple(xs), tuple(thetas)


def _make_matmul(spec: str, weight: Node, x: Node) -> MatMul:
    for complaint in matmul_complaints(spec, weight, x):
        raise ProgramError(complaint)
    return MatMul(spec, weight, x)


_MAKERS: dict[str, Callable[..., Node]] = {
    "Input": Input,
    "Hyper": lambda name, default, nonnegative=False: Hyper(name, float(default), bool(nonnegative)),
    "Const": _make_const,
    "Weight": _make_weight,
    "Trsp": Trsp,
    "MatMul": _make_matmul,
    "LinComb": lambda *terms: LinComb(tuple((a if isinstance(a, Node) else float(a), x) for a, x in terms)),
    "PositionMap": lambda op, args, kind, dims, **kw: PositionMap(position(op, **kw), tuple(args), _type(kind, dims)),
    "Nonlin": lambda text, xs, thetas: Nonlin(*_make_phi(text, xs, thetas)),
    "Moment": lambda text, xs, thetas: Moment(*_make_phi(text, xs, thetas)),
    "ArrayOp": lambda primitive, args, shape, params: ArrayOp(primitive, params, tuple(args), shape),
}
