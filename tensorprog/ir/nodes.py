"""The instructions of a tensor program, as hash-consed immutable nodes.

A program (Yang, Tensor Programs I-III) is a graph of these nodes. A variable is an array of vectors of R^n, a
deterministic array, or an array of matrices, according to its `Type`. Shapes are written at *unit width*:
the axis that carries the coordinates of R^n has the size it would have at n = 1. A shape (8, 8, n) is therefore
stored as (8, 8, 1) with `axis` 2 and `width` 1, and a flattened (64 n,) as (64,) with `axis` 0. So every
operation on positions is the user's own array operation at unit width, whatever it is.

Equal nodes are the same object (so comparing and hashing are by identity and never walk the graph). Where a
node came from is remembered in `source`, outside equality: the first maker's line is kept.

Weights after steps of training are matrix expressions: W - (eta/n) sum_k u_k v_k', with vectors u_k, v_k of the program (the gradient and
the input of a use). They need no instruction of their own, for a product distributes: (W - (eta/n) u v') x = MatMul(W, x) - eta theta u, with
theta = Moment(v x), and its transpose likewise. That is a LinComb with a deterministic coefficient, which every pass and rule knows,
Zdots included (tests/kernel/test_transposes.py takes such a step). What is missing is a front end that reads W - u v' as one matrix.

Sources: Trsp, MatMul, Nonlin and Moment are the instructions of NETSOR-T+ (Yang, Tensor Programs III, section 2);
LinComb and PositionMap are its linear sugar; Input, Hyper, Const and ArrayOp compute deterministic arrays.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from fractions import Fraction
from functools import partial
from typing import Any, ClassVar

import numpy as np

from tensorprog.ir.phi import Phi
from tensorprog.ir.positions import Position

__all__ = [
    "ArrayOp",
    "Const",
    "Hyper",
    "Input",
    "Instruction",
    "Interned",
    "LinComb",
    "Literal",
    "MatMul",
    "Moment",
    "Node",
    "Nonlin",
    "PositionMap",
    "Source",
    "Trsp",
    "Type",
    "Weight",
    "operands",
    "remade",
    "topological",
]  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where an instruction came from: the user's file and line, and the JAX primitive there."""

    file: str
    line: int
    primitive: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Type:
    """What a variable is.

    kind: "scalar" (a deterministic array), "vector" (an array of vectors, random), "matrix".
    shape: the array's shape at unit width.
    axis, width: the axis that carries coordinates and its size relative to n; both None for a scalar and for an
    output (a random array of finite size, such as a readout).
    """

    kind: str
    shape: tuple[int, ...]
    axis: int | None = None
    width: Fraction | None = None

    def __str__(self) -> str:
        dims = [
            str(size) if i != self.axis or self.width is None else _axis_text(size, self.width)
            for i, size in enumerate(self.shape)
        ]
        return f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"


def _axis_text(size: int, width: Fraction) -> str:
    n = "n" if width == 1 else f"n({width})"
    return n if size == 1 else f"{size}*{n}"


@dataclass(frozen=True)
class Literal:
    """A constant array, comparable by value."""

    data: bytes
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Any) -> Literal:
        array = np.asarray(array, order="C")
        return cls(array.tobytes(), array.dtype.str, np.shape(array))

    def array(self) -> np.ndarray:
        return np.frombuffer(self.data, dtype=np.dtype(self.dtype)).reshape(self.shape)


class Interned(type):
    """Makes equal nodes identical: a node is looked up by its fields before it is made."""

    _known: ClassVar[weakref.WeakValueDictionary[tuple[Any, ...], Any]] = weakref.WeakValueDictionary()

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        node = super().__call__(*args, **kwargs)
        key = (cls, *(getattr(node, f.name) for f in fields(node) if f.compare))
        return Interned._known.setdefault(key, node)


# Keys are hashed when a node goes, which at the end of the program, with modules half taken down, no longer works.
atexit.register(Interned._known.clear)


def remade(node: Any) -> tuple[Any, ...]:
    """How a copy of a node is made: by its class, so that it is the same object as an equal one. (Deep programs are pickled whole, as text.)"""
    kind: Callable[..., Any] = type(node)
    return partial(kind, **{f.name: getattr(node, f.name) for f in fields(node) if f.init}), ()


@dataclass(frozen=True, eq=False)
class Node(metaclass=Interned):
    """Base of all instructions. `source` is that of the first maker and takes no part in equality."""

    source: Source | None = field(default=None, compare=False, repr=False, kw_only=True)
    type: Type = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", self._infer())

    def _infer(self) -> Type:
        """The type, from those of the operands; worked out once, when the node is made."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        return remade(self)


@dataclass(frozen=True, eq=False)
class Input(Node):
    """One array leaf of the user's example input."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def _infer(self) -> Type:
        return Type("scalar", self.shape)


@dataclass(frozen=True, eq=False)
class Hyper(Node):
    """A named number that stays an argument of the compiled kernel. nonnegative: it is a variance."""

    name: str
    default: float
    nonnegative: bool = False

    def _infer(self) -> Type:
        return Type("scalar", ())


@dataclass(frozen=True, eq=False)
class Const(Node):
    """A constant array."""

    value: Literal

    def _infer(self) -> Type:
        return Type("scalar", self.value.shape)


@dataclass(frozen=True, eq=False)
class Weight(Node):
    """An array of parameters with independent centred Gaussian entries of standard deviation `std`.

    shape: at unit width. widths: per axis, its size relative to n, or None for a finite axis. With two such axes it
    is an array of matrices whose entries have the variance std^2/n; with one, an array of vectors; with none,
    a parameter of finite size, which only an output can take.
    region: the part of the whole parameter that this is, as (start, stop) per axis: in units of n along a width
    axis, in entries along a finite one. Parts that do not overlap are independent.
    tangent_std: the standard deviation of the direction in which training moves it; `primed` marks that
    direction itself (the W' of the tangent program). stopped: in a use behind lax.stop_gradient, what tangent_std is in the others; it is 0
    in this one. per_input: drawn anew for every input, as the noise behind a dropout mask;
    such a parameter is a vector, and not trained. symmetric: its two width axes are interchangeable, W_ij = W_ji (the Gaussian
    orthogonal ensemble: std is that of an entry off the diagonal, and sqrt(2) times as large on it).
    """

    name: str
    shape: tuple[int, ...]
    widths: tuple[Fraction | None, ...]
    std: float
    tangent_std: float
    region: tuple[tuple[Fraction, Fraction], ...]
    primed: bool = False
    per_input: bool = False
    symmetric: bool = False
    stopped: float = 0.0

    def _infer(self) -> Type:
        axes = [i for i, w in enumerate(self.widths) if w is not None]
        if len(axes) == 2:
            return Type("matrix", self.shape)
        if len(axes) == 1:
            return Type("vector", self.shape, axes[0], self.widths[axes[0]])
        return Type("vector", self.shape)

    @property
    def matrix_axes(self) -> tuple[int, int] | None:
        """The two width axes of an array of matrices; None for other parameters."""
        axes = [i for i, w in enumerate(self.widths) if w is not None]
        return (axes[0], axes[1]) if len(axes) == 2 else None

    @property
    def label(self) -> str:
        return self.name + ("'" if self.primed else "")

    @property
    def dims(self) -> str:
        """Its shape as it is written: (n, 64)."""
        dims = [str(n) if w is None else _axis_text(n, w) for n, w in zip(self.shape, self.widths, strict=True)]
        return f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"


@dataclass(frozen=True, eq=False)
class Trsp(Node):
    """The transposed matrix: the same parameters with the two width axes swapped.

    A MatMul by it is the same as one by the matrix itself whose letters are swapped, and is turned into that.
    """

    matrix: Node

    def _infer(self) -> Type:
        i, j = _root(self).matrix_axes or (0, 0)
        shape = list(self.matrix.type.shape)
        shape[i], shape[j] = shape[j], shape[i]
        return Type("matrix", tuple(shape))


def _root(node: Node) -> Weight:
    while isinstance(node, Trsp):
        node = node.matrix
    assert isinstance(node, Weight)
    return node


def _turns(node: Node) -> int:
    """How often a weight is transposed."""
    count = 0
    while isinstance(node, Trsp):
        node, count = node.matrix, count + 1
    return count


@dataclass(frozen=True, eq=False)
class MatMul(Node):
    """Multiplication by a Gaussian weight: `spec` is an einsum over unit-width shapes, weight first.

    A letter that the weight shares with `x` and that is not in the result is summed over. Along a width axis this is
    the matrix product of the tensor program, and the weight's entries have variance std^2/n. `x` may be a vector
    variable or, in a first layer, a deterministic array.
    """

    spec: str
    weight: Node
    x: Node

    @property
    def letters(self) -> tuple[str, str, str]:
        """The letters of the root's axes, of those of x, and of the result's."""
        operands, out = self.spec.split("->")
        w, x = operands.split(",")
        if _turns(self.weight) % 2 and (axes := self.root.matrix_axes) is not None:
            (i, j), swapped = axes, list(w)
            swapped[i], swapped[j] = w[j], w[i]
            w = "".join(swapped)
        return w, x, out

    @property
    def summed(self) -> int | None:
        """The width axis of a matrix that is summed over: W x or its transpose. None for other weights."""
        axes = self.root.matrix_axes
        if axes is None:
            return None
        w, _, out = self.letters
        return next((i for i in axes if w[i] not in out), None)

    def _infer(self) -> Type:
        w, x, out = self.letters
        size = dict(zip(w, self.root.shape, strict=True)) | dict(zip(x, self.x.type.shape, strict=True))
        shape = tuple(size[c] for c in out)
        widths = {c: self.root.widths[i] for i, c in enumerate(w) if self.root.widths[i] is not None}
        for i, c in enumerate(out):
            if c in widths:
                return Type("vector", shape, i, widths[c])
        return Type("vector", shape)

    @property
    def root(self) -> Weight:
        """The weight, whichever way round it is used."""
        return _root(self.weight)


@dataclass(frozen=True, eq=False)
class LinComb(Node):
    """sum_i a_i x_i: `terms` are pairs (a_i, x_i); a_i is a float or a scalar variable, x_i a vector or scalar
    variable.

    Every vector term has the shape of the result; coefficients and scalar terms broadcast against it.
    """

    terms: tuple[tuple[float | Node, Node], ...]

    def _infer(self) -> Type:
        for _, x in self.terms:
            if x.type.kind == "vector":
                return x.type
        shapes = [x.type.shape for _, x in self.terms] + [a.type.shape for a, _ in self.terms if isinstance(a, Node)]
        return Type("scalar", np.broadcast_shapes(*shapes))


@dataclass(frozen=True, eq=False)
class PositionMap(Node):
    """A linear map of positions (a LinComb per position): shift, pool, pad, gather, .. `args[0]` is what it maps.

    Further args are deterministic: the matrix of a product, the indices of a gather.
    """

    op: Position
    args: tuple[Node, ...]
    result: Type

    def _infer(self) -> Type:
        return self.result


@dataclass(frozen=True, eq=False)
class Nonlin(Node):
    """phi(x_1, ..; theta_1, ..) in every coordinate. Vector arguments have equal shapes, thetas broadcast.

    Without vector arguments it is elementwise arithmetic of deterministic arrays.
    """

    phi: Phi
    xs: tuple[Node, ...]
    thetas: tuple[Node, ...] = ()

    def _infer(self) -> Type:
        if self.xs:
            return self.xs[0].type
        return Type("scalar", np.broadcast_shapes(*(t.type.shape for t in self.thetas)))


@dataclass(frozen=True, eq=False)
class Moment(Node):
    """theta = (1/n) sum_alpha phi(x_1, ..; theta_1, ..)_alpha: a deterministic array in the limit.

    The coordinate axis keeps its place with size one.
    """

    phi: Phi
    xs: tuple[Node, ...]
    thetas: tuple[Node, ...] = ()

    def _infer(self) -> Type:
        return Type("scalar", self.xs[0].type.shape)


@dataclass(frozen=True, eq=False)
class ArrayOp(Node):
    """An operation on deterministic arrays that is simply run: a JAX primitive by name with its parameters."""

    primitive: str
    params: tuple[tuple[str, Any], ...]
    args: tuple[Node, ...]
    shape: tuple[int, ...]

    def _infer(self) -> Type:
        return Type("scalar", self.shape)


Instruction = Input | Hyper | Const | Weight | Trsp | MatMul | LinComb | PositionMap | Nonlin | Moment | ArrayOp


def operands(node: Node) -> tuple[Node, ...]:
    """The variables an instruction reads, in order."""
    match node:
        case Trsp(matrix=matrix):
            return (matrix,)
        case MatMul(weight=weight, x=x):
            return (weight, x)
        case LinComb(terms=terms):
            return tuple(part for a, x in terms for part in ((a, x) if isinstance(a, Node) else (x,)))
        case PositionMap(args=args) | ArrayOp(args=args):
            return args
        case Nonlin(xs=xs, thetas=thetas) | Moment(xs=xs, thetas=thetas):
            return xs + thetas
        case _:
            return ()


def topological(roots: Iterable[Node], skip: Callable[[Node], bool] = lambda node: False) -> Iterator[Node]:
    """Every node the roots need, operands first, each once. Iterative: depth costs no stack.

    skip: nodes to leave out, with what only they need.
    """
    done: set[Node] = set()
    for root in roots:
        stack = [(root, iter(operands(root)))] if root not in done and not skip(root) else []
        open_: set[Node] = {root}
        while stack:
            node, rest = stack[-1]
            for child in rest:
                if child not in done and child not in open_ and not skip(child):
                    open_.add(child)
                    stack.append((child, iter(operands(child))))
                    break
            else:
                stack.pop()
                if node not in done:
                    done.add(node)
                    yield node
