"""Backpropagation, one instruction at a time: what `passes.adjoint` is made of, with its formulas."""

from __future__ import annotations

import string
from collections.abc import Iterator
from dataclasses import dataclass, replace

import sympy

from tensorprog.errors import UnsupportedError, explain
from tensorprog.ir import (
    ArrayOp,
    Const,
    LinComb,
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
from tensorprog.ir.phi import identity, parameter, snap, vector
from tensorprog.passes.slopes import mapped, number_of, scalar_sum
from tensorprog.passes.structure import Structure
from tensorprog.passes.transposed import transposed

__all__ = ["Backward", "Use"]


@dataclass(frozen=True)
class Use:
    """One use of a trained parameter, y = W z, or y = w itself (z is None then).

    letters: of the axes of the weight, of z, and of y. dy: the gradient in y, an array with the seeds' axes before those of y;
    deterministic where y has finitely many coordinates, or where it is the same for all.
    """

    weight: Weight
    letters: tuple[str, str, str]
    dy: Node
    z: Node | None


class Backward:
    """Goes back through the instructions of a program. lead: sizes of the axes that all gradients have in front."""

    def __init__(self, program: Program, lead: tuple[int, ...]):
        self.program, self.lead = program, lead
        self.facts = Structure([])
        self.trained = _trained(program)
        self.fresh = _readouts(program)
        self._terms: dict[Node, list[tuple[float | Node, Node]]] = {}

    def run(self, seed: Const) -> Iterator[Use]:
        """Go back from the output; every use of a trained parameter that is met."""
        self._terms[self.program.output] = [(1.0, seed)]
        for node in reversed(tuple(topological([self.program.output]))):
            if node in self._terms and (d := self._total(node)) is not None:
                yield from self._back(node, d)

    def _total(self, node: Node) -> Node | None:
        terms, shape = self._terms.pop(node), (*self.lead, *node.type.shape)
        if all(t.type.kind == "scalar" for _, t in terms):
            return scalar_sum(terms, shape)
        return terms[0][1] if len(terms) == 1 and terms[0][0] == 1.0 else LinComb(tuple(terms), source=node.source)

    def _add(self, node: Node, d: Node | None, scale: float | Node = 1.0) -> None:
        if d is not None and node in self.trained:
            self._terms.setdefault(node, []).append((scale, d))

    def _back(self, node: Node, d: Node) -> Iterator[Use]:
        match node:
            case Weight():
                yield from self._use(node, d)
            case MatMul():
                yield from self._use(node, d)
                self._product(node, d)
            case LinComb():
                self._sum(node, d)
            case PositionMap():
                self._moved(node, d)
            case Nonlin() if node.xs:
                self._function(node, d)
            case Nonlin():
                for i, theta in enumerate(node.thetas):
                    self._add(theta, self._arithmetic(node, i, d))
            case Moment():
                self._average(node, d)
            case ArrayOp(primitive="reduce_max" | "reduce_min"):
                self._extremum(node, d)
            case ArrayOp():
                raise _refusal(node, "it is simply run, and its derivative is not known")
            case _:
                raise AssertionError(f"no gradient of {type(node).__name__}")

    def _use(self, node: MatMul | Weight, d: Node) -> Iterator[Use]:
        weight = node.root if isinstance(node, MatMul) else node
        if not weight.tangent_std:
            return
        if isinstance(node, MatMul):
            yield Use(weight, node.letters, d, node.x)
        else:
            letters = string.ascii_letters[: len(weight.shape)]
            yield Use(weight, (letters, "", letters), d, None)

    # ---------------------------------------------------------------------------------------- instructions

    def _product(self, node: MatMul, d: Node) -> None:
        """dx = W' dy; of a deterministic x the mean over the coordinates."""
        if node.x not in self.trained:
            return
        w, x, out = node.letters
        weight: Weight = replace(node.root, primed=True) if node.root in self.fresh else node.root
        if node.x.type.kind == "scalar":
            if node.type.width is not None:
                self._add(node.x, self._mean_product(node, d))
            return  # a readout of averages moves with them like 1/sqrt(n)
        lead = _fresh_letters(w + x + out, len(self.lead))
        self._add(node.x, MatMul(f"{w},{lead + out}->{lead + x}", weight, d, source=node.source))

    def _mean_product(self, node: MatMul, d: Node) -> Node | None:
        """dx of a deterministic x: E[W dy] over the coordinates, summed over positions."""
        w, x, out = node.letters
        if node.root.matrix_axes is not None:  # x is one number for all coordinates
            lead = _fresh_letters(w + x + out, len(self.lead))
            back = MatMul(f"{w},{lead + out}->{lead + x}", node.root, d, source=node.source)
            return self._mean(Phi(vector(0), 1), [back], [], back, node.x.type.shape)
        if self._odd(d):
            return None
        raise _refusal(
            node, "the gradient in what a weight multiplies is a sum over the width of products with its entries"
        )

    def _sum(self, node: LinComb, d: Node) -> None:
        for a, x in node.terms:
            if isinstance(a, Node) and a in self.trained:
                self._coefficient(node, a, x, d)
            if x not in self.trained:
                continue
            if node.type.kind == "scalar":
                self._add(x, self._times(d, a, x))
            elif x.type.kind == "vector":
                self._add(x, d, a)
            elif node.type.width is not None:  # a deterministic term of a vector
                self._add(x, self._scaled_mean(d, a, node, x.type.shape))

    def _moved(self, node: PositionMap, d: Node) -> None:
        x, *aux = node.args
        finite = node.type.kind == "vector" and node.type.width is None  # moves with averages like 1/sqrt(n)
        if any(a in self.trained for a in aux) and not finite and not self._odd(d):
            if node.op.name != "dot":
                raise _refusal(
                    node, "its indices or its matrix are made of averages, and the gradient in those is not worked out"
                )
            self._add(aux[0], self._matrix(node, d))
        if x not in self.trained:
            return
        op = transposed(node.op, x.type.shape, self.lead)
        self._add(x, mapped(op, (d, *aux), self._type(d, x)))

    def _matrix(self, node: PositionMap, d: Node) -> Node | None:
        """dA of y = x A, as in attention: E[x dy] over the coordinates, summed over the places that both leave alone."""
        x, a = node.args
        kw, lead = node.op.kw, len(self.lead)
        (along, behind), (both, both_behind) = kw["contract"], kw["batch"]
        free = [i for i in range(len(x.type.shape)) if i not in along and i not in both]
        more = [i for i in range(len(a.type.shape)) if i not in behind and i not in both_behind]
        order = [*both, *free, *along]
        whole = (*self.lead, *(x.type.shape[i] for i in order), *(a.type.shape[i] for i in more))
        start, extra = lead + len(order), len(more)
        axis = lead + order.index(x.type.axis)
        spread = Type("vector", whole, axis, x.type.width)
        turned = Type("vector", tuple(x.type.shape[i] for i in order), axis - lead, x.type.width)
        moved = PositionMap(position("transpose", permutation=tuple(order)), (x,), turned, source=node.source)
        first = PositionMap(position("broadcast", to=whole, axes=tuple(range(lead, start))), (moved,), spread)
        kept = (*range(lead + len(both) + len(free)), *range(start, start + extra))
        second = mapped(
            position("broadcast", to=whole, axes=kept),
            (d,),
            spread if d.type.kind == "vector" else Type("scalar", whole),
        )
        if second is None:
            return None
        phi, xs, thetas = _gathered(vector(0), [first], [], second)
        mean = self._mean(phi, xs, thetas, node, whole[lead:])
        if mean is None:
            return None
        summed = tuple(range(lead + len(both), lead + len(both) + len(free)))
        left = tuple(n for i, n in enumerate(whole) if i not in summed)
        total = mapped(position("sum", axes=summed), (mean,), Type("scalar", left))
        place = [*both_behind, *behind, *more]  # which axis of the matrix each axis is
        back = (*range(lead), *(lead + place.index(i) for i in range(len(place))))
        shape = (*self.lead, *a.type.shape)
        return (
            None if total is None else mapped(position("transpose", permutation=back), (total,), Type("scalar", shape))
        )

    def _extremum(self, node: ArrayOp, d: Node) -> None:
        """The largest or smallest entry of a deterministic array moves with the entries that it is, in equal shares."""
        (x,), axes, lead = node.args, dict(node.params)["axes"], len(self.lead)
        shape = x.type.shape
        kept = tuple(i for i in range(len(shape)) if i not in axes)
        here = PositionMap(position("broadcast", to=shape, axes=kept), (node,), Type("scalar", shape))
        mark = ArrayOp("to_real", (), (ArrayOp("eq", (), (x, here), shape),), shape)
        count = PositionMap(position("sum", axes=tuple(axes)), (mark,), Type("scalar", node.shape))
        share = Nonlin(Phi(parameter(0) / parameter(1), 0, 2), (), (d, count), source=node.source)
        whole = (*self.lead, *shape)
        behind = (*range(lead), *(lead + i for i in kept))
        spread = PositionMap(position("broadcast", to=whole, axes=behind), (share,), Type("scalar", whole))
        self._add(x, _multiplied(spread, mark))

    def _function(self, node: Nonlin, d: Node) -> None:
        xs = [self._spread(x) for x in node.xs]
        for i, x in enumerate(node.xs):
            if x in self.trained:
                self._add(x, _times_slope(node, node.phi.diff(i), xs, d))
        for k, theta in enumerate(node.thetas):
            if theta in self.trained:
                slope = node.phi.diff_parameter(k)
                self._add(theta, self._mean(*_product(node, slope, xs, d), node, theta.type.shape))

    def _average(self, node: Moment, d: Node) -> None:
        xs = [self._spread(x) for x in node.xs]
        share = 1.0 / float(node.xs[0].type.width or 1)
        for i, x in enumerate(node.xs):
            if x in self.trained:
                self._add(x, _times_slope(node, node.phi.diff(i), xs, d), share)
        for k, theta in enumerate(node.thetas):
            if theta in self.trained:
                slope = Phi(node.phi.diff_parameter(k), node.phi.n_vectors, node.phi.n_parameters)
                mean = Moment(slope, node.xs, node.thetas, source=node.source)
                self._add(theta, self._reduced(_multiplied(d, mean), theta.type.shape))

    # ---------------------------------------------------------------------------------------- deterministic arrays

    def _arithmetic(self, node: Nonlin, i: int, d: Node) -> Node | None:
        slope = node.phi.diff_parameter(i)
        if node.thetas[i] not in self.trained or slope == 0:
            return None
        n = len(node.thetas)
        made = Nonlin(Phi(slope * parameter(n), 0, n + 1), (), (*node.thetas, d), source=node.source)
        return self._reduced(made, node.thetas[i].type.shape)

    def _coefficient(self, node: LinComb, a: Node, x: Node, d: Node) -> None:
        """da = E[dy x] for y = a x."""
        if node.type.kind == "scalar":
            self._add(a, self._reduced(_multiplied(d, x), a.type.shape))
        elif node.type.width is not None and x.type.kind == "vector":
            like = self._spread(x)
            phi, xs, thetas = _gathered(vector(0), [like], [], d)
            self._add(a, self._mean(phi, xs, thetas, node, a.type.shape))
        elif node.type.width is not None:
            self._add(a, self._scaled_mean(d, x, node, a.type.shape))

    def _times(self, d: Node, a: float | Node, x: Node) -> Node | None:
        """a dy for a deterministic term x of a deterministic sum."""
        made = LinComb(((a, d),)) if not isinstance(a, Node) else _multiplied(d, a)
        return self._reduced(made, x.type.shape)

    def _scaled_mean(self, d: Node, a: float | Node, node: Node, shape: tuple[int, ...]) -> Node | None:
        """E[dy] a, summed to a smaller shape."""
        if d.type.kind == "scalar":
            mean: Node | None = LinComb(((float(node.type.width or 1), d),))
        else:
            mean = self._mean(identity, [d], [], node, node.type.shape)
        if mean is None:
            return None
        return self._reduced(LinComb(((a, mean),)) if not isinstance(a, Node) else _multiplied(mean, a), shape)

    def _mean(self, phi: Phi, xs: list[Node], thetas: list[Node], node: Node, shape: tuple[int, ...]) -> Node | None:
        """The sum over the coordinates of a function, in units of n, and over positions; None where it vanishes by symmetry."""
        if phi.expr == 0:
            return None
        if not xs:
            return self._reduced(LinComb(((float(node.type.width or 1), Nonlin(phi, (), tuple(thetas))),)), shape)
        if self._odd(Nonlin(phi, tuple(xs), tuple(thetas))):
            return None
        width = float(node.type.width or 1)
        mean: Node = Moment(phi, tuple(xs), tuple(thetas), source=node.source)
        return self._reduced(mean if width == 1.0 else LinComb(((width, mean),)), shape)

    def _odd(self, d: Node) -> bool:
        """Is it odd in the readout's weights, and so of mean zero?"""
        return d.type.kind == "vector" and bool(self.facts[d].odd)

    def _reduced(self, d: Node, shape: tuple[int, ...]) -> Node | None:
        """Summed over the axes along which an array of `shape` was repeated."""
        lead, big = len(self.lead), d.type.shape
        full = (*self.lead, *shape)
        if big == full:
            return d
        new = len(big) - len(full)
        axes = tuple(range(lead, lead + new)) + tuple(
            lead + new + i for i, n in enumerate(shape) if n == 1 and big[lead + new + i] != 1
        )
        if new < 0:
            return mapped(position("reshape", to=full), (d,), Type("scalar", full))
        summed = d
        if axes:
            kept = tuple(n for i, n in enumerate(big) if i not in axes)
            made = mapped(position("sum", axes=axes), (d,), Type("scalar", kept))
            if made is None:
                return None
            summed = made
        if summed.type.shape == full:
            return summed
        return mapped(position("reshape", to=full), (summed,), Type("scalar", full))

    # ---------------------------------------------------------------------------------------- arrays with lead axes

    def _spread(self, x: Node) -> Node:
        """A vector, repeated along the lead axes."""
        if not self.lead:
            return x
        shape, lead = (*self.lead, *x.type.shape), len(self.lead)
        op = position("broadcast", to=shape, axes=tuple(range(lead, len(shape))))
        axis = None if x.type.axis is None else x.type.axis + lead
        return PositionMap(op, (x,), Type("vector", shape, axis, x.type.width), source=x.source)

    def _type(self, d: Node, like: Node) -> Type:
        shape = (*self.lead, *like.type.shape)
        if d.type.kind == "scalar":
            return Type("scalar", shape)
        axis = None if like.type.axis is None else like.type.axis + len(self.lead)
        return Type("vector", shape, axis, like.type.width)


# ------------------------------------------------------------------------------------------ facts of the program


def _trained(program: Program) -> frozenset[Node]:
    """What depends on a parameter that is trained."""
    found: set[Node] = set()
    for node in program.nodes:
        own = node.root if isinstance(node, MatMul) else node
        if any(o in found for o in operands(node)) or (isinstance(own, Weight) and own.tangent_std):
            found.add(node)
    return frozenset(found)


def _readouts(program: Program) -> frozenset[Weight]:
    """The weights that readouts are made with, and nothing else."""
    read: set[str] = set()
    other: set[str] = set()
    for node in program.nodes:
        for weight in (w for w in operands(node) if isinstance(w, Weight)):
            (read if isinstance(node, MatMul) and node.type.width is None else other).add(weight.name)
    return frozenset(w for w in program.weights if w.name in read - other)


def _fresh_letters(taken: str, count: int) -> str:
    return "".join([c for c in string.ascii_letters if c not in taken][:count])


# ------------------------------------------------------------------------------------------ products with slopes


def _times_slope(node: Nonlin | Moment, slope: sympy.Expr, xs: list[Node], d: Node) -> Node | None:
    """d_i phi(x) dy."""
    if slope == 0:
        return None
    if slope.is_number:
        return d if slope == 1 else LinComb(((float(slope), d),), source=node.source)
    phi, vectors, thetas = _product(node, slope, xs, d)
    if not vectors:
        return Nonlin(phi, (), tuple(thetas), source=node.source)
    return Nonlin(phi, tuple(vectors), tuple(thetas), source=node.source)


def _product(node: Nonlin | Moment, slope: sympy.Expr, xs: list[Node], d: Node) -> tuple[Phi, list[Node], list[Node]]:
    return _gathered(slope, xs, list(node.thetas), d)


def _gathered(slope: sympy.Expr, xs: list[Node], thetas: list[Node], d: Node) -> tuple[Phi, list[Node], list[Node]]:
    """slope * dy, as a function of what it reads."""
    if (number := number_of(d)) is not None and any(slope.has(vector(i)) for i in range(len(xs))):
        expr = snap(number) * slope
    elif d.type.kind == "vector":
        expr, xs = slope * vector(len(xs)), [*xs, d]
    else:
        expr, thetas = slope * parameter(len(thetas)), [*thetas, d]
    used = [i for i in range(len(xs)) if expr.has(vector(i))]
    given = [i for i in range(len(thetas)) if expr.has(parameter(i))]
    swap = {vector(i): vector(k) for k, i in enumerate(used)} | {
        parameter(i): parameter(k) for k, i in enumerate(given)
    }
    phi = Phi(expr.xreplace(swap), len(used), len(given))
    return phi, [xs[i] for i in used], [thetas[i] for i in given]


def _multiplied(a: Node, b: Node) -> Node:
    return Nonlin(Phi(parameter(0) * parameter(1), 0, 2), (), (a, b))


def _refusal(node: Node, what: str) -> UnsupportedError:
    name = type(node).__name__ if not isinstance(node, ArrayOp) else node.primitive
    return UnsupportedError(
        explain(
            f"a gradient through {name}, of averages over the width",
            where=str(node.source or ""),
            reason=what,
            mend="write it with elementwise functions and sums, or freeze what it is made of (train=False)",
        )
    )
