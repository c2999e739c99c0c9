"""Expectations of normalised functions, exactly: the Laplace reduction.

(Q + epsilon)^(-k/2) is a mixture of exponentials, 1/Gamma(k/2) int_0^inf s^(k/2-1) e^(-s (Q + epsilon)) ds, and a Gaussian law
times e^(-s Q) is a Gaussian law again, of covariance (C^-1 + 2 s M)^-1, times det(1 + 2 s C M)^(-1/2). So the expectation of
r^k w is an integral over s of E[w] under a tilted law, which the ordinary rules answer; of two inputs, over s and t
(Yang et al. 2019, "A mean field theory of batch normalization", appendix E, for ReLU).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tensorprog.errors import UnsupportedError
from tensorprog.ir import MatMul, Node, PositionMap, Weight
from tensorprog.ir.nodes import Literal
from tensorprog.kernel.fields import LEAST_TOLERANCE
from tensorprog.kernel.graph import Given, Operand, Quantity, Tilted, is_zero, quantities
from tensorprog.kernel.half_line import ERROR, nodes_for
from tensorprog.kernel.normalised import Normalised, bottom, form_matrix, normalised
from tensorprog.kernel.questions import (
    Answer,
    Mean,
    Question,
    Second,
    Value,
    Work,
    answer,
    as_vector,
    ask,
    fresh,
    sizes_of,
)
from tensorprog.passes.structure import Structure

__all__ = ["tilted_of"]

MakeRules = Callable[[Structure], Callable[[Question], Answer]]


class _NotHere(Exception):
    """The reduction does not apply."""


class _Below(Exception):
    """What is asked for lies below the leaves of the law, which say nothing of it."""


def tilted_of(
    asked: Second | Node, facts: Structure, tolerance: float | None, rules: MakeRules
) -> Work[Quantity | None]:
    """E[u v] of a `Second` question, or E[u] of a node; None where the reduction does not apply."""
    try:
        return (yield from _tilted(asked, facts, tolerance, rules))
    except _NotHere:
        return None


def _tilted(asked: Second | Node, facts: Structure, tolerance: float | None, rules: MakeRules) -> Answer:
    roots: tuple[Node, ...]
    if isinstance(asked, Second):
        roots, cross = (asked.u, asked.v), asked.cross
    else:
        node = as_vector(asked)
        roots, cross = (node,), False
    found = [normalised(root, facts) for root in roots]
    if all(f is None for f in found):
        raise _NotHere
    forms = [form for f in found if f is not None for form in f.forms]
    if not cross and len({f.epsilon for f in found if f}) > 1:
        raise _NotHere
    nodes = [*forms, *(w for f in found if f for _, w in f.terms), *roots]
    below = _leaves(nodes, forms, facts, bottom)
    for leaves in _choices(nodes, forms, facts, below):
        inner = _Inner(facts, rules, leaves, below)
        try:
            norms = _norms([(f,) for f in found] if cross else [tuple(found)], leaves)
            parts = [(k, answer(question, inner, inner.memo)) for k, question in _questions(asked, roots, found)]
            break
        except (_NotHere, _Below, UnsupportedError) as error:
            if leaves is not below:
                continue
            if isinstance(error, UnsupportedError) and (tolerance is None or tolerance < LEAST_TOLERANCE):
                raise
            raise _NotHere from None  # sampled once, as a whole, where that is allowed
    sides = (0, 1) if cross else (None,)
    used: list[Operand] = []
    pairs: list[tuple[int, int]] = []
    places = [(leaf, side) for side in sides for leaf in leaves]
    for j, (v, second) in enumerate(places):
        for i, (u, first) in enumerate(places[: j + 1]):
            lu, lv = _all_letters(u, v)
            quantity = yield from ask(u, lu, v, lv, (lu + lv).replace("1", ""), first != second)
            if not is_zero(quantity):
                pairs.append((i, j))
                used.append(Operand(quantity, first if first == second else None))
    outer: list[tuple[Given, int | None]] = []
    for given in _givens(parts):
        if not given.tilted:
            quantity = yield given.question
            if is_zero(quantity):
                continue
            for side in (None,) if given.cross or not cross else sides:
                outer.append((given, side))
                used.append(Operand(quantity, side))
    shape = parts[0][1].shape if parts else ()  # type: ignore[attr-defined]
    sizes = tuple(math.prod(leaf.type.shape) for leaf in leaves)
    return Tilted(
        tuple(leaves),
        sizes,
        tuple(norms),
        tuple(pairs),
        tuple(parts),
        tuple(outer),
        nodes_for([norm[1] for norm in norms if norm is not None]),
        ERROR,
        tuple(used),
        tuple(shape),
        cross,
    )


def _questions(
    asked: Second | Node, roots: Sequence[Node], found: Sequence[Normalised | None]
) -> Iterator[tuple[tuple[int, ...], Question]]:
    """The powers of the norms, and the question under the tilted law, of every pair of terms."""
    terms = [((0, root),) if f is None else f.terms for root, f in zip(roots, found, strict=True)]
    if not isinstance(asked, Second):
        yield from (((k,), Mean(w)) for k, w in terms[0])
        return
    for j, u in terms[0]:
        for k, v in terms[1]:
            question = Second(u, v, asked.cross, asked.lu, asked.lv, asked.out)
            yield ((j, k) if asked.cross else (j + k,)), question


Norm = tuple[Literal, float] | None  # the matrix of Q in the leaves, and epsilon


def _choices(nodes: Sequence[Node], forms: Sequence[Node], facts: Structure, below: list[Node]) -> Iterator[list[Node]]:
    """The Gaussians of the tilted law, in the ways to be tried.

    They are those that functions read, as the distances from a mean: what the law leaves of these may be less than the rounding of what they
    are the differences of. Where they are more numbers than the products with weights, or the norm has not one form in them, they are the
    latter.
    """
    count = lambda leaves: sum(math.prod(leaf.type.shape) for leaf in leaves)
    try:
        read = _leaves(nodes, forms, facts, lambda roots: bottom(roots, lambda node: _is_leaf(node, facts)))
    except _NotHere:
        read = below
    if read != below and count(read) <= count(below):
        yield read
    yield below


def _is_leaf(node: Node, facts: Structure) -> bool:
    """Is it a sum of Gaussians, and no choice of entries of one?"""
    found = facts[node]
    return found.gaussian and found.odd is False and not (isinstance(node, PositionMap) and node.op.selects)


def _norms(sides: Sequence[Sequence[Normalised | None]], leaves: Sequence[Node]) -> list[Norm]:
    norms: list[Norm] = []
    for those in sides:
        own = [f for f in those if f is not None]
        norms.append((_matrix([form for f in own for form in f.forms], leaves), own[0].epsilon) if own else None)
    return norms


def _matrix(forms: Sequence[Node], leaves: Sequence[Node]) -> Literal:
    """The matrix of a form in the leaves, in all the ways that it is written."""
    found = [form_matrix(form, leaves) for form in dict.fromkeys(forms)]
    first = found[0]
    if first is None or any(
        m is None or not np.allclose(m, first, rtol=1e-12, atol=1e-14 * np.abs(first).max()) for m in found
    ):
        raise _NotHere
    return Literal.of(first)


def _leaves(
    nodes: Sequence[Node], forms: Sequence[Node], facts: Structure, below: Callable[[Sequence[Node]], list[Node]]
) -> list[Node]:
    """Of the Gaussians that there are below the nodes, those of the forms, and those that depend on them."""
    first = below(forms)
    roots = frozenset().union(*(facts[leaf].roots for leaf in first))
    every = [leaf for leaf in below(nodes) if facts[leaf].roots & roots and not facts[leaf].zero]
    if any(facts[leaf].odd is None or (facts[leaf].odd and leaf in first) for leaf in every):
        raise _NotHere
    return [leaf for leaf in every if not facts[leaf].odd]


def _all_letters(u: Node, v: Node) -> tuple[str, str]:
    letters = fresh("")
    lu, lv = ("".join("1" if n == 1 else next(letters) for n in node.type.shape) for node in (u, v))
    return lu, lv


def _givens(parts: Sequence[tuple[tuple[int, ...], Quantity]]) -> list[Given]:
    return [q for q in quantities([quantity for _, quantity in parts]) if isinstance(q, Given)]


class _Inner:
    """The ordinary rules under the tilted law: covariances of its Gaussians are given, and what does not depend on them
    is asked outside. below: the products that the Gaussians are made of."""

    def __init__(self, facts: Structure, rules: MakeRules, leaves: Sequence[Node], below: Sequence[Node]):
        self.rules, self.leaves = rules(facts.joined(leaves)), leaves
        self.tilted = {*leaves, *below}
        self.memo: dict[Question, Quantity] = {}

    def __call__(self, question: Question) -> Answer:
        if isinstance(question, Value):
            return _known(Given(question, False, question.node.type.shape, False))
        ends = (MatMul, Weight)
        inside = isinstance(question, Second) and question.u in self.leaves and question.v in self.leaves
        if isinstance(question, Second) and (inside or all(isinstance(end, ends) for end in (question.u, question.v))):
            u, v = question.u, question.v
            sizes = sizes_of((question.lu, u.type.shape), (question.lv, v.type.shape))
            if not inside and {u, v} <= self.tilted:
                raise _Below
            return _known(Given(question, inside, tuple(sizes[c] for c in question.out), question.cross))
        if isinstance(question, Second) and (_is_sum(question.u) or _is_sum(question.v)):
            return _of_sums(question)
        return self.rules(question)


def _is_sum(node: Node) -> bool:
    return isinstance(node, PositionMap) and node.op.name == "sum"


def _of_sums(q: Second) -> Answer:
    """E[(sum_m u_m) v] as one question with a letter that the answer lacks: its factors are multiplied before anything has an axis
    for each of what is summed."""
    u, lu = _summed(q.u, q.lu, q.lu + q.lv)
    v, lv = _summed(q.v, q.lv, lu + q.lu + q.lv)
    return (yield from ask(u, lu, v, lv, q.out, q.cross))


def _summed(node: Node, letters: str, taken: str) -> tuple[Node, str]:
    """What a sum is of, with new letters for the axes that it sums."""
    if not (isinstance(node, PositionMap) and _is_sum(node)):
        return node, letters
    axes, kept, spare = node.op.kw["axes"], iter(letters), fresh(taken)
    sizes = node.args[0].type.shape
    own = (next(kept) if i not in axes else "1" if n == 1 else next(spare) for i, n in enumerate(sizes))
    return node.args[0], "".join(own)


def _known(quantity: Quantity) -> Answer:
    return quantity
    yield  # an answer is a generator
