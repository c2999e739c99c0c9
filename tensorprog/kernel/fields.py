"""Covariances of functions of many positions at once: batch norm, a softmax over hidden positions, a nonlinearity after
pooling.

What is no function of a few Gaussians is one of a Gaussian field: the Gaussian variables under it, at all the positions
that it mixes. The law of the field is asked for here, and the expectation is sampled when the kernel runs
(`lower.sampled`). Axes that the function carries along are not mixed: each of their places has a field of its own. A
tangent is linear in the Gaussians of the primed weights, over which the average is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from ntk_rules.interpreted import by_numpy
from ntk_rules.sampling import no_mean
from tensorprog.errors import UnsupportedError, explain
from tensorprog.ir import Const, LinComb, MatMul, Node, Nonlin, PositionMap, Weight, operands, topological
from tensorprog.kernel.body import value_of
from tensorprog.kernel.graph import MIXED, Leaf, Operand, Quantity, Sampled, is_zero
from tensorprog.kernel.positions import copies
from tensorprog.kernel.questions import Second, Value, Work, as_vector, ask, fresh, sizes_of
from tensorprog.passes.structure import Structure

__all__ = ["CHUNK", "LEAST_TOLERANCE", "chunk_entries", "field_of", "mixed_size", "read_by"]

LEAST_TOLERANCE = 5e-4  # what two million points are good for
FEWEST_POINTS, MOST_POINTS = 2**12, 2**21
TRIALS = 1024
MOST_TRIALS, MOST_ENTRIES = 2**16, 2**20  # where they are cheap
POINTS, STEEP = (1e-12, 1e-6), 63.0  # how much larger a function is at the first that grows like abs(h)**-0.3 at zero
CHUNK = 128  # points at a time

Root = tuple[Node, str]
Opened = Callable[[Node], bool]


def field_of(asked: Second | Node, facts: Structure, tolerance: float | None) -> Work[Quantity]:
    """E[u v] of a `Second` question, or E[u] of a node (a Nonlin or Moment), by sampling.

    Raises UnsupportedError where the tolerance does not allow it.
    """
    roots: tuple[Root, ...]
    if isinstance(asked, Second):
        roots, cross, out = ((asked.u, asked.lu), (asked.v, asked.lv)), asked.cross, asked.out
    else:
        node = as_vector(asked)
        letters = "".join(c if n > 1 else "1" for c, n in zip(fresh(""), node.type.shape, strict=False))
        roots, cross, out = ((node, letters),), False, letters.replace("1", "")
    points = _points(tolerance, roots, facts)
    linear = all(facts[node].odd for node, _ in roots)
    own = [_Side.of(root, linear, facts) for root in roots]
    together = len(roots) == 2 and not cross and own[0].joins(own[1])
    read = {(leaf.node, 0 if together else k): leaf for k, side in enumerate(own) for leaf in side.leaves}
    order = lambda leaf: (leaf.side, leaf.linear, _key(leaf.node, facts))
    leaves = tuple(sorted((replace(leaf, side=k) for (_, k), leaf in read.items()), key=order))
    taken = "".join(letters for _, letters in roots)
    pairs: list[tuple[int, int, str]] = []
    used: list[Operand] = []
    for j, second in enumerate(leaves):
        for i, first in enumerate(leaves[: j + 1]):
            if facts.uncorrelated(first.node, second.node):
                continue
            found, carried = yield from _covariance(first, second, cross, taken)
            if not is_zero(found.quantity):
                pairs.append((i, j, carried))
                used.append(found)
    scalars = tuple(dict.fromkeys((node, 0 if together else k) for k, side in enumerate(own) for node in side.scalars))
    for node, side in scalars:
        used.append(Operand((yield Value(node)), side if cross else None))
    _check_tails(roots)
    sizes = sizes_of(*((letters, node.type.shape) for node, letters in roots))
    carried = "".join(dict.fromkeys(c for leaf in leaves for c in leaf.letters if c in sizes))
    return Sampled(
        roots, together, leaves, tuple(pairs), scalars, carried, tuple(sizes[c] for c in carried), points, out, tuple(used),
        tuple(sizes[c] for c in out), cross,
    )  # fmt: skip


def read_by(root: Root, linear: bool, facts: Structure) -> tuple[tuple[Node, str], ...]:
    """The Gaussians that a function reads, with the axes that it carries along, in the order in which they are sampled. linear: but for
    those that a tangent is linear in."""
    leaves = [leaf for leaf in _Side.of(root, linear, facts).leaves if not leaf.linear]
    return tuple(sorted(((leaf.node, leaf.letters) for leaf in leaves), key=lambda leaf: _key(leaf[0], facts)))


def _points(tolerance: float | None, roots: Sequence[Root], facts: Structure) -> int:
    """How many points the tolerance needs, where sampling may be tried at it at all."""
    if tolerance is None or tolerance < LEAST_TOLERANCE:
        where = next((str(node.source) for node, _ in roots if node.source), None)
        allowed = "allow sampling, tp.compile(.., tolerance=1e-2); or "
        if _mixes(roots, facts):
            what = "a nonlinear function of many positions of a hidden layer at once"
            why = "mixes images of nonlinearities from several positions (a hidden layer that was pooled or normalised, a softmax over "
            why += "positions)"
            mend = "put a layer with weights between the pooling and the nonlinearity, or apply the nonlinearity before pooling"
        else:
            what = "a nonlinear function of what is not Gaussian itself"
            why = "is a sum with images of nonlinearities in it (a state that goes on to several layers, what a transpose brings back)"
            mend = "put a layer with weights between the sum and the nonlinearity"
        raise UnsupportedError(
            explain(
                what, where=where,
                reason=f"its argument {why}, so its law is not Gaussian and no rule reduces the expectation; sampling is good for "
                f"{LEAST_TOLERANCE:.0e}, and the tolerance asked for is {1e-12 if tolerance is None else tolerance:.0e}",
                mend=allowed + mend,
            )
        )  # fmt: skip
    return min(MOST_POINTS, max(FEWEST_POINTS, 2 ** math.ceil(2 * math.log2(1 / tolerance))))


def _mixes(roots: Sequence[Root], facts: Structure) -> bool:
    """Does a function read its Gaussians at other positions than its own?"""
    labels = [_labels(root, _least_opened(root[0], False, facts)[0]) for root in roots]
    every = (item for own in labels for item in own.items())
    return any(c == MIXED and n > 1 for node, own in every for c, n in zip(own, node.type.shape, strict=True))


def _check_tails(roots: Sequence[Root]) -> None:
    """Refuse a function of which a few samples carry the sum: its moments are infinite, or out of sampling's reach."""
    for root, _ in roots:
        below = [node for node in _reached(root, _above_weights) if not _above_weights(node)]
        gaussians = tuple(node for node in below if node.type.kind == "vector")
        given = {
            node: node.value.array() if isinstance(node, Const) else np.ones(node.type.shape)
            for node in below
            if node.type.kind == "scalar"
        }
        entries = max(math.prod(root.type.shape), *(math.prod(node.type.shape) for node in gaussians), 1)
        trials = max(
            TRIALS, min(MOST_TRIALS, 2 ** int(math.log2(MOST_ENTRIES / entries)) if entries < MOST_ENTRIES else 1)
        )
        draw = np.random.default_rng(0).standard_normal
        values = [draw((trials, *node.type.shape)) for node in gaussians]
        with jax.enable_x64(True):
            function = by_numpy(
                jax.vmap(lambda *v, given=given, root=root, names=gaussians: value_of(root, given, names, *v))
            )
            found, near = function(*values), function(*_at_points([v[0] for v in values]))
        first, second = (np.abs(near[k :: len(POINTS)]) for k in range(len(POINTS)))
        steep = np.any(first > STEEP * second)
        squares = np.abs(found).reshape(trials, -1) ** 2
        few = squares[:TRIALS]
        if (
            not np.isfinite(squares).all()
            or np.any(few.max(0) > 0.5 * few.sum(0) + 1e-300)
            or no_mean(squares)
            or steep
        ):
            raise UnsupportedError(
                explain(
                    "a function of a hidden layer whose moments cannot be sampled", where=str(root.source or ""),
                    reason="of samples at unit variances a few carry the mean square, or one is infinite, or all that counts is near "
                    "zero: the expectation is infinite, as that of the squared slope of sqrt(abs(h)), or out of reach",
                    mend="use a nonlinearity of slower growth, or a normalisation with a larger epsilon; where the slope alone has no mean "
                    "square, jax.lax.stop_gradient(f(h)) leaves the NNGP, and the tangent kernel of the layers above",
                )
            )  # fmt: skip


def _at_points(values: list[np.ndarray]) -> list[np.ndarray]:
    """The values of all Gaussians, stacked, with the first entry of one of them at each of `POINTS`, one Gaussian after the other."""
    stacked = [np.repeat(v[None], len(values) * len(POINTS), 0) for v in values]
    for k, v in enumerate(stacked):
        v.reshape(len(v), -1)[k * len(POINTS) : (k + 1) * len(POINTS), 0] = POINTS
    return stacked


# ------------------------------------------------------------------------------------------ what is below


def _above_weights(node: Node) -> bool:
    return node.type.kind == "vector" and not isinstance(node, (MatMul, Weight))


@dataclass(frozen=True)
class _Side:
    """What one function reads: its Gaussians, those in which a tangent is linear last, and deterministic arrays. kept: the letters of
    axes that are carried along from all of them."""

    leaves: tuple[Leaf, ...]
    scalars: tuple[Node, ...]
    kept: frozenset[str]

    @classmethod
    def of(cls, root: Root, linear: bool, facts: Structure) -> _Side:
        """linear: as `_least_opened` has it."""
        # What is carried along should not depend on the Gaussians that a tangent is linear in: they are others in a gradient.
        sides = [cls._opened(root, opened, linear, facts) for opened in _least_opened(root[0], linear, facts)]
        return max(sides, key=lambda side: len(side.kept))

    @classmethod
    def _opened(cls, root: Root, opened: Opened, linear: bool, facts: Structure) -> _Side:
        node, letters = root
        labels = {n: own for n, own in _labels(root, opened).items() if not opened(n)}
        kept = frozenset(c for c in letters if c != "1" and all(own.count(c) == 1 for own in labels.values()))
        leaves = []
        for n, own in labels.items():
            axes = "".join("1" if k == 1 else c if c in kept else MIXED for c, k in zip(own, n.type.shape, strict=True))
            leaves.append(Leaf(n, 0, axes, bool(linear and facts[n].odd)))
        scalars = tuple(n for n in _reached(node, opened) if n.type.kind == "scalar")
        return cls(tuple(leaves), scalars, kept)

    def joins(self, other: _Side) -> bool:
        """Are they functions of the same variables, at the same places of what is carried along?"""
        mine = {leaf.node: leaf.letters for leaf in self.leaves}
        same = all(mine.get(leaf.node, leaf.letters) == leaf.letters for leaf in other.leaves)
        return same and self.kept == other.kept


def _least_opened(root: Node, linear: bool, facts: Structure) -> list[Opened]:
    """Which nodes to open: those that are not Gaussian (and what only repeats or moves one), or all above products with weights,
    whichever leaves fewer Gaussians. linear: Gaussians that a tangent is linear in are opened apart, in either way, the first of
    which leaves fewer."""
    plain: Opened = lambda n: n.type.kind == "vector" and (not facts[n].gaussian or copies(n))
    whole: Opened = lambda n: n.type.kind == "vector" and not facts[n].gaussian
    kind = lambda n: bool(linear and n.type.kind == "vector" and facts[n].odd)

    def size(chosen: Opened, of: bool) -> int:
        opened = lambda n: chosen(n) if kind(n) == of else whole(n)
        ends = (n for n in _reached(root, opened) if n.type.kind == "vector" and not opened(n) and kind(n) == of)
        return sum(math.prod(n.type.shape) for n in ends)

    own = min((plain, _above_weights), key=lambda chosen: size(chosen, False))
    if not linear:
        return [own]
    others = sorted((whole, _above_weights), key=lambda chosen: size(chosen, True))
    return [_either(kind, other, own) for other in others]


def _either(which: Opened, first: Opened, second: Opened) -> Opened:
    return lambda n: first(n) if which(n) else second(n)


def _reached(root: Node, opened: Opened) -> Iterator[Node]:
    """The function's own nodes, the Gaussians and the deterministic arrays that it reads, users first."""
    own = list(topological([root], skip=lambda n: not opened(n)))
    yield from dict.fromkeys([root, *reversed(own)])
    yield from dict.fromkeys(o for node in own for o in operands(node) if not opened(o))


def _key(leaf: Node, facts: Structure) -> str:
    """Where a Gaussian stands among others, in an order that does not depend on what was made of the program: by the products with
    weights below it, and by what is done to them."""
    match leaf:
        case PositionMap(op=op, args=(x, *_)):
            return f"{_key(x, facts)} {op}"
        case LinComb(terms=terms):
            return " ".join(sorted(_key(x, facts) for _, x in terms))
    return f"{facts.place(leaf):06d}"


def _labels(root: Root, opened: Opened) -> dict[Node, str]:
    """For each vector the letter of each axis that the function carries along from there to its own; else `MIXED`."""
    labels: dict[Node, str] = {}

    def read(node: Node, letters: str) -> None:
        known = labels.setdefault(node, letters)
        labels[node] = "".join(a if a == b else MIXED for a, b in zip(known, letters, strict=True))

    read(*root)
    for node in _reached(root[0], opened):
        if node not in labels or not opened(node):
            continue
        match node:
            case Nonlin(xs=xs):
                below = [(x, labels[node]) for x in xs]
            case LinComb(terms=terms):
                below = [(x, labels[node]) for _, x in terms]
            case PositionMap(op=op, args=(x, *_)):
                source = op.same_axis(x.type.shape)
                kept = {i: labels[node][j] for j, i in enumerate(source) if i is not None}
                below = [(x, "".join(kept.get(i, MIXED) for i in range(len(x.type.shape))))]
            case _:
                raise AssertionError(f"a {type(node).__name__} is a product with a weight")
        for x, own in below:
            if x.type.kind == "vector":
                read(x, own)
    return labels


def _covariance(a: Leaf, b: Leaf, cross: bool, taken: str) -> Work[tuple[Operand, str]]:
    """The covariance of two Gaussians at all places: axes carried along first (their letters), then those mixed of
    either."""
    spare = fresh(taken)
    la, lb = ("".join(next(spare) if c == MIXED else c for c in leaf.letters) for leaf in (a, b))
    carried = "".join(dict.fromkeys(c for c in la + lb if c in taken and c != "1"))
    mixed = "".join(c for c in la + lb if c not in taken)
    same = a.side == b.side
    found = yield from ask(a.node, la, b.node, lb, carried + mixed, cross and not same)
    return Operand(found, a.side if cross and same else None), carried


# ------------------------------------------------------------------------------------------ sizes


def mixed_size(leaf: Leaf) -> int:
    """How many places of a Gaussian the function mixes."""
    return math.prod(n for c, n in zip(leaf.letters, leaf.node.type.shape, strict=True) if c == MIXED)


def chunk_entries(q: Sampled) -> int:
    """How many numbers a sampled expectation keeps alive at once, for one pair of inputs."""
    below = {leaf.node for leaf in q.leaves} | {node for node, _ in q.scalars}
    own = sum(math.prod(n.type.shape) for n in topological([r for r, _ in q.roots], skip=lambda n: n in below))
    return CHUNK * math.prod(q.sizes) * (own + sum(map(mixed_size, q.leaves)))
