"""The verifier: what must hold of every program, as a list of small rules.

It runs between passes in the tests, and on every program read from a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tensorprog.errors import VerificationError
from tensorprog.ir.nodes import (
    ArrayOp,
    Input,
    LinComb,
    MatMul,
    Moment,
    Node,
    Nonlin,
    PositionMap,
    Trsp,
    Weight,
    operands,
)  # fmt: skip
from tensorprog.ir.program import Program

__all__ = ["RULES", "matmul_complaints", "verify"]


def _weight(node: Node) -> Iterator[str]:
    if isinstance(node, Weight):
        if not len(node.shape) == len(node.widths) == len(node.region):
            yield "shape, widths and region of a weight differ in length"
        if sum(w is not None for w in node.widths) > 2:
            yield "a weight has more than two width axes"
        if node.std < 0 or node.tangent_std < 0:
            yield "a weight has a negative standard deviation"
        if node.stopped < 0 or (node.stopped and node.tangent_std):
            yield "a weight behind a stopped gradient is trained there, or moves by a negative standard deviation elsewhere"
        if node.per_input and (node.tangent_std or node.primed or node.type.kind == "matrix"):
            yield "noise that is drawn for every input is trained, or a matrix"
        if node.symmetric and (
            (axes := node.matrix_axes) is None
            or any(values[axes[0]] != values[axes[1]] for values in (node.shape, node.widths, node.region))
        ):
            yield "a symmetric weight is not a square matrix"


def _trsp(node: Node) -> Iterator[str]:
    if isinstance(node, Trsp) and node.matrix.type.kind != "matrix":
        yield "what is transposed is not a matrix"


def _matmul(node: Node) -> Iterator[str]:
    if isinstance(node, MatMul):
        yield from matmul_complaints(node.spec, node.weight, node.x)


def matmul_complaints(spec: str, weight: Node, x: Node) -> Iterator[str]:
    """What is wrong with a MatMul, which may not even be possible to make."""
    if spec.count(",") != 1 or spec.count("->") != 1:
        yield f"spec {spec!r} is not of the form 'ab,b->a'"
        return
    if not isinstance(weight, (Weight, Trsp)):
        yield "the first operand of MatMul is not a weight"
        return
    if isinstance(weight, Weight) and weight.per_input:
        yield "noise that is drawn for every input multiplies a vector as a weight"
    left, out = spec.split("->")
    w, own = left.split(",")
    sizes: dict[str, int] = {}
    for letters, shape in ((w, weight.type.shape), (own, x.type.shape)):
        if len(letters) != len(shape) or len(set(letters)) != len(letters):
            yield f"spec {spec!r} does not fit an operand of shape {shape}"
            return
        for letter, size in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                yield f"letter {letter!r} of {spec!r} has two sizes"
                return
    if not set(out) <= set(w) | set(own) or len(set(out)) != len(out):
        yield f"spec {spec!r} makes letters from nothing"
        return
    if set(own) - set(w) - set(out):
        yield f"spec {spec!r} sums a position that the weight does not have"
    if weight.type.kind == "matrix":
        root: Node = weight
        while isinstance(root, Trsp):
            root = root.matrix
        axes = root.matrix_axes if isinstance(root, Weight) else None
        if axes is not None and sum(w[i] in out for i in axes) != 1:
            yield f"spec {spec!r} does not sum over one of the two width axes of the weight"


def _lincomb(node: Node) -> Iterator[str]:
    if isinstance(node, LinComb):
        if not node.terms:
            yield "an empty LinComb"
            return
        types = {x.type for _, x in node.terms if x.type.kind == "vector"}
        if len(types) > 1:
            yield f"LinComb of vectors of different types: {', '.join(map(str, types))}"
            return
        if any(isinstance(a, Node) and a.type.kind != "scalar" for a, _ in node.terms):
            yield "a coefficient of LinComb is not deterministic"
        if any(x.type.kind == "matrix" for _, x in node.terms):
            yield "a matrix is not a term of LinComb: it only multiplies vectors"
        parts = [part for part in operands(node) if part.type.kind == "scalar"]
        if types and any(not _fits(part.type.shape, next(iter(types)).shape) for part in parts):
            yield "a deterministic term or coefficient of LinComb does not broadcast against the vectors"


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
    if node.xs and any(not _fits(theta.type.shape, node.xs[0].type.shape) for theta in node.thetas):
        yield "a deterministic argument does not broadcast against the vectors"
    if not node.xs and not node.thetas:
        yield "a function of nothing: a number is a Const"


def _fits(small: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Does an array of the first shape broadcast to the second?"""
    try:
        return np.broadcast_shapes(small, shape) == shape
    except ValueError:
        return False


def _position(node: Node) -> Iterator[str]:
    if isinstance(node, PositionMap):
        if node.op.shape(*(a.type.shape for a in node.args)) != node.result.shape:
            yield f"{node.op} does not make the shape {node.result.shape}"
        if any(a.type.kind != "scalar" for a in node.args[1:]):
            yield "a position map has a random second operand"
        if node.result.kind != node.args[0].type.kind or node.result.width != node.args[0].type.width:
            yield "a position map changes the kind or the width of its operand"


def _array_op(node: Node) -> Iterator[str]:
    if isinstance(node, ArrayOp) and any(a.type.kind != "scalar" for a in node.args):
        yield "an operation that is simply run has a random operand"


def _input(node: Node) -> Iterator[str]:
    if isinstance(node, Input) and any(size < 0 for size in node.shape):
        yield "an input of negative size"


RULES: tuple[Callable[[Node], Iterator[str]], ...] = (
    _input,
    _weight,
    _trsp,
    _matmul,
    _lincomb,
    _elementwise,
    _position,
    _array_op,
)


def verify(program: Program) -> Program:
    """Return `program`, or raise `VerificationError` naming the instruction and what is wrong with it."""
    for node in program.nodes:
        for rule in RULES:
            for complaint in rule(node):
                raise VerificationError(f"{_name(program, node)}: {complaint}\n{_text(program)}")
    return program


def _name(program: Program, node: Node) -> str:
    """What the instruction is called, or, where the program is too broken for names, what it is."""
    try:
        return program.names[node]
    except (ValueError, LookupError, AttributeError):
        return repr(node)[:200]


def _text(program: Program) -> str:
    try:
        return str(program)
    except (ValueError, LookupError, AttributeError):
        return "(the program is too broken to be printed)"
