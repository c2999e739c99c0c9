"""Each simplification, with an instruction it changes and one it leaves alone; the conditions; the structural facts."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

import tensorprog as tp
from tensorprog.ir import (
    Const,
    Input,
    LinComb,
    Literal,
    MatMul,
    Moment,
    Node,
    Nonlin,
    Phi,
    PositionMap,
    Program,
    Trsp,
    Type,
    Weight,
    position,
)
from tensorprog.ir.phi import identity, parameter, vector
from tensorprog.passes import simplify
from tensorprog.passes.conditions import check_conditions
from tensorprog.passes.structure import Structure
from tensorprog.passes.tangent import primed

ONE = Fraction(1)
x = Input("x", (4,), "float64")
w = Weight("w", (1, 4), (ONE, None), 1.0, 1.0, ((Fraction(0), ONE), (Fraction(0), Fraction(4))))
g = MatMul("ab,b->a", w, x)
h = Nonlin(Phi(vector(0) ** 2, 1), (g,))
zero, one = (Const(Literal.of(np.full(1, v))) for v in (0.0, 1.0))


def moved(node: Node, to: tuple[int, ...]) -> PositionMap:
    axis = next((i for i, n in enumerate(to) if n == 1), None) if node.type.width else None
    return PositionMap(position("reshape", to=to), (node,), Type(node.type.kind, to, axis, node.type.width))


def padded(node: Node, before: int, behind: int) -> PositionMap:
    op = position("pad", config=((before, behind, 0),))
    return PositionMap(op, (node,), Type("scalar", op.shape(node.type.shape)))


def part(node: Node, start: int, stop: int) -> PositionMap:
    op = position("slice", start=(start,), stop=(stop,), stride=(1,))
    return PositionMap(op, (node,), Type("scalar", (stop - start,)))


square = Weight("s", (1, 1), (ONE, ONE), 1.0, 1.0, ((Fraction(0), ONE),) * 2)
goe = Weight("s", (1, 1), (ONE, ONE), 1.0, 1.0, ((Fraction(0), ONE),) * 2, symmetric=True)

y = Input("y", (4,), "float64")
beside = LinComb(((1.0, padded(x, 0, 4)), (3.0, padded(y, 4, 0))))

CASES: dict[str, list[tuple[Callable[[], Node], Callable[[], Node | None]]]] = {
    "untransposed": [
        (lambda: MatMul("ab,b->a", Trsp(square), g), lambda: MatMul("ab,a->b", square, g)),
        (lambda: MatMul("ab,b->a", Trsp(Trsp(square)), g), lambda: MatMul("ab,b->a", square, g)),
        (lambda: MatMul("ab,a->b", goe, g), lambda: MatMul("ab,b->a", goe, g)),
        (lambda: MatMul("ab,a->b", square, g), lambda: None),
        (lambda: MatMul("ab,b->a", goe, g), lambda: None),
    ],
    "mean_of_gaussian": [
        (lambda: Moment(identity, (g,)), lambda: zero),
        (lambda: Moment(identity, (h,)), lambda: None),
        (lambda: Moment(Phi(vector(0) ** 2, 1), (g,)), lambda: None),
    ],
    "copied": [
        (lambda: Nonlin(Phi(parameter(0), 0, 1), (), (x,)), lambda: x),
        (lambda: Nonlin(Phi(parameter(0) ** 2, 0, 1), (), (x,)), lambda: None),
    ],
    "zero_moved": [
        (lambda: moved(zero, (1, 1)), lambda: Const(Literal.of(np.zeros((1, 1))))),
        (lambda: moved(one, (1, 1)), lambda: None),
    ],
    "short_sum": [
        (lambda: LinComb(((1.0, g),)), lambda: g),
        (lambda: LinComb(((2.0, g), (0.0, h))), lambda: LinComb(((2.0, g),))),
        (lambda: LinComb(((1.0, g), (1.0, zero))), lambda: g),
        (lambda: LinComb(((1.0, g), (zero, h))), lambda: g),
        (lambda: LinComb(((2.0, g), (1.0, h))), lambda: None),
    ],
    "factor_taken_in": [
        (lambda: LinComb(((2.0, LinComb(((3.0, g),))),)), lambda: LinComb(((6.0, g),))),
        (lambda: LinComb(((2.0, LinComb(((3.0, g), (1.0, h)))),)), lambda: None),
        (lambda: LinComb(((2.0, g),)), lambda: None),
        (lambda: LinComb(((one, LinComb(((3.0, g),))),)), lambda: None),
    ],
    "only_reshapes": [
        (lambda: PositionMap(position("sum", axes=(0,)), (one,), Type("scalar", ())), lambda: moved(one, ())),
        (lambda: moved(moved(x, (2, 2)), (4, 1)), lambda: moved(x, (4, 1))),
        (lambda: moved(moved(x, (2, 2)), (4,)), lambda: x),
        (lambda: PositionMap(position("sum", axes=(0,)), (x,), Type("scalar", ())), lambda: None),
    ],
    "reshaped_constant": [
        (lambda: moved(one, (1, 1)), lambda: Const(Literal.of(np.ones((1, 1))))),
        (lambda: moved(x, (2, 2)), lambda: None),
    ],
    "taken_back": [
        (lambda: part(beside, 0, 4), lambda: x),
        (lambda: part(beside, 5, 7), lambda: LinComb(((3.0, part(y, 1, 3)),))),
        (
            lambda: part(LinComb(((1.0, padded(beside, 1, 0)), (1.0, padded(part(x, 0, 1), 0, 8)))), 5, 9),
            lambda: LinComb(((3.0, y),)),
        ),
        (lambda: part(beside, 3, 5), lambda: None),  # some of both
        (lambda: part(LinComb(((1.0, padded(x, 0, 4)), (1.0, padded(x, 4, 0)), (1.0, beside))), 0, 4), lambda: None),
    ],
}


def test_every_rule_has_its_cases() -> None:
    assert [rule.__name__ for rule in simplify.RULES] == list(CASES)


@pytest.mark.parametrize(("rule", "i"), [(r, i) for r, many in CASES.items() for i in range(len(many))])
def test_rule(rule: str, i: int) -> None:
    made, wanted = CASES[rule][i]
    apply = next(r for r in simplify.RULES if r.__name__ == rule)
    assert apply(made(), Structure([])) is wanted()


def test_simplify_goes_on_until_nothing_changes() -> None:
    node = LinComb(((1.0, LinComb(((1.0, g), (0.0, h)))),))
    assert simplify.simplify(node, Structure([])) is g


def test_facts() -> None:
    facts = Structure([])
    other = MatMul("ab,b->a", Weight("u", (1, 4), (ONE, None), 1.0, 1.0, w.region), x)
    t = MatMul("ab,b->a", primed(w), x)
    assert facts[g].gaussian and not facts[h].gaussian
    assert facts[g].odd is False and facts[t].odd is True
    assert facts[Nonlin(Phi(vector(0) * vector(1), 2), (h, t))].odd is True
    assert facts[Nonlin(Phi(vector(0) + vector(1), 2), (h, t))].odd is None
    assert facts[Nonlin(Phi(vector(0) * vector(1), 2), (t, t))].odd is False
    assert facts.independent(g, other) and not facts.independent(g, h)
    assert facts.uncorrelated(g, t) and not facts.uncorrelated(g, LinComb(((2.0, g), (1.0, other))))
    affine = LinComb(((1.0, g), (1.0, one)))
    assert not facts[affine].gaussian and facts[affine].odd is False


def test_conditions() -> None:
    """A matrix may be used both ways round; a readout is used for nothing else."""
    out = Weight("o", (1, 1), (None, ONE), 1.0, 1.0, ((Fraction(0), ONE),) * 2)
    once = MatMul("ab,b->a", square, g)
    for second in (once, MatMul("ab,a->b", square, once)):
        program = Program((x,), MatMul("ab,b->a", out, second))
        assert check_conditions(program) is program
    both = LinComb(((1.0, g), (1.0, MatMul("ab,a->b", Weight("o", (1, 1), (None, ONE), 1.0, 1.0, out.region), one))))
    with pytest.raises(tp.UnsupportedError, match="two ways"):
        check_conditions(Program((x,), MatMul("ab,b->a", out, both)))
