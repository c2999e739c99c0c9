"""Every Zdot written out: the pass after which a MatMul stands for its Zhat, and no rule needs to know of transposes.

    Z^{Wx} = Zhat^{Wx} + Zdot^{Wx},    Zdot^{Wx} = sigma^2 sum_i Z^{y_i} E[dZ^x / dZhat^{W^T y_i}]

over the earlier products W^T y_i on which x depends (Yang, Tensor Programs III, section 2; for a matrix of n1 x n2 with entries
of variance sigma^2 / n the factor is sigma^2 n2 / n). A symmetric matrix is its own transpose. The products become
sums of a MatMul, which is Gaussian and independent of those with the transpose, and earlier vectors with deterministic
coefficients. Those that vanish by structure (no path between the two, an odd function) are absent.

Variables are arrays over positions: with W[c] the matrices of an array of weights and J[p, q] = E[dZ^{x[p]} / dZhat^{u[q]}],
u = W^T y, a coefficient belongs to each pair of positions, summed in the letters of the two products.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import sympy

from ntk_rules.steps import canonical_kinks
from tensorprog.errors import UnsupportedError, explain
from tensorprog.ir import (  # fmt: skip
    Const,
    LinComb,
    Literal,
    MatMul,
    Moment,
    Node,
    Nonlin,
    Phi,
    PositionMap,
    Program,
    Type,
    Weight,
    operands,
    position,
    topological,
)
from tensorprog.ir.phi import parameter, snap
from tensorprog.ir.rebuild import rebuild
from tensorprog.passes.fuse import fuse_nodes
from tensorprog.passes.slopes import Slopes, is_leaf, mapped, mean_of, number_of, scalar_sum
from tensorprog.passes.structure import Structure, opposite, parity_of, tied_weights

__all__ = ["Dot", "Exposed", "expose"]

MOST_PLACES = 64  # positions that are mixed on the way from a product to one with the transpose, each with a derivative of its own

MOST_TERMS = 64  # of a sum in which a Zdot may be cancelled
ROUNDING = 1e-13  # a coefficient below it, among others of order one, is a zero

Term = tuple[float | Node, Node]


@dataclass(frozen=True)
class Dot:
    """One term of a Zdot: coefficient times vector, in the product `of`, because its x depends on the product `by`."""

    of: MatMul
    by: MatMul
    coefficient: float | Node
    vector: Node


@dataclass(frozen=True)
class Exposed:
    """A program in which every MatMul stands for its Zhat, and the terms that were added."""

    program: Program
    dots: tuple[Dot, ...]


def expose(program: Program) -> Exposed:
    """Write out every Zdot, and fuse what that makes. The program is fused, with its zeros dropped."""
    tied = tied_weights(program)
    if not tied:
        return Exposed(program, ())
    work = _Work(tied)
    for node in topological([program.output]):
        work.add(node)
    output = work.new[program.output]
    shown = [
        part for dot in work.dots for part in (dot.of, dot.by, dot.coefficient, dot.vector) if isinstance(part, Node)
    ]
    new = fuse_nodes([output, *shown], frozenset(), drop_zeros=True)
    named = lambda part: new[part] if isinstance(part, Node) else part
    dots = tuple(Dot(*map(named, (dot.of, dot.by, dot.coefficient, dot.vector))) for dot in work.dots)
    return Exposed(replace(program, output=new[output]), dots)


class _Work:
    def __init__(self, tied: frozenset[Weight]):
        self.tied, self.facts = tied, Structure([])
        self.new: dict[Node, Node] = {}
        self.dots: list[Dot] = []
        self.sums: dict[Node, LinComb] = {}  # of each product, the sum of its Zhat and its Zdot
        self.made: set[Node] = set()  # those sums
        self._earlier: dict[Weight, dict[MatMul, None]] = {}
        self._slopes: dict[tuple[MatMul, Literal], Slopes] = {}

    def add(self, node: Node) -> None:
        made = rebuild(node, [self.new[o] for o in operands(node)])
        if isinstance(made, MatMul) and made.root in self.tied:
            made = self._product(made)
        elif isinstance(made, LinComb) and made.type.kind == "vector":
            made = _cancelled(made, self.made)
        self.new[node] = made

    def _product(self, made: MatMul) -> Node:
        if made in self.sums:
            return self.sums[made]
        earlier = self._earlier.setdefault(made.root, {})
        found = [dot for by in tuple(earlier) for dot in self._between(made, by)]
        earlier[made] = None
        if not found:
            return made
        self.dots += found
        terms = _joined([(1.0, made), *((dot.coefficient, dot.vector) for dot in found)])
        self.sums[made] = LinComb(tuple(terms), source=made.source)
        self.made.add(self.sums[made])
        return self.sums[made]

    def _between(self, made: MatMul, by: MatMul) -> Iterator[Dot]:
        """The terms that `made` = W x gains from `by` = W^T y."""
        if made.x.type.kind != "vector" or (made.summed == by.summed and not made.root.symmetric):
            return
        if opposite(self.facts[made.x].odd, self.facts[by].odd):
            return
        if (links := _links(made.x, by)) is None:
            return
        layout = _Layout(made, by, links)
        for places in layout.places():
            slope = self._slope(made.x, by, layout.seed(places))
            if slope is None or (slope.type.kind == "vector" and _mean_vanishes(slope)):
                continue
            if (mean := mean_of(slope)) is not None:
                yield from (Dot(made, by, a, y) for a, y in layout.term(mean, places))

    def _slope(self, x: Node, by: MatMul, seed: Const) -> Node | None:
        key = (by, seed.value)
        if key not in self._slopes:
            self._slopes[key] = Slopes(by, seed)
        return self._slopes[key][x]


# ------------------------------------------------------------------------------------------ positions


def _links(x: Node, by: MatMul) -> tuple[int | None, ...] | None:
    """For each axis of `by` the axis of x that carries it along; None for one that is mixed on the way, or of size one. None
    in all where x does not depend on it."""
    known: dict[Node, tuple[int | None, ...]] = {by: tuple(i if n > 1 else None for i, n in enumerate(by.type.shape))}
    for node in topological([x], skip=is_leaf):
        below = [known[o] for o in operands(node) if o in known]
        if not below:
            continue
        if isinstance(node, PositionMap):
            source = node.op.same_axis(node.args[0].type.shape)
            known[node] = tuple(
                _single([j for j, s in enumerate(source) if k is not None and s == k]) for k in below[0]
            )
        else:
            known[node] = tuple(axes[0] if len(set(axes)) == 1 else None for axes in zip(*below, strict=True))
    return known.get(x)


def _single(found: list[int]) -> int | None:
    return found[0] if len(found) == 1 else None


class _Layout:
    """The positions of W x and W^T y in common letters: those of W x, and of y and u = W^T y where they are others."""

    def __init__(self, made: MatMul, by: MatMul, links: tuple[int | None, ...]):
        self.made, self.by, self.links = made, by, links
        self.w, self.x, self.out = made.letters
        w2, y, u = by.letters
        if made.root.symmetric:
            i, j = made.root.matrix_axes  # type: ignore[misc]
            swapped = list(w2)
            swapped[i], swapped[j] = w2[j], w2[i]
            w2 = "".join(swapped)
        spare = (c for c in string.ascii_letters if c not in self.w + self.x + self.out)
        names = dict(zip(w2, self.w, strict=True))
        for c in y + u:
            if c not in names:
                names[c] = next(spare)
        for axis, link in enumerate(links):
            if link is not None and names[u[axis]] != self.x[link]:
                names = {c: self.x[link] if name == names[u[axis]] else name for c, name in names.items()}
        self.y, self.u = ("".join(names[c] for c in letters) for letters in (y, u))
        if any(names[c] != name for c, name in zip(w2, self.w, strict=True)) or len(set(self.y)) < len(self.y):
            raise self._refusal("positions are exchanged between the two products")
        self.sizes = {
            c: n
            for letters, shape in (
                (self.w, made.root.shape), (self.x, made.x.type.shape), (self.out, made.type.shape),
                (self.y, by.x.type.shape), (self.u, by.type.shape),
            )
            for c, n in zip(letters, shape, strict=True)
        }  # fmt: skip

    def places(self) -> Iterator[dict[str, int]]:
        """The positions of u that are mixed on the way to x, by letter, one after the other."""
        mixed = [c for c, link in zip(self.u, self.links, strict=True) if link is None]
        if (count := math.prod(self.sizes[c] for c in mixed)) > MOST_PLACES:
            raise self._refusal(f"{count} positions are mixed on the way, of which at most {MOST_PLACES} are followed")
        for place in itertools.product(*(range(self.sizes[c]) for c in mixed)):
            yield dict(zip(mixed, place, strict=True))

    def seed(self, places: dict[str, int]) -> Const:
        """The derivative of u in itself at these positions, all others at once."""
        value = np.zeros(self.by.type.shape)
        value[tuple(places.get(c, slice(None)) for c in self.u)] = 1.0
        return Const(Literal.of(value))

    def term(self, slope: Node, places: dict[str, int]) -> Iterator[Term]:
        """sigma^2 sum J y over what the two products sum, J the mean slope in u at these positions."""
        root, summed = self.made.root, self.made.summed
        assert summed is not None
        rest = dict.fromkeys(c for c in self.x + self.y if c not in self.out and c not in places and self.sizes[c] > 1)
        target = self.out + "".join(rest)
        times = math.prod(self.sizes[c] for c in self.w if c not in target and c not in places)
        scale = float(snap(root.std**2 * float(root.widths[summed] or 1) * times))
        factor = self._spread(slope, self.x, target, places)
        for c, place in places.items():
            if c in self.out and self.sizes[c] > 1 and factor is not None:
                mask = np.eye(self.sizes[c])[place].reshape([-1 if d == c else 1 for d in target])
                shape = np.broadcast_shapes(mask.shape, factor.type.shape)
                factor = scalar_sum([(Const(Literal.of(mask)), factor)], shape)
        if factor is None:
            return
        number = number_of(factor)
        coefficient = scale * number if number is not None else _scaled(factor, scale)
        vector = self._spread(self.by.x, self.y, target, places)
        if vector is None:
            return
        vector = self._stretched(
            vector, tuple(1 if c in places and c not in self.out else self.sizes[c] for c in target)
        )
        if not rest:
            yield coefficient, vector
            return
        if vector.type.kind != "vector":
            raise self._refusal("the transpose multiplies a deterministic array of several positions")
        made = Type("vector", tuple(self.sizes[c] for c in self.out), self.made.type.axis, self.made.type.width)
        op = position("sum", axes=tuple(range(len(self.out), len(target))))
        product = LinComb(((coefficient, vector),), source=self.made.source)
        yield 1.0, PositionMap(op, (product,), made, source=self.made.source)

    def _spread(self, node: Node, letters: str, target: str, places: dict[str, int]) -> Node | None:
        """An array at the given places of some letters, its axes in the order of `target`, of size one where it has none."""
        current, coordinate = node, node.type.axis
        typed = lambda shape, axis: Type(node.type.kind, shape, axis, node.type.width)
        for axis, c in enumerate(letters):
            if c in places and self.sizes[c] > 1:
                shape = current.type.shape
                start = tuple(places[c] if i == axis else 0 for i in range(len(shape)))
                stop = tuple(places[c] + 1 if i == axis else n for i, n in enumerate(shape))
                op = position("slice", start=start, stop=stop, stride=(1,) * len(shape))
                if (cut := mapped(op, (current,), typed(op.shape(shape), coordinate))) is None:
                    return None
                current = cut
        order = sorted(range(len(letters)), key=lambda i: target.find(letters[i]) % (len(target) + 1))
        sizes = current.type.shape
        at = {letters[i]: sizes[i] for i in order if letters[i] in target}
        place = None if coordinate is None or letters[coordinate] not in target else target.index(letters[coordinate])
        steps = [
            (position("transpose", permutation=tuple(order)), tuple(sizes[i] for i in order), order != sorted(order)),
            (position("reshape", to=tuple(at.get(c, 1) for c in target)), tuple(at.get(c, 1) for c in target), True),
        ]
        for op, shape, needed in steps:
            if needed and (op.name != "reshape" or shape != current.type.shape):
                axis = place if op.name == "reshape" else None if coordinate is None else order.index(coordinate)
                if (moved := mapped(op, (current,), typed(shape, axis))) is None:
                    return None
                current = moved
        return current

    def _stretched(self, vector: Node, shape: tuple[int, ...]) -> Node:
        if vector.type.shape == shape:
            return vector
        op = position("broadcast", to=shape, axes=tuple(range(len(shape))))
        made = mapped(op, (vector,), Type(vector.type.kind, shape, vector.type.axis, vector.type.width))
        assert made is not None
        return made

    def _refusal(self, reason: str) -> UnsupportedError:
        return UnsupportedError(
            explain(
                f"the weight {self.made.root.name!r} and its transpose act one after the other on arrays of positions",
                where=f"{self.by.source or '?'} and {self.made.source or '?'}",
                reason=reason,
                mend="use two independent weights, or fewer positions",
            )
        )


# ------------------------------------------------------------------------------------------ sums


def _scaled(factor: Node, scale: float) -> Node:
    """A deterministic array times a number."""
    return factor if scale == 1.0 else LinComb(((scale, factor),))


def _joined(terms: list[Term]) -> list[Term]:
    """Numbers times the same vector are added; what adds to zero goes."""
    numbers: dict[Node, float] = {}
    for a, x in terms:
        if not isinstance(a, Node):
            numbers[x] = numbers.get(x, 0.0) + a
    kept = [(a, x) for x, a in numbers.items() if a != 0.0]
    return kept + [(a, x) for a, x in terms if isinstance(a, Node)]


def _cancelled(node: LinComb, products: set[Node]) -> LinComb:
    """A sum of a Zhat, its Zdot, and others, without the terms of the Zdot that the others cancel: the Onsager term of
    approximate message passing. The same sum where none does."""
    flat, opened = [], False
    waiting = list(reversed(node.terms))
    while waiting:
        a, x = waiting.pop()
        if x in products and not isinstance(a, Node):
            assert isinstance(x, LinComb)
            flat += [(_times(a, b), y) for b, y in x.terms]
            opened = True
        elif isinstance(x, LinComb) and x.type == node.type and (len(x.terms) == 1 or not isinstance(a, Node)):
            waiting += [(_times(a, b), y) for b, y in reversed(x.terms)]
        else:
            flat.append((a, x))
        if len(flat) > MOST_TERMS:
            return node
    left = _merged(flat) if opened else flat
    return node if len(left) == len(flat) else LinComb(tuple(left), source=node.source)


def _times(a: float | Node, b: float | Node) -> float | Node:
    if not isinstance(a, Node) and not isinstance(b, Node):
        return a * b
    if isinstance(a, Node) and isinstance(b, Node):
        return Nonlin(Phi(parameter(0) * parameter(1), 0, 2), (), (a, b))
    factor, node = (a, b) if isinstance(b, Node) else (b, a)
    if isinstance(node, LinComb) and len(node.terms) == 1 and not isinstance(node.terms[0][0], Node):
        return _scaled(node.terms[0][1], factor * node.terms[0][0])  # type: ignore[operator]
    return _scaled(node, factor)  # type: ignore[arg-type]


def _merged(flat: list[Term]) -> list[Term]:
    """The terms with the coefficients of each vector added as far as they are numbers, or means of functions of the same
    variables."""
    total: dict[tuple[Node, tuple[Node, ...] | Node | None], sympy.Expr] = {}
    made: dict[tuple[Node, tuple[Node, ...] | Node | None], Moment] = {}
    for a, x in flat:
        scale, base = _split(a)
        if isinstance(base, Moment):
            key = (x, (*base.xs, *base.thetas))
            made[key] = base
            total[key] = total.get(key, sympy.Integer(0)) + snap(scale) * base.phi.expr
        else:
            total[x, base] = total.get((x, base), sympy.Integer(0)) + snap(scale)
    left: list[Term] = []
    for a, x in flat:
        scale, base = _split(a)
        key = (x, (*base.xs, *base.thetas)) if isinstance(base, Moment) else (x, base)
        if key not in total:
            continue
        value = total.pop(key)
        if _is_zero(value):
            continue
        if isinstance(base, Moment):
            unchanged = value == snap(scale) * base.phi.expr
            left.append((a if unchanged else _moment(value, made[key]), x))
        else:
            left.append((float(value) if base is None else _scaled(base, float(value)), x))
    return left


def _is_zero(value: sympy.Expr) -> bool:
    """Zero up to the rounding of its coefficients, with kinks in their standard form."""
    zs = tuple(sorted(value.free_symbols, key=str))
    left = sympy.expand(canonical_kinks(sympy.expand(value), zs))
    return all(abs(float(c)) < ROUNDING for c in left.evalf(17).as_coefficients_dict().values())


def _moment(value: sympy.Expr, like: Moment) -> Node:
    return Moment(Phi(value, like.phi.n_vectors, like.phi.n_parameters), like.xs, like.thetas, source=like.source)


def _split(a: float | Node) -> tuple[float, Node | None]:
    """A coefficient as a number times a variable."""
    if not isinstance(a, Node):
        return a, None
    if isinstance(a, PositionMap) and a.op.name == "reshape" and math.prod(a.type.shape) == 1:
        return _split(a.args[0])
    if isinstance(a, LinComb) and len(a.terms) == 1 and not isinstance(a.terms[0][0], Node):
        scale, base = _split(a.terms[0][1])
        return a.terms[0][0] * scale, base
    if isinstance(a, Nonlin) and len(a.thetas) == 1 and (rate := a.phi.expr / parameter(0)).is_number:
        scale, base = _split(a.thetas[0])
        return float(rate) * scale, base
    return 1.0, a


# ------------------------------------------------------------------------------------------ means that vanish


def _mean_vanishes(slope: Node) -> bool:
    """Is a function odd in the Gaussians of one matrix, or in all? Their signs can be flipped together."""
    order = list(topological([slope], skip=is_leaf))
    leaves = dict.fromkeys(o for node in order for o in operands(node) if isinstance(o, (MatMul, Weight)))
    roots = [_root(node) for node in leaves if node.type.kind == "vector"]
    for flipped in (*({root} for root in dict.fromkeys(roots)), set(roots)):
        signs: dict[Node, bool | None] = {node: _root(node) in flipped for node in leaves}
        for node in order:
            signs[node] = _sign(node, signs)
        if signs[slope]:
            return True
    return False


def _root(node: Node) -> tuple[Weight, int | None]:
    return (node.root, node.summed) if isinstance(node, MatMul) else (node, None)  # type: ignore[return-value]


def _sign(node: Node, signs: dict[Node, bool | None]) -> bool | None:
    match node:
        case LinComb(terms=terms):
            found = {signs[x] if x.type.kind == "vector" else False for _, x in terms}
            return found.pop() if len(found) == 1 else None
        case PositionMap(args=args):
            return signs[args[0]]
        case Nonlin(phi=phi, xs=xs):
            return parity_of(phi.expr, tuple(signs[x] for x in xs))
    return None
