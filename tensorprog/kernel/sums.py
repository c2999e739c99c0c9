"""Functions of sums over positions, F(y) R with R = L x linear in images x, as sums of functions: L (F(y) x).

So a product of two functions of different positions is one function, of Gaussians where y and the arguments of x are Gaussian. An
axis that L carries along is the same on both sides; the others, which it sums, become one new axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import sympy

from tensorprog.ir import Const, LinComb, Literal, Node, Nonlin, Phi, PositionMap, Type, operands, position
from tensorprog.ir.phi import parameter, vector
from tensorprog.kernel.body import value_of
from tensorprog.passes.structure import Structure

__all__ = ["MOST_ENTRIES", "Moved", "as_sum", "function_of", "image_below", "moved_out", "replaced"]

MOST_ENTRIES = 2**20  # of the matrix of a linear map
MOST_ADDENDS = 16  # of a sum of images


@dataclass(frozen=True)
class Moved:
    """The images F(y) x, with the summed places of x as a first axis, and their weights in the sum: an array that has axes of size
    one where it is constant, or one number."""

    images: Nonlin
    weights: Const | float
    type: Type

    def whole(self, images: Node) -> Node:
        """The sum, of these images or of others of their shape."""
        weighted = LinComb(((self.weights, images),), source=self.images.source)
        return PositionMap(position("sum", axes=(0,)), (weighted,), self.type, source=self.images.source)


def moved_out(term: Nonlin, facts: Structure) -> Moved | None:
    """F(y) R for the first argument R that is not Gaussian; None where R is no linear map of one image."""
    wide = next(i for i, x in enumerate(term.xs) if not facts[x].gaussian)
    z, phi, x = vector(wide), term.phi, term.xs[wide]
    source = image_below(x)
    if source is None:
        return None
    carried = _carried(x, source)
    weights = _weights(x, source, carried)
    if weights is None:
        return None
    spread = Type("vector", (len(weights), *x.type.shape), x.type.axis + 1, x.type.width)  # type: ignore[operator]
    here = position("broadcast", to=spread.shape, axes=tuple(range(1, len(spread.shape))))
    others = [i for i in range(len(term.xs)) if i != wide]
    xs: list[Node] = [PositionMap(here, (term.xs[i],), spread) for i in others]
    xs += [_along(y, carried, spread) for y in source.xs]
    swap = {vector(i): vector(k) for k, i in enumerate(others)}
    inner = source.phi.expr.xreplace(
        {vector(i): vector(len(others) + i) for i in range(len(source.xs))}
        | {parameter(i): parameter(len(term.thetas) + i) for i in range(len(source.thetas))}
    )  # fmt: skip
    product = Phi(phi.expr.diff(z).xreplace(swap) * inner, len(xs), len(term.thetas) + len(source.thetas))
    thetas = (*term.thetas, *(_theta_along(t, source, carried, spread) for t in source.thetas))
    images = Nonlin(product, tuple(xs), thetas, source=term.source)
    number = float(weights.flat[0]) if np.all(weights == weights.flat[0]) else None
    return Moved(images, Const(Literal.of(weights)) if number is None else number, x.type)


def as_sum(u: Nonlin, facts: Structure) -> Node | None:
    """A function that is linear in sums of images, as a sum of functions of Gaussians alone; None where it is another one."""
    wide = next((i for i, x in enumerate(u.xs) if not facts[x].gaussian), None)
    if wide is None:
        return u
    z, expr = vector(wide), u.phi.expr
    slope, rest = expr.diff(z), expr.xreplace({z: sympy.S.Zero})
    addends = _addends(u.xs[wide], facts)
    if slope.has(z) or addends is None:
        return None
    parts: list[Node | None] = []
    if rest != 0:
        parts.append(as_sum(function_of(rest, u), facts) if rest.has(*u.phi.vectors) else _number(rest, u))
    for x in addends:
        term = function_of(slope * z, replace(u, xs=(*u.xs[:wide], x, *u.xs[wide + 1 :])))
        if facts[x].gaussian:
            parts.append(as_sum(term, facts))
        else:
            moved = moved_out(term, facts)
            images = None if moved is None else as_sum(moved.images, facts)
            parts.append(None if moved is None or images is None else moved.whole(images))
    found = [part for part in parts if part is not None]
    return LinComb(tuple((1.0, part) for part in found), source=u.source) if len(found) == len(parts) else None


def _number(expr: sympy.Expr, like: Nonlin) -> Node:
    """A function of the parameters of `like` alone."""
    return Nonlin(Phi(expr, 0, len(like.thetas)), (), like.thetas, source=like.source)


def _addends(x: Node, facts: Structure) -> list[Node] | None:
    """A linear map of a sum as the sum of linear maps, each of one image or one Gaussian; None where coefficients are no constants."""
    if isinstance(x, Nonlin) or facts[x].gaussian:
        return [x]
    if isinstance(x, PositionMap) and _is_constant(x):
        inner = _addends(x.args[0], facts)
        return inner and [PositionMap(x.op, (y, *x.args[1:]), x.result, source=x.source) for y in inner]
    if not isinstance(x, LinComb):
        return None
    made: list[Node] = []
    for a, term in x.terms:
        own = None if term.type.kind == "scalar" or not isinstance(a, (int, float, Const)) else _addends(term, facts)
        if own is None or len(made) + len(own) > MOST_ADDENDS:
            return None
        made += [LinComb(((a, y),), source=x.source) for y in own]
    return made


def function_of(expr: sympy.Expr, like: Nonlin) -> Nonlin:
    """The function of those arguments of `like` that it has."""
    free = expr.free_symbols
    xs = [(s, x) for s, x in zip(like.phi.vectors, like.xs, strict=True) if s in free]
    xs = xs or [(like.phi.vectors[0], like.xs[0])]
    thetas = [(s, t) for s, t in zip(like.phi.parameters, like.thetas, strict=True) if s in free]
    swap = {s: vector(i) for i, (s, _) in enumerate(xs)} | {s: parameter(i) for i, (s, _) in enumerate(thetas)}
    phi = Phi(expr.xreplace(swap), len(xs), len(thetas))
    return Nonlin(phi, tuple(x for _, x in xs), tuple(t for _, t in thetas), source=like.source)


def image_below(x: Node) -> Nonlin | None:
    """The one image of a nonlinearity that a linear map is of."""
    while not isinstance(x, Nonlin):
        inner = _inner(x)
        if inner is None:
            return None
        x = inner
    return x


def replaced(x: Node, source: Node, by: Node) -> Node:
    """The same linear map of another image."""
    chain = []
    while x is not source:
        chain.append(x)
        x = _inner(x)  # type: ignore[assignment]
    for node in reversed(chain):
        if isinstance(node, PositionMap):
            by = PositionMap(node.op, (by, *node.args[1:]), node.result, source=node.source)
        else:
            by = LinComb(((node.terms[0][0], by),), source=node.source)  # type: ignore[attr-defined]
    return by


def _inner(x: Node) -> Node | None:
    """What a linear map with constant coefficients is applied to."""
    if isinstance(x, PositionMap) and _is_constant(x):
        return x.args[0]
    if isinstance(x, LinComb) and len(x.terms) == 1 and isinstance(x.terms[0][0], (int, float, Const)):
        return x.terms[0][1]
    return None


def _is_constant(x: PositionMap) -> bool:
    """Are the places or the matrix of a map known?"""
    return all(isinstance(a, Const) for a in x.args[1:])


def _carried(x: Node, source: Node) -> dict[int, int]:
    """The axes of the source that a linear map of it carries along, and which of its axes they are."""
    where: list[int | None] = list(range(len(x.type.shape)))
    while x is not source:
        if isinstance(x, PositionMap):
            kept = x.op.same_axis(x.args[0].type.shape)
            where = [None if i is None else kept[i] for i in where]
        x = _inner(x)  # type: ignore[assignment]
    return {i: j for j, i in enumerate(where) if i is not None and source.type.shape[i] > 1}


def _weights(x: Node, source: Node, carried: dict[int, int]) -> np.ndarray | None:
    """The matrix of a linear map, (places of the source that it sums, *shape of x), of size one along the axes of x along which it
    is constant; None for one too large."""
    shape = source.type.shape
    size = math.prod(shape)
    if size * math.prod(x.type.shape) > MOST_ENTRIES:
        return None
    constants = {n: jnp.asarray(n.value.array()) for n in _constants(x, source)}
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        units = jnp.eye(size).reshape((size, *shape))
        found = jax.vmap(lambda unit: value_of(x, constants, (source,), unit))(units)  # type: ignore[arg-type]
    matrix = np.asarray(found).reshape((*shape, *x.type.shape))
    rows, columns = list(range(len(shape))), [len(shape) + j for j in range(len(x.type.shape))]
    for i, j in carried.items():
        rows[i] = columns[j]
    free = [i for i in range(len(shape)) if i not in carried]
    kept = np.einsum(matrix, [*rows, *columns], [*free, *columns])
    if np.count_nonzero(kept) != np.count_nonzero(matrix):
        raise AssertionError("a map of positions mixes an axis that it says it carries along")
    kept = kept.reshape((-1, *x.type.shape))
    for axis in range(1, kept.ndim):
        first = kept.take([0], axis)
        kept = first if np.array_equal(kept, np.broadcast_to(first, kept.shape)) else kept
    return kept


def _constants(x: Node, source: Node) -> list[Const]:
    found = []
    while x is not source:
        found += [o for o in operands(x) if isinstance(o, Const)]
        x = _inner(x)  # type: ignore[assignment]
    return found


def _along(y: Node, carried: dict[int, int], spread: Type) -> Node:
    """An argument of the source: its places that are summed along the first axis, the others where they are carried to."""
    thin, order = _thin(y.type.shape, carried, spread)
    turned = Type("vector", tuple(y.type.shape[i] for i in order), order.index(y.type.axis), y.type.width)  # type: ignore[arg-type]
    moved = y if order == sorted(order) else PositionMap(position("transpose", permutation=tuple(order)), (y,), turned)
    column = PositionMap(position("reshape", to=thin), (moved,), Type("vector", thin, spread.axis, spread.width))
    along = position("broadcast", to=spread.shape, axes=tuple(range(len(spread.shape))))
    return PositionMap(along, (column,), spread)


def _theta_along(theta: Node, source: Nonlin, carried: dict[int, int], spread: Type) -> Node:
    """A parameter of the source, at the same places."""
    if math.prod(theta.type.shape) == 1:
        return theta
    shape = source.type.shape
    missing = len(shape) - len(theta.type.shape)
    whole = position("broadcast", to=shape, axes=tuple(range(missing, len(shape))))
    thin, order = _thin(shape, carried, spread)
    for op in (whole, position("transpose", permutation=tuple(order)), position("reshape", to=thin)):
        theta = PositionMap(op, (theta,), Type("scalar", op.shape(theta.type.shape)))
    return theta


def _thin(shape: tuple[int, ...], carried: dict[int, int], spread: Type) -> tuple[tuple[int, ...], list[int]]:
    """The shape in which an array of the source's shape lies along those of the sum, and the order of its axes in it."""
    places = {j: i for i, j in carried.items()}
    order = [*(i for i in range(len(shape)) if i not in carried), *(places[j] for j in sorted(places))]
    sizes = [shape[places[j]] if j in places else 1 for j in range(len(spread.shape) - 1)]
    return (spread.shape[0], *sizes), order
