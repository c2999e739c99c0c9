"""The verifier: what must hold of every program, as a list of small rules.

It runs between passes in the tests, and on every program read from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tensorprog.errors import VerificationError
from tensorprog.ir.nodes import Input, LinComb, MatMul, Moment, Node, Nonlin, PositionMap, Trsp, Weight
from tensorprog.ir.program import Program

__all__ = ["RULES", "verify"]


def _weight(node: Node) -> Iterator[str]:
    if isinstance(node, Weight):
        if not len(node.shape) == len(node.widths) == len(node.region):
            yield "shape, widths and region of a weight differ in length"
        if sum(w is not None for w in node.widths) > 2:
            yield "a weight has more than two width axes"
        if node.std < 0 or node.tangent_std < 0:
            yield "a weight has a negative standard deviation"


def _matmul(node: Node) -> Iterator[str]:
    if not isinstance(node, MatMul):
        return
    w, x, out = node.letters
    if not isinstance(node.weight, (Weight, Trsp)):
        yield "the first operand of MatMul is not a weight"
        return
    sizes: dict[str, int] = {}
    for letters, shape in ((w, node.weight.type.shape), (x, node.x.type.shape)):
        if len(letters) != len(shape) or len(set(letters)) != len(letters):
            yield f"spec {node.spec!r} does not fit an operand of shape {shape}"
            return
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                yield f"letter {letter!r} of {node.spec!r} has two sizes"
    if not set(out) <= set(w) | set(x) or len(set(out)) != len(out):
        yield f"spec {node.spec!r} makes letters from nothing"
    if set(x) - set(w) - set(out):
        yield f"spec {node.spec!r} sums a position that the weight does not have"


def _lincomb(node: Node) -> Iterator[str]:
    if isinstance(node, LinComb):
        if not node.terms:
            yield "an empty LinComb"
        types = {x.type for _, x in node.terms if x.type.kind == "vector"}
        if len(types) > 1:
            yield f"LinComb of vectors of different types: {', '.join(map(str, types))}"
        if any(isinstance(a, Node) and a.type.kind != "scalar" for a, _ in node.terms):
            yield "a coefficient of LinComb is not deterministic"


def _elementwise(node: Node) -> Iterator[str]:
    if not isinstance(node, (Nonlin, Moment)):
        return
    if len({x.type for x in node.xs}) > 1:
        yield f"vector arguments of different types: {', '.join(str(x.type) for x in node.xs)}"
    if any(x.type.kind != "vector" for x in node.xs) or any(t.type.kind != "scalar" for t in node.thetas):
        yield "vector and deterministic arguments are in each other's place"
    if (node.phi.n_vectors, node.phi.n_parameters) != (len(node.xs), len(node.thetas)):
        yield "phi takes other numbers of arguments"
    if isinstance(node, Nonlin) and node.xs and node.xs[0].type.width is None:
        yield "a nonlinearity of an output: its coordinates are finitely many"
    if isinstance(node, Moment) and not node.xs:
        yield "a Moment of nothing"
    for theta in node.thetas:
        if node.xs:
            try:
                if np.broadcast_shapes(theta.type.shape, node.xs[0].type.shape) != node.xs[0].type.shape:
                    yield "a deterministic argument is larger than the vectors"
            except ValueError:
                yield "a deterministic argument does not broadcast against the vectors"


def _position(node: Node) -> Iterator[str]:
    if isinstance(node, PositionMap):
        if node.op.shape(*(a.type.shape for a in node.args)) != node.result.shape:
            yield f"{node.op} does not make the shape {node.result.shape}"
        if any(a.type.kind != "scalar" for a in node.args[1:]):
            yield "a position map has a random second operand"
        if node.result.kind != node.args[0].type.kind or node.result.width != node.args[0].type.width:
            yield "a position map changes the kind or the width of its operand"


def _input(node: Node) -> Iterator[str]:
    if isinstance(node, Input) and any(size < 0 for size in node.shape):
        yield "an input of negative size"


RULES: tuple[Callable[[Node], Iterator[str]], ...] = (_input, _weight, _matmul, _lincomb, _elementwise, _position)


def verify(program: Program) -> Program:
    """Return `program`, or raise `VerificationError` naming the instruction and what is wrong with it."""
    for node in program.nodes:
        for rule in RULES:
            for complaint in rule(node):
                raise VerificationError(f"{program.names[node]}: {complaint}\n{program}")
    return program
