"""Scalar functions of a program: the phi of `Nonlin(phi; x; theta)`.

A `Phi` is a SymPy expression in canonical symbols: z0, z1, .. stand for the vector arguments and a0, a1, ..
for the deterministic ones. Canonical names make equal functions identical, so every later stage can
remember what it worked out once.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import sympy
from sympy.printing.str import StrPrinter

from ntk_rules import functions as nf
from ntk_rules.constants import snap, snap_floats
from tensorprog.errors import ProgramError

__all__ = ["Phi", "identity", "parameter", "parse_expression", "snap", "vector"]


@cache
def vector(i: int) -> sympy.Symbol:
    """The symbol of the i-th vector argument."""
    return sympy.Symbol(f"z{i}", real=True)


@cache
def parameter(i: int) -> sympy.Symbol:
    """The symbol of the i-th deterministic argument."""
    return sympy.Symbol(f"a{i}", real=True)


@dataclass(frozen=True)
class Phi:
    """A function of `n_vectors` coordinates and `n_parameters` deterministic numbers."""

    expr: sympy.Expr
    n_vectors: int
    n_parameters: int = 0

    def __post_init__(self) -> None:
        """Floats are rounded to double precision, so that what is printed is what is meant."""
        if self.expr.has(sympy.Float):
            object.__setattr__(self, "expr", snap_floats(self.expr))
        if self.expr.has(sympy.ITE):  # a condition that was itself chosen by a condition
            plain = self.expr.replace(sympy.ITE, lambda c, a, b: sympy.Or(sympy.And(c, a), sympy.And(sympy.Not(c), b)))
            object.__setattr__(self, "expr", plain)

    @property
    def vectors(self) -> tuple[sympy.Symbol, ...]:
        return tuple(vector(i) for i in range(self.n_vectors))

    @property
    def parameters(self) -> tuple[sympy.Symbol, ...]:
        return tuple(parameter(i) for i in range(self.n_parameters))

    def diff(self, i: int) -> sympy.Expr:
        """The derivative in the i-th vector argument, as an expression in the same symbols."""
        return _diff(self.expr, vector(i))

    def diff_parameter(self, i: int) -> sympy.Expr:
        """The derivative in the i-th deterministic argument, in the same sense."""
        return _diff(self.expr, parameter(i))

    def __str__(self) -> str:
        return _Printer().doprint(self.expr)


class _Printer(StrPrinter):
    """Prints floats with all their digits, so that the text form loses nothing."""

    def _print_Float(self, expr: sympy.Float) -> str:
        return repr(float(expr))

    def _print_by_rule(self, expr: nf.by_rule) -> str:
        for name, make in _RULED.items():
            if len(expr.args) == 3 and make(expr.args[1]) == expr:
                return f"{name}({self._print(expr.args[1])})"
        return self._print_Function(expr)


# Functions of jax.nn whose rules of their own choose the slopes at the kinks; what they are called.
_RULED: dict[str, Callable[[sympy.Expr], sympy.Expr]] = {
    "relu": lambda x: nf.by_rule(sympy.Max(0, x), x, sympy.Heaviside(x, 0)),
    "relu6": lambda x: nf.by_rule(sympy.Min(6, sympy.Max(0, x)), x, sympy.Heaviside(x, 0) * sympy.Heaviside(6 - x, 0)),
}


class _Magnitude(sympy.Function):
    """|x| of a real number: SymPy's own asks of a square root in x whether it is real, and differentiates both parts.

    The slope at 0 is 1, as JAX has it.
    """

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return 2 * sympy.Heaviside(self.args[0], 1) - 1


class _Direction(sympy.Function):
    """sign(x) of a real number."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return sympy.Integer(0)


class _Largest(sympy.Function):
    """The maximum of three numbers or more, whose slope is that of the first of the largest: SymPy's, with 1/2 at every tie, would not
    add up to 1 where several are equal, as max pooling of equal patches makes them."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return _first_of(self.args, argindex - 1, 1)


class _Smallest(sympy.Function):
    """The minimum, in the same way."""

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        return _first_of(self.args, argindex - 1, -1)


def _first_of(values: tuple[sympy.Expr, ...], i: int, sign: int) -> sympy.Expr:
    return sympy.Mul(*(sympy.Heaviside(sign * (values[i] - x), int(j > i)) for j, x in enumerate(values) if j != i))


def _of_three(made: type[sympy.Function], function: type[sympy.Function]) -> Callable[..., sympy.Expr]:
    return lambda *args: (made if sum(bool(x.free_symbols) for x in args) > 2 else function)(*args)


@lru_cache(maxsize=4096)
def _diff(expr: sympy.Expr, symbol: sympy.Symbol) -> sympy.Expr:
    """The derivative almost everywhere: what backpropagation uses, so a jump contributes nothing."""
    if isinstance(expr, sympy.logic.boolalg.Boolean) and not expr.is_Symbol:
        return sympy.Integer(0)
    real = expr.replace(sympy.Abs, _Magnitude).replace(sympy.sign, _Direction)
    real = real.replace(sympy.Max, _of_three(_Largest, sympy.Max)).replace(sympy.Min, _of_three(_Smallest, sympy.Min))
    found = sympy.diff(real, symbol).replace(_Magnitude, sympy.Abs).replace(_Direction, sympy.sign)
    found = found.replace(_Largest, sympy.Max).replace(_Smallest, sympy.Min)
    return found.replace(sympy.DiracDelta, lambda *_: sympy.Integer(0))


identity = Phi(vector(0), 1)


_BINARY = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
_COMPARE = {
    ast.Lt: sympy.Lt,
    ast.LtE: sympy.Le,
    ast.Gt: sympy.Gt,
    ast.GtE: sympy.Ge,
    ast.Eq: sympy.Eq,
    ast.NotEq: sympy.Ne,
}


def parse_expression(text: str) -> sympy.Expr:
    """Read the printed form of a scalar function back. Nothing is evaluated as Python code.

    >>> parse_expression("z0*(erf(z0/sqrt(2)) + 1)/2")
    z0*(erf(sqrt(2)*z0/2) + 1)/2
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ProgramError(f"not an expression: {text!r} ({error.msg})") from error
    return _build(tree, text)


def _build(node: ast.expr, text: str) -> sympy.Expr:
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_build(node.left, text), _build(node.right, text))
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitAnd, ast.BitOr)):
        joined = sympy.And if isinstance(node.op, ast.BitAnd) else sympy.Or
        return joined(_build(node.left, text), _build(node.right, text))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_build(node.operand, text)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return sympy.Not(_build(node.operand, text))
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
        return _COMPARE[type(node.ops[0])](_build(node.left, text), _build(node.comparators[0], text))
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return sympy.true if node.value else sympy.false
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return sympy.Integer(node.value)
    if isinstance(node, ast.Constant) and isinstance(node.value, float):
        return sympy.Float(node.value, 17)
    if isinstance(node, ast.Name):
        return _name(node.id, text)
    if isinstance(node, ast.Tuple):
        return sympy.Tuple(*(_build(item, text) for item in node.elts))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _call(node.func.id, [_build(arg, text) for arg in node.args], text)
    raise ProgramError(f"{ast.unparse(node)!r} in {text!r} is not part of the language of scalar functions")


def _name(name: str, text: str) -> sympy.Expr:
    if name[:1] in ("z", "a") and name[1:].isdigit():
        return vector(int(name[1:])) if name[0] == "z" else parameter(int(name[1:]))
    constants = {"pi": sympy.pi, "E": sympy.E, "oo": sympy.oo, "nan": sympy.nan}
    if name in constants:
        return constants[name]
    raise ProgramError(f"unknown name {name!r} in {text!r}: arguments are z0, z1, .. and a0, a1, ..")


def _call(name: str, args: Sequence[sympy.Expr], text: str) -> sympy.Expr:
    if name == "Piecewise":
        return sympy.Piecewise(*[(pair[0], pair[1]) for pair in args])
    function = _functions().get(name)
    if function is None:
        raise ProgramError(f"unknown function {name!r} in {text!r}: one of {', '.join(sorted(_functions()))}")
    return function(*args)


@lru_cache(maxsize=1)
def _functions() -> dict[str, Callable[..., sympy.Expr]]:
    known = {cls.__name__: cls for cls in (*nf.MEANING, *nf.FOLDED)}
    return known | nf.NAMED | _RULED | {"sqrt": sympy.sqrt, "Eq": sympy.Eq, "Ne": sympy.Ne}
