"""Tensor programs: instructions, the program, its text form, its verifier."""

from tensorprog.ir.nodes import (
    ArrayOp,
    Const,
    Hyper,
    Input,
    LinComb,
    Literal,
    MatMul,
    Moment,
    Node,
    Nonlin,
    PositionMap,
    Source,
    Trsp,
    Type,
    Weight,
    operands,
    topological,
)  # fmt: skip
from tensorprog.ir.phi import Phi
from tensorprog.ir.positions import Position, position
from tensorprog.ir.program import Program
from tensorprog.ir.text import parse_program
from tensorprog.ir.verify import verify

__all__ = [
    "ArrayOp", "Const", "Hyper", "Input", "LinComb", "Literal", "MatMul", "Moment", "Node", "Nonlin", "Phi", "Position",
    "PositionMap", "Program", "Source", "Trsp", "Type", "Weight", "operands", "parse_program", "position", "topological",
    "verify",
]  # fmt: skip
