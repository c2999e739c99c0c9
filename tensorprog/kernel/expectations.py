"""Covariances of nonlinear images: E[phi(x; a) psi(y; b)] as a Gaussian expectation, handed to `ntk_rules`.

Which Gaussians are independent is known by structure (different weights, opposite parity), so that
E[phi'(u) t phi'(v) t'] falls apart into E[phi'(u) phi'(v)] E[t t']. Only the covariances the rule reads are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import sympy
from ntk_rules import Expectation, NoRule, expectation

from tensorprog.errors import UnsupportedError, explain
from tensorprog.ir import Moment, Node, Nonlin
from tensorprog.kernel.graph import Expect, Operand, Zero
from tensorprog.kernel.questions import Answer, Second, Value, ask, contract, fresh, sizes_of
from tensorprog.passes.structure import Structure

__all__ = ["expectation_of"]


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


def expectation_of(asked: Second | Node, facts: Structure) -> Answer:
    """E[u v] of a `Second` question, or E[u] of a node (a Nonlin or Moment)."""
    if isinstance(asked, Second):
        sides = [(asked.u, asked.lu, 0), (asked.v, asked.lv, 1)]
        cross, out = asked.cross, asked.out
    else:
        letters = "".join(c if n > 1 else "1" for c, n in zip(fresh(""), asked.type.shape, strict=False))
        sides, cross, out = [(asked, letters, 0)], False, letters.replace("1", "")
    aligned = not cross and len(sides) == 2 and sides[0][1] == sides[1][1]
    arguments: list[_Argument] = []
    parameters: list[_Parameter] = []
    factors = []
    for node, letters, side in sides:
        at = 0 if aligned else side  # on the diagonal of one input both factors see the same variables
        factors.append(_factor(node, letters, at, arguments, parameters))
    law = _law(tuple(factors), len(arguments), len(parameters), _independent(arguments, facts))
    _check_gaussian(arguments, facts, sides)
    found = _derive(law, sides)
    sizes = sizes_of(*((letters, node.type.shape) for node, letters, _ in sides))
    everything = "".join(dict.fromkeys("".join(letters for _, letters, _ in sides).replace("1", "")))
    shape = tuple(sizes[c] for c in out)
    if found.formula is not None and found.formula == 0:
        return Zero(shape)
    covariances, their_letters = [], []
    for i, j in found.needs:
        operand, letters = yield from _covariance(arguments[i], arguments[j], cross)
        covariances.append(operand)
        their_letters.append(letters)
    values = []
    for parameter in parameters:
        values.append(Operand((yield Value(parameter.node)), parameter.side if cross else None))
        their_letters.append(parameter.letters)
    made = Expect(
        found, tuple(their_letters), everything, (*covariances, *values), len(covariances), tuple(sizes[c] for c in everything), cross,
    )  # fmt: skip
    return contract(f"{everything}->{out}", [Operand(made)], shape, cross)


def _factor(
    node: Node, letters: str, side: int, arguments: list[_Argument], parameters: list[_Parameter]
) -> tuple[sympy.Expr, tuple[int, ...], tuple[int, ...]]:
    """One factor of the product: its expression and which arguments and parameters its symbols are."""
    if not isinstance(node, (Nonlin, Moment)):
        from tensorprog.ir.phi import vector

        return vector(0), (_place(arguments, _Argument(node, side, letters)),), ()
    xs = tuple(_place(arguments, _Argument(x, side, letters)) for x in node.xs)
    thetas = tuple(_place(parameters, _Parameter(t, side, _against(letters, t))) for t in node.thetas)
    return node.phi.expr, xs, thetas


def _place(known: list, item: object) -> int:  # type: ignore[type-arg]
    if item not in known:
        known.append(item)
    return known.index(item)


def _against(letters: str, x: Node) -> str:
    own = letters[len(letters) - len(x.type.shape) :]
    return "".join("1" if n == 1 else c for c, n in zip(own, x.type.shape, strict=True))


def _independent(arguments: list[_Argument], facts: Structure) -> frozenset[tuple[int, int]]:
    return frozenset(
        (i, j)
        for j, b in enumerate(arguments)
        for i, a in enumerate(arguments[:j])
        if facts.uncorrelated(a.node, b.node)
    )


def _check_gaussian(arguments: list[_Argument], facts: Structure, sides: list[tuple[Node, str, int]]) -> None:
    for argument in arguments:
        if not facts[argument.node].gaussian:
            where = next((str(n.source) for n, _, _ in sides if n.source), None)
            raise UnsupportedError(
                explain(
                    f"a nonlinearity of a {_kind(argument.node)} that is not Gaussian in the limit",
                    where=where,
                    reason="its argument mixes images of nonlinearities from several positions (a pooled or concatenated hidden layer, say), "
                    "so its law is not Gaussian and no rule reduces the expectation",
                    mend="put a layer with weights between the pooling and the nonlinearity, or apply the nonlinearity before pooling",
                )
            )


def _kind(node: Node) -> str:
    return {"LinComb": "sum", "PositionMap": "map of positions", "Nonlin": "nonlinear image"}.get(type(node).__name__, "variable")


@dataclass(frozen=True)
class _Law:
    """A canonical expectation: the same for every layer that asks for it."""

    factors: tuple[tuple[sympy.Expr, tuple[int, ...], tuple[int, ...]], ...]
    n_arguments: int
    n_parameters: int
    independent: frozenset[tuple[int, int]]


def _law(factors: tuple, n_arguments: int, n_parameters: int, independent: frozenset) -> _Law:  # type: ignore[type-arg]
    return _Law(factors, n_arguments, n_parameters, independent)


@lru_cache(maxsize=4096)
def _expectation(law: _Law) -> Expectation:
    from tensorprog.ir.phi import parameter, vector

    u = [sympy.Symbol(f"u{i}", real=True) for i in range(law.n_arguments)]
    a = [sympy.Symbol(f"b{i}", real=True) for i in range(law.n_parameters)]
    product = sympy.Integer(1)
    for expr, xs, thetas in law.factors:
        swap = {vector(k): u[i] for k, i in enumerate(xs)} | {parameter(k): a[i] for k, i in enumerate(thetas)}
        product *= expr.xreplace(swap)
    return expectation(product, tuple(u), tuple(a), independent=tuple(sorted(law.independent)))


def _derive(law: _Law, sides: list[tuple[Node, str, int]]) -> Expectation:
    try:
        return _expectation(law)
    except NoRule as refusal:
        where = next((str(n.source) for n, _, _ in sides if n.source), None)
        functions = " and ".join(str(expr) for expr, _, _ in law.factors)
        raise UnsupportedError(
            explain(
                f"no Gaussian expectation rule for {functions}", where=where, reason=str(refusal),
                mend="use a nonlinearity of fewer Gaussian arguments, or one of slower growth",
            )
        ) from None  # fmt: skip


def _covariance(a: _Argument, b: _Argument, cross: bool) -> Answer:  # type: ignore[misc]
    """The covariance of two arguments, with the letters of its axes."""
    if a.side == b.side or (not cross and a.letters == b.letters):
        letters = a.letters.replace("1", "")
        found = yield from ask(a.node, a.letters, b.node, b.letters, letters, False)
        return Operand(found, a.side if cross else None), letters  # type: ignore[return-value]
    first, second = (a, b) if a.side < b.side else (b, a)
    letters = "".join(dict.fromkeys((first.letters + second.letters).replace("1", "")))
    found = yield from ask(first.node, first.letters, second.node, second.letters, letters, cross)
    return Operand(found), letters  # type: ignore[return-value]
