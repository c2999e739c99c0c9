"""Facts read off a program without computing anything: what is Gaussian, what is independent, what is odd.

roots: the Gaussian weights a vector variable is made of at its surface. The image W x depends on W, and on x only
through covariances, so its root is W alone; variables without a common root are independent (Yang, Tensor Programs
III: Zhat of different matrices are independent, and so are those of a matrix and of its transpose; a MatMul stands for its
Zhat, what is left of it once `passes.dots` has written out the rest). Noise that is drawn for every input is common to
variables of one input only.
parity: how a variable answers to flipping the sign of all primed weights at once (even, odd, or neither): an odd one
has zero mean and zero covariance with an even one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

import sympy

from ntk_rules import functions as nf
from tensorprog.ir import LinComb, MatMul, Node, Nonlin, PositionMap, Weight, operands, topological

__all__ = ["Facts", "Structure", "opposite", "parity_of", "tied_weights", "unstopped"]

# A weight's name, is it primed, its region, the axis that is summed over, is it drawn for every input?
Root = tuple[str, bool, tuple[tuple[Fraction, Fraction], ...], int | None, bool]


@dataclass(frozen=True)
class Facts:
    """What is known of one vector variable. gaussian: jointly Gaussian with zero mean. zero: identically zero. level: how many
    weights stand one after the other on the way to it. links: how many levels elementwise code brings together in it. carried:
    a nonlinear function in it goes on with one from a lower level."""

    gaussian: bool
    zero: bool
    roots: frozenset[Root]
    odd: bool | None
    level: int = 0
    links: int = 1
    carried: bool = False


class Structure:
    """The facts of every vector variable of some programs. tied: names of weights used together with their transposes, the
    products with which are not Gaussian as long as `passes.dots` has not been run."""

    def __init__(self, outputs: Iterable[Node], tied: frozenset[str] = frozenset()):
        self.tied = tied
        self._facts: dict[Node, Facts] = {}
        self._order: dict[Node, int] = {}
        for node in topological(outputs):
            self.add(node)

    def add(self, node: Node) -> None:
        """Learn of one more variable, whose operands are known."""
        if node.type.kind == "vector" and node not in self._facts:
            self._facts[node] = _with_levels(_facts(node, self), node, self)
            self._order[node] = len(self._order)

    def variables(self) -> Iterable[Node]:
        """The vector variables known so far, in the order of the program."""
        return tuple(self._order)

    def joined(self, leaves: Sequence[Node]) -> Structure:
        """The facts under a law that makes these variables depend on each other."""
        other = Structure([])
        roots = frozenset().union(*(self[leaf].roots for leaf in leaves))
        for leaf in leaves:
            other._facts[leaf] = replace(self[leaf], roots=roots)
            other._order[leaf] = len(other._order)
        return other

    def place(self, u: Node) -> int:
        """Its place in the order of the program."""
        self[u]
        return self._order[u]

    def later(self, u: Node, v: Node) -> bool:
        """Was u made after v? Opening the later of two variables first meets the fewest new pairs."""
        return self.place(u) > self.place(v)

    def __getitem__(self, node: Node) -> Facts:
        if node not in self._facts:
            for operand in topological([node], skip=lambda n: n.type.kind == "scalar" or n in self._facts):
                self.add(operand)
        return self._facts[node]

    def independent(self, u: Node, v: Node, across: bool = False) -> bool:
        """No weight is at the surface of both. across: they are of two inputs."""
        return all(across and per_input for *_, per_input in self[u].roots & self[v].roots)

    def uncorrelated(self, u: Node, v: Node, across: bool = False) -> bool:
        """Is E[u v] structurally zero for two zero-mean Gaussian variables? across: they are of two inputs."""
        a, b = self[u], self[v]
        return a.zero or b.zero or opposite(a.odd, b.odd) or self.independent(u, v, across)


def tied_weights(nodes: Iterable[Node]) -> frozenset[Weight]:
    """The matrices that are used together with their transposes, symmetric ones among them. One that is trained in some uses alone is
    one matrix."""
    ways: dict[Weight, set[int | None]] = {}
    found: dict[Weight, None] = {}
    for node in nodes:
        if isinstance(node, MatMul) and node.summed is not None and node.root.std:
            ways.setdefault(unstopped(node.root), set()).add(node.summed)
            found[node.root] = None
    return frozenset(weight for weight in found if weight.symmetric or len(ways[unstopped(weight)]) > 1)


def unstopped(weight: Weight) -> Weight:
    """The same weight, whether a use sees it behind lax.stop_gradient or not."""
    return replace(weight, tangent_std=weight.stopped, stopped=0.0) if weight.stopped else weight


def opposite(a: bool | None, b: bool | None) -> bool:
    """One is odd and the other even."""
    return a is not None and b is not None and a != b


def _facts(node: Node, known: Structure) -> Facts:
    match node:
        case Weight():
            own: Root = (node.name, node.primed, node.region, None, node.per_input)
            return Facts(True, node.std == 0, frozenset([own]), node.primed)
        case MatMul(x=x):
            inner = known[x].odd if x.type.kind == "vector" else False
            root: Root = (node.root.name, node.root.primed, node.root.region, node.summed, False)
            zero = node.root.std == 0 or (x.type.kind == "vector" and known[x].zero)
            return Facts(True, zero, frozenset([root]), None if inner is None else inner != node.root.primed)
        case LinComb(terms=terms):
            facts = [known[x] for _, x in terms if x.type.kind == "vector"]
            affine = len(facts) < len(terms)
            parities = {f.odd for f in facts if not f.zero} | ({False} if affine else set())
            return Facts(
                all(f.gaussian for f in facts) and not affine,
                all(f.zero for f in facts) and not affine,
                frozenset().union(*(f.roots for f in facts if not f.zero)),
                parities.pop() if len(parities) == 1 else None if parities else False,
            )
        case PositionMap(args=args):
            return known[args[0]]
        case Nonlin(phi=phi, xs=xs):
            facts = [known[x] for x in xs]
            signs = tuple(f.odd for f in facts)
            return Facts(
                False, False, frozenset().union(*(f.roots for f in facts if not f.zero)), parity_of(phi.expr, signs)
            )
    raise AssertionError(f"no facts about {type(node).__name__}")


def _with_levels(facts: Facts, node: Node, known: Structure) -> Facts:
    """The facts with the variable's level, and the links of the chain it ends: one more than an operand's where elementwise
    code goes on with it at a higher level."""
    inner = [known[o] for o in operands(node) if o.type.kind == "vector"]
    level = max((f.level for f in inner), default=0) + isinstance(node, MatMul)
    below = [] if facts.gaussian else [f for f in inner if not f.gaussian]
    links = max((f.links + (level > f.level) for f in below), default=1)
    carried = any(f.carried or (isinstance(node, Nonlin) and level > f.level) for f in below)
    return replace(facts, level=level, links=links, carried=carried)


@lru_cache(maxsize=4096)
def parity_of(expr: sympy.Expr, signs: tuple[bool | None, ...]) -> bool | None:
    """Whether an expression changes sign with its odd arguments; read off its form, None when that does not say."""
    if not any(signs) and None not in signs:
        return False
    odd = {f"z{i}": sign for i, sign in enumerate(signs)}
    expr = nf.value_of(expr).replace(sympy.Heaviside, lambda x, *_: (1 + sympy.sign(x)) / 2)
    known: dict[sympy.Basic, bool | None] = {}
    for part in sympy.postorder_traversal(expr):
        if part.is_Symbol:
            known[part] = odd.get(part.name, False)
        elif not part.args:
            known[part] = False
        else:
            known[part] = _combine(part, [known[a] for a in part.args])
    return known[expr]


def _combine(part: sympy.Basic, signs: list[bool | None]) -> bool | None:
    if None in signs:
        return None
    if not any(signs):
        return False
    if part.is_Add:
        return signs[0] if len(set(signs)) == 1 else None
    if part.is_Mul:
        return sum(map(bool, signs)) % 2 == 1
    if part.is_Pow and part.exp.is_Integer:
        return bool(signs[0]) and part.exp % 2 == 1
    if isinstance(
        part, (sympy.sin, sympy.tanh, sympy.erf, sympy.sign, sympy.sinh, sympy.tan, sympy.atan, sympy.asinh)
    ) or getattr(part, "odd", False):
        return True
    if isinstance(part, (sympy.cos, sympy.cosh, sympy.Abs)):
        return False
    return None
