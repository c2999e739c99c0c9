"""Readouts that are tied to the layer they read: their law, where it is Gaussian.

f = (1/sqrt n) sum_a v_a x_a, where x depends on v. Given all else, flip the sign of v_a, for each a by itself: where x_a is even in
it, and no other coordinate depends on it, f is a sum of independent random signs times numbers, which is Gaussian in the limit, of
the covariance E[v x v' x']. Otherwise f has a mean of the order sqrt(n), or fluctuations of the layers below add to it.

Several such readouts are jointly Gaussian, for the signs are the same; and with readouts of weights that nothing else is made of: given
all but those, they are Gaussian, of a covariance that converges.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

from tensorprog.ir import (
    LinComb,
    MatMul,
    Moment,
    Node,
    Nonlin,
    Phi,
    PositionMap,
    Program,
    Type,
    Weight,
    operands,
    position,
    topological,
)
from tensorprog.ir.phi import parameter, vector
from tensorprog.ir.rebuild import rebuild
from tensorprog.passes.structure import Structure

__all__ = ["summands", "symmetric_law", "tied_readouts"]


MOST_TIED = 8  # weights of which every choice is tried; of more all together, all but one, and one or two


def _is_readout(node: Node) -> bool:
    return isinstance(node, MatMul) and node.type.width is None


def tied_readouts(nodes: Iterable[Node]) -> frozenset[str]:
    """The names of weights that readouts are made with, and other things. nodes: of all programs together."""
    nodes = tuple(nodes)
    read = {node.root.name for node in nodes if isinstance(node, MatMul) and _is_readout(node)}
    other = {w.name for node in nodes if not _is_readout(node) for w in operands(node) if isinstance(w, Weight)}
    return frozenset(read & other)


def symmetric_law(outputs: Sequence[Node]) -> bool:
    """Are all tied readouts odd in each coordinate of some of their weights, on which no other coordinate depends? outputs: of all
    programs."""
    nodes = tuple(topological(outputs))
    names = sorted(tied_readouts(nodes))
    if not names:
        return True
    sizes = range(len(names), 0, -1) if len(names) <= MOST_TIED else (len(names), len(names) - 1, 2, 1)
    flips = (frozenset(some) for size in sizes for some in itertools.combinations(names, size))
    return any(_odd_in(frozenset(names), flipped, outputs, nodes) for flipped in flips)


def _odd_in(names: frozenset[str], flipped: frozenset[str], outputs: Sequence[Node], nodes: Sequence[Node]) -> bool:
    """Do the terms of all tied readouts change their signs where those of a coordinate of some weights are flipped?"""
    new: dict[Node, Node] = {}
    touched: set[Node] = set()
    for node in nodes:
        parts = [new[o] for o in operands(node)]
        if isinstance(node, Weight) and node.name in names:
            new[node] = replace(node, primed=node.name in flipped, tangent_std=0.0, stopped=0.0)
            touched.add(node)
            continue
        new[node] = rebuild(node, parts)
        if isinstance(node, Moment):
            continue  # a number: it moves f by its fluctuation, of 1/sqrt(n), times a sum of n odd terms over sqrt(n)
        if any(o in touched for o in operands(node)):
            touched.add(node)
            if isinstance(node, MatMul) and not _is_readout(node) and node.x in touched:
                return False
    facts = Structure([new[output] for output in outputs])
    read = [node for node in nodes if isinstance(node, MatMul) and _is_readout(node) and node.root.name in names]
    return all(node.x not in touched or facts[new[node.x]].odd is (node.root.name not in flipped) for node in read)


# ------------------------------------------------------------------------------------------ the covariance


def summands(program: Program) -> Program:
    """The program of v x, whose covariance is that of its readout; its output has the output's shape."""
    new: dict[Node, Node] = {}
    for node in topological([program.output], skip=lambda n: n.type.kind != "vector" or n.type.width is not None):
        new[node] = _summand(node, new)
    return replace(program, output=new[program.output])


def _summand(node: Node, new: dict[Node, Node]) -> Node:
    match node:
        case MatMul():
            return _product(node)
        case Weight():
            region = (*node.region, (Fraction(0), Fraction(1)))
            wide = replace(node, shape=(*node.shape, 1), widths=(*node.widths, Fraction(1)), region=region)
            return _mapped("reshape", wide, node.type.shape, to=node.type.shape)
        case PositionMap(op=op, args=args):
            return PositionMap(op, (new[args[0]], *args[1:]), _coordinates(node.type.shape), source=node.source)
        case LinComb(terms=terms):
            return LinComb(tuple((a, new.get(x, x)) for a, x in terms), source=node.source)
    raise AssertionError(f"no readout is a {type(node).__name__}")


def _product(node: MatMul) -> Node:
    """v x for y = v x / sqrt(n) summed over the width: finite axes that the product sums over are summed."""
    w, x, out = node.letters
    summed = [c for c in dict.fromkeys(w + x) if c not in out]
    target = out + "".join(summed)
    sizes = dict(zip(w, node.root.shape, strict=True)) | dict(zip(x, node.x.type.shape, strict=True))
    shape = tuple(sizes[c] for c in target)
    first, second = _arranged(node.root, w, target, shape), _arranged(node.x, x, target, shape)
    if second.type.kind == "vector":
        made: Node = Nonlin(Phi(vector(0) * vector(1), 2), (first, second), (), source=node.source)
    else:
        made = Nonlin(Phi(vector(0) * parameter(0), 1, 1), (first,), (second,), source=node.source)
    if summed:
        made = _mapped("sum", made, node.type.shape, axes=tuple(range(len(out), len(target))))
    width = math.prod(v for c, v in zip(w, node.root.widths, strict=True) if v is not None and c not in out)
    return made if width == 1 else LinComb(((math.sqrt(width), made),), source=node.source)


def _arranged(node: Node, letters: str, target: str, shape: tuple[int, ...]) -> Node:
    """An array with axes `letters`, in the order of `target`, repeated along the axes that it lacks."""
    order = sorted(range(len(letters)), key=lambda i: target.index(letters[i]))
    sizes = tuple(node.type.shape[i] for i in order)
    moved = _mapped("transpose", node, sizes, permutation=tuple(order)) if order != sorted(order) else node
    axes = tuple(target.index(letters[i]) for i in order)
    return _mapped("broadcast", moved, shape, to=shape, axes=axes)


def _mapped(name: str, x: Node, shape: tuple[int, ...], **params: object) -> Node:
    made = _coordinates(shape) if x.type.kind == "vector" else Type("scalar", shape)
    return PositionMap(position(name, **params), (x,), made, source=x.source)


def _coordinates(shape: tuple[int, ...]) -> Type:
    """An array of vectors of n coordinates."""
    return Type("vector", shape, len(shape) - 1 if shape else None, Fraction(1))
