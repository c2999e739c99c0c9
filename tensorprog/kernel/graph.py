"""The kernel graph: what is to be computed for a kernel, as a graph of array operations with their meaning.

A quantity belongs to one input ("self": E[u v](x, x), a mean, a deterministic array) or to a pair ("cross": E[u(x)
v(x')]). Operands of a cross quantity are cross quantities, or self quantities of either side. Quantities are
hash-consed and refer only to what they need, so the graph of the output holds nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import sympy

from ntk_rules import Expectation
from tensorprog.ir import Node
from tensorprog.ir.nodes import Interned, Literal, remade
from tensorprog.ir.positions import Position

__all__ = [
    "MIXED", "Apply", "Average", "Combine", "Contract", "Data", "Drawn", "Expect", "Factored", "Given", "Leaf", "Normals", "Operand",
    "Quantity", "Ran", "Recorded", "Sampled", "Shifts", "Tilted", "Zero", "is_zero", "quantities",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Quantity(metaclass=Interned):
    """An array of the kernel graph. cross: does it belong to a pair of inputs? asked: the question it answers, for
    the reader."""

    asked: str | None = field(default=None, compare=False, repr=False, kw_only=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return remade(self)


@dataclass(frozen=True)
class Operand:
    """A quantity as another reads it. side: whose self quantity it is for a cross reader (0: x, 1: x'); else None."""

    quantity: Quantity
    side: int | None = None


@dataclass(frozen=True, eq=False)
class Zero(Quantity):
    """A covariance that is zero by structure."""

    shape: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Data(Quantity):
    """A deterministic array of the program, computed from the input, constants, hyperparameters and means."""

    node: Node
    operands: tuple[Operand, ...]
    shape: tuple[int, ...]
    cross: bool = False


@dataclass(frozen=True, eq=False)
class Contract(Quantity):
    """scale * einsum(spec, operands): products, sums and diagonals of covariances. A 1 in an operand's letters is an
    axis of size one that is dropped; letters that only the result has are repeated along; a letter twice in the
    result is a diagonal (the identity)."""

    spec: str
    operands: tuple[Operand, ...]
    scale: float
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True, eq=False)
class Combine(Quantity):
    """sum_i c_i operand_i, all of one shape."""

    coefficients: tuple[float, ...]
    operands: tuple[Operand, ...]
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True, eq=False)
class Apply(Quantity):
    """A position map applied to some axes of a covariance. places: which axis of the operand each axis of the map's
    argument is, or None for a new axis of size one; the map's own axes come first in the result, then the other axes
    in order."""

    op: Position
    operands: tuple[Operand, ...]
    places: tuple[int | None, ...]
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True, eq=False)
class Shifts(Quantity):
    """The covariance of windows summed over equal offsets: sum_k K[s + k, t + k], for windows along several axes.

    axes: for each windowed axis the axes of the operand, of the first and the second side, or one where it has the
    diagonal alone.
    """

    op: Position
    operands: tuple[Operand, ...]
    axes: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True, eq=False)
class Expect(Quantity):
    """E[F(z); a]: covariances in the order the expectation needs them, then parameters, each with the axes of the
    result it has.

    letters: the axes of each operand, as letters of `out`; missing ones broadcast. function: F, in u0, u1, .. and
    b0, b1, .. alike: which Gaussians are one variable, at two positions or of two inputs; the covariance of these is their variance where both
    are the same. (Two variables may have equal variances.)
    """

    expectation: Expectation
    function: sympy.Expr
    letters: tuple[str, ...]
    out: str
    operands: tuple[Operand, ...]
    n_covariances: int
    shape: tuple[int, ...]
    cross: bool
    alike: tuple[tuple[int, int], ...] = ()


MIXED = "*"


@dataclass(frozen=True)
class Leaf:
    """A Gaussian variable under a sampled function. letters: per axis, the letter of the root's axis that it carries
    along, `MIXED` where the function mixes its places, 1 for size one. linear: a tangent, in which the function is linear.
    """

    node: Node
    side: int
    letters: str
    linear: bool


@dataclass(frozen=True, eq=False)
class Sampled(Quantity):
    """E[u v] (or E[u]) of functions of Gaussian variables at many positions, by sampling.

    roots: u and v with the letters of their axes. together: both are functions of the same variables; else each of
    its own side's. pairs: (i, j, carried letters) of the leaves whose covariances are the first operands: carried axes, then
    the mixed axes of either. scalars: the deterministic arrays read, and the side; the other operands. carried, sizes: the
    letters carried along by some leaf.
    """

    roots: tuple[tuple[Node, str], ...]
    together: bool
    leaves: tuple[Leaf, ...]
    pairs: tuple[tuple[int, int, str], ...]
    scalars: tuple[tuple[Node, int], ...]
    carried: str
    sizes: tuple[int, ...]
    points: int
    out: str
    operands: tuple[Operand, ...]
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True, eq=False)
class Given(Quantity):
    """Inside a `Tilted` expectation: what is known there. tilted: a covariance of the tilted law; else an answer from
    outside, which the tilt does not change."""

    question: Any
    tilted: bool
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True, eq=False)
class Tilted(Quantity):
    """E[prod_i (Q_i + epsilon_i)^(-k_i/2) w], summed over parts (k, E[w]): an integral over tilted laws.

    leaves: the Gaussians of the law, of the sizes given; of a pair of inputs, those of x and then those of x'. norms: per
    input, the matrix of Q in the leaves and epsilon. pairs: places (i, j) of the leaves whose covariances are the first
    operands; outer: what the parts read besides, and of which input, the other operands; zeros are left out of both. nodes: of the
    quadrature along each axis, which leave this relative error.
    """

    leaves: tuple[Node, ...]
    sizes: tuple[int, ...]
    norms: tuple[tuple[Literal, float] | None, ...]
    pairs: tuple[tuple[int, int], ...]
    parts: tuple[tuple[tuple[int, ...], Quantity], ...]
    outer: tuple[tuple[Given, int | None], ...]
    nodes: int
    error: float
    operands: tuple[Operand, ...]
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True, eq=False)
class Normals(Quantity):
    """Independent standard normals, (rows, neurons), the same for every input. stream: which ones."""

    stream: int
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True, eq=False)
class Ran(Quantity):
    """An instruction run on the values of a population: axis 0 of vectors is that of its neurons."""

    node: Node
    operands: tuple[Operand, ...]
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True, eq=False)
class Recorded(Quantity):
    """What a weight was multiplied with, (rows, places of the weight, neurons): the record before, if any, with new rows.

    operands: that record, an x, and where its rows begin. spec: from the axes of x to those of W x, those of W, and neurons;
    places: the sizes of the axes of W x and W.
    """

    operands: tuple[Operand, ...]
    spec: str
    places: tuple[int, ...]
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True, eq=False)
class Factored(Quantity):
    """The lower Cholesky factor of the covariances of a weight's products, as far as they are recorded. operands: the factor
    before, if any, the record, and where its `rows` new rows begin; scale: the covariance of a product of ones."""

    operands: tuple[Operand, ...]
    rows: int
    scale: float
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True, eq=False)
class Drawn(Quantity):
    """Gaussians of a population, (neurons, *shape of the variable): scale times normals, times the `rows` rows of a factor that
    begin where the last operand says, if there is one."""

    operands: tuple[Operand, ...]
    rows: int
    scale: float
    shape: tuple[int, ...]
    cross: bool


@dataclass(frozen=True, eq=False)
class Average(Quantity):
    """einsum(spec, operands) / neurons: a moment of a population."""

    spec: str
    operands: tuple[Operand, ...]
    shape: tuple[int, ...]
    cross: bool


def is_zero(quantity: Any) -> bool:
    """Is it zero by structure?"""
    return isinstance(quantity, Zero)


def quantities(outputs: Iterable[Quantity]) -> Iterator[Quantity]:
    """Every quantity the outputs need, operands first. Iterative."""
    done: set[Quantity] = set()
    for output in outputs:
        stack: list[tuple[Quantity, Iterator[Operand]]] = [(output, iter(getattr(output, "operands", ())))]
        while stack:
            quantity, rest = stack[-1]
            if quantity in done:
                stack.pop()
                continue
            for operand in rest:
                if operand.quantity not in done:
                    stack.append((operand.quantity, iter(getattr(operand.quantity, "operands", ()))))
                    break
            else:
                stack.pop()
                done.add(quantity)
                yield quantity
