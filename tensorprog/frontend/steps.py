"""Hidden variables that take finitely many values, as functions of one other: piecewise constant along it.

A search in a table, the truth of a comparison, an index and what stands at it are such functions, and what is made of these by
arithmetic and by choices is one again. Here it is worked out at once, as values between places: a binary search, written with a gather at
every step, would grow by its length otherwise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import sympy
from sympy.core.relational import Equality, Relational, Unequality
from sympy.logic.boolalg import Boolean, BooleanAtom

from ntk_rules import functions as nf
from ntk_rules.pieces import KINKED
from ntk_rules.switches import NotCuttable, sign_changes
from tensorprog.frontend.values import Known, Value, Var, aval, kind_of
from tensorprog.ir import Const, LinComb, Literal, Node, Nonlin, Phi, PositionMap
from tensorprog.ir.phi import snap, vector

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["bounds_of", "chosen", "chosen_along", "resolved", "settled", "without_sign"]

MOST_PLACES = 512


@dataclass(frozen=True)
class Steps:
    """`between[k]` from `places[k - 1]` to `places[k]` of the variable `leaf`, `at[k]` at `places[k]`. leaf: None of a number."""

    leaf: Node | None
    places: tuple[sympy.Expr, ...]
    at: tuple[sympy.Basic, ...]
    between: tuple[sympy.Basic, ...]

    def merged(self) -> Steps:
        """Without places where nothing changes."""
        kept = [k for k, a in enumerate(self.at) if not self.between[k] == a == self.between[k + 1]]
        between = (self.between[0], *(self.between[k + 1] for k in kept))
        return Steps(self.leaf, tuple(self.places[k] for k in kept), tuple(self.at[k] for k in kept), between)

    def function(self, values: Callable[[sympy.Basic], sympy.Basic] = lambda value: value) -> sympy.Expr:
        """As an expression in z0. values: what stands for a value."""
        z, cases = vector(0), []
        for place, at, below, above in zip(self.places, self.at, self.between, self.between[1:], strict=False):
            if at == below:
                cases.append((values(below), z <= place))
            else:
                cases.append((values(below), z < place))
                if at != above:
                    cases.append((values(at), z <= place))
        return sympy.Piecewise(*cases, (values(self.between[-1]), True))

    def truth(self) -> Boolean:
        """The same of truth values."""
        z, parts = vector(0), []
        ends = (None, *self.places, None)
        for holds, low, high in zip(self.between, ends, ends[1:], strict=False):
            if holds == sympy.true:
                parts.append(
                    sympy.And(*([z > low] if low is not None else []), *([z < high] if high is not None else []))
                )
        parts += [sympy.Eq(z, place) for place, at in zip(self.places, self.at, strict=True) if at == sympy.true]
        return sympy.Or(*parts)


def settled(eqn: Equation, values: Sequence[Value], made: Value) -> Value:
    """What an elementwise equation made, written as values between places where it is that; a known array where it is one number."""
    if not isinstance(made, Var) or made.det or made.power:
        return made
    truths = {node.phi.expr if isinstance(node, Nonlin) else None for _, node in made.blocks}
    if len(truths) == 1 and isinstance(truth := truths.pop(), BooleanAtom):
        return _known(eqn, truth)
    if not _may_settle(eqn, values):
        return made
    steps = [steps_of(node) for _, node in made.blocks]
    kind = kind_of(eqn.eqns[0].outvars[0])
    numbers = {s.between[0] if s is not None and not s.places else None for s in steps}
    if len(numbers) == 1 and (number := numbers.pop()) is not None:
        return _known(eqn, number)
    if kind == "b" and (truth := _by_bounds(eqn, values)) is not None:
        return _known(eqn, truth)
    if any(s is None or s.leaf is None for s in steps):
        return made
    nodes: list[Node] = []
    for (_, node), step in zip(made.blocks, steps, strict=True):
        assert step is not None and step.leaf is not None
        function = step.truth() if kind == "b" else step.function()
        new = Nonlin(Phi(function, 1), (step.leaf,), (), source=node.source)
        if new.type != node.type:
            return made
        nodes.append(new)
    return made.with_blocks(nodes)


def _known(eqn: Equation, number: sympy.Basic) -> Known:
    dtypes = [np.dtype(aval(e.outvars[0]).dtype) for e in eqn.eqns]
    value = bool(number) if isinstance(number, Boolean) else float(number)
    return Known(tuple(np.full(shape, value, dtype) for shape, dtype in zip(eqn.out_shapes(), dtypes, strict=True)))  # type: ignore[arg-type]


def _may_settle(eqn: Equation, values: Sequence[Value]) -> bool:
    """Are all hidden operands of few values, as far as their types and forms tell at a glance? One of a comparison is enough."""
    hidden = [
        (v, kind_of(a)) for v, a in zip(values, eqn.eqns[0].invars, strict=True) if isinstance(v, Var) and v.random
    ]
    written = [all(_is_written(node) for _, node in v.blocks) for v, _ in hidden]
    few = [done or kind in "iub" for done, (_, kind) in zip(written, hidden, strict=True)]
    match kind_of(eqn.eqns[0].outvars[0]):
        case "i" | "u":
            return all(few) or eqn.primitive == "convert_element_type"
        case "b":
            return any(done or kind in "iu" for done, (_, kind) in zip(written, hidden, strict=True))
        case "f":
            return all(written)
    return False


def _is_written(node: Node) -> bool:
    """Does a variable stand as values between places, at most moved?"""
    node = resolved(node)
    while isinstance(node, PositionMap) and _moves(node):
        node = node.args[0]
    if (
        not isinstance(node, Nonlin)
        or len(node.xs) != 1
        or node.thetas
        or not isinstance(node.phi.expr, sympy.Piecewise)
    ):
        return False
    return all(value.is_number for value, _ in node.phi.expr.args)


# ------------------------------------------------------------------------------------------ what a variable is


def _pushed(node: PositionMap) -> Nonlin | None:
    """A function that is moved as the function of what is moved."""
    inner = resolved(node.args[0])
    if not isinstance(inner, Nonlin) or any(t.type.shape != () for t in inner.thetas):
        return None
    xs = [x if x.type == inner.type else None for x in inner.xs]
    if any(x is None for x in xs):
        return None
    return Nonlin(inner.phi, tuple(PositionMap(node.op, (x,), node.type) for x in inner.xs), inner.thetas)


class _NoSteps(Exception):
    """It is no function of few values of one other."""


@lru_cache(maxsize=4096)
def steps_of(node: Node) -> Steps | None:
    """A variable as values between places of another; None where it is none."""
    node = resolved(node)
    try:
        if (number := _at_zeros(node)) is not None:
            return number
        match node:
            case Const():
                return _number(node)
            case PositionMap(op=op, args=(x, *_), result=result) if _moves(node):
                inner = steps_of(x)
                if inner is None and (pushed := _pushed(node)) is not None:
                    return steps_of(pushed)
                if inner is None or inner.leaf is None:
                    return inner
                leaf = resolved(PositionMap(op, (inner.leaf,), result))
                return _composed(inner.function(), {vector(0): leaf}) if inner.places else inner
            case LinComb(terms=terms):
                if any(isinstance(a, Node) for a, _ in terms):
                    return None
                total = sympy.Add(*(snap(float(a)) * vector(i) for i, (a, _) in enumerate(terms)))  # type: ignore[arg-type]
                return _composed(total, {vector(i): x for i, (_, x) in enumerate(terms)})
            case Nonlin(phi=phi, xs=xs, thetas=thetas):
                if (stairs := _stairs(node)) is not None:
                    return stairs
                operands = dict(zip((*phi.vectors, *phi.parameters), (*xs, *thetas), strict=True))
                return _composed(phi.expr, operands)
    except (_NoSteps, NotCuttable):
        return None
    return None


def _at_zeros(node: Node) -> Steps | None:
    """Zero, of what is taken out of a stack where that is zero."""
    base, places = node, np.arange(math.prod(node.type.shape))
    while (below := _below(base, places)) is not None:
        base, places = below
    return _number(base) if isinstance(base, Const) and node.type.kind == "vector" else None


def _number(node: Const) -> Steps | None:
    flat = node.value.array().ravel()
    if not flat.size or not (flat == flat[0]).all():
        return None
    number = sympy.sympify(bool(flat[0])) if flat.dtype == bool else snap(float(flat[0]))
    return Steps(None, (), (), (number,))


def _composed(expr: sympy.Basic, operands: dict[sympy.Symbol, Node]) -> Steps:
    """A function of variables that are functions of few values, or of their one leaf inside comparisons."""
    shell = expr.replace(lambda e: isinstance(e, Relational), lambda e: sympy.true)
    known: dict[sympy.Symbol, Steps] = {}
    leaves: dict[Node, list[sympy.Symbol]] = {}
    for symbol, node in operands.items():
        if symbol not in expr.free_symbols:
            continue
        steps = steps_of(node)
        if steps is not None:
            known[symbol] = steps
            if steps.leaf is not None:
                leaves.setdefault(steps.leaf, [])
        elif symbol in shell.free_symbols or node.type.kind != "vector":
            raise _NoSteps
        else:
            leaves.setdefault(without_sign(resolved(node)), []).append(symbol)
    if len(leaves) > 1:
        raise _NoSteps
    leaf, symbols = next(iter(leaves.items()), (None, []))
    z = sympy.Dummy("z", real=True)
    expr = expr.xreplace(dict.fromkeys(symbols, z))
    places = _in_order([p for s in known.values() for p in s.places])
    pieces = list(_along(expr, z, known, places))
    return Steps(leaf, *(tuple(p) for p in _flattened(pieces, places))).merged()


Part = tuple[list[sympy.Expr], list[sympy.Basic], list[sympy.Basic]]


def _along(
    expr: sympy.Basic, z: sympy.Symbol, known: dict[sympy.Symbol, Steps], places: Sequence[sympy.Expr]
) -> Iterator[tuple[Part, sympy.Basic | None]]:
    """Between two places each, and at the one behind: the values, where there may be more places."""
    for k in range(len(places) + 1):
        low, high = (places[k - 1] if k else -sympy.oo), (places[k] if k < len(places) else sympy.oo)
        here = expr.xreplace({s: _between(steps, low) for s, steps in known.items()})
        inside = _cut(here, z, low, high)
        if k == len(places):
            yield inside, None
        else:
            there = expr.xreplace({s: _at(steps, high) for s, steps in known.items()})
            yield inside, _value(there, z, high)


def _flattened(
    pieces: Sequence[tuple[Part, sympy.Basic | None]], outer: Sequence[sympy.Expr]
) -> tuple[list[sympy.Expr], list[sympy.Basic], list[sympy.Basic]]:
    places: list[sympy.Expr] = []
    at: list[sympy.Basic] = []
    between: list[sympy.Basic] = []
    for k, ((inner, inner_at, inner_between), behind) in enumerate(pieces):
        places += inner
        at += inner_at
        between += inner_between
        if behind is not None:
            places.append(outer[k])
            at.append(behind)
    if len(places) > MOST_PLACES:
        raise _NoSteps
    return places, at, between


def _cut(expr: sympy.Basic, z: sympy.Symbol, low: sympy.Expr, high: sympy.Expr) -> Part:
    """The values of a function of comparisons of z between two places."""
    found: list[sympy.Expr] = []
    for relation in expr.atoms(Relational):
        if not relation.has(z):
            continue
        gap = relation.lhs - relation.rhs
        if gap.has(*KINKED, *nf.JUMPING, nf.Opaque, nf.order_statistic) or gap.free_symbols != {z}:
            raise _NoSteps
        if isinstance(relation, (Equality, Unequality)) and sympy.diff(gap, z).has(z):
            raise _NoSteps
        found += sign_changes(gap, z)[0]
    places = [p for p in _in_order(found) if float(low) < float(p) < float(high)]
    ends = [low, *places, high]
    between = [_value(expr, z, _inside(a, b)) for a, b in itertools.pairwise(ends)]
    return places, [_value(expr, z, p) for p in places], between


def _value(expr: sympy.Basic, z: sympy.Symbol, place: sympy.Expr) -> sympy.Basic:
    value = sympy.sympify(expr.xreplace({z: place}))
    if not (isinstance(value, BooleanAtom) or value.is_number):
        raise _NoSteps
    if isinstance(value, sympy.Expr) and (value.is_finite is False or value is sympy.nan):
        raise _NoSteps
    return value


def _inside(low: sympy.Expr, high: sympy.Expr) -> sympy.Expr:
    if low == -sympy.oo:
        return sympy.Integer(0) if high == sympy.oo else sympy.floor(high) - 1
    return sympy.ceiling(low) + 1 if high == sympy.oo else (low + high) / 2


def _in_order(places: Sequence[sympy.Expr]) -> list[sympy.Expr]:
    found = {float(p): p for p in places}
    return [found[x] for x in sorted(found)]


def _between(steps: Steps, low: sympy.Expr) -> sympy.Basic:
    """The value right of a place."""
    return steps.between[sum(float(p) <= float(low) for p in steps.places)]


def _at(steps: Steps, place: sympy.Expr) -> sympy.Basic:
    for p, value in zip(steps.places, steps.at, strict=True):
        if float(p) == float(place):
            return value
    return _between(steps, place)


# ------------------------------------------------------------------------------------------ rounded and clipped


def _stairs(node: Node) -> Steps | None:
    """Whole numbers within bounds that never fall along their leaf, as clip(floor(h), 0, 4); None for anything else."""
    low, high = _bounds(node)
    if not (
        math.isfinite(low)
        and math.isfinite(high)
        and high - low <= MOST_PLACES
        and low == int(low)
        and high == int(high)
    ):
        return None
    places: list[sympy.Expr] = []
    at: list[sympy.Basic] = []
    between: list[sympy.Basic] = [sympy.Integer(int(low))]
    leaf = None
    for k in range(int(low) + 1, int(high) + 1):
        reached = _reaches(node, sympy.Integer(k), False)
        if reached is None:
            return None
        leaf, place, open_ = reached
        at.append(between[-1] if open_ else sympy.Integer(k))
        places.append(place)
        between.append(sympy.Integer(k))
    if leaf is None or any(float(a) >= float(b) for a, b in itertools.pairwise(places)):
        return None
    return Steps(leaf, tuple(places), tuple(at), tuple(between)).merged()


def _reaches(node: Node, k: sympy.Expr, open_: bool) -> tuple[Node, sympy.Expr, bool] | None:
    """The leaf x and the number c such that node >= k (> k where open) means x >= c, or x > c; None where it is not known.

    Bounds of minima and maxima are not looked at: k lies between them.
    """
    node = resolved(node)
    if isinstance(node, LinComb):
        return _reaches_sum(node, k, open_)
    if not isinstance(node, Nonlin) or len(node.xs) != 1 or any(_number_of(t) is None for t in node.thetas):
        return None
    given = {s: _number_of(t) for s, t in zip(node.phi.parameters, node.thetas, strict=True)}
    expr, z = node.phi.expr.xreplace(given), vector(0)
    if isinstance(expr, (sympy.Max, sympy.Min)) and len(expr.args) == 2 and z in expr.args:
        return _reaches(node.xs[0], k, open_)
    if isinstance(expr, nf.Rounding) and expr.args[0] == z:
        below = _least(expr, k + 1 if open_ and k.is_Integer else sympy.ceiling(k))
        return None if below is None else _reaches_or_leaf(node.xs[0], *below)
    return None


def _reaches_or_leaf(node: Node, c: sympy.Expr, open_: bool) -> tuple[Node, sympy.Expr, bool]:
    return _reaches(node, c, open_) or (resolved(node), c, open_)


def _reaches_sum(node: LinComb, k: sympy.Expr, open_: bool) -> tuple[Node, sympy.Expr, bool] | None:
    """a x + c, a > 0."""
    slope, offset, inner = sympy.Integer(0), sympy.Integer(0), None
    for a, x in node.terms:
        if isinstance(a, Node):
            return None
        number = _number_of(x)
        if number is not None:
            offset += snap(float(a)) * number
        elif inner is None:
            slope, inner = snap(float(a)), x
        else:
            return None
    if inner is None or not slope.is_positive:
        return None
    return _reaches(inner, (k - offset) / slope, open_)


def _least(expr: sympy.Expr, k: sympy.Expr) -> tuple[sympy.Expr, bool] | None:
    """Where the rounding of x becomes k, a whole number, and whether that is after the place."""
    half = sympy.Rational(1, 2)
    if isinstance(expr, nf.floor):
        return k, False
    if isinstance(expr, nf.ceiling):
        return k - 1, True
    if isinstance(expr, nf.trunc):
        return (k, False) if k > 0 else (k - 1, True)
    if isinstance(expr, nf.round_even):
        return k - half, bool(k % 2)
    if isinstance(expr, nf.round_away):
        return k - half, bool(k <= 0)
    return None


def _number_of(node: Node) -> sympy.Expr | None:
    steps = _number(node) if isinstance(node, Const) else None
    return None if steps is None or isinstance(steps.between[0], Boolean) else steps.between[0]


# ------------------------------------------------------------------------------------------ moved and stacked


@lru_cache(maxsize=4096)
def resolved(node: Node) -> Node:
    """The variable that moves of positions undo each other around, or take out of a stack, functions of one variable in between; the node
    itself where there are none."""
    base, places = node, np.arange(math.prod(node.type.shape))
    functions: list[Nonlin] = []
    while True:
        if (below := _below(base, places)) is not None:
            base, places = below
            if base.type == node.type and np.array_equal(places, np.arange(len(places))):
                return resolved(_applied(functions, base))
        elif base.type != node.type and isinstance(base, Nonlin) and _of_one(base):
            functions.append(base)
            base = base.xs[0]
        else:
            return node


def _of_one(node: Nonlin) -> bool:
    return len(node.xs) == 1 and not node.thetas and node.xs[0].type.shape == node.type.shape


def _applied(functions: Sequence[Nonlin], node: Node) -> Node:
    """Functions one after the other, the first last; a truth value that was made a number, and that a truth value, is what it was."""
    for function in reversed(functions):
        number = isinstance(node, Nonlin) and _of_one(node) and node.phi.expr == _NUMBER
        if number and function.phi.expr == sympy.Ne(vector(0), 0):
            node = node.xs[0]  # type: ignore[attr-defined]
        else:
            node = Nonlin(function.phi, (node,), (), source=function.source)
    return node


_NUMBER = sympy.Piecewise((1, vector(0)), (0, True))


def _below(node: Node, places: np.ndarray) -> tuple[Node, np.ndarray] | None:
    """Where in which operand some entries of a variable stand; None where they are no entries of one."""
    if node.type.kind != "vector":
        return None
    if isinstance(node, PositionMap):
        return _source(node, places)
    if isinstance(node, LinComb) and len(node.terms) > 1:
        return _of_stack(node, places)
    return None


def _of_stack(node: LinComb, places: np.ndarray) -> tuple[Node, np.ndarray] | None:
    """The one of several arrays, each with zeros around it, that stands at these places."""
    reaching: list[Node] = []
    for a, x in node.terms:
        if a != 1.0 or not isinstance(x, (PositionMap, Const)):
            return None
        here = (
            _places(x)[places]
            if isinstance(x, PositionMap) and _selects(x) and x.type.kind == "vector"
            else _constant(x, node, places)
        )
        if here is None or (here.any() and not here.all()):
            return None
        reaching += [x] if here.any() else []
    if len(reaching) > 1:
        return None
    if not reaching:
        return Const(Literal.of(np.zeros(()))), np.zeros(len(places), int)
    return _source(reaching[0], places)


def _constant(x: Node, node: Node, places: np.ndarray) -> np.ndarray | None:
    """The entries of a deterministic array that is added."""
    array = _number_array(x)
    return None if array is None else np.broadcast_to(array, node.type.shape).ravel()[places]


def _number_array(x: Node) -> np.ndarray | None:
    """What a constant is, moved or not."""
    if isinstance(x, Const):
        return x.value.array().astype(float)
    if isinstance(x, PositionMap) and len(x.args) == 1 and (inner := _number_array(x.args[0])) is not None:
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            return np.asarray(x.op(jnp.asarray(inner)))
    return None


def _source(node: Node, places: np.ndarray) -> tuple[Node, np.ndarray] | None:
    if not isinstance(node, PositionMap) or not _selects(node):
        return None
    found = _places(node)[places]
    return (node.args[0], found - 1) if found.all() else None


def _selects(node: PositionMap) -> bool:
    return node.op.selects and len(node.args) == 1


def _moves(node: PositionMap) -> bool:
    """Is every entry one of the operand's?"""
    return _selects(node) and node.type.kind == "vector" and bool(_places(node).all())


@lru_cache(maxsize=4096)
def _places(node: PositionMap) -> np.ndarray:
    """For every entry which one of the operand it is, counted from one; zero where it is filled."""
    shape = node.args[0].type.shape
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        numbers = jnp.arange(1.0, math.prod(shape) + 1).reshape(shape)
        return np.asarray(node.op(numbers)).astype(int).ravel()


def without_sign(node: Node) -> Node:
    """h where JAX has written where(h == 0, 0, h), which has one zero without a sign."""
    match node:
        case Nonlin(phi=Phi(expr=sympy.Piecewise(args=((number, mask), (value, _)))), xs=(which, x)) if (
            (number, mask, value) == (0, vector(0), vector(1)) and isinstance(which, Nonlin) and which.xs == (x,)
        ):
            return x if which.phi.expr == sympy.Eq(vector(0), 0) else node
    return node


# ------------------------------------------------------------------------------------------ choices


def chosen_along(var: Var, count: int) -> tuple[Var, Callable[[Sequence[sympy.Basic]], sympy.Expr]] | None:
    """The leaf of a number of few values, and which of `count` things it chooses as a function of that; None where it is none."""
    found = [steps_of(node) for _, node in var.blocks]
    first = found[0]
    if first is None or any(s is None or s.leaf is None or replace(s, leaf=first.leaf) != first for s in found):
        return None
    if any(
        s.leaf.type != node.type
        for s, (_, node) in zip(found, var.blocks, strict=True)
        if s is not None and s.leaf is not None
    ):
        return None
    place = lambda number: min(max(int(number), 0), count - 1)
    leaf = var.with_blocks([s.leaf for s in found if s is not None and s.leaf is not None])
    return leaf, lambda cases: first.function(lambda number: cases[place(number)])


def chosen(var: Var, cases: Sequence[Var]) -> tuple[list[Var], list[int]] | None:
    """Truth values and the numbers that hold where each is the first that is true, and one where none is, as argmax of truth values has it;
    None where `var` is not such a number."""
    found = [_chain(node, len(cases)) for _, node in var.blocks]
    if any(f is None for f in found) or any(f[1] != found[0][1] for f in found if f and found[0]):
        return None
    conditions = [var.with_blocks([f[0][i] for f in found if f]) for i in range(len(found[0][0]))]  # type: ignore[index]
    return conditions, found[0][1]  # type: ignore[index]


def _chain(node: Node, count: int) -> tuple[list[Node], list[int]] | None:
    node, conditions, numbers = resolved(node), [], []
    while True:
        if not (isinstance(node, Nonlin) and isinstance(node.phi.expr, sympy.Piecewise) and not node.thetas):
            return None
        (value, condition), *rest = node.phi.expr.args
        if len(rest) != 1 or not condition.is_Symbol or not value.is_Integer or not 0 <= value < count:
            return None
        conditions.append(node.xs[node.phi.vectors.index(condition)])
        numbers.append(int(value))
        last = rest[0][0]
        if last.is_Integer and 0 <= last < count:
            return conditions, [*numbers, int(last)]
        if not last.is_Symbol:
            return None
        node = resolved(node.xs[node.phi.vectors.index(last)])


# ------------------------------------------------------------------------------------------ bounds

_COMPARE = {"lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b}


def _by_bounds(eqn: Equation, values: Sequence[Value]) -> sympy.Basic | None:
    """Whether a comparison of whole numbers always holds, or never; None where it may or may not."""
    holds = _COMPARE.get(eqn.primitive)
    if holds is None or any(kind_of(atom) not in "iu" for atom in eqn.eqns[0].invars):
        return None
    (a, b), (c, d) = map(bounds_of, values)
    outcomes = {holds(x, y) for x in (a, b) for y in (c, d)}
    return sympy.sympify(outcomes.pop()) if len(outcomes) == 1 else None


Bounds = tuple[float, float]
_LINE: Bounds = (-math.inf, math.inf)


def bounds_of(value: Value) -> Bounds:
    """Numbers between which all entries lie, infinite where none are known."""
    if isinstance(value, Known):
        return min(float(v.min()) for v in value.values), max(float(v.max()) for v in value.values)
    if not isinstance(value, Var):
        return _LINE
    return _hull([_bounds(node) for _, node in value.blocks])


def _hull(parts: Sequence[Bounds]) -> Bounds:
    return min(low for low, _ in parts), max(high for _, high in parts)


@lru_cache(maxsize=4096)
def _bounds(node: Node) -> Bounds:
    node = resolved(node)
    match node:
        case Const():
            array = node.value.array()
            return float(array.min()), float(array.max())
        case PositionMap(args=(x, *_)) if _moves(node):
            return _bounds(x)
        case Nonlin(phi=phi, xs=xs, thetas=thetas):
            known = {s: _bounds(x) for s, x in zip((*phi.vectors, *phi.parameters), (*xs, *thetas), strict=True)}
            return _bounds_of(phi.expr, known)
        case LinComb(terms=terms) if not any(isinstance(a, Node) for a, _ in terms):
            parts = [sorted(float(a) * e for e in _bounds(x)) for a, x in terms if a != 0]  # type: ignore[arg-type]
            return sum(p[0] for p in parts), sum(p[1] for p in parts)
    return _LINE


def _bounds_of(expr: sympy.Basic, known: dict[sympy.Symbol, Bounds]) -> Bounds:
    if isinstance(expr, sympy.Symbol):
        return known.get(expr, _LINE)
    if isinstance(expr, Boolean):
        return 0.0, 1.0
    if expr.is_number:
        return float(expr), float(expr)
    if isinstance(expr, sympy.Piecewise):
        return _hull([_bounds_of(value, known) for value, _ in expr.args])
    inner = [_bounds_of(a, known) for a in expr.args] if isinstance(expr, (sympy.Add, sympy.Max, sympy.Min)) else []
    match expr:
        case sympy.Add():
            return sum(a for a, _ in inner), sum(b for _, b in inner)
        case sympy.Max():
            return max(a for a, _ in inner), max(b for _, b in inner)
        case sympy.Min():
            return min(a for a, _ in inner), min(b for _, b in inner)
    if isinstance(expr, nf.Rounding):
        low, high = _bounds_of(expr.args[0], known)
        return tuple(float(expr.whole(e)) if math.isfinite(e) else e for e in (low, high))  # type: ignore[return-value]
    return _LINE
