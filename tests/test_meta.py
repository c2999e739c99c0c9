"""Nothing is half added: every row of every table has its other rows and a test that reaches it."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from examples import architectures as zoo
from ntk_rules.interpreted import by_numpy
from tensorprog import nn
from tensorprog.frontend import primitives, walk, written_out
from tensorprog.frontend.elementwise import ELEMENTWISE
from tensorprog.ir import Program, nodes, positions, rebuild, text
from tensorprog.ir.nodes import Node, operands
from tensorprog.kernel import graph
from tensorprog.lower.emit import EMIT
from tensorprog.passes import simplify
from tensorprog.passes.fuse import fuse
from tensorprog.passes.structure import Structure
from tensorprog.passes.tangent import tangent
from tests.finite_program import RUN, network_program
from tests.ir import test_text, test_verify
from tests.networks import ELEMENTS, NETWORKS
from tests.passes import test_simplify

INSTRUCTIONS = {cls.__name__: cls for cls in Node.__subclasses__()}
# Primitives that no network of the tests can contain, each with the reason.
UNREACHED = {
    "expand_dims": "JAX writes lax.expand_dims as broadcast_in_dim or reshape",
    "copy_p": "another spelling of copy in JAX's own tables",
    "order_statistic": "sorting becomes it, which is no primitive of JAX's; it is among the elements below",
    "has_rank": "sorting more than three becomes it, in the same way",
    "exp_neg_sq": "JAX writes the slope of erf with it from 0.12 on",
    "acos": "jnp.arccos is written with atan2 or acos, by version",
    "polynomial": "JAX writes jnp.polyval with it from 0.12 on",
}

DERIVED = {"behind"}  # position maps that slopes alone have; see tests/passes/test_adjoint.py


@pytest.fixture(scope="module")
def reached() -> tuple[set[str], set[str], set[str], set[type], dict[str, Program]]:
    """What the networks of the tests reach: rules, elementwise rows, position maps, instructions; and their programs."""
    rules, elements = set(), set()
    with pytest.MonkeyPatch.context() as patch:
        for name, rule in primitives.RULES.items():
            patch.setitem(primitives.RULES, name, lambda *a, rule=rule, name=name: (rules.add(name), rule(*a))[1])
        for name, row in ELEMENTWISE.items():
            patch.setitem(ELEMENTWISE, name, lambda *a, row=row, name=name, **k: (elements.add(name), row(*a, **k))[1])
        for name, row in written_out.WRITTEN_OUT.items():
            patch.setitem(
                written_out.WRITTEN_OUT,
                name,
                lambda *a, row=row, name=name, **k: (rules.add(f"{name} written out"), row(*a, **k))[1],
            )
        programs = {name: network_program(net, jnp.zeros(shape)) for name, (net, shape) in NETWORKS.items()}
    made = [node for program in programs.values() for node in program]
    ops = {node.op.name for node in made if isinstance(node, nodes.PositionMap)}
    return rules, elements, ops, {type(node) for node in made}, programs


@pytest.mark.long
def test_primitives(reached: tuple) -> None:
    rules, elements, *_ = reached
    assert walk.RULES is primitives.RULES
    assert set(primitives.RULES) - rules - set(UNREACHED) == set()
    assert {f"{name} written out" for name in written_out.WRITTEN_OUT} - rules == set()
    assert set(ELEMENTWISE) <= set(primitives.RULES)
    # linear rows become LinCombs before their formula is asked for
    assert set(ELEMENTWISE) - elements - {"add_any", "convert_element_type", "neg"} - set(UNREACHED) == set()
    assert {"order_statistic", "has_rank"} <= elements
    assert {name.split()[0] for name in ELEMENTS} >= set(ELEMENTWISE)


def test_no_stale_exemption() -> None:
    assert set(UNREACHED) <= set(primitives.RULES)


def test_position_maps(reached: tuple) -> None:
    assert set(positions.POSITIONS) - reached[2] == DERIVED


def test_instructions(reached: tuple) -> None:
    """Text form, operands, rebuild, type, the finite-width evaluator; facts and tangent for the random ones."""
    assert set(INSTRUCTIONS) == set(text._MAKERS)
    assert set(INSTRUCTIONS) - {cls.__name__ for cls in reached[3]} == {
        "Trsp"
    }  # the front end has transposes in the letters of a product
    leaves = {"Input", "Hyper", "Const", "Weight"}
    assert {cls.__name__ for cls in RUN} == set(INSTRUCTIONS) - {"Input", "Hyper", "Weight"}
    for name, (net, shape) in list(NETWORKS.items())[:8]:
        for node in fuse(network_program(net, jnp.zeros(shape))):
            assert (not operands(node)) == (type(node).__name__ in leaves) or isinstance(node, nodes.ArrayOp), name
            assert rebuild.rebuild(node, operands(node)) is node
            if operands(node):
                again = rebuild.rebuild(node, [_copy(o) for o in operands(node)])
                assert type(again) is type(node)
            if node.type.kind == "vector":
                assert Structure([])[node] is not None


def _copy(node: Node) -> Node:
    """Another node of the same type, so that rebuild has something to do."""
    if isinstance(node, nodes.Weight):
        return dataclasses.replace(node, name=node.name + "_")
    return node


def test_tangents() -> None:
    moved = tangent(fuse(network_program(*_example("residual"))))
    assert moved is not None and any(w.primed for w in moved.weights)


def _example(name: str) -> tuple:
    net, shape = NETWORKS[name]
    return net, jnp.zeros(shape)


def test_quantities() -> None:
    kinds = set(graph.Quantity.__subclasses__()) - {graph.Given}  # it stands inside a Tilted, which emits it
    assert set(EMIT) == kinds
    pooled = lambda x: nn.dense(nn.conv(jnp.tanh(nn.conv(x, 3)), 3).mean(0), features=1)
    frozen = lambda x: nn.dense(x, features=1, train=False)
    normed = lambda x: nn.dense((lambda h: h / jnp.sqrt((h * h).mean(0)))(nn.dense(x)), features=1)
    bent = tp.compile(
        lambda x: nn.dense(jnp.tanh(jnp.tanh(nn.dense(x)).mean(0)), features=1), jnp.zeros((5, 1)), tolerance=1e-2
    )
    cases = [
        _example("residual"),
        _example("matrix of images"),
        (normed, jnp.zeros((9, 1))),
        (pooled, jnp.zeros((4, 1))),
        (frozen, jnp.zeros(3)),
    ]
    kernels = [tp.compile(*case) for case in cases] + [
        bent,
        tp.compile(zoo.residual_after, jnp.zeros((2, 1)), tolerance=5e-2),
    ]
    made = {type(q) for kernel in kernels for q in kernel.graph.nodes}
    assert kinds - made == set()


def test_simplify_and_verifier_rules_have_tests() -> None:
    assert [r.__name__ for r in simplify.RULES] == list(test_simplify.CASES)
    assert [r.__name__ for r in test_verify.RULES] == list(test_verify.BROKEN)
    assert test_text.WRONG


def test_position_rows_are_right_about_axes(reached: tuple) -> None:
    """An axis a row calls untouched: permuting it before or after the map is the same."""
    rng = np.random.default_rng(0)
    seen = set()
    for name, program in reached[4].items():
        if name in ELEMENTS or name.endswith("of hidden"):
            continue
        for node in program:
            if not isinstance(node, nodes.PositionMap) or node.op in seen:
                continue
            seen.add(node.op)
            x = rng.standard_normal(node.args[0].type.shape)
            aux = [_values(a) for a in node.args[1:]]
            if any(a is None for a in aux):
                continue
            run = by_numpy(lambda a, node=node, aux=aux: node.op(a, *aux))
            out = np.asarray(run(x))
            assert out.shape == node.type.shape
            for j, i in enumerate(node.op.same_axis(x.shape)):
                if i is not None:
                    order = rng.permutation(x.shape[i])
                    np.testing.assert_allclose(run(np.take(x, order, i)), np.take(out, order, j), atol=1e-12)
            if node.op.selects:
                entries = set(np.round(x.ravel(), 12)) | ({0.0} if node.op.row.fills else set())
                assert set(np.round(out.ravel(), 12)) <= entries, node.op
    assert {op.name for op in seen} == set(positions.POSITIONS) - DERIVED


def _values(node: Node) -> jnp.ndarray | None:
    return jnp.asarray(node.value.array()) if isinstance(node, nodes.Const) else None
