"""Functions that divide by the square root of a quadratic form of their Gaussians, taken apart: batch norm, instance norm.

u = sum_k (Q + epsilon)^(-k/2) w_k, where Q is a quadratic form of a Gaussian field and each w_k is free of it: a positively
homogeneous function lets the positive factor out. The w_k are instructions of the program again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import sympy

from tensorprog.ir import (
    Const,
    LinComb,
    Literal,
    MatMul,
    Node,
    Nonlin,
    Phi,
    PositionMap,
    Type,
    Weight,
    operands,
    position,
    topological,
)  # fmt: skip
from tensorprog.ir.phi import parameter, vector
from tensorprog.kernel.body import value_of
from tensorprog.passes.structure import Structure

__all__ = ["Normalised", "bottom", "form_matrix", "normalised"]

_R = sympy.Symbol("r", positive=True)


@dataclass(frozen=True)
class Normalised:
    """form: the node whose value, the same at every position, is Q. terms: pairs (k, w_k)."""

    form: Node
    epsilon: float
    terms: tuple[tuple[int, Node], ...]


def normalised(root: Node, facts: Structure) -> Normalised | None:
    """The function taken apart, or None where it is another one."""
    if not isinstance(root, Nonlin):
        return None
    found = _apart(root.phi.expr, root.phi.vectors)
    if found is None:
        return None
    quadratic, epsilon, powers = found
    if quadratic.free_symbols & set(root.phi.parameters) or not epsilon.is_number or not float(epsilon) >= 0:
        return None
    form = _function(quadratic, root)
    terms = []
    for k, expr in powers:
        term = _opened(_function(expr, root), facts)
        if term is None:
            return None
        terms.append((k, term))
    return Normalised(form, float(epsilon), tuple(terms))


def _function(expr: sympy.Expr, like: Nonlin) -> Nonlin:
    """The function of those arguments of `like` that it has."""
    free = expr.free_symbols
    xs = [(s, x) for s, x in zip(like.phi.vectors, like.xs, strict=True) if s in free]
    xs = xs or [(like.phi.vectors[0], like.xs[0])]
    thetas = [(s, t) for s, t in zip(like.phi.parameters, like.thetas, strict=True) if s in free]
    swap = {s: vector(i) for i, (s, _) in enumerate(xs)} | {s: parameter(i) for i, (s, _) in enumerate(thetas)}
    phi = Phi(expr.xreplace(swap), len(xs), len(thetas))
    return Nonlin(phi, tuple(x for _, x in xs), tuple(t for _, t in thetas), source=like.source)


# ------------------------------------------------------------------------------------------ the positive factor


@lru_cache(maxsize=1024)
def _apart(
    expr: sympy.Expr, vectors: tuple[sympy.Symbol, ...]
) -> tuple[sympy.Expr, sympy.Expr, tuple[tuple[int, sympy.Expr], ...]] | None:
    """Q, epsilon and the pairs (k, w_k) of an expression."""
    expr = expr.replace(
        lambda e: isinstance(e, (sympy.Abs, sympy.sign)) and _is_root(e.args[0]),
        lambda e: e.args[0] if isinstance(e, sympy.Abs) else sympy.S.One,
    )
    for root in [p for p in expr.atoms(sympy.Pow) if p.base.has(*vectors) and _is_norm(p.exp)]:
        for clipped in root.base.atoms(
            sympy.Max
        ):  # max(Q, 0) = Q for a form that is not negative; form_matrix sees to that
            if sympy.S.Zero in clipped.args and len(clipped.args) == 2:
                inside = sympy.Add(*clipped.args)
                expr = expr.xreplace({clipped: inside}).replace(sympy.Heaviside(inside), sympy.S.One)
    roots = [p for p in expr.atoms(sympy.Pow) if p.base.has(*vectors) and _is_norm(p.exp)]
    bases = {p.base for p in roots}
    if len(bases) != 1:
        return None
    plain = base = bases.pop()
    epsilon = plain.xreplace(dict.fromkeys(vectors, sympy.S.Zero))
    rest = expr.xreplace({p: _R ** (-2 * p.exp) for p in roots})
    if rest.has(base):
        return None
    powers = _powers(rest)
    return None if powers is None else (sympy.expand(plain - epsilon), epsilon, powers)


def _is_root(expr: sympy.Expr) -> bool:
    """Is it the square root of something, and so not negative?"""
    return isinstance(expr, sympy.Pow) and (2 * expr.exp).is_Integer and not expr.exp.is_Integer


def _is_norm(exponent: sympy.Expr) -> bool:
    return exponent.is_negative and (2 * exponent).is_Integer


def _powers(expr: sympy.Expr) -> tuple[tuple[int, sympy.Expr], ...] | None:
    """The addends by their power of the positive factor."""
    total: dict[int, sympy.Expr] = {}
    for addend in sympy.Add.make_args(sympy.expand_mul(expr)):
        found = _pulled(addend)
        if found is None:
            return None
        total[found[0]] = total.get(found[0], sympy.S.Zero) + found[1]
    return tuple(sorted(total.items()))


def _pulled(expr: sympy.Expr) -> tuple[int, sympy.Expr] | None:
    """(k, w) with expr = r^k w; None where there is no such form."""
    if not expr.has(_R):
        return 0, expr
    if expr == _R:
        return 1, sympy.S.One
    if isinstance(expr, sympy.Piecewise):
        return _pulled_cases(expr)
    if isinstance(expr, sympy.Pow):
        inner = _pulled(expr.base)
        whole = inner is not None and expr.exp.is_Integer and expr.exp > 0
        return (inner[0] * int(expr.exp), inner[1] ** expr.exp) if whole else None  # type: ignore[index]
    parts = [_pulled(a) for a in expr.args if a != 0]
    if any(p is None for p in parts):
        return None
    powers, rests = [p[0] for p in parts if p], [p[1] for p in parts if p]
    if isinstance(expr, sympy.Mul):
        return sum(powers), sympy.Mul(*rests)
    if isinstance(expr, (sympy.sign, sympy.Heaviside)):
        return 0, expr.func(rests[0], *expr.args[1:])
    if isinstance(expr, (sympy.Add, sympy.Max, sympy.Min, sympy.Abs)) and len(set(powers)) == 1:
        zeros = [a for a in expr.args if a == 0]
        return powers[0], expr.func(*zeros, *rests)
    return None


def _pulled_cases(expr: sympy.Piecewise) -> tuple[int, sympy.Expr] | None:
    """Cases by the sign of homogeneous expressions."""
    cases, powers = [], set()
    for value, condition in expr.args:
        swap = {}
        for relation in condition.atoms(sympy.core.relational.Relational):
            inner = _pulled(relation.lhs - relation.rhs)
            if inner is None:
                return None
            swap[relation] = relation.func(inner[1], 0)
        found = _pulled(value)
        if found is None:
            return None
        if value != 0:
            powers.add(found[0])
        cases.append((found[1], condition.xreplace(swap)))
    return (powers.pop(), sympy.Piecewise(*cases)) if len(powers) == 1 else None


# ------------------------------------------------------------------------------------------ sums inside


def _opened(term: Nonlin, facts: Structure) -> Node | None:
    """F(y) R, linear in a linear map R = L x of images: L (F(y) x), so that every function is one of Gaussians.

    None where an argument that is not Gaussian enters in another way.
    """
    wide = next((i for i, x in enumerate(term.xs) if not facts[x].gaussian), None)
    if wide is None:
        return term
    z, expr = vector(wide), term.phi.expr
    slope, rest = expr.diff(z), expr.xreplace({z: sympy.S.Zero})
    if slope.has(z):
        return None
    parts = [_moved_out(_function(slope * z, term), facts)]
    if rest != 0:
        parts.append(_opened(_function(rest, term), facts))
    kept = [p for p in parts if p is not None]
    if len(kept) < len(parts):
        return None
    return kept[0] if len(kept) == 1 else LinComb(tuple((1.0, p) for p in kept), source=term.source)


def _moved_out(term: Nonlin, facts: Structure) -> Node | None:
    """F(y) R as a map of positions of F(y) x, for its first argument R that is not Gaussian."""
    wide = next(i for i, x in enumerate(term.xs) if not facts[x].gaussian)
    z, phi, x = vector(wide), term.phi, term.xs[wide]
    source = _image_below(x)
    if source is None or any(not facts[y].gaussian for y in (*source.xs, *(y for y in term.xs if y is not x))):
        return None
    matrix = _matrix(x, source)
    if matrix is None or any(math.prod(t.type.shape) != 1 for t in (*term.thetas, *source.thetas)):
        return None
    count, shape, axis = matrix.shape[0], x.type.shape, x.type.axis
    others = [i for i in range(len(term.xs)) if i != wide]
    spread = Type("vector", (count, *shape), axis + 1, x.type.width)  # type: ignore[operator]
    here = position("broadcast", to=spread.shape, axes=tuple(range(1, 1 + len(shape))))
    thin = Type("vector", (count, *(1 for _ in shape)), axis + 1, x.type.width)  # type: ignore[operator]
    column, along = (
        position("reshape", to=thin.shape),
        position("broadcast", to=spread.shape, axes=tuple(range(len(thin.shape)))),
    )
    xs = [PositionMap(here, (term.xs[i],), spread) for i in others]
    xs += [PositionMap(along, (PositionMap(column, (y,), thin),), spread) for y in source.xs]
    swap = {vector(i): vector(k) for k, i in enumerate(others)}
    inner = source.phi.expr.xreplace(
        {vector(i): vector(len(others) + i) for i in range(len(source.xs))}
        | {parameter(i): parameter(len(term.thetas) + i) for i in range(len(source.thetas))}
    )  # fmt: skip
    product = Phi(phi.expr.diff(z).xreplace(swap) * inner, len(xs), len(term.thetas) + len(source.thetas))
    images = Nonlin(product, tuple(xs), (*term.thetas, *source.thetas), source=term.source)
    weighted = LinComb(((Const(Literal.of(matrix)), images),), source=term.source)
    return PositionMap(
        position("sum", axes=(0,)), (weighted,), Type("vector", shape, axis, x.type.width), source=term.source
    )


def _image_below(x: Node) -> Nonlin | None:
    """The one image of a nonlinearity that a linear map is of."""
    while not isinstance(x, Nonlin):
        if isinstance(x, PositionMap) and len(x.args) == 1:
            x = x.args[0]
        elif isinstance(x, LinComb) and len(x.terms) == 1 and not isinstance(x.terms[0][0], Node):
            x = x.terms[0][1]
        else:
            return None
    return x


def _matrix(x: Node, source: Node) -> np.ndarray | None:
    """The matrix of a linear map, (places of the source, *shape of x)."""
    size = math.prod(source.type.shape)
    if size * math.prod(x.type.shape) > _MOST_ENTRIES:
        return None
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        units = jnp.eye(size).reshape((size, *source.type.shape))
        return np.asarray(jax.vmap(lambda unit: value_of(x, {}, (source,), unit))(units))


_MOST_ENTRIES = 2**20


# ------------------------------------------------------------------------------------------ the form


def bottom(roots: Sequence[Node]) -> list[Node]:
    """The products with weights, and parameters used as vectors, that the nodes are functions of."""
    stack, seen = list(roots), set()
    found: list[Node] = []
    while stack:
        node = stack.pop()
        if node in seen or node.type.kind != "vector":
            continue
        seen.add(node)
        if isinstance(node, (MatMul, Weight)):
            found.append(node)
        else:
            stack.extend(operands(node))
    return found[::-1]


def form_matrix(form: Node, leaves: Sequence[Node]) -> np.ndarray | None:
    """M with Q = g' M g, g the leaves' values one after the other; None where Q is no such form, is not the same at
    every position, depends on the input or can be negative. Other Gaussians under it are zero, as biases that start so."""
    scalars = [n for n in topological([form], skip=lambda n: n in leaves) if n.type.kind == "scalar"]
    if not all(isinstance(n, Const) for n in scalars):
        return None
    sizes = [math.prod(leaf.type.shape) for leaf in leaves]
    if sum(sizes) ** 2 * math.prod(form.type.shape) > 2 * _MOST_ENTRIES:
        return None
    given: dict[Node, jax.Array] = {n: jnp.asarray(n.value.array()) for n in scalars if isinstance(n, Const)}
    given |= {n: jnp.zeros(n.type.shape) for n in bottom([form]) if n not in leaves}

    def value(flat: jax.Array) -> jax.Array:
        parts = jnp.split(flat, np.cumsum(sizes)[:-1])
        arrays = [p.reshape(leaf.type.shape) for p, leaf in zip(parts, leaves, strict=True)]
        return value_of(form, given, tuple(leaves), *arrays).ravel()

    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        hessian = np.asarray(jax.hessian(value)(jnp.zeros(sum(sizes))))
        trial = np.random.default_rng(0).standard_normal(sum(sizes))
        found = np.asarray(value(jnp.asarray(trial)))
    matrix = hessian[0] / 2
    scale = np.abs(matrix).max()
    same = np.allclose(hessian, hessian[:1], atol=1e-13 * scale, rtol=0)
    agrees = np.allclose(found, trial @ matrix @ trial, rtol=1e-12, atol=1e-13 * scale)
    if not (same and agrees and scale > 0 and np.linalg.eigvalsh(matrix).min() > -1e-13 * scale):
        return None
    return matrix
