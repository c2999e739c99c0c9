"""The questions the theory asks of a program, in the letters of einsum, and the loop that answers them.

`Second(u, v, cross, lu, lv, out)` asks for E[u v] with one letter for every axis of u and of v: a letter that both
have is a diagonal, a letter that `out` lacks is summed over, a 1 stands for an axis of size one. cross: v is taken
at another input than u. `Mean(u)` asks for E[u], `Value(s)` for a deterministic array, and `Neurons(u)`
for the values of a variable in a population of neurons.

A rule is a generator that yields further questions and returns a quantity. Answers are remembered, and the loop
keeps its own stack: what the output does not need is never asked, and depth meets no recursion limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tensorprog.errors import UnsupportedError
from tensorprog.ir import Moment, Node, Nonlin
from tensorprog.kernel.graph import Combine, Contract, Operand, Quantity, Zero, is_zero

__all__ = [
    "LETTERS",
    "Answer",
    "Mean",
    "Neurons",
    "Question",
    "Second",
    "Value",
    "Work",
    "answer",
    "answered",
    "as_vector",
    "ask",
    "combine",
    "contract",
    "fresh",
    "sizes_of",
]

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Second:
    """E[u v]."""

    u: Node
    v: Node
    cross: bool
    lu: str
    lv: str
    out: str


@dataclass(frozen=True)
class Mean:
    """E[u], over the axes of u that are longer than one."""

    u: Node


@dataclass(frozen=True)
class Value:
    """A deterministic variable, in its full shape."""

    node: Node


@dataclass(frozen=True)
class Neurons:
    """The values of a vector variable in a population. cross: in the one of a pair of inputs; side: at which of them."""

    node: Node
    side: int
    cross: bool


Question = Second | Mean | Value | Neurons
T = TypeVar("T")
Work = Generator[Question, Quantity, T]  # asks questions, is sent their answers, returns a T
Answer = Work[Quantity]


def answer(question: Question, rule: Callable[[Question], Answer], memo: dict[Question, Quantity]) -> Quantity:
    """Answer a question by the rules, with all that it needs. A refusal goes to the rule that asked, which may ask otherwise."""
    if question in memo:
        return memo[question]
    stack = [(question, rule(question))]
    given: Quantity | None = None
    refused: UnsupportedError | None = None
    while stack:
        current, work = stack[-1]
        try:
            needed = work.send(given) if refused is None else work.throw(refused)  # type: ignore[arg-type]
        except StopIteration as stop:
            memo[current] = given = stop.value
            refused = None
            stack.pop()
            continue
        except UnsupportedError as error:
            refused, given = error, None
            stack.pop()
            if not stack:
                raise
            continue
        refused = None
        given = memo.get(needed)
        if given is None:
            stack.append((needed, rule(needed)))
            given = None
    return memo[question]


def answered(memo: dict[Question, Quantity]) -> dict[Quantity, list[Question]]:
    """The questions that each quantity answers."""
    found: dict[Quantity, list[Question]] = {}
    for question, quantity in memo.items():
        found.setdefault(quantity, []).append(question)
    return found


def as_vector(node: Node) -> Node:
    """The function whose mean a Moment is; any other node itself."""
    return Nonlin(node.phi, node.xs, node.thetas, source=node.source) if isinstance(node, Moment) else node


# ------------------------------------------------------------------------------------------ letters


def sizes_of(*pairs: tuple[str, Sequence[int]]) -> dict[str, int]:
    """The size of each letter."""
    return {c: n for letters, shape in pairs for c, n in zip(letters, shape, strict=True) if c != "1"}


def fresh(taken: str) -> Iterator[str]:
    """Letters not in `taken`."""
    return (c for c in LETTERS if c not in taken)


def ask(u: Node, lu: str, v: Node, lv: str, out: str, cross: bool) -> Answer:
    """E[u v] with the axes `out`, of which those of size one are dropped. Letters are the caller's own."""
    sizes = sizes_of((lu, u.type.shape), (lv, v.type.shape))
    names: dict[str, str] = {"1": "1"}
    for c in lu + lv:
        if c not in names:
            names[c] = "1" if sizes[c] == 1 else LETTERS[len([n for n in names.values() if n != "1"])]
    wanted = "".join(names[c] for c in out if names[c] != "1")
    canonical = "".join(sorted(wanted))
    found = yield Second(u, v, cross, "".join(names[c] for c in lu), "".join(names[c] for c in lv), canonical)
    shape = tuple(sizes[c] for c in out if sizes[c] > 1)
    if is_zero(found):
        return Zero(shape)
    if canonical == wanted:
        return found
    return contract(f"{canonical}->{wanted}", [Operand(found)], shape, cross)


def contract(spec: str, operands: Sequence[Operand], shape: Sequence[int], cross: bool, scale: float = 1.0) -> Quantity:
    """A `Contract`, zero where an operand is, and nothing at all where it would change nothing."""
    shape = tuple(shape)
    if scale == 0.0 or any(is_zero(o.quantity) for o in operands):
        return Zero(shape)
    left, right = spec.split("->")
    if len(operands) == 1 and left == right and scale == 1.0 and operands[0].side is None:
        return operands[0].quantity
    return Contract(spec, tuple(operands), float(scale), shape, cross)


def combine(terms: Sequence[tuple[float, Quantity]], shape: Sequence[int], cross: bool) -> Quantity:
    """A `Combine` of quantities of one shape; equal terms are joined."""
    total: dict[Quantity, float] = {}
    for c, quantity in terms:
        if not is_zero(quantity) and c:
            total[quantity] = total.get(quantity, 0.0) + c
    if not total:
        return Zero(tuple(shape))
    if len(total) == 1 and math.isclose(next(iter(total.values())), 1.0, rel_tol=0.0, abs_tol=0.0):
        return next(iter(total))
    return Combine(tuple(total.values()), tuple(Operand(q) for q in total), tuple(shape), cross)
