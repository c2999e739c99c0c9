"""What the front end knows of each array of a traced network.

A network is traced at two widths. Every array of the trace becomes one of:
  Known    a value that depends on neither parameters nor input: both widths' arrays, simply computed;
  Var      a variable of the program times a power of the width;
  Param    a parameter not yet used, so not yet committed to being a matrix, a vector or a readout;
  Matrices a sum of products of these with two width axes, which no program has: it waits for the vector that it multiplies.

The layout of an array says how each of its axes is built: a tuple of factors, slowest first, an int for a finite axis
and a `Fraction` for a width axis (its size relative to n). A flattened (8, 8, n) has the one axis (8, 8, 1n).
A deterministic array is constant along its width axes: they have size one in the program.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np

from ntk_rules.constants import snap
from tensorprog.ir.nodes import Node

__all__ = [
    "WIDTHS",
    "Axis",
    "Complex",
    "Division",
    "Key",
    "Known",
    "Layout",
    "Matrices",
    "OwnPlaces",
    "Param",
    "Squares",
    "Term",
    "Value",
    "Var",
    "aval",
    "axis_of",
    "fit_power",
    "kind_of",
    "layout_of",
    "unit_shape",
    "width_axis",
]

WIDTHS = (2520, 5040)  # divisible by 2..10, so that relative widths like 3/8 or 1.7 are exact

Axis = tuple[int | Fraction, ...]
Layout = tuple[Axis, ...]
Key = tuple[str, int]  # a parameter's name and the number of an axis


@dataclass(frozen=True)
class Division:
    """What a width axis of a parameter is made of: so many positions before and behind the coordinates, or parts beside each other, cut at
    these multiples of n."""

    before: int = 1
    behind: int = 1
    parts: tuple[Fraction, ...] = ()

    def axis(self, size: Fraction, whole: Fraction) -> Axis:
        """The layout of a piece of `size` times n of an axis of `whole`."""
        if self.before == self.behind == 1:
            return (size,)
        unit = whole / (self.before * self.behind)
        before = self.before if size == whole else int(size / unit)
        return tuple(f for f in (before, unit, self.behind) if f != 1 or isinstance(f, Fraction))


@dataclass(frozen=True, eq=False)
class Known:
    """An array known at both widths."""

    values: tuple[np.ndarray, np.ndarray]

    @property
    def scalar(self) -> bool:
        return all(v.ndim == 0 for v in self.values)

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.values[0].shape, self.values[1].shape


@dataclass(frozen=True, eq=False)
class Var:
    """n^power times a program variable.

    blocks: (relative width, node) along the width axis; more than one only after a concatenation of widths.
    """

    blocks: tuple[tuple[Fraction, Node], ...]
    layout: Layout
    power: Fraction = Fraction(0)

    def __post_init__(self) -> None:
        """Finite factors side by side are one, so that an axis of 4 x 4 positions and one of 16 are the same."""
        object.__setattr__(self, "layout", tuple(map(merged, self.layout)))

    @classmethod
    def of(cls, node: Node, layout: Layout, power: Fraction = Fraction(0)) -> Var:
        axis = width_axis(layout)
        total = Fraction(1) if axis is None else next(f for f in layout[axis] if isinstance(f, Fraction))
        return cls(((total, node),), layout, power)

    @property
    def node(self) -> Node:
        assert len(self.blocks) == 1
        return self.blocks[0][1]

    @property
    def det(self) -> bool:
        """Is it deterministic?"""
        return all(node.type.kind == "scalar" for _, node in self.blocks)

    @property
    def random(self) -> bool:
        return not self.det

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape at unit width."""
        return self.blocks[0][1].type.shape

    def with_blocks(self, nodes: list[Node], layout: Layout | None = None, power: Fraction | None = None) -> Var:
        """The same block structure with other nodes."""
        widths = [w for w, _ in self.blocks]
        changed = replace(self, blocks=tuple(zip(widths, nodes, strict=True)))
        changed = changed if layout is None else replace(changed, layout=layout)
        return changed if power is None else replace(changed, power=power)


@dataclass(frozen=True, eq=False)
class Param:
    """A parameter array and what was done to it before its first real use.

    sizes: its whole shape at both widths. region: the part in use, per axis, (start, stop) in entries of a finite
    axis and in units of n of a width axis. axes: which axis of the parameter each axis of this array is (None: a new
    axis of size one). scale, power: a deterministic factor and the power of n of the entries' scale. per_input: is it drawn
    anew for every input? symmetric: is it the sum of a matrix and its transpose? divisions: of its width axes, where its uses have to
    agree on one (`frontend.division`). apart: is a symmetric one to be multiplied as a matrix and its transpose?
    stopped: as of a `Weight`. uses: how each axis was
    multiplied in this reading, common to all parameters.
    """

    name: str
    mean: float
    std: float
    tangent_std: float
    widths: tuple[Fraction | None, ...]
    region: tuple[tuple[Fraction, Fraction], ...]
    axes: tuple[int | None, ...]
    power: Fraction = Fraction(0)
    scale: Var | None = None
    per_input: bool = False
    symmetric: bool = False
    divisions: tuple[Division | None, ...] = ()
    apart: bool = False
    stopped: float = 0.0
    uses: dict[Key, dict[Axis, None]] = field(default_factory=dict, repr=False)

    def times(self, factor: float) -> Param:
        """With standard deviations this many times as large."""
        stds = self.std * factor, self.tangent_std * factor, self.stopped * factor
        return replace(self, std=stds[0], tangent_std=stds[1], stopped=stds[2])

    def size(self, axis: int) -> int | Fraction:
        start, stop = self.region[axis]
        return stop - start if self.widths[axis] is not None else int(stop - start)

    def sizes(self, axis: int) -> tuple[int, int]:
        """How long an axis is at the two widths."""
        size = self.size(axis)
        if self.widths[axis] is None:
            return int(size), int(size)
        return int(size * WIDTHS[0]), int(size * WIDTHS[1])

    @property
    def layout(self) -> Layout:
        return tuple(() if a is None else self.laid(a) for a in self.axes)

    @property
    def undivided(self) -> Layout:
        """The layout without regard to divisions."""
        return tuple(
            () if a is None or (self.size(a) == 1 and self.widths[a] is None) else (self.size(a),) for a in self.axes
        )

    def laid(self, axis: int) -> Axis:
        """How one of the parameter's own axes is built."""
        size, whole, division = self.size(axis), self.widths[axis], self.division(axis)
        if whole is None:
            return () if size == 1 else (size,)
        return (size,) if division is None else division.axis(Fraction(size), whole)

    def division(self, axis: int) -> Division | None:
        return self.divisions[axis] if self.divisions else None

    def pieces(self, axis: int) -> list[tuple[Fraction, Fraction]]:
        """The parts of a width axis in use, from where to where; one where it is not cut."""
        start, stop = self.region[axis]
        division = self.division(axis)
        ends = [start, *(p for p in (division.parts if division else ()) if start < p < stop), stop]
        return list(itertools.pairwise(ends))


@dataclass(frozen=True, eq=False)
class Squares:
    """A weight matrix times itself, entry by entry: on the way to the norms of its rows."""

    param: Param


@dataclass(frozen=True, eq=False)
class Term:
    """A product of factors. Each has a label for each of its axes, none of size one; axes: the labels of the product's own."""

    factors: tuple[tuple[Known | Var | Param, tuple[int, ...]], ...]
    axes: tuple[int, ...]

    @property
    def fresh(self) -> int:
        """The first label that is not taken, as are those after it."""
        return 1 + max((*self.axes, *(n for _, labels in self.factors for n in labels)), default=-1)


@dataclass(frozen=True, eq=False)
class Matrices:
    """A sum of products with two width axes, on the way to the vector that it multiplies (`frontend.matrices`)."""

    terms: tuple[Term, ...]
    layout: Layout


@dataclass(frozen=True, eq=False)
class Complex:
    """Complex numbers of hidden values, as two real arrays (`frontend.complexes`)."""

    real: Value
    imag: Value


@dataclass(frozen=True, eq=False)
class OwnPlaces:
    """Columns of indices beside each other, of which the one numbered `own` has the number of each coordinate, along `axis`
    (`frontend.own_places`)."""

    columns: tuple[Value, ...]
    own: int
    axis: int


Value = Known | Var | Param | Squares | Matrices | Complex | OwnPlaces


def aval(atom: Any) -> Any:
    """The shape and dtype of an atom of a jaxpr (JAX types it too widely)."""
    return atom.aval


def kind_of(atom: Any) -> str:
    """What an atom of a jaxpr holds: "f" (real numbers of any precision, bfloat16 too, which NumPy knows nothing of), "i", "u", "b" or "c"."""
    dtype = aval(atom).dtype
    return "f" if jnp.issubdtype(dtype, jnp.floating) else str(np.dtype(dtype).kind)


def axis_of(sizes: tuple[int, int]) -> Axis:
    """The layout of an axis seen with these sizes at the two widths.

    Raises ValueError when the size is neither fixed nor proportional to the width.
    """
    s1, s2 = sizes
    if s1 == s2:
        return () if s1 == 1 else (s1,)
    slope = Fraction(s2 - s1, WIDTHS[1] - WIDTHS[0])
    if slope <= 0 or slope * WIDTHS[0] != s1:
        raise ValueError(f"an axis of size {s1} at width {WIDTHS[0]} and {s2} at width {WIDTHS[1]}")
    return (slope,)


def merged(axis: Axis) -> Axis:
    """The axis with neighbouring finite factors multiplied."""
    if len(axis) < 2:
        return axis
    factors: list[int | Fraction] = []
    for f in axis:
        if factors and isinstance(f, int) and isinstance(factors[-1], int):
            factors[-1] *= f
        else:
            factors.append(f)
    return tuple(factors)


def layout_of(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> Layout:
    """The layout of an array of which nothing but its shapes at the two widths is known."""
    return tuple(axis_of(pair) for pair in zip(*shapes, strict=True))


def unit_shape(layout: Layout) -> tuple[int, ...]:
    """The shape at unit width."""
    return tuple(math.prod(f for f in axis if isinstance(f, int)) for axis in layout)


def width_axis(layout: Layout) -> int | None:
    """The axis that holds a width factor, if any."""
    found = [i for i, axis in enumerate(layout) if any(isinstance(f, Fraction) for f in axis)]
    return found[0] if found else None


def fit_power(values: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, Fraction]:
    """Write values seen at two widths as c n^p with one power p for all entries, a multiple of 1/4.

    Raises ValueError when there is none.
    """
    v1, v2 = (np.asarray(v) for v in values)
    if v1.dtype == bool or np.array_equal(v1, v2, equal_nan=v1.dtype.kind == "f"):
        return v1, Fraction(0)
    if not np.array_equal(v1 == 0, v2 == 0) or not np.array_equal(np.sign(v1), np.sign(v2)):
        raise ValueError("its entries are not a constant times a power of the width")
    nonzero = v1 != 0
    powers = np.log(v2[nonzero] / v1[nonzero]) / math.log(WIDTHS[1] / WIDTHS[0])
    power = Fraction(round(float(powers.flat[0]) * 4), 4)
    if np.abs(powers - float(power)).max() > 1e-9:
        raise ValueError("its entries are not a constant times a power of the width")
    scaled = np.where(nonzero, v1 / float(WIDTHS[0]) ** float(power), 0.0)
    return (np.asarray(float(snap(float(scaled)))) if scaled.ndim == 0 else scaled), power
