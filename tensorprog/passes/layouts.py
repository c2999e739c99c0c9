"""A product W x and one with the transpose, W^T y, as arrays over positions: which letters of the two are the same.

The coefficient of y[q'] in Zdot^{Wx}[p] is a sum, over what both products sum, of the mean slopes of x in u = W^T y. Axes of u that
are carried along to x are diagonal in the slopes, and taken all at once. Those that are mixed on the way are axes of their own, in front of
the slopes, and Zdot is one linear map of the positions of y; a few are followed place by place, as sums of terms that functions go on with.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterator

import numpy as np

from tensorprog.errors import UnsupportedError, explain
from tensorprog.ir import Const, LinComb, Literal, MatMul, Node, PositionMap, Type, operands, position, topological
from tensorprog.ir.phi import snap
from tensorprog.passes.cancel import Term, scaled
from tensorprog.passes.slopes import is_leaf, mapped, number_of, scalar_sum

__all__ = ["Layout", "links_of"]


def links_of(x: Node, by: Node) -> tuple[int | None, ...] | None:
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


class Layout:
    """The positions of W x and W^T y in common letters: those of W x, and of y and u = W^T y where they are others."""

    def __init__(self, made: MatMul, by: MatMul, links: tuple[int | None, ...]):
        self.made, self.by = made, by
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
        kept = list(links)
        for axis, link in enumerate(links):
            if link is None or (own := names[u[axis]]) == self.x[link]:
                continue
            joined = {c: self.x[link] if name == own else name for c, name in names.items()}
            if self._fits(joined, w2, y):
                names = joined
            else:  # positions that the two products exchange
                kept[axis] = None
        self.links = tuple(kept)
        self.y, self.u = ("".join(names[c] for c in letters) for letters in (y, u))
        self.sizes = {
            c: n
            for letters, shape in (
                (self.w, made.root.shape), (self.x, made.x.type.shape), (self.out, made.type.shape),
                (self.y, by.x.type.shape), (self.u, by.type.shape),
            )
            for c, n in zip(letters, shape, strict=True)
        }  # fmt: skip

    def _fits(self, names: dict[str, str], w2: str, y: str) -> bool:
        """Does every axis of the weight keep its letter, and every axis of y have one of its own?"""
        return all(names[c] == name for c, name in zip(w2, self.w, strict=True)) and len({names[c] for c in y}) == len(
            y
        )

    @property
    def mixed(self) -> tuple[str, ...]:
        """The letters of u's axes that are mixed on the way to x."""
        return tuple(c for c, link in zip(self.u, self.links, strict=True) if link is None and self.sizes[c] > 1)

    @property
    def count(self) -> int:
        """How many positions these are."""
        return math.prod(self.sizes[c] for c in self.mixed)

    def all_places(self) -> tuple[Const, tuple[int, ...]]:
        """The derivative of u in itself at every one of the mixed positions, along axes in front, and their sizes."""
        lead = tuple(self.sizes[c] for c in self.mixed)
        value = np.zeros((*lead, *self.by.type.shape))
        for at in np.ndindex(*lead):
            where = dict(zip(self.mixed, at, strict=True))
            value[(*at, *(where.get(c, slice(None)) for c in self.u))] = 1.0
        return Const(Literal.of(value)), lead

    def whole_term(self, slope: Node) -> Term | None:
        """sigma^2 sum J y with J the mean slopes in u at all mixed positions, along axes in front: one linear map of positions of y."""
        root, summed, made, y = self.made.root, self.made.summed, self.made.type, self.by.x
        assert summed is not None
        if y.type.kind != "vector":
            raise self._refusal("the transpose multiplies a deterministic array of several positions")
        letters, matrix = self._on_diagonals([*self.mixed, *self.x], slope)
        needed = [c for c in letters if (c in self.y or c in self.out) and self.sizes[c] > 1]
        times = math.prod(self.sizes[c] for c in self.w if c not in (*letters, *self.y, *self.out))
        scale = float(snap(root.std**2 * float(root.widths[summed] or 1) * times))
        if matrix is not None:
            gone = tuple(i for i, c in enumerate(letters) if c not in needed)
            kept = tuple(self.sizes[c] for c in needed)
            matrix = mapped(position("sum", axes=gone), (matrix,), Type("scalar", kept)) if gone else matrix
        if matrix is None:
            return None
        if needed:
            return scale, self._applied(matrix, needed, y, made)
        number = number_of(matrix)
        return scaled(matrix, scale) if number is None else scale * number, self._applied(None, [], y, made)

    def _on_diagonals(self, letters: list[str], array: Node) -> tuple[list[str], Node | None]:
        """An array of which some axes are the same position, along the diagonals of those."""
        found: Node | None = array
        while found is not None and (again := next((c for c in letters if letters.count(c) > 1), None)) is not None:
            first, second = (i for i, c in enumerate(letters) if c == again)
            shape = found.type.shape
            mask = np.eye(shape[first]).reshape([n if i in (first, second) else 1 for i, n in enumerate(shape)])
            on = scalar_sum([(Const(Literal.of(mask)), found)], shape)
            left = tuple(n for i, n in enumerate(shape) if i != first)
            found = None if on is None else mapped(position("sum", axes=(first,)), (on,), Type("scalar", left))
            letters = [c for i, c in enumerate(letters) if i != first]
        return letters, found

    def _applied(self, matrix: Node | None, letters: list[str], y: Node, made: Type) -> Node:
        """The sum of the matrix times y over what the result lacks, in the letters of the result."""
        own, current = list(self.y), y
        lone = tuple(i for i, c in enumerate(own) if c not in letters and c not in self.out)
        typed = lambda names: Type(
            "vector", tuple(self.sizes[c] for c in names), names.index(self.out[made.axis or 0]), made.width
        )
        if lone:
            own = [c for i, c in enumerate(own) if i not in lone]
            current = PositionMap(position("sum", axes=lone), (current,), typed(own), source=self.made.source)
        names = own
        if matrix is not None:
            both = [c for c in own if c in letters]
            summed, batch = [c for c in both if c not in self.out], [c for c in both if c in self.out]
            places = lambda names: (tuple(map(own.index, names)), tuple(map(letters.index, names)))
            op = position("dot", contract=places(summed), batch=places(batch), ndim=len(letters))
            names = [*batch, *(c for c in own if c not in both), *(c for c in letters if c not in both)]
            current = PositionMap(op, (current, matrix), typed(names), source=self.made.source)
        order = sorted(range(len(names)), key=lambda i: self.out.index(names[i]))
        names = [names[i] for i in order]
        if order != sorted(order):
            turn = position("transpose", permutation=tuple(order))
            current = PositionMap(turn, (current,), typed(names), source=self.made.source)
        if names != list(self.out):
            op = position("broadcast", to=made.shape, axes=tuple(map(self.out.index, names)))
            current = PositionMap(op, (current,), made, source=self.made.source)
        return current

    def places(self) -> Iterator[dict[str, int]]:
        """The positions of u that are mixed on the way to x, by letter, one after the other."""
        for place in itertools.product(*(range(self.sizes[c]) for c in self.mixed)):
            yield dict(zip(self.mixed, place, strict=True))

    def flat(self, places: dict[str, int]) -> int:
        """The number of such positions in the order of `places`."""
        number = 0
        for c in self.mixed:
            number = number * self.sizes[c] + places[c]
        return number

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
        coefficient = scale * number if number is not None else scaled(factor, scale)
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
        if order != sorted(order):
            moved_to = None if coordinate is None else order.index(coordinate)
            shape = tuple(sizes[i] for i in order)
            moved = mapped(position("transpose", permutation=tuple(order)), (current,), typed(shape, moved_to))
            assert moved is not None  # what is zero was cut away before
            current = moved
        shape = tuple(at.get(c, 1) for c in target)
        if shape != current.type.shape:
            moved = mapped(position("reshape", to=shape), (current,), typed(shape, place))
            assert moved is not None
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
