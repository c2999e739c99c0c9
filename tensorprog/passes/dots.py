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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tensorprog.errors import UnsupportedError
from tensorprog.ir import (
    ArrayOp,
    Const,
    LinComb,
    Literal,
    MatMul,
    Node,
    Nonlin,
    PositionMap,
    Program,
    Type,
    Weight,
    operands,
    position,
    topological,
)
from tensorprog.ir.rebuild import rebuild
from tensorprog.passes.cancel import cancelled, joined
from tensorprog.passes.fuse import fuse_nodes
from tensorprog.passes.jumps import EITHER, by_stein, cannot_be_sampled
from tensorprog.passes.layouts import Layout, links_of
from tensorprog.passes.slopes import Slopes, is_leaf, mean_of
from tensorprog.passes.structure import Structure, opposite, parity_of, tied_weights

__all__ = ["Dot", "Exposed", "expose", "expose_nodes"]


FEW_PLACES = 4  # mixed positions that are followed one by one; more are axes of the derivative


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
    new, dots = expose_nodes([program.output])
    return Exposed(replace(program, output=new[program.output]), dots)


def expose_nodes(roots: Sequence[Node]) -> tuple[dict[Node, Node], tuple[Dot, ...]]:
    """The same for several variables together: what each becomes, and the terms that were added.

    A Zdot belongs to a product and what that is made of, so that it does not matter which others there are.
    """
    order = tuple(topological(roots))
    tied = tied_weights(order)
    if not tied:
        return {root: root for root in roots}, ()
    work = _Work(tied)
    for node in order:
        work.add(node)
    made = [work.new[root] for root in roots]
    shown = [
        part for dot in work.dots for part in (dot.of, dot.by, dot.coefficient, dot.vector) if isinstance(part, Node)
    ]
    new = fuse_nodes([*made, *shown], frozenset(), drop_zeros=True)
    return {root: new[m] for root, m in zip(roots, made, strict=True)}, tuple(_renamed(dot, new) for dot in work.dots)


def _renamed(dot: Dot, new: dict[Node, Node]) -> Dot:
    of, by = new[dot.of], new[dot.by]
    assert isinstance(of, MatMul) and isinstance(by, MatMul)
    coefficient = new[dot.coefficient] if isinstance(dot.coefficient, Node) else dot.coefficient
    return Dot(of, by, coefficient, new[dot.vector])


class _Work:
    def __init__(self, tied: frozenset[Weight]):
        self.tied, self.facts = tied, Structure([])
        self.new: dict[Node, Node] = {}
        self.dots: list[Dot] = []
        self.sums: dict[Node, LinComb] = {}  # of each product, the sum of its Zhat and its Zdot
        self.made: set[Node] = set()  # those sums
        self._earlier: dict[Weight, dict[MatMul, None]] = {}
        self._slopes: dict[tuple[MatMul, Literal], Slopes] = {}
        self._steins: dict[tuple[MatMul, MatMul], Node] = {}

    def add(self, node: Node) -> None:
        made = rebuild(node, [self.new[o] for o in operands(node)])
        if isinstance(made, MatMul) and made.root in self.tied:
            made = self._product(made)
        elif isinstance(made, LinComb) and made.type.kind == "vector":
            made = cancelled(made, self.made)
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
        terms = joined([(1.0, made), *((dot.coefficient, dot.vector) for dot in found)])
        self.sums[made] = LinComb(tuple(terms), source=made.source)
        self.made.add(self.sums[made])
        return self.sums[made]

    def _between(self, made: MatMul, by: MatMul) -> Iterator[Dot]:
        """The terms that `made` = W x gains from `by` = W^T y."""
        if made.x.type.kind != "vector" or (made.summed == by.summed and not made.root.symmetric):
            return
        if opposite(self.facts[made.x].odd, self.facts[by].odd):
            return
        if (links := links_of(made.x, by)) is None:
            return
        layout = Layout(made, by, links)
        if layout.count > FEW_PLACES:
            yield from self._everywhere(made, by, layout)
            return
        for places in layout.places():
            if (mean := self._at(made, by, layout, places)) is not None:
                yield from (Dot(made, by, a, y) for a, y in layout.term(mean, places))

    def _everywhere(self, made: MatMul, by: MatMul, layout: Layout) -> list[Dot]:
        """The one term of all places together."""
        seed, lead = layout.all_places()
        shape = (*lead, *made.x.type.shape)
        mean = self._mean_slope(
            made, by, lambda: Slopes(by, seed, None, lead)[made.x], lambda all_: _reshaped(all_, shape)
        )
        term = None if mean is None else layout.whole_term(mean)
        return [] if term is None else [Dot(made, by, *term)]

    def _at(self, made: MatMul, by: MatMul, layout: Layout, places: dict[str, int]) -> Node | None:
        """E[dx / d by] at some places of what is mixed on the way."""
        flat = layout.flat(places)
        return self._mean_slope(
            made, by, lambda: self._slope(made.x, by, layout.seed(places)), lambda all_: _row(all_, flat)
        )

    def _mean_slope(
        self, made: MatMul, by: MatMul, derived: Callable[[], Node | None], chosen: Callable[[Node], Node]
    ) -> Node | None:
        """E[dx / d by]; where samples cannot follow it, with the form that has none beside it. chosen: of the latter's places."""
        try:
            slope = derived()
        except UnsupportedError:
            return chosen(self._without_derivatives(made, by))
        if slope is None or (slope.type.kind == "vector" and _mean_vanishes(slope)):
            return None
        mean = mean_of(slope)
        if mean is None or not cannot_be_sampled(slope):
            return mean
        other = chosen(self._without_derivatives(made, by))
        return ArrayOp(EITHER, (), (mean, other), mean.type.shape, source=made.source)

    def _without_derivatives(self, made: MatMul, by: MatMul) -> Node:
        """E[dx / d by] at all places of what is mixed on the way."""
        if (made, by) not in self._steins:
            family = {}
            for other in self._earlier[made.root]:
                if other.summed != by.summed and not made.root.symmetric:
                    continue
                if opposite(self.facts[other].odd, self.facts[made.x].odd):
                    continue  # the mean slope in it vanishes
                if (links := links_of(made.x, other)) is not None:
                    family[other] = Layout(made, other, links).links
            self._steins[made, by] = by_stein(made.x, by, family)
        return self._steins[made, by]

    def _slope(self, x: Node, by: MatMul, seed: Const) -> Node | None:
        key = (by, seed.value)
        if key not in self._slopes:
            self._slopes[key] = Slopes(by, seed)
        return self._slopes[key][x]


def _row(array: Node, place: int) -> Node:
    """One place of an array along its first axis."""
    shape = array.type.shape
    start, stop = (place, *(0 for _ in shape[1:])), (place + 1, *shape[1:])
    cut = array
    if shape[0] > 1:
        op = position("slice", start=start, stop=stop, stride=(1,) * len(shape))
        cut = PositionMap(op, (array,), Type("scalar", (1, *shape[1:])))
    return _reshaped(cut, shape[1:])


def _reshaped(array: Node, shape: tuple[int, ...]) -> Node:
    if array.type.shape == shape:
        return array
    return PositionMap(position("reshape", to=shape), (array,), Type("scalar", shape))


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
