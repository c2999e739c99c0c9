"""Fuse elementwise chains: every Nonlin and Moment becomes one scalar function of Gaussian variables.

phi(psi(g)) becomes one function of g; a sum of Gaussians stays one argument; in a sum of Gaussians and images of
nonlinearities the Gaussian part becomes one argument and the images are inlined; a map that only selects positions
moves inside. What remains an argument without being Gaussian (a pooled image, say) the kernel stage takes up or
refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

import jax.numpy as jnp
import numpy as np
import sympy

from ntk_rules import functions as nf
from tensorprog.ir import (
    Const,
    LinComb,
    Literal,
    Moment,
    Node,
    Nonlin,
    Phi,
    Position,
    PositionMap,
    Program,
    Type,
    Weight,
    operands,
    position,
    topological,
)
from tensorprog.ir.phi import parameter, snap, vector
from tensorprog.ir.rebuild import rebuild
from tensorprog.passes.chains import carried_states
from tensorprog.passes.simplify import simplify
from tensorprog.passes.spread import opened_window, split_concatenation
from tensorprog.passes.structure import Structure, tied_weights, unstopped

__all__ = ["fuse", "fuse_gradients", "fuse_nodes"]

_MOST_ARGUMENTS = 16  # a function of more Gaussians has no hope of an expectation; leave its sum unopened


def fuse(program: Program, *, drop_zeros: bool = False, keep_means: bool = False) -> Program:
    """The same program with every nonlinearity a function of Gaussian variables.

    drop_zeros: also replace parameters that start at zero by zero, functions with marks for their derivatives by their values, and
    weights behind lax.stop_gradient by the ones that are the same elsewhere (only after the tangent program was taken). keep_means:
    leave the averages of Gaussian variables, which are zero in the limit but have gradients.
    """
    kept = program.weights if keep_means else tied_weights(program.nodes)
    names = frozenset(weight.name for weight in kept)
    return replace(program, output=fuse_nodes([program.output], names, drop_zeros)[program.output])


def fuse_gradients(roots: Sequence[Node]) -> dict[Node, Node]:
    """The same for several variables, of a forward and a backward pass, once all gradients are taken. The first is the output."""
    names = frozenset(weight.name for weight in tied_weights(topological(roots)))
    return fuse_nodes(list(dict.fromkeys(roots)), names, True, states=carried_states(roots, roots[:1]))


def fuse_nodes(
    roots: Sequence[Node], tied: frozenset[str], drop_zeros: bool, states: frozenset[Node] | None = None
) -> dict[Node, Node]:
    """What each variable becomes. roots: the output, and more variables to go through. tied: names of weights whose products have
    Zdots that are not written out. states: what stays a variable (default: states that are carried through many layers)."""
    states = carried_states(roots) if states is None else states
    known = _Known(Structure([], tied), drop_zeros)
    new: dict[Node, Node] = {}
    for node in topological(roots):
        made = rebuild(node, [new[o] for o in operands(node)])
        if isinstance(made, Weight) and drop_zeros:
            made = unstopped(made)
        elif isinstance(made, (Nonlin, Moment)) and made.xs:
            made = _fused_parts(made, known)
        elif isinstance(made, Nonlin):
            made = _fused_scalars(made)
        new[node] = simplify(made, known.facts)
        if node in states:
            known.states.add(new[node])
    return new


@dataclass
class _Known:
    """What the pass knows: facts, whether zeros are dropped, and the states that stay variables."""

    facts: Structure
    drop_zeros: bool
    states: set[Node] = field(default_factory=set)


def _fused_parts(node: Nonlin | Moment, known: _Known) -> Node:
    split = split_concatenation(node, known.facts)
    if split is None:
        return _fused(node, known)
    assert isinstance(split, LinComb)
    parts = []
    for a, padded in split.terms:
        part = _fused_parts(operands(padded)[0], known)  # type: ignore[arg-type]
        parts.append((a, rebuild(padded, [part])))
    return LinComb(tuple(parts), source=node.source)


class _Arguments:
    """The arguments of the function being made."""

    def __init__(self, known: _Known):
        self.facts, self.drop_zeros, self.states = known.facts, known.drop_zeros, known.states
        self.xs: dict[Node, sympy.Symbol] = {}
        self.thetas: dict[Node, sympy.Symbol] = {}
        self._scales: dict[Node, tuple[float, Node]] = {}

    def x(self, node: Node) -> sympy.Expr:
        """The symbol of a vector argument; multiples of one variable share it."""
        if self.drop_zeros and self.facts[node].zero:
            return sympy.Integer(0)
        scale, base = 1.0, node
        while isinstance(base, LinComb) and len(base.terms) == 1 and not isinstance(base.terms[0][0], Node):
            if base.terms[0][0] == 0:  # nothing is a multiple of it
                break
            scale, base = scale * base.terms[0][0], base.terms[0][1]
        first_scale, first = self._scales.setdefault(base, (scale, node))
        symbol = self.xs.setdefault(first, _symbol(f"x{len(self.xs)}"))
        return symbol if first is node else snap(scale / first_scale) * symbol

    def theta(self, node: Node) -> sympy.Expr:
        return self.thetas.setdefault(node, _symbol(f"t{len(self.thetas)}"))


def _fused(node: Nonlin | Moment, known: _Known) -> Node:
    arguments = _Arguments(known)
    expr = _compose(node, [_open(x, arguments) for x in node.xs], arguments)
    return _canonical(_differences(expr, arguments), arguments, node)


def _compose(node: Nonlin | Moment, inner: list[sympy.Expr], arguments: _Arguments) -> sympy.Expr:
    swap = dict(zip(node.phi.vectors, inner, strict=True))
    swap.update({s: arguments.theta(t) for s, t in zip(node.phi.parameters, node.thetas, strict=True)})
    expr = nf.value_of(node.phi.expr) if arguments.drop_zeros else node.phi.expr
    return _swapped(expr, tuple(swap.items()))


@cache
def _symbol(name: str) -> sympy.Symbol:
    """A symbol of a function being made; the same in every layer, so that equal layers are worked out once."""
    return sympy.Symbol(name, real=True)


@lru_cache(maxsize=4096)
def _swapped(expr: sympy.Expr, swap: tuple[tuple[sympy.Symbol, sympy.Expr], ...]) -> sympy.Expr:
    return expr.xreplace(dict(swap))


def _open(x: Node, arguments: _Arguments) -> sympy.Expr:
    """The expression of an argument in Gaussian variables."""
    if arguments.facts[x].gaussian or x in arguments.states or _waits(x, arguments.facts):
        return arguments.x(x)
    if isinstance(x, LinComb | PositionMap) and (shifted := _shifted(x, arguments.facts)) is not None:
        return _open_sum(shifted, arguments)
    match x:
        case Nonlin():
            return _compose(x, [_open(inner, arguments) for inner in x.xs], arguments)
        case LinComb():
            return _open_sum(x, arguments)
        case PositionMap() if _only_selects(x):
            pushed = _push(x)
            return arguments.x(x) if pushed is x else _open(pushed, arguments)
        case PositionMap() if (window := opened_window(x)) is not None:
            return _open_sum(window, arguments)
    return arguments.x(x)


def _waits(x: Node, facts: Structure) -> bool:
    """Is it a sum with a product whose Zdot is not written out? The sum may cancel it, and is kept for that."""
    if not facts.tied or not isinstance(x, LinComb):
        return False
    gaussian = [term for _, term in x.terms if term.type.kind == "vector" and facts[term].gaussian]
    return any(name in facts.tied for term in gaussian for name, *_ in facts[term].roots)


def _open_sum(x: LinComb, arguments: _Arguments) -> sympy.Expr:
    facts = arguments.facts
    flat = _flatten(x, facts)
    if flat is None:
        return arguments.x(x)
    gaussian = tuple(term for term in flat if term[1].type.kind == "vector" and facts[term[1]].gaussian)
    expr = sympy.Integer(0)
    if gaussian:
        plain = len(gaussian) == 1 and gaussian[0][0] == 1.0
        expr += arguments.x(gaussian[0][1] if plain else LinComb(gaussian, source=x.source))
    for a, term in flat:
        if term.type.kind == "scalar":
            inner = _number(term) if _number(term) is not None else arguments.theta(term)
        elif not facts[term].gaussian:
            inner = _open(term, arguments)
        else:
            continue
        expr += (arguments.theta(a) if isinstance(a, Node) else snap(a)) * inner
    return expr


def _number(node: Node) -> sympy.Expr | None:
    if isinstance(node, Const) and node.value.array().size == 1:
        return snap(float(node.value.array().ravel()[0]))
    return None


def _flatten(x: LinComb, facts: Structure) -> list[tuple[float | Node, Node]] | None:
    """Open sums inside sums, as far as their coefficients are numbers; None when there are too many terms."""
    flat: list[tuple[float | Node, Node]] = []
    stack: list[tuple[float | Node, Node]] = list(reversed(x.terms))
    while stack:
        a, term = stack.pop()
        opens = term.type.kind == "vector" and not facts[term].gaussian and not isinstance(a, Node)
        if opens and isinstance(term, PositionMap):
            term = _shifted(term, facts) or term
        if opens and isinstance(term, LinComb) and not isinstance(a, Node):
            numbers = [(b, y) for b, y in term.terms if not isinstance(b, Node)]
            if a == 1.0:
                stack.extend(reversed(term.terms))
                continue
            if len(numbers) == len(term.terms):
                stack.extend((a * b, y) for b, y in reversed(numbers))
                continue
        flat.append((a, term))
        if len(flat) > _MOST_ARGUMENTS:
            return None
    return flat


def _shifted(x: LinComb | PositionMap, facts: Structure) -> LinComb | None:
    """A shifted Gaussian as multiples of Gaussian and deterministic variables: op(a (g + t)) = op(a g) + op(a t), for a linear map."""
    terms = _affine(x, facts)
    return None if terms is None else LinComb(tuple(terms), source=x.source)


def _affine(x: Node, facts: Structure) -> list[tuple[float, Node]] | None:
    """The terms of `_shifted`; None where a variable is no such sum."""
    if x.type.kind == "scalar" or facts[x].gaussian:
        return [(1.0, x)]
    made: list[tuple[float, Node]] = []
    if isinstance(x, LinComb):
        for a, term in x.terms:
            inner = _affine(term, facts)
            if inner is None or len(made) + len(inner) > _MOST_ARGUMENTS:
                return None
            made += [(b, _times(a, y)) if isinstance(a, Node) else (a * b, y) for b, y in inner]
    elif isinstance(x, PositionMap):
        inner, aux = _affine(x.args[0], facts), x.args[1:]
        for b, y in inner or ():
            vector_like = y.type.kind == "vector"
            made.append(
                (b, PositionMap(x.op, (y, *aux), x.result) if vector_like else _moved_shift(x.op, y, x.args[0], aux))
            )
    return made or None


def _times(a: Node, y: Node) -> Node:
    if y.type.kind == "vector":
        return LinComb(((a, y),))
    return Nonlin(Phi(parameter(0) * parameter(1), 0, 2), (), (a, y))


def _push(x: PositionMap) -> Node:
    """op(phi(y; theta)) = phi(op y; op theta) for a map that only selects positions; where it fills with zeros, times
    the places that it does not."""
    inner, op = x.args[0], x.op
    if isinstance(inner, PositionMap) and _only_selects(inner):
        inner = _push(inner)
    if isinstance(inner, Nonlin):
        xs = tuple(_apply(op, y, x.result) for y in inner.xs)
        thetas = tuple(_apply_scalar(op, t, inner) for t in inner.thetas)
        if op.row.fills and inner.phi.expr.xreplace(dict.fromkeys(inner.phi.vectors, sympy.Integer(0))) != 0:
            kept = Const(Literal.of(np.asarray(op(jnp.ones(inner.type.shape)))))
            phi = Phi(inner.phi.expr * parameter(len(thetas)), len(xs), len(thetas) + 1)
            return Nonlin(phi, xs, (*thetas, kept), source=inner.source)
        return Nonlin(inner.phi, xs, thetas, source=inner.source)
    if isinstance(inner, LinComb):
        terms = tuple(
            (
                _apply_scalar(op, a, inner) if isinstance(a, Node) else a,
                _apply(op, y, x.result) if y.type.kind == "vector" else _moved_shift(op, y, inner),
            )
            for a, y in inner.terms
        )
        return LinComb(terms, source=x.source)
    return x


def _only_selects(x: PositionMap) -> bool:
    """Is every entry of the result one entry of the argument, or zero?"""
    return x.op.selects and len(x.args) == 1


def _apply(op: Position, y: Node, result: Type) -> Node:
    return PositionMap(op, (y,), result)


def _apply_scalar(op: Position, theta: Node, like: Node) -> Node:
    """A parameter or coefficient at the places that a map selects; where it fills with zeros, no matter which number."""
    if all(size == 1 for size in theta.type.shape):
        return (
            theta if theta.type.shape == () else PositionMap(position("reshape", to=()), (theta,), Type("scalar", ()))
        )
    return _moved_shift(op, theta, like)


def _moved_shift(op: Position, theta: Node, like: Node, aux: Sequence[Node] = ()) -> Node:
    """A linear map of a deterministic array that is added to a vector."""
    shape = like.type.shape
    if theta.type.shape != shape:
        missing = len(shape) - len(theta.type.shape)
        grown = position("broadcast", to=shape, axes=tuple(range(missing, len(shape))))
        theta = PositionMap(grown, (theta,), Type("scalar", shape))
    return PositionMap(op, (theta, *aux), Type("scalar", op.shape(shape, *(a.type.shape for a in aux))))


def _differences(expr: sympy.Expr, arguments: _Arguments) -> sympy.Expr:
    """max(x, y) = y + max(x - y, 0): a kink between two Gaussians becomes one of their difference, which is Gaussian.

    So a maximum of two is exact, also where the two coincide. Which of three is the largest is asked of themselves: their three
    differences have errors of rounding of their own, by which each could seem larger than the next, where all are equal.
    """
    names = {symbol: node for node, symbol in arguments.xs.items() if arguments.facts[node].gaussian}
    forms = {part: _split_form(part, tuple(names)) for part in sorted(expr.atoms(*_KINKED), key=str)}
    compared = [
        {s for s, _ in form[1]}
        for part, (_, form) in forms.items()
        if form is not None and isinstance(part, sympy.Heaviside)
    ]
    swap = {}
    for part, (rest, form) in forms.items():
        if form is None:
            continue
        scale, terms = form
        mine = {s for s, _ in terms}
        if isinstance(part, sympy.Heaviside) and any(mine & other and mine != other for other in compared):
            continue
        difference = arguments.x(LinComb(tuple((c, names[s]) for s, c in terms)))
        swap[part] = rest(snap(scale) * difference)
    return _swapped(expr, tuple(swap.items())) if swap else expr


_KINKED = (sympy.Max, sympy.Min, sympy.Heaviside, sympy.sign, sympy.Abs, sympy.core.relational.Relational)


@lru_cache(maxsize=4096)
def _split_form(part: sympy.Expr, symbols: tuple[sympy.Symbol, ...]) -> tuple[Callable, tuple | None]:
    """How to write a kinked function again with another name for the form of several Gaussians in it; and that form:
    its scale and its terms, the first with coefficient one. None where there is no such form."""
    if isinstance(part, (sympy.Max, sympy.Min)):
        if len(part.args) != 2:
            return _nothing, None
        left, right = part.args
        form, rebuild = left - right, lambda d: right + part.func(d, 0)
    elif isinstance(part, sympy.core.relational.Relational):
        form, rebuild = part.lhs - part.rhs, lambda d: part.func(d, 0)
    else:
        form, rebuild = part.args[0], lambda d: part.func(d, *part.args[1:])
    form = sympy.expand(form)
    terms = tuple((s, c) for s in symbols if (c := form.coeff(s)) != 0)
    offset = form - sympy.Add(*(c * s for s, c in terms))
    if len(terms) < 2 or offset.has(*symbols) or not all(c.is_number for _, c in terms):
        return _nothing, None
    scale = terms[0][1]
    scaled = tuple((s, float(c / scale)) for s, c in terms)
    return lambda d: rebuild(d + offset), (float(scale), scaled)


def _nothing(form: sympy.Expr) -> sympy.Expr:
    return form


def _canonical(expr: sympy.Expr, arguments: _Arguments, node: Nonlin | Moment) -> Node:
    """Drop what the expression does not use and number the rest."""
    free = expr.free_symbols
    xs = [(n, s) for n, s in arguments.xs.items() if s in free]
    thetas = [(n, s) for n, s in arguments.thetas.items() if s in free]
    if not xs:
        # keep one vector argument, so that a constant function stays a vector variable
        xs = list(arguments.xs.items())[:1] or [(node.xs[0], _symbol("x0"))]
    swap = {s: vector(i) for i, (_, s) in enumerate(xs)} | {s: parameter(i) for i, (_, s) in enumerate(thetas)}
    phi = Phi(_swapped(expr, tuple(swap.items())), len(xs), len(thetas))
    return type(node)(phi, tuple(n for n, _ in xs), tuple(n for n, _ in thetas), source=node.source)


def _fused_scalars(node: Nonlin) -> Node:
    """Deterministic arithmetic fuses in the same way."""
    inner: dict[Node, sympy.Symbol] = {}
    swap = {}
    for symbol, theta in zip(node.phi.parameters, node.thetas, strict=True):
        if isinstance(theta, Nonlin) and theta.type.shape in (node.type.shape, ()):
            parts = {
                s: inner.setdefault(t, _symbol(f"t{len(inner)}"))
                for s, t in zip(theta.phi.parameters, theta.thetas, strict=True)
            }
            swap[symbol] = _swapped(theta.phi.expr, tuple(parts.items()))
        else:
            number = _number(theta)
            swap[symbol] = number if number is not None else inner.setdefault(theta, _symbol(f"t{len(inner)}"))
    expr = _swapped(node.phi.expr, tuple(swap.items()))
    kept = [(t, s) for t, s in inner.items() if s in expr.free_symbols] or list(inner.items())[:1]
    if not kept:
        return node
    renamed = expr.xreplace({s: parameter(i) for i, (_, s) in enumerate(kept)})
    made = Nonlin(Phi(renamed, 0, len(kept)), (), tuple(t for t, _ in kept), source=node.source)
    return made if made.type.shape == node.type.shape else node
