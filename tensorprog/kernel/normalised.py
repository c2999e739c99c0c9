"""Functions that divide by the square root of a quadratic form of their Gaussians, taken apart: batch norm, instance norm.

u = sum_k (Q + epsilon)^(-k/2) w_k, where Q is a quadratic form of a Gaussian field and each w_k is free of it: a positively
homogeneous function lets the positive factor out. The w_k are instructions of the program again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import sympy

from tensorprog.ir import Const, MatMul, Node, Nonlin, Weight, operands, topological
from tensorprog.ir.phi import vector
from tensorprog.kernel.body import value_of
from tensorprog.kernel.sums import MOST_ENTRIES, function_of, image_below, moved_out, replaced
from tensorprog.passes.structure import Structure

__all__ = ["Normalised", "bottom", "form_matrix", "normalised"]

_R = sympy.Symbol("r", positive=True)


@dataclass(frozen=True)
class Normalised:
    """forms: nodes whose value, the same at every position, is Q, however it is written. terms: pairs (k, w_k)."""

    forms: tuple[Node, ...]
    epsilon: float
    terms: tuple[tuple[int, Node], ...]


@dataclass(frozen=True)
class _Part:
    """An addend r^power w, with the forms and epsilons of the factors r that were met in it."""

    power: int
    node: Node
    norms: tuple[tuple[Node, float], ...] = ()


def normalised(root: Node, facts: Structure) -> Normalised | None:
    """The function taken apart, or None where it is another one."""
    parts = _parts(root, facts) if isinstance(root, Nonlin) else None
    if parts is None:
        return None
    norms = tuple(dict.fromkeys(norm for part in parts for norm in part.norms))
    if len({epsilon for _, epsilon in norms}) != 1:
        return None
    return Normalised(tuple(form for form, _ in norms), norms[0][1], tuple((p.power, p.node) for p in parts))


def _parts(root: Nonlin, facts: Structure) -> list[_Part] | None:
    """The addends of a function, whose own factor r and those inside of its arguments are let out."""
    quadratic, epsilon, powers = _apart(root.phi.expr, root.phi.vectors) or (None, None, ((0, root.phi.expr),))
    norms: tuple[tuple[Node, float], ...] = ()
    if quadratic is not None and epsilon is not None:
        if quadratic.free_symbols & set(root.phi.parameters) or not epsilon.is_number or not float(epsilon) >= 0:
            return None
        norms = ((function_of(quadratic, root), float(epsilon)),)
    parts: list[_Part] = []
    for k, expr in powers:
        opened = _opened(function_of(expr, root), facts)
        if opened is None:
            return None
        parts += [_Part(k + p.power, p.node, (*norms, *p.norms)) for p in opened]
    return parts


def _opened(term: Nonlin, facts: Structure) -> list[_Part] | None:
    """A function that is linear in sums over positions, as sums of functions of Gaussians alone (`kernel.sums`).

    The gradient of a norm is such a function, 2 h S, of a sum S of images that have the factor r in them.
    """
    wide = next((i for i, x in enumerate(term.xs) if not facts[x].gaussian), None)
    if wide is None:
        return [_Part(0, term)]
    z, expr = vector(wide), term.phi.expr
    slope, rest = expr.diff(z), expr.xreplace({z: sympy.S.Zero})
    source = image_below(term.xs[wide])
    if slope.has(z) or source is None or (rest != 0 and not rest.has(*term.phi.vectors)):
        return None
    inner = [_Part(0, source)] if all(facts[x].gaussian for x in source.xs) else _parts(source, facts)
    if inner is None:
        return None
    parts: list[_Part] = []
    for part in inner:
        xs = tuple(replaced(x, source, part.node) if i == wide else x for i, x in enumerate(term.xs))
        moved = moved_out(function_of(slope * z, replace(term, xs=xs)), facts)
        again = None if moved is None else _opened(moved.images, facts)
        if moved is None or again is None:
            return None
        parts += [_Part(part.power + p.power, moved.whole(p.node), (*part.norms, *p.norms)) for p in again]
    if rest != 0:
        others = _opened(function_of(rest, term), facts)
        if others is None:
            return None
        parts += others
    return parts


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


# ------------------------------------------------------------------------------------------ the form


def bottom(roots: Sequence[Node], ends: Callable[[Node], bool] = lambda node: False) -> list[Node]:
    """The products with weights, and parameters used as vectors, that the nodes are functions of. ends: at which others to stop."""
    stack, seen = list(roots), set()
    found: list[Node] = []
    while stack:
        node = stack.pop()
        if node in seen or node.type.kind != "vector":
            continue
        seen.add(node)
        if isinstance(node, (MatMul, Weight)) or ends(node):
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
    if sum(sizes) ** 2 * math.prod(form.type.shape) > 2 * MOST_ENTRIES:
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
