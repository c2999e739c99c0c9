"""The text form: prints and parses back, and refuses everything else with the line."""

from __future__ import annotations

import contextlib
from fractions import Fraction

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

import tensorprog as tp
from tensorprog import nn
from tensorprog.ir import (
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
    Weight,
    parse_program,
    position,
)
from tensorprog.ir.phi import parse_expression, vector
from tests.finite_program import network_program
from tests.networks import NETWORKS, an_input
from tests.uncompiled import uncompiled

# that every network of tests.networks prints and parses back is checked in tests/test_finite_width.py

TEXT = """tensorprog 1
x0 = Input("x", (4,), "float64")
W0 = Weight("W", (n, 4), std=1.0, tangent_std=1.0)
W1 = Weight("v", (1, n), std=1.0, tangent_std=0.0)
v0 = MatMul("ab,b->a", W0, x0)
v1 = Nonlin("z0*(erf(sqrt(2)*z0/2) + 1)/2", [v0], [])
v2 = MatMul("ab,b->a", W1, v1)
return_(v2)
"""


def test_a_program_written_by_hand() -> None:
    program = parse_program(TEXT)
    net = lambda x: nn.dense(2 * x, features=1)
    assert parse_program(str(program)) is not program and parse_program(str(program)) == program
    assert {w.name for w in program.weights} == {"W", "v"}
    assert program != network_program(net, jnp.zeros(4))
    found = tp.compile_program(TEXT)(np.eye(4)).nngp
    gelu = lambda x: (
        nn.weight((1, nn.width()), train=False) @ _gelu(nn.weight((nn.width(), 4)) @ x) / jnp.sqrt(nn.width())
    )
    np.testing.assert_allclose(found, uncompiled(tp.compile(gelu, jnp.zeros(4)), np.eye(4)).nngp, rtol=1e-10)


def _gelu(h):  # type: ignore[no-untyped-def]
    from jax.scipy.special import erf

    return h * (erf(h / np.sqrt(2)) + 1) / 2


# Each wrong text: what replaces what, the line, and what is said.
WRONG = [
    ("tensorprog 1", "tensorprog 9", 1, "expected 'tensorprog 1'"),
    ("tensorprog 1", "", 1, "not a program"),
    ("v0 = MatMul", "v0 = Matmul", 5, "unknown instruction 'Matmul': one of Input"),
    ("W0, x0)", "W0, x9)", 5, "'x9' is used before it is made"),
    ('"ab,b->a", W0', '"ab,b->c", W0', 5, "makes letters from nothing"),
    ('"ab,b->a", W0', '"abc,b->a", W0', 5, "does not fit an operand"),
    ('"ab,b->a", W0', '"ab", W0', 5, "not of the form"),
    ('"ab,b->a", W0, x0', '"ab,b->a", x0, x0', 5, "not a weight"),
    ("(n, 4), std=1.0", "(n, 4), std=-1.0", 3, "negative standard deviation"),
    ("(n, 4), std=1.0", "(n, 5), std=1.0", 5, "two sizes"),
    ("(n, 4)", "(n, n, n)", 3, "more than two width axes"),
    ("(n, 4)", "(n(1/0), 4)", 3, "cannot be read"),
    ("z0*(erf", "z1*(erf", 6, "z1 stand in"),
    ("z0*(erf", "q*(erf", 6, "unknown name 'q'"),
    ("z0*(erf", "__import__('os').system('true')*(erf", 6, "not part of the language"),
    ("z0*(erf", "(lambda: 1)()*(erf", 6, "not part of the language"),
    ("erf(", "open(", 6, "unknown function 'open'"),
    ("[v0], []", "[x0], []", 6, "in each other's place"),
    ("[v0], []", "[v0, v9], []", 6, "'v9' is used before"),
    ('"float64"', '__import__("os").getcwd()', 2, "not part of the language"),
    ('"float64"', "[c for c in (1,)][0]", 2, "not part of the language"),
    ("return_(v2)", "", None, "no return_ line"),
    ("return_(v2)", "return_(3)", 8, "expected 'return_"),
    ("v1 = Nonlin", "import os; v1 = Nonlin", 6, "expected 'name = Instruction"),
    ("v1 = Nonlin(", "v1 = Nonlin((", 6, "cannot be read"),
    ("x0)", "*x0)", 5, "not part of the language"),
]


@pytest.mark.parametrize(("old", "new", "line", "what"), WRONG)
def test_malformed_text_is_refused_with_its_line(old: str, new: str, line: int | None, what: str) -> None:
    assert old in TEXT
    with pytest.raises(tp.ProgramError) as caught:
        parse_program(TEXT.replace(old, new, 1))
    text = str(caught.value)
    assert what in text, text
    assert line is None or text.startswith(f"line {line}: "), text


@given(st.text(max_size=60), st.integers(0, len(TEXT)), st.integers(0, 12))
def test_damaged_text_never_raises_anything_else(junk: str, at: int, gone: int) -> None:
    with contextlib.suppress(tp.ProgramError):
        parse_program(TEXT[:at] + junk + TEXT[at + gone :])


@given(st.text(max_size=12))
def test_any_name_survives(name: str) -> None:
    weight = Weight(name, (3,), (None,), 1.0, 1.0, ((Fraction(0), Fraction(3)),))
    program = Program((Input(name, (4,), "float64"),), weight)
    assert parse_program(str(program)) == program


CONSTANTS = [
    np.float64(0.1),
    np.arange(6, dtype=np.int32).reshape(2, 3),
    np.array([True, False]),
    np.array([np.nan, np.inf, -np.inf, -0.0]),
    np.linspace(0, 1, 40),
    np.zeros((0, 3)),
    np.float32(1 / 3),
]


@pytest.mark.parametrize("array", CONSTANTS, ids=str)
def test_constants_keep_every_bit(array: np.ndarray) -> None:
    const = Const(Literal.of(array))
    program = Program((), LinComb(((0.1 + 0.2, const),)))
    again = parse_program(str(program))
    assert again == program
    assert again.output.terms[0][1].value.array().tobytes() == np.asarray(array).tobytes()


def test_position_maps_with_odd_parameters() -> None:
    x = Input("x", (3,), "float64")
    for op in (
        position("slice", start=(np.int64(1),), stop=[3], stride=(1,)),
        position("pad", config=[(np.int32(1), 0, 0)]),
    ):
        node = PositionMap(op, (x,), type(x.type)("scalar", op.shape((3,))))
        program = Program((x,), node)
        assert parse_program(str(program)) == program
    assert position("gather", fill_value=float("nan")) == position("gather", fill_value=np.float64("nan"))


@given(st.recursive(
    st.sampled_from(["z0", "z1", "a0", "2", "0.1", "1/3", "sqrt(2)", "pi"]),
    lambda e: st.one_of(
        st.tuples(e, st.sampled_from("+-*"), e).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(st.sampled_from(["tanh", "erf", "Abs", "sign", "exp", "softplus", "logistic", "log1p"]), e).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(e, e).map(lambda t: f"Max({t[0]}, {t[1]})"),
        st.tuples(e, e, e).map(lambda t: f"Piecewise(({t[0]}, {t[1]} < z0), ({t[2]}, True))"),
        e.map(lambda a: f"({a})**2"),
    ),
    max_leaves=6,
))  # fmt: skip
def test_expressions_print_and_parse_back(text: str) -> None:
    try:
        phi = Phi(parse_expression(text), 2, 1)
    except ValueError:  # SymPy cannot compare functions of ours at a number, such as softplus(2), with others
        hypothesis.assume(False)
    assert Phi(parse_expression(str(phi)), 2, 1) == phi


def test_equal_nodes_are_one_object() -> None:
    name = "mixed"
    first, second = (network_program(NETWORKS[name][0], an_input(name)) for _ in range(2))
    assert first.output is second.output and hash(first) == hash(second)
    node = first.weights[0]
    assert type(node)(*(getattr(node, f) for f in ("name", "shape", "widths", "std", "tangent_std", "region"))) is node


def test_the_graph_has_every_instruction_and_operand() -> None:
    program = parse_program(TEXT)
    graph = program.graph()
    kind = lambda name: graph.nodes[name]["instruction"] + getattr(graph.nodes[name]["node"], "name", "")
    assert sorted(map(kind, graph.nodes)) == ["Inputx", "MatMul", "MatMul", "Nonlin", "WeightW", "Weightv"]
    edges = {(kind(a), kind(b)) for a, b in graph.edges}
    assert edges == {
        ("Inputx", "MatMul"),
        ("WeightW", "MatMul"),
        ("Weightv", "MatMul"),
        ("MatMul", "Nonlin"),
        ("Nonlin", "MatMul"),
    }
    assert graph.nodes["v1"]["instruction"] == "Nonlin"


def test_a_thousand_layers_print_and_parse() -> None:
    program = parse_program(TEXT)
    x = program.output.x
    weight = next(w for w in parse_program(TEXT.replace('"v", (1, n)', '"w", (n, n)')).weights if w.name == "w")
    for _ in range(1000):
        x = Nonlin(Phi(vector(0) ** 2, 1), (MatMul("ab,b->a", weight, x),))
    deep = Program(program.inputs, Moment(Phi(vector(0), 1), (x,)))
    assert parse_program(str(deep)) == deep
