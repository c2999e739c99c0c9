"""Each rule of the verifier, with an instruction that breaks it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tensorprog.errors import VerificationError
from tensorprog.ir import (
    ArrayOp,
    Const,
    Input,
    LinComb,
    Literal,
    MatMul,
    Moment,
    Nonlin,
    Phi,
    PositionMap,
    Program,
    Trsp,
    Type,
    Weight,
    position,
)
from tensorprog.ir.phi import parameter, vector
from tensorprog.ir.verify import RULES, verify

ONE = Fraction(1)
x = Input("x", (4,), "float64")
w = Weight("w", (1, 4), (ONE, None), 1.0, 1.0, ((Fraction(0), ONE), (Fraction(0), Fraction(4))))
square = Weight("s", (1, 1), (ONE, ONE), 1.0, 1.0, ((Fraction(0), ONE),) * 2)
out = Weight("o", (1, 1), (None, ONE), 1.0, 1.0, ((Fraction(0), ONE),) * 2)
v = MatMul("ab,b->a", w, x)
last = MatMul("ab,b->a", out, v)
table = Const(Literal.of(np.ones((3, 1))))
z, a = vector(0), parameter(0)

BROKEN = {
    "_input": [lambda: Input("y", (-1,), "float64")],
    "_weight": [
        lambda: Weight("b", (1,), (ONE,), -1.0, 1.0, ((Fraction(0), ONE),)),
        lambda: Weight("b", (1,), (ONE,), 1.0, -1.0, ((Fraction(0), ONE),)),
        lambda: Weight("b", (1,), (ONE,), 1.0, 1.0, ()),
        lambda: Weight("b", (1, 1, 1), (ONE,) * 3, 1.0, 1.0, ((Fraction(0), ONE),) * 3),
        lambda: Weight("b", (1,), (ONE,), 1.0, 1.0, ((Fraction(0), ONE),), per_input=True),
        lambda: Weight("b", (1, 1), (ONE, ONE), 1.0, 0.0, ((Fraction(0), ONE),) * 2, per_input=True),
        lambda: Weight("b", (1,), (ONE,), 1.0, 1.0, ((Fraction(0), ONE),), symmetric=True),
        lambda: Weight(
            "b", (1, 1), (ONE, 2 * ONE), 1.0, 1.0, ((Fraction(0), ONE), (Fraction(0), 2 * ONE)), symmetric=True
        ),
    ],
    "_trsp": [lambda: Trsp(w)],
    "_matmul": [
        lambda: MatMul("ab,b->c", w, x),
        lambda: MatMul("ab,bc->a", w, x),
        lambda: MatMul("aa,a->a", w, x),
        lambda: MatMul("ab,a->b", w, x),
        lambda: MatMul("ab,c->a", w, x),
        lambda: MatMul("ab", w, x),
        lambda: MatMul("ab,b->ab", square, v),
        lambda: MatMul("ab,b->ab", Trsp(square), v),
        lambda: MatMul("a,b->a", x, x),
        lambda: MatMul("a,b->b", Weight("m", (1,), (ONE,), 1.0, 0.0, ((Fraction(0), ONE),), per_input=True), last),
    ],
    "_lincomb": [
        lambda: LinComb(()),
        lambda: LinComb(((1.0, v), (1.0, last))),
        lambda: LinComb(((v, v),)),
        lambda: LinComb(((1.0, square),)),
        lambda: LinComb(((1.0, v), (1.0, table))),
        lambda: LinComb(((table, v),)),
    ],
    "_elementwise": [
        lambda: Nonlin(Phi(z + vector(1), 2), (v, last)),
        lambda: Nonlin(Phi(z, 1), (x,)),
        lambda: Nonlin(Phi(z * a, 1, 1), (v,), (v,)),
        lambda: Nonlin(Phi(z, 1), (v, v)),
        lambda: Nonlin(Phi(z**2, 1), (last,)),
        lambda: Nonlin(Phi(z * a, 1, 1), (v,), (table,)),
        lambda: Moment(Phi(a, 0, 1), (), (x,)),
        lambda: Nonlin(Phi(z / z, 0), ()),
    ],
    "_position": [
        lambda: PositionMap(position("rev", axes=(0,)), (v,), Type("vector", (2,), 0, ONE)),
        lambda: PositionMap(position("rev", axes=(0,)), (v,), Type("vector", (1,))),
        lambda: PositionMap(position("rev", axes=(0,)), (v,), Type("scalar", (1,))),
        lambda: PositionMap(position("dot", contract=((0,), (0,)), batch=((), ()), ndim=1), (v, v), Type("vector", ())),
    ],
    "_array_op": [lambda: ArrayOp("exp", (), (v,), (1,))],
}


def test_every_rule_has_a_program_that_breaks_it() -> None:
    assert [rule.__name__ for rule in RULES] == list(BROKEN)


@pytest.mark.parametrize(("rule", "i"), [(r, i) for r, many in BROKEN.items() for i in range(len(many))])
def test_broken_programs_are_refused_by_the_rule(rule: str, i: int) -> None:
    try:
        node = BROKEN[rule][i]()
    except (ValueError, LookupError, AttributeError, TypeError, AssertionError):
        return  # an instruction that has no type at all cannot even be made
    broken = next(r for r in RULES if r.__name__ == rule)
    assert list(broken(node)), "the rule has no complaint"
    with pytest.raises(VerificationError):
        verify(Program((x,), node))


def test_a_sound_program_passes() -> None:
    program = Program((x,), last)
    assert verify(program) is program
