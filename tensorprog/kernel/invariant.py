"""Kernels that do not change when their inputs are rotated.

Where a graph reads the input only as inner products of one vector of features, phi(x)'phi(x), phi(x)'phi(x') and phi(x')'phi(x'),
its kernels are functions of two norms and one angle: those of inputs in the plane tell all. Every fully connected network has
such a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sympy as sp

from tensorprog.ir import Input, Nonlin
from tensorprog.kernel.derive import KernelGraph
from tensorprog.kernel.graph import Average, Combine, Contract, Data, Expect, Operand, Quantity, Sampled, Zero

__all__ = ["PLANE", "features", "homogeneous", "in_the_plane"]

PLANE = Input("norm", (1,), "float64"), Input("direction", (2,), "float64")  # a point


def features(graph: KernelGraph) -> Data | None:
    """The vector whose inner products are all that the graph reads of its inputs; None where there is no such vector.

    Sampled quantities are left as they are, and so is noise, which tells equal inputs apart.
    """
    if graph.noise or graph.shape or graph.mirrored or any(isinstance(q, (Average, Sampled)) for q in graph.nodes):
        return None
    of_input: dict[Quantity, bool] = {}
    found: set[Data] = set()
    for q in graph.nodes:
        operands: tuple[Operand, ...] = getattr(q, "operands", ())
        if isinstance(q, Data):
            of_input[q] = isinstance(q.node, Input) or any(of_input.get(o.quantity, False) for o in operands)
            continue
        read = {o.quantity for o in operands if of_input.get(o.quantity, False)}
        if not read:
            continue
        alone = len(read) == 1 and all(
            o.quantity in read for o in operands
        )  # not with a constant vector, which has a direction
        if not (isinstance(q, Contract) and q.spec == "a,a->" and alone and len(operands) == 2):
            return None
        found |= read  # type: ignore[arg-type]
    if len(found) != 1 or any(of_input.get(q, False) for q in graph.outputs):
        return None
    return found.pop()


def in_the_plane(graph: KernelGraph, vector: Data) -> KernelGraph:
    """The same kernels as functions of points in the plane, in the place of `vector`. What belongs to a point alone reads its norm alone, so
    that it can be computed once for points of many directions."""
    norm, direction = (Data(node, (), node.shape) for node in PLANE)
    moved: dict[Quantity, Quantity] = {}
    for q in graph.nodes:
        operands: tuple[Operand, ...] = getattr(q, "operands", ())
        if any(o.quantity is vector for o in operands):
            assert isinstance(q, Contract)
            read = [Operand(part, o.side) for part in ((norm, direction) if q.cross else (norm,)) for o in operands]
            moved[q] = replace(q, spec="a,a,b,b->" if q.cross else "a,a->", operands=tuple(read))
        elif all(moved.get(o.quantity) is o.quantity for o in operands):
            moved[q] = q
        else:
            changed: Any = replace(q, operands=tuple(Operand(moved[o.quantity], o.side) for o in operands))  # type: ignore[call-arg]
            moved[q] = changed
    nngp, ntk, nngp_self, ntk_self = (moved[q] for q in graph.outputs)
    return KernelGraph(nngp, ntk, nngp_self, ntk_self, graph.mirrored, graph.shape, graph.noise)


class _NotHomogeneous(Exception):
    """Some quantity scales in no simple way with the input."""


def homogeneous(graph: KernelGraph, vector: Data) -> bool:
    """Does the kernel of s phi(x), s > 0, differ from that of phi(x) by a power of s alone, by structure?"""
    degrees: dict[Quantity, sp.Expr | None] = {}  # None: of what is zero, which has every degree
    try:
        for q in graph.nodes:
            if q is not vector:
                degrees[q] = _degree(q, degrees, vector)
    except _NotHomogeneous:
        return False
    return True


def _degree(q: Quantity, degrees: Mapping[Quantity, sp.Expr | None], vector: Data) -> sp.Expr | None:
    """The power of s by which a quantity grows with the first input (of a pair; of a self quantity, with its input)."""
    operands: tuple[Operand, ...] = getattr(q, "operands", ())
    if any(o.quantity is vector for o in operands):
        return sp.Integer(sum(o.side != 1 for o in operands))
    of = [sp.S.Zero if o.side == 1 else degrees.get(o.quantity, sp.S.Zero) for o in operands]
    match q:
        case Zero():
            return None
        case Contract():
            return _product(of)
        case Combine():
            return _common(of)
        case Expect(function=function, expectation=expectation, n_covariances=n):
            if not expectation.needs:
                return _of_expression(function, dict.fromkeys(function.free_symbols, sp.S.Zero)) if n else sp.S.Zero
            return _of_expectation(function, dict(zip(expectation.needs, of[:n], strict=True)))
        case Data(node=Nonlin(phi=phi)):
            return _of_expression(phi.expr, dict(zip(phi.parameters, of, strict=True)))
        case Data():
            if all(d == 0 for d in of):
                return sp.S.Zero
    raise _NotHomogeneous


def _of_expectation(function: sp.Expr, degrees: Mapping[tuple[int, int], sp.Expr | None]) -> sp.Expr | None:
    """From those of the covariances that it reads. A variance that it does not read leaves the degree of a variable open."""
    if None in degrees.values():
        raise _NotHomogeneous
    own = {i: d / 2 for (i, j), d in degrees.items() if i == j and d is not None}
    for (i, j), d in degrees.items():
        if i != j and d is not None:
            first = own.setdefault(i, d - own[j] if j in own else sp.Symbol(f"open{i}"))
            own.setdefault(j, d - first)
    found = _of_expression(function, {sp.Symbol(f"u{i}", real=True): d for i, d in own.items()})
    found = None if found is None else sp.expand(found)
    if found is not None and found.free_symbols:
        raise _NotHomogeneous
    return found


def _common(degrees: list[sp.Expr | None]) -> sp.Expr | None:
    found = {d for d in degrees if d is not None}
    if len(found) > 1:
        raise _NotHomogeneous
    return found.pop() if found else None


def _product(degrees: list[sp.Expr | None]) -> sp.Expr | None:
    known = [d for d in degrees if d is not None]
    return sum(known, sp.S.Zero) if len(known) == len(degrees) else None


def _of_expression(expr: sp.Expr, degrees: Mapping[sp.Symbol, sp.Expr | None]) -> sp.Expr | None:
    """The degree of an expression under scaling of its symbols by positive factors."""
    match expr:
        case sp.Symbol():
            if expr not in degrees:
                raise _NotHomogeneous
            return degrees[expr]
        case sp.Integer() | sp.Float() | sp.Rational() | sp.NumberSymbol():
            return None if expr == 0 else sp.S.Zero
        case sp.Piecewise():
            for _, condition in expr.args:
                _check_scale_free(condition, degrees)
            return _common([_of_expression(value, degrees) for value, _ in expr.args])
    of = [_of_expression(a, degrees) for a in expr.args]
    match expr:
        case sp.Add() | sp.Max() | sp.Min() | sp.Abs():
            return _common(of)
        case sp.Mul():
            return _product(of)
        case sp.Pow() if expr.exp.is_number:
            return None if of[0] is None else of[0] * expr.exp
        case sp.Heaviside() | sp.sign():
            return sp.S.Zero  # of the first argument alone: the second says what it is at zero
    if all(d == 0 for d in of):
        return sp.S.Zero
    raise _NotHomogeneous


def _check_scale_free(condition: sp.Basic, degrees: Mapping[sp.Symbol, sp.Expr | None]) -> None:
    """A condition holds at all positive multiples or at none where it compares expressions of one degree."""
    for part in condition.atoms(sp.core.relational.Relational):
        _common([_of_expression(side, degrees) for side in part.args])
