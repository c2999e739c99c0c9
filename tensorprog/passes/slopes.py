"""The derivative of a variable in the Zhat of a product W y, coordinate by coordinate, as a variable of the program.

Zdot^{Wx} needs E[dZ^x / dZhat^{W^T y}] (Yang, Tensor Programs III, section 2). The derivative is syntactic: it follows the
instructions between the two, in which a MatMul stands for its Zhat, Zdots are written out, and Moments are numbers.

The derivative of a function with jumps is taken in the sense of distributions, delta functions included: then
E[Zhat^{W^T y} Z^x] = sum_j C_j E[dZ^x / dZhat^{W^T y_j}] still holds (Stein's lemma), which is what defines the coefficients
where the derivative does not exist. Unlike the pseudo-inverse of C it stays exact, and zero where it is zero by structure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import sympy

from ntk_rules import functions as nf
from ntk_rules.steps import jumps_of
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
    Type,
    Weight,
    position,
    topological,
)
from tensorprog.ir.phi import parameter, snap, vector
from tensorprog.passes.transposed import behind

__all__ = ["Slopes", "is_leaf", "mapped", "mean_of", "number_of", "scalar_sum"]


class Slopes:
    """The derivatives of variables in one Zhat. `seed` is that of the Zhat itself: ones, or ones at some of its positions; of several
    at once along axes in front, of the sizes `lead`, which all derivatives then have."""

    def __init__(
        self,
        of: Node,
        seed: Const,
        derivative: Callable[[Phi, int, str], sympy.Expr] | None = None,
        lead: tuple[int, ...] = (),
    ):
        """derivative: (function, which argument, where) -> that of a function, if not in the sense of distributions."""
        self._known: dict[Node, Node | None] = {of: seed}
        self._lead = lead
        self._derivative = derivative or _derivative

    def __getitem__(self, x: Node) -> Node | None:
        """A vector of the type of x, a deterministic array of its shape where x is linear, None where it is zero."""
        for node in topological([x], skip=lambda n: n in self._known or is_leaf(n)):
            self._known[node] = self._slope(node)
        return self._known.get(x)

    def _slope(self, node: Node) -> Node | None:
        match node:
            case LinComb(terms=terms):
                moving = [(a, t) for a, x in terms if (t := self._known.get(x)) is not None]
                if any(t.type.kind == "vector" for _, t in moving):
                    return LinComb(tuple(moving), source=node.source)
                return scalar_sum(moving, (*self._lead, *node.type.shape))
            case PositionMap(op=op, args=args, result=result):
                first, op = self._known.get(args[0]), behind(op, args[0].type.shape, self._lead)
                return None if first is None else mapped(op, (first, *args[1:]), self._type(result))
            case Nonlin():
                return self._of_function(node)
        raise AssertionError(f"no derivative of {type(node).__name__}")

    def _of_function(self, node: Nonlin) -> Node | None:
        xs, thetas, terms = [self._repeated(x) for x in node.xs], list(node.thetas), []
        for i, x in enumerate(node.xs):
            t = self._known.get(x)
            if t is None or (slope := self._derivative(node.phi, i, str(node.source or ""))) == 0:
                continue
            if (number := number_of(t)) is not None:
                terms.append(snap(number) * slope)
            elif t.type.kind == "scalar":
                terms.append(parameter(len(thetas)) * slope)
                thetas.append(t)
            else:
                terms.append(vector(len(xs)) * slope)
                xs.append(t)
        return _function(sympy.Add(*terms), xs, thetas, node, (*self._lead, *node.type.shape))

    def _type(self, like: Type) -> Type:
        axis = None if like.axis is None else like.axis + len(self._lead)
        return Type(like.kind, (*self._lead, *like.shape), axis, like.width)

    def _repeated(self, x: Node) -> Node:
        """A variable along the axes in front."""
        if not self._lead:
            return x
        made, front = self._type(x.type), len(self._lead)
        op = position("broadcast", to=made.shape, axes=tuple(range(front, len(made.shape))))
        return PositionMap(op, (x,), made, source=x.source)


def is_leaf(node: Node) -> bool:
    """Does no derivative go on below it? A Zhat is a Gaussian of its own, whatever it was made of."""
    return node.type.kind != "vector" or isinstance(node, (MatMul, Weight))


def mean_of(slope: Node) -> Node | None:
    """Its expectation, a deterministic array; None where it is zero. Sums and position maps are those of the means."""
    means: dict[Node, Node | None] = {}
    for node in topological([slope], skip=lambda n: n.type.kind != "vector" or n in means or _stops(n)):
        means[node] = _mean(node, means)
    return _mean(slope, means)


def _stops(node: Node) -> bool:
    return isinstance(node, (Nonlin, MatMul, Weight))


def _mean(node: Node, means: dict[Node, Node | None]) -> Node | None:
    if node.type.kind == "scalar":
        return node
    if node in means:
        return means[node]
    below = lambda x: _mean(x, means)
    match node:
        case Nonlin(phi=phi, xs=xs, thetas=thetas):
            return Moment(phi, xs, thetas, source=node.source)
        case LinComb(terms=terms):
            return scalar_sum([(a, mean) for a, x in terms if (mean := below(x)) is not None], node.type.shape)
        case PositionMap(op=op, args=args, result=result):
            first = below(args[0])
            return None if first is None else mapped(op, (first, *args[1:]), result)
    return None  # a Gaussian of mean zero


# ------------------------------------------------------------------------------------------ deterministic arrays


def number_of(node: Node) -> float | None:
    """The number that a constant is everywhere."""
    if isinstance(node, Const):
        flat = node.value.array().ravel()
        if flat.size and np.all(flat == flat[0]):
            return float(flat[0])
    return None


def scalar_sum(terms: Sequence[tuple[float | Node, Node]], shape: tuple[int, ...]) -> Node | None:
    """sum_i a_i t_i of deterministic arrays, worked out where they are constants; None where it is zero."""
    total, rest = np.zeros(shape), []
    for a, t in terms:
        factor = a.value.array() if isinstance(a, Const) else a
        if isinstance(t, Const) and not isinstance(factor, Node):
            total = total + factor * t.value.array()
        else:
            rest.append((a, t))
    if np.any(total):
        rest.append((1.0, Const(Literal.of(total))))
    if not rest:
        return None
    return rest[0][1] if len(rest) == 1 and rest[0][0] == 1.0 else LinComb(tuple(rest))


def mapped(op: object, args: tuple[Node, ...], result: Type) -> Node | None:
    """A position map of a vector or of a deterministic array, worked out where all is constant; None where it is zero."""
    if args[0].type.kind == "vector":
        return PositionMap(op, args, result)  # type: ignore[arg-type]
    if all(isinstance(a, Const) for a in args):
        with jax.enable_x64(True):
            value = np.asarray(op(*(jnp.asarray(a.value.array()) for a in args)))  # type: ignore[operator, attr-defined]
        return Const(Literal.of(value)) if np.any(value) else None
    return PositionMap(op, args, Type("scalar", result.shape))  # type: ignore[arg-type]


def _function(
    expr: sympy.Expr, xs: list[Node], thetas: list[Node], like: Nonlin, shape: tuple[int, ...]
) -> Node | None:
    """The function of those arguments that it uses; without vectors among them a deterministic array."""
    if expr == 0:
        return None
    free = expr.free_symbols
    used = [i for i in range(len(xs)) if vector(i) in free]
    given = [i for i in range(len(thetas)) if parameter(i) in free]
    if not used and not given:
        return Const(Literal.of(np.full(shape, float(expr))))
    swap = {vector(i): vector(k) for k, i in enumerate(used)} | {
        parameter(i): parameter(k) for k, i in enumerate(given)
    }
    phi = Phi(expr.xreplace(swap), len(used), len(given))
    made = Nonlin(phi, tuple(xs[i] for i in used), tuple(thetas[i] for i in given), source=like.source)
    if used or made.type.shape == shape:
        return made
    axes = tuple(range(len(shape) - len(made.type.shape), len(shape)))
    return PositionMap(position("broadcast", to=shape, axes=axes), (made,), Type("scalar", shape))


# ------------------------------------------------------------------------------------------ derivatives of functions


@lru_cache(maxsize=4096)
def _derivative(phi: Phi, i: int, where: str) -> sympy.Expr:
    """The derivative in one argument: that almost everywhere, and a delta function for each jump.

    It is that of the values, whatever slopes the code gives to backpropagation.
    """
    phi = replace(phi, expr=nf.value_of(phi.expr))
    plain = phi.diff(i)
    found = jumps_of(phi.expr, vector(i), phi.vectors)
    if found is None:
        raise _unseen(phi, where)
    return plain + sympy.Add(*(delta * height for delta, height in found))


def _unseen(phi: Phi, where: str) -> UnsupportedError:
    return UnsupportedError(
        explain(
            f"a kinked function between a weight and its transpose: {phi}",
            where=where,
            reason="the limit of a product with the transpose needs the mean derivative of this function, and whether it jumps "
            "between its pieces cannot be read off its form",
            mend="write it with max, min, abs, sign or where of single hidden vectors",
        )
    )
