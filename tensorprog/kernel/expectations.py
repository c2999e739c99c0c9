"""Covariances of nonlinear images: E[phi(x; a) psi(y; b)] as a Gaussian expectation, handed to `ntk_rules`.

Which Gaussians are independent is known by structure (different weights, opposite parity), so that
E[phi'(u) t phi'(v) t'] falls apart into E[phi'(u) phi'(v)] E[t t']. Only the covariances the rule reads are asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sympy

from ntk_rules import Expectation, NoRule
from tensorprog.errors import UnsupportedError, explain
from tensorprog.ir import Moment, Node, Nonlin, PositionMap, operands, topological
from tensorprog.ir.phi import parameter, vector
from tensorprog.kernel.fields import LEAST_TOLERANCE, field_of
from tensorprog.kernel.graph import Expect, Operand, Zero, is_zero
from tensorprog.kernel.laws import Factor, Law, Product, compares_many, has_rule, products_of, rule_of, unsampled
from tensorprog.kernel.linear import linear_of
from tensorprog.kernel.paths import by_paths
from tensorprog.kernel.population import population_of
from tensorprog.kernel.positions import original
from tensorprog.kernel.questions import (
    Answer,
    Mean,
    Question,
    Second,
    Value,
    Work,
    as_vector,
    ask,
    combine,
    contract,
    fresh,
    sizes_of,
)
from tensorprog.kernel.stacks import Stacks
from tensorprog.kernel.sums import as_sum
from tensorprog.kernel.tilted import tilted_of
from tensorprog.passes.slopes import is_leaf
from tensorprog.passes.structure import Structure

__all__ = ["expectation_of"]

MOST_PAIRS = 2**24  # of places of functions in sums, whose covariances are one array


@dataclass(frozen=True)
class _Argument:
    """A Gaussian argument of the expectation: whose it is, and the letters of its axes."""

    node: Node
    side: int
    letters: str


@dataclass(frozen=True)
class _Parameter:
    node: Node
    side: int
    letters: str


def expectation_of(
    asked: Second | Node, facts: Structure, tolerance: float | None, rules: Callable[..., Callable[[Question], Answer]],
    apart: bool = True, stacks: Stacks | None = None,
) -> Answer:  # fmt: skip
    """E[u v] of a `Second` question, or E[u] of a node (a Nonlin or Moment). tolerance: that of numerical values. rules:
    makes the rules again, for a law of which other covariances are known. apart: of `derive`. stacks: slopes to be sampled at once."""
    if isinstance(asked, Second):
        sides = [(asked.u, asked.lu, 0), (asked.v, asked.lv, 1)]
        cross, out = asked.cross, asked.out
    else:
        letters = "".join(c if n > 1 else "1" for c, n in zip(fresh(""), asked.type.shape, strict=False))
        sides, cross, out = [(asked, letters, 0)], False, letters.replace("1", "")
    arguments, parameters, factors = _read(sides, cross)
    wide = not all(facts[argument.node].gaussian for argument in arguments)
    carried = any(facts[as_vector(node)].carried for node, _, _ in sides)
    reduced = partial(tilted_of, asked, facts, tolerance, partial(rules, tolerance=unsampled(tolerance)))
    few = len(arguments) <= 2 * len(sides)
    if (wide and not carried) or not few:
        exact = yield from reduced()
        if exact is not None:
            return exact
    if carried:
        _check_sampled(node for node, _, _ in sides)
        own = (yield from linear_of(asked, facts, tolerance)) if apart and isinstance(asked, Second) else None
        return own if own is not None else (yield from population_of(asked, tolerance))
    if wide and (opened := _opened(asked, facts, tolerance)) is not None:
        return (yield opened)
    if wide:
        return (yield from _sampled(asked, facts, tolerance, apart, stacks))
    sampling = tolerance is not None and tolerance >= LEAST_TOLERANCE
    if sampling and any(compares_many(expr) for expr, *_ in factors):
        return (yield from _sampled(asked, facts, tolerance, apart, stacks))
    sizes = sizes_of(*((letters, node.type.shape) for node, letters, _ in sides))
    everything = "".join(dict.fromkeys("".join(letters for _, letters, _ in sides).replace("1", "")))
    shape = tuple(sizes[c] for c in out)
    terms = []
    products = _products(arguments, parameters, factors, facts, cross)
    if few and not _ruled(products, tolerance):  # a norm over two or three positions
        exact = yield from reduced()
        if exact is not None:
            return exact
    if sampling and not _ruled(products, tolerance):
        if isinstance(asked, Second) and apart and not facts[asked.u].odd and _meet(asked, facts, tolerance):
            return (yield from _but_where_they_meet(asked, facts, tolerance, stacks))
        return (yield from _sampled(asked, facts, tolerance, apart, stacks))
    for number, product in products:
        made = []
        for law, used, given in product:
            found = yield from _expected(law, used, given, arguments, parameters, sides, sizes, cross, tolerance)
            made.append(found)
            if is_zero(found[0].quantity):
                break
        spec = ",".join(letters for _, letters in made)
        terms.append(
            (
                number,
                contract(f"{spec}->{out}", [o for o, _ in made], shape, cross, _copies(made, everything, out, sizes)),
            )
        )
    return combine(terms, shape, cross)


def _opened(asked: Second | Node, facts: Structure, tolerance: float | None) -> Question | None:
    """The question about sums of functions of Gaussians, where functions that are linear in sums over positions are asked for, as the
    gradient is in what all positions share; None where it is about others, or there are no rules for the sums, or too large ones."""
    nodes = (asked.u, asked.v) if isinstance(asked, Second) else (as_vector(asked),)
    sums = [as_sum(node, facts) if isinstance(node, Nonlin) else node for node in nodes]
    if any(found is None for found in sums):
        return None
    u, *rest = (found for found in sums if found is not None)
    cross = isinstance(asked, Second) and asked.cross
    for images in itertools.product(*(_images(found, facts) for found in (u, *rest))):
        entries = math.prod(math.prod(image.type.shape) for image in images)
        if entries > MOST_PAIRS or not _ruled(_laws_of(images, facts, cross), tolerance):
            return None
    return replace(asked, u=u, v=rest[0]) if isinstance(asked, Second) else Mean(u)


def _images(u: Node, facts: Structure) -> list[Node]:
    """What a sum of `as_sum` is of."""
    if isinstance(u, Nonlin) or facts[u].gaussian:
        return [u]
    return [y for x in operands(u) if x.type.kind == "vector" for y in _images(x, facts)]


def _laws_of(nodes: Iterable[Node], facts: Structure, cross: bool) -> tuple[Product, ...]:
    """The laws of a product of functions at places of their own."""
    letters, sides = fresh(""), []
    for side, node in enumerate(nodes):
        sides.append((node, "".join(next(letters) if n > 1 else "1" for n in node.type.shape), side))
    arguments, parameters, factors = _read(sides, cross)
    return _products(arguments, parameters, factors, facts, cross)


def _read(sides: list[tuple[Node, str, int]], cross: bool) -> tuple[list[_Argument], list[_Parameter], list[Factor]]:
    """What the factors of a product are functions of, and the factors in numbers of those."""
    arguments: list[_Argument] = []
    parameters: list[_Parameter] = []
    factors = []
    for node, letters, side in sides:
        at = side if cross else 0  # of one input both factors see the same variables, where their places are the same
        factors.append(_factor(node, letters, at, arguments, parameters))
    return arguments, parameters, factors


def _products(
    arguments: list[_Argument], parameters: list[_Parameter], factors: list[Factor], facts: Structure, cross: bool
) -> tuple[Product, ...]:
    positive = frozenset(i for i, given in enumerate(parameters) if _is_positive(given.node))
    return products_of(tuple(factors), _independent(arguments, facts, cross), positive)


def _ruled(products: tuple[Product, ...], tolerance: float | None) -> bool:
    """Are there rules for all laws of a sum of products, none of which is left to sampling?"""
    laws = [law for _, product in products for law, *_ in product]
    return not any(compares_many(law.expr) for law in laws) and all(has_rule(law, tolerance) for law in laws)


def _meet(q: Second, facts: Structure, tolerance: float | None) -> bool:
    """Is there a rule where both factors of one input are at the same places, of fewer Gaussians than elsewhere?"""
    parted = [(a, b) for a, b in zip(q.lu, q.lv, strict=False) if a != b]
    if q.cross or not parted or q.u.type.shape != q.v.type.shape or set(q.lu) & {b for _, b in parted}:
        return False
    if any(letters.replace("1", "").count(c) > 1 for letters in (q.lu, q.lv) for c in letters):
        return False
    arguments, parameters, factors = _read([(q.u, q.lu, 0), (q.v, q.lu, 0)], False)
    return _ruled(_products(arguments, parameters, factors, facts, False), tolerance)


def _but_where_they_meet(q: Second, facts: Structure, tolerance: float | None, stacks: Stacks | None) -> Answer:
    """By sampling, but for the same places of both, which others ask for alone: one number for one question."""
    sizes = sizes_of((q.lu, q.u.type.shape), (q.lv, q.v.type.shape))
    every = "".join(dict.fromkeys((q.lu + q.lv).replace("1", "")))
    own = q.lu.replace("1", "")
    same = "".join(dict(zip(q.lv, q.lu, strict=True)).get(c, c) for c in every)
    shape, thin = (tuple(sizes[c] for c in letters) for letters in (every, own))
    whole = yield from _sampled(replace(q, out=every), facts, tolerance, True, stacks)
    exact = yield from ask(q.u, q.lu, q.v, q.lu, own, False)
    spread = lambda diagonal: contract(f"{own}->{same}", [Operand(diagonal)], shape, False)
    rough = contract(f"{same}->{own}", [Operand(whole)], thin, False)
    made = combine([(1.0, whole), (-1.0, spread(rough)), (1.0, spread(exact))], shape, False)
    return contract(f"{every}->{q.out}", [Operand(made)], tuple(sizes[c] for c in q.out), False)


def _sampled(
    asked: Second | Node, facts: Structure, tolerance: float | None, apart: bool, stacks: Stacks | None
) -> Answer:
    """By sampling, of tangents and gradients path by path."""
    _check_sampled((asked.u, asked.v) if isinstance(asked, Second) else (asked,))
    if isinstance(asked, Second) and apart and tolerance is not None and tolerance >= LEAST_TOLERANCE:
        found = (yield from linear_of(asked, facts, tolerance)) if _of_states(asked, facts) else None
        if found is None:
            found = yield from by_paths(asked, facts, tolerance)
        if found is None and stacks is not None:
            found = yield from stacks.second(asked)
        if found is not None:
            return found
    return (yield from field_of(asked, facts, tolerance))


def _of_states(q: Second, facts: Structure) -> bool:
    """Are these functions of other functions, none of which has positions, as the states of a gated recurrence are? Others with states in
    them are followed by a population, and these in the same form."""
    below = list(topological((q.u, q.v), skip=is_leaf))
    read = {o for node in below for o in operands(node) if o.type.kind == "vector"}
    inner = (x for node in below if isinstance(node, Nonlin) for x in node.xs)
    return all(math.prod(node.type.shape) == 1 for node in read) and not all(facts[x].gaussian for x in inner)


def _check_sampled(nodes: Iterable[Node]) -> None:
    """Refuse to sample a delta function, the derivative of a jump that a Zdot asks for."""
    for node in nodes:
        if isinstance(node, (Nonlin, Moment)) and node.phi.expr.has(sympy.DiracDelta):
            raise UnsupportedError(
                explain(
                    "a function with a jump between a weight and its transpose, of variables that have to be sampled",
                    where=str(node.source or ""),
                    reason="the coefficient of the earlier vector is the mean of its derivative, in which the jump is a delta function",
                    mend="use a continuous function, or fewer layers between the two",
                )
            )


def _copies(made: list[tuple[Operand, str]], everything: str, out: str, sizes: dict[str, int]) -> float:
    present = set("".join(letters for _, letters in made)) | set(out)
    return float(math.prod(sizes[c] for c in everything if c not in present))


def _expected(
    law: Law, used: tuple[int, ...], given: tuple[int, ...], arguments: list[_Argument], parameters: list[_Parameter],
    sides: list[tuple[Node, str, int]], sizes: dict[str, int], cross: bool, tolerance: float | None,
) -> Work[tuple[Operand, str]]:  # fmt: skip
    """One factor: its quantity as an operand, and the letters of its axes."""
    found = _derive(law, sides, tolerance)
    if (
        found.formula is not None and found.formula == 0 and not found.needs
    ):  # what reads a variance jumps where that is zero
        return Operand(Zero(())), ""
    covariances, their_letters = [], []
    for i, j in found.needs:
        operand, letters = yield from _covariance(arguments[used[i]], arguments[used[j]], cross)
        covariances.append(operand)
        their_letters.append(letters)
    if law.is_covariance:
        return covariances[0], their_letters[0]
    values = []
    for k in given:
        parameter = parameters[k]
        values.append(Operand((yield Value(parameter.node)), parameter.side if cross else None))
        their_letters.append(parameter.letters)
    everything = "".join(dict.fromkeys("".join(their_letters).replace("1", "")))
    operands = (*covariances, *values)
    sides_read = {o.side for o in operands}
    own = cross and len(sides_read) == 1 and None not in sides_read  # it concerns one input only
    side = operands[0].side if own else None
    if own:
        operands = tuple(Operand(o.quantity) for o in operands)
    one = lambda i, j: arguments[used[i]].node is arguments[used[j]].node
    alike = tuple((i, j) for i, j in found.needs if i != j and one(i, j))
    made = Expect(
        found, law.expr, tuple(their_letters), everything, operands, len(covariances), tuple(sizes[c] for c in everything),
        cross and not own, alike,
    )  # fmt: skip
    return Operand(made, side), everything


def _factor(
    node: Node, letters: str, side: int, arguments: list[_Argument], parameters: list[_Parameter]
) -> tuple[sympy.Expr, tuple[int, ...], tuple[int, ...]]:
    """One factor of the product: its expression and which arguments and parameters its symbols are."""
    if not isinstance(node, (Nonlin, Moment)):
        return vector(0), (_place(arguments, _argument(node, side, letters)),), ()
    xs = tuple(_place(arguments, _argument(x, side, letters)) for x in node.xs)
    thetas = tuple(_place(parameters, _Parameter(t, side, _against(letters, t))) for t in node.thetas)
    return node.phi.expr, xs, thetas


def _argument(x: Node, side: int, letters: str) -> _Argument:
    node, own = original(x, letters)
    return _Argument(node, side, own)


def _place(known: list[Any], item: object) -> int:
    if item not in known:
        known.append(item)
    return known.index(item)


def _against(letters: str, x: Node) -> str:
    own = letters[len(letters) - len(x.type.shape) :]
    return "".join("1" if n == 1 else c for c, n in zip(own, x.type.shape, strict=True))


def _independent(arguments: list[_Argument], facts: Structure, cross: bool) -> frozenset[tuple[int, int]]:
    return frozenset(
        (i, j)
        for j, b in enumerate(arguments)
        for i, a in enumerate(arguments[:j])
        if facts.uncorrelated(a.node, b.node, cross and a.side != b.side)
    )


def _is_positive(node: Node) -> bool:
    """Is a deterministic array known to be positive, as the factor of a norm is?"""
    if isinstance(node, PositionMap):
        return node.op.selects and not node.op.row.fills and _is_positive(node.args[0])
    if not isinstance(node, Nonlin) or node.xs:
        return False
    expr = node.phi.expr
    if expr.is_Pow and expr.exp.is_negative and not expr.exp.is_integer:
        return True
    signs = {parameter(i): sympy.Symbol(f"b{i}", positive=True) for i, t in enumerate(node.thetas) if _is_positive(t)}
    return bool(expr.xreplace(signs).is_positive)


def _derive(law: Law, sides: list[tuple[Node, str, int]], tolerance: float | None) -> Expectation:
    reason: object = f"only sampling reaches it, which is good for {LEAST_TOLERANCE:.0e}; the tolerance asked for is {tolerance or 0:.0e}"
    try:
        found = rule_of(law, tolerance)
    except NoRule as refusal:
        found, reason = None, refusal
    if found is None or found.sampled:
        where = next((str(n.source) for n, _, _ in sides if n.source), None)
        raise UnsupportedError(
            lambda: explain(
                f"no rule for the Gaussian expectation of {law.expr}", where=where, reason=str(reason),
                mend="use a nonlinearity of fewer Gaussian arguments, or one of slower growth; where sampling is named above, a "
                "looser tolerance, tp.compile(.., tolerance=1e-3), accepts it",
            )
        )  # fmt: skip
    return found


def _covariance(a: _Argument, b: _Argument, cross: bool) -> Work[tuple[Operand, str]]:
    """The covariance of two arguments, with the letters of its axes."""
    first, second = (b, a) if a.side > b.side else (a, b)
    letters = "".join(dict.fromkeys((first.letters + second.letters).replace("1", "")))
    same = a.side == b.side
    found = yield from ask(first.node, first.letters, second.node, second.letters, letters, cross and not same)
    return Operand(found, a.side if cross and same else None), letters
