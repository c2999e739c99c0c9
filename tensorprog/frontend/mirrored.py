"""Which axes of an output hold independent copies: the features of a readout.

Along such an axis the covariance is a multiple of the identity, so the kernel is given once.
"""

from __future__ import annotations

from tensorprog.ir import LinComb, MatMul, Node, PositionMap, Weight, topological

__all__ = ["mirrored_axes"]


def mirrored_axes(output: Node) -> tuple[int, ...]:
    """The axes, longer than one, along which the output's entries are independent and identically distributed."""
    known: dict[Node, frozenset[int]] = {}
    for node in topological([output]):
        if node.type.kind == "vector" and node.type.width is None:
            known[node] = _axes(node, known)
    return tuple(sorted(i for i in known[output] if output.type.shape[i] > 1))


def _axes(node: Node, known: dict[Node, frozenset[int]]) -> frozenset[int]:
    match node:
        case Weight(shape=shape):
            return frozenset(range(len(shape)))
        case MatMul():
            of_weight, of_x, of_out = node.letters
            return frozenset(i for i, c in enumerate(of_out) if c in of_weight and c not in of_x)
        case LinComb(terms=terms):
            axes = frozenset(range(len(node.type.shape)))
            for a, x in terms:
                if x in known:
                    axes &= known[x]
                for factor in (a, x):
                    if isinstance(factor, Node) and factor.type.kind == "scalar":
                        axes &= _constant_axes(factor.type.shape, len(node.type.shape))
            return axes
        case PositionMap(op=op, args=args):
            source = op.same_axis(args[0].type.shape)
            return frozenset(i for i, a in enumerate(source) if a in known[args[0]])
    return frozenset()


def _constant_axes(shape: tuple[int, ...], rank: int) -> frozenset[int]:
    """The axes of the result along which an array that broadcasts against it does not vary."""
    missing = rank - len(shape)
    return frozenset(i for i in range(rank) if i < missing or shape[i - missing] == 1)
