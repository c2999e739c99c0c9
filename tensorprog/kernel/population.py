"""Covariances of states carried through many layers: a GRU, an LSTM, a residual net that is nonlinear after the sum.

A state that gates carry on is a function of the Gaussians of every step so far, which no quadrature can follow. Many neurons of the
infinitely wide network can be: a population of independent samples, taken through the program one instruction at a time. Functions
are applied to every neuron. A product with weights gives each neuron a Gaussian, drawn given what this weight gave it before; the
covariances of that law are the population's own averages (the master theorem, Yang, Tensor Programs III, read as a recipe
for sampling). A step of the program is a step of the graph, alike for all steps, so that lowering turns them into a loop.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from tensorprog.errors import InternalError, UnsupportedError, explain
from tensorprog.ir import Const, LinComb, Literal, MatMul, Node, Nonlin, PositionMap, Weight, operands
from tensorprog.kernel.fields import LEAST_TOLERANCE
from tensorprog.kernel.graph import Average, Data, Drawn, Factored, Normals, Operand, Quantity, Ran, Recorded
from tensorprog.kernel.questions import LETTERS, Answer, Neurons, Second, Value, as_vector, fresh
from tensorprog.passes.structure import Structure

__all__ = ["Uses", "neurons", "population_of"]

FEWEST, MOST = 2**12, 2**24
MOST_ENTRIES = 2**28  # numbers in what one weight's population remembers
NEURON = "Z"  # the letter of the axis of neurons


Key = tuple[Weight, int | None, bool | None]


class Uses:
    """The products with each weight in a program, in order. Those of opposite parity, or with the transpose, are independent
    of each other."""

    def __init__(self, facts: Structure):
        self._facts = facts
        self._chains: dict[Key, list[MatMul]] = {}
        for node in facts.variables():
            if isinstance(node, MatMul):
                self._chains.setdefault(self._key(node), []).append(node)

    def _key(self, node: MatMul) -> Key:
        return node.root, node.summed, self._facts[node].odd

    def all(self, use: MatMul) -> list[MatMul]:
        """The products that share the law of this one."""
        chain = self._chains.get(self._key(use), [])
        if use not in chain:
            raise InternalError(f"a product with the weight {use.root.name!r} that is no part of the program")
        return chain

    def stream(self, node: Weight | MatMul, side: int = 0) -> int:
        """A number of its own for each law, for its random numbers: the same in every program with this law, so that what is
        sampled in two ways is sampled with the same points. side: of noise that is drawn for every input, whose."""
        weight, summed, odd = (node, side, None) if isinstance(node, Weight) else self._key(node)
        name = (weight.name, weight.primed, weight.region, weight.shape, isinstance(node, Weight), summed, odd)
        return zlib.crc32(repr(name).encode())


def population_of(asked: Second | Node, tolerance: float | None) -> Answer:
    """E[u v] of a `Second` question, or E[u] of a node (a Nonlin or Moment), as an average over a population.

    Raises UnsupportedError where the tolerance does not allow it.
    """
    if isinstance(asked, Second):
        sides = [(asked.u, asked.lu, 0), (asked.v, asked.lv, 1 if asked.cross else 0)]
        cross, out = asked.cross, asked.out
    else:
        node = as_vector(asked)
        letters = "".join(c if n > 1 else "1" for c, n in zip(fresh(NEURON), node.type.shape, strict=False))
        sides, cross, out = [(node, letters, 0)], False, letters.replace("1", "")
    _check_tolerance(tolerance, [node for node, _, _ in sides])
    followed = []
    for node, _, side in sides:
        followed.append(Operand((yield Neurons(node, side, cross))))
    sizes = {c: n for node, own, _ in sides for c, n in zip(own, node.type.shape, strict=True)}
    spec = ",".join(NEURON + own for _, own, _ in sides) + f"->{out}"
    return Average(spec, tuple(followed), tuple(sizes[c] for c in out), cross)


def _check_tolerance(tolerance: float | None, nodes: list[Node]) -> None:
    if tolerance is not None and tolerance >= LEAST_TOLERANCE:
        return
    raise UnsupportedError(
        explain(
            "a state that is carried through several layers or steps by elementwise code",
            where=next((str(node.source) for node in nodes if node.source), None),
            reason="gates or sums after a nonlinearity carry it on beside the weights (as in a GRU, an LSTM, a residual net with a "
            "nonlinearity after the sum), so that it is a function of the Gaussians of every step so far, and no rule reduces the "
            f"expectation; sampling is good for {LEAST_TOLERANCE:.0e}, and the tolerance asked for is "
            f"{1e-12 if tolerance is None else tolerance:.0e}",
            mend="allow sampling, tp.compile(.., tolerance=1e-2); or add what is carried on after the weights, where it is Gaussian",
        )
    )  # fmt: skip


def neurons(q: Neurons, facts: Structure, uses: Uses, tolerance: float | None) -> Answer:
    """A variable's values in the population, of shape (neurons, *its shape)."""
    node, side = q.node, q.side if q.cross else None
    count = _count(tolerance)
    shape = (count, *node.type.shape)
    match node:
        case Weight():
            size = math.prod(node.type.shape)
            stream = uses.stream(node, q.side if node.per_input else 0)
            normals = Normals(stream, (size, count), q.cross)
            return Drawn((Operand(normals),), size, node.std, shape, q.cross)
        case MatMul():
            return (yield from _drawn(node, q, uses, count))
        case LinComb() | PositionMap() | Nonlin():
            parts = []
            for x in operands(node):
                if x.type.kind == "vector":
                    parts.append(Operand((yield Neurons(x, q.side, q.cross))))
                else:
                    parts.append(Operand((yield Value(x)), side))
            return Ran(node, tuple(parts), shape, q.cross)
    raise InternalError(f"no neurons of a {type(node).__name__}")


def _count(tolerance: float | None) -> int:
    """How many neurons the tolerance needs: two standard errors, each sqrt(2 / neurons) of a Gaussian's variance."""
    assert tolerance is not None
    return min(MOST, max(FEWEST, 2 ** math.ceil(math.log2(8 / tolerance**2))))


def _drawn(use: MatMul, q: Neurons, uses: Uses, count: int) -> Answer:
    """The Gaussians W x, given those of the same weight before.

    The uses of a weight are taken in the program's order, x before x' in each. What is remembered of each is its x, as
    rows over the positions that the product sums over, and the rows of the Cholesky factor of all covariances.
    """
    sides = 2 if q.cross else 1
    chain = uses.all(use)
    place = chain.index(use)
    rows = math.prod(use.type.shape)
    total = sum(math.prod(u.type.shape) for u in chain) * sides
    first = sum(math.prod(u.type.shape) for u in chain[:place]) * sides + q.side * rows
    depth = math.prod(use.root.shape)
    _check_memory(use, total * (depth * count + total))
    if use.x.type.kind == "vector":
        x = Operand((yield Neurons(use.x, q.side, q.cross)))
    else:
        x = Operand((yield Value(use.x)), q.side if q.cross else None)
    row = Operand(Data(Const(Literal.of(np.int32(first))), (), (), q.cross))
    recorded: tuple[Operand, ...] = ()
    factored: tuple[Operand, ...] = ()
    if first:
        before = Neurons(use, 0, True) if q.side else Neurons(chain[place - 1], sides - 1, q.cross)
        drawn = yield before
        assert isinstance(drawn, Drawn)
        factored = (drawn.operands[1],)
        recorded = (_record(factored[0].quantity),)
    kept = count if any(u.x.type.kind == "vector" for u in chain) else 1
    record = Recorded((*recorded, x, row), *_places(use), (total, depth, kept), q.cross)
    factor = Factored((*factored, Operand(record), row), rows, _variance(use), (total, total), q.cross)
    normals = Normals(uses.stream(use), (total, count), q.cross)
    return Drawn((Operand(normals), Operand(factor), row), rows, 1.0, (count, *use.type.shape), q.cross)


def _record(factor: Quantity) -> Operand:
    assert isinstance(factor, Factored)
    return factor.operands[-2]


def _places(use: MatMul) -> tuple[str, tuple[int, ...]]:
    """How x becomes rows whose products are the covariances of W x, as an einsum: an entry for each of W's places, zero where
    the product does not read it. With it the sizes of the axes of W x and of W."""
    weight, (w, x, out) = use.root, use.letters
    sizes = dict(zip(w, weight.shape, strict=True)) | dict(zip(x, use.x.type.shape, strict=True))
    names = dict(zip(dict.fromkeys(out + w + x), (c for c in LETTERS if c != NEURON), strict=False))
    swap = lambda letters: "".join(names[c] for c in letters)
    neuron = NEURON if use.x.type.kind == "vector" else ""
    return f"{neuron}{swap(x)}->{swap(out + w)}{NEURON}", tuple(sizes[c] for c in out + w)


def _variance(use: MatMul) -> float:
    """The variance of an entry of W x for each place of W that has x = 1."""
    summed = zip(use.letters[0], use.root.widths, strict=True)
    return use.root.std**2 * math.prod(
        float(width) for c, width in summed if c not in use.letters[2] and width is not None
    )


def _check_memory(use: MatMul, entries: int) -> None:
    if entries > MOST_ENTRIES:
        raise UnsupportedError(
            explain(
                f"a recurrent state too large to be sampled at this tolerance ({entries:.0e} numbers for one weight)",
                where=str(use.source or ""),
                reason="the population remembers every product with a weight for every neuron, and the number of neurons grows with "
                "tolerance^-2",
                mend="ask for a looser tolerance, fewer steps or fewer positions",
            )
        )  # fmt: skip
