"""The master theorem as rules: how each question about a program's variables is answered by simpler ones.

What transposes add was written out before (`passes.dots`), so that a MatMul is Gaussian, its Zhat.

Sources, beside each rule: Yang, Tensor Programs III (the master theorem for NETSOR-T+) and II
(its use for neural tangent kernels).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import sympy

from tensorprog.errors import InternalError, UnsupportedError
from tensorprog.ir import (
    ArrayOp,
    Const,
    Hyper,
    LinComb,
    Literal,
    MatMul,
    Moment,
    Node,
    Nonlin,
    PositionMap,
    Weight,
    operands,
)
from tensorprog.ir.phi import parameter
from tensorprog.kernel.expectations import expectation_of
from tensorprog.kernel.fields import read_by
from tensorprog.kernel.graph import Data, Operand, Quantity, Zero
from tensorprog.kernel.linear import linear_of
from tensorprog.kernel.paths import slopes_of
from tensorprog.kernel.population import Uses, neurons, population_of
from tensorprog.kernel.positions import map_mean, map_second
from tensorprog.kernel.questions import (
    LETTERS,
    Answer,
    Mean,
    Neurons,
    Question,
    Second,
    Value,
    Work,
    ask,
    combine,
    contract,
    fresh,
    sizes_of,
)
from tensorprog.kernel.stacks import Stacks
from tensorprog.passes.jumps import EITHER
from tensorprog.passes.structure import Structure, opposite

__all__ = ["Rules"]

_OPENED = (LinComb, PositionMap)


class Rules:
    """The rules, with the structural facts of the programs they are asked about. apart: of `derive`."""

    def __init__(self, facts: Structure, tolerance: float | None = None, apart: bool = True):
        self.facts, self.tolerance, self.apart = facts, tolerance, apart
        self._uses = Uses(facts)
        self._stacks = Stacks(self._slopes, lambda s: read_by((s, LETTERS[: len(s.type.shape)]), False, facts))

    def __call__(self, question: Question) -> Answer:
        match question:
            case Second():
                return self._second(question)
            case Mean(u=u):
                return self._mean(u)
            case Value(node=node):
                return self._value(node)
            case Neurons():
                return neurons(question, self.facts, self._uses, self.tolerance)

    def _slopes(self) -> Iterator[Nonlin]:
        """Those of all tangents or gradients of the programs."""
        for node in self.facts.variables():
            yield from slopes_of(node, self.facts)

    # ---------------------------------------------------------------------------------- second moments

    def _second(self, q: Second) -> Answer:
        sizes = sizes_of((q.lu, q.u.type.shape), (q.lv, q.v.type.shape))
        shape = tuple(sizes[c] for c in q.out)
        if q.u.type.kind == "scalar" or q.v.type.kind == "scalar":
            return (yield from self._product_of_means(q, shape))
        a, b = self.facts[q.u], self.facts[q.v]
        if a.zero or b.zero or opposite(a.odd, b.odd):
            return Zero(shape)
        if self.facts.independent(q.u, q.v, q.cross):  # functions of independent Gaussians: E[u v] = E[u] E[v]
            return (yield from self._product_of_means(q, shape))
        if (a.carried or b.carried) and not (a.gaussian or b.gaussian):
            if self.apart and (found := (yield from linear_of(q, self.facts, self.tolerance))) is not None:
                return found
            return (yield from population_of(q, self.tolerance))
        kinds = (q.u, a.gaussian), (q.v, b.gaussian)
        if any(isinstance(node, Nonlin) for node, _ in kinds) and all(g or isinstance(n, Nonlin) for n, g in kinds):
            return (yield from expectation_of(q, self.facts, self.tolerance, Rules, self.apart, self._stacks))
        if isinstance(q.u, _OPENED) or isinstance(q.v, _OPENED):
            first = not isinstance(q.v, _OPENED) or (isinstance(q.u, _OPENED) and not self.facts.later(q.v, q.u))
            if isinstance(q.u if first else q.v, LinComb):
                return (yield from self._linear(q, shape, first=first))
            return (yield from map_second(q, first=first))
        if isinstance(q.u, MatMul) and isinstance(q.v, MatMul):
            return (yield from self._matmuls(q))
        if isinstance(q.u, Weight) and isinstance(q.v, Weight):
            return self._weights(q, sizes, shape)
        if isinstance(q.u, (MatMul, Weight)) and isinstance(
            q.v, (MatMul, Weight)
        ):  # a parameter alone and in a product
            return (yield from self._matmuls(replace(q, u=_as_product(q.u), v=_as_product(q.v))))
        raise InternalError(f"no rule for the covariance of a {type(q.u).__name__} and a {type(q.v).__name__}")

    def _product_of_means(self, q: Second, shape: tuple[int, ...]) -> Answer:
        """E[u v] = E[u] E[v]: for deterministic and for independent variables."""
        means = []
        for node, letters, side in ((q.u, q.lu, 0), (q.v, q.lv, 1)):
            if node.type.kind == "scalar":
                value, own = (yield Value(node)), letters
            else:
                value, own = (yield Mean(node)), letters.replace("1", "")
            means.append((Operand(value, side if q.cross else None), own))
        spec = f"{means[0][1]},{means[1][1]}->{q.out}"
        return contract(spec, [m for m, _ in means], shape, q.cross)

    def _linear(self, q: Second, shape: tuple[int, ...], *, first: bool) -> Answer:
        """E[(sum_i a_i x_i) v] = sum_i a_i E[x_i v]; of one sum with itself, both are opened at once, so that a residual
        net's covariance is that of the layer before and the layer's own."""
        u, v = q.u, q.v
        both = u is v
        left = u.terms if isinstance(u, LinComb) and (first or both) else ((1.0, u),)
        right = v.terms if isinstance(v, LinComb) and (not first or both) else ((1.0, v),)
        terms = []
        for a, x in left:
            for b, y in right:
                terms.append((yield from self._term(q, (a, x), (b, y), shape)))
        return combine(terms, shape, q.cross)

    def _term(
        self, q: Second, left: tuple[float | Node, Node], right: tuple[float | Node, Node], shape: tuple[int, ...]
    ) -> Work[tuple[float, Quantity]]:
        """a b E[x y] of a term of either side: the number in it, and the rest."""
        (a, x), (b, y) = left, right
        lx, ly = _against(q.lu, x), _against(q.lv, y)
        scale, factors, letters = 1.0, [], []
        coefficients: tuple[tuple[float | Node, str, int], ...] = ((a, q.lu, 0), (b, q.lv, 1))
        if a is b and (variance := _variance(a)) is not None:
            coefficients = ((variance, "", 0),)
        for coefficient, own, side in coefficients:
            if isinstance(coefficient, Node):
                factors.append(Operand((yield Value(coefficient)), side if q.cross else None))
                letters.append(_against(own, coefficient))
            else:
                scale *= coefficient
        wanted = q.out + "".join(letters)
        have = "".join(dict.fromkeys(c for c in wanted if c in lx + ly and c != "1"))
        part = yield from ask(x, lx, y, ly, have, q.cross)
        extra = _copies(q, lx + ly + "".join(letters))
        spec = f"{','.join([*letters, have])}->{q.out}"
        return scale, contract(spec, [*factors, Operand(part)], shape, q.cross, extra)

    def _matmuls(self, q: Second) -> Answer:
        """Cov(W x, W y) = sigma^2 E[x y], summed over what the product sums over (Tensor Programs III, theorem on
        Zhat)."""
        u, v = q.u, q.v
        assert isinstance(u, MatMul) and isinstance(v, MatMul)
        weight = u.root
        if u.root is not v.root or u.summed != v.summed:
            raise InternalError(f"two uses of the weight {weight.name!r} that no rule relates")
        sizes = sizes_of((q.lu, u.type.shape), (q.lv, v.type.shape))
        spare = fresh(q.lu + q.lv)
        (wu, xu, ou), (wv, xv, ov) = u.letters, v.letters
        mu, mv = dict(zip(ou, q.lu, strict=True)), dict(zip(ov, q.lv, strict=True))
        scale = weight.std**2
        twins: dict[str, str] = {}
        for axis, (cu, cv) in enumerate(zip(wu, wv, strict=True)):
            n, width = weight.shape[axis], weight.widths[axis]
            if cu not in ou and cv not in ov and width is not None:
                scale *= float(width)
            if n == 1:
                mu.setdefault(cu, "1")
                mv.setdefault(cv, "1")
                continue
            shared = mu.get(cu) or mv.get(cv) or next(spare)
            if cu in mu and cv in mv and mu[cu] != mv[cv]:
                twins[mv[cv]] = shared
            mu[cu] = mv[cv] = shared
            sizes[shared] = n
        lx, ly = "".join(mu[c] for c in xu), "".join(mv[c] for c in xv)
        wanted = "".join(twins.get(c, c) for c in q.out)
        have = "".join(dict.fromkeys(c for c in wanted if c in lx + ly))
        inner = yield from ask(u.x, lx, v.x, ly, have, q.cross)
        summed = {c for c in mu.values() if c != "1" and c not in lx + ly and c not in wanted}
        for c in summed:
            scale *= sizes[c]
        shape = tuple(sizes[c] for c in wanted)
        return contract(f"{have}->{wanted}", [Operand(inner)], shape, q.cross, scale)

    def _weights(self, q: Second, sizes: dict[str, int], shape: tuple[int, ...]) -> Quantity:
        """A parameter used as vectors: independent entries, E[w_s w_t] = sigma^2 [s = t]; noise is another for another input."""
        u, v = q.u, q.v
        assert isinstance(u, Weight) and isinstance(v, Weight)
        if u is not v:
            raise InternalError(f"two layouts of the parameter {u.name!r} meet")
        if u.per_input and q.cross:
            return Zero(shape)
        scale, wanted = u.std**2, q.out
        for a, b in zip(q.lu, q.lv, strict=True):
            if a == "1":
                continue
            if a not in q.out and b not in q.out:
                scale *= sizes[a]
            wanted = wanted.replace(b, a)
        return contract(f"->{wanted}", [], shape, q.cross, scale)

    # ---------------------------------------------------------------------------------- means and values

    def _mean(self, u: Node) -> Answer:
        """E[u], zero for Gaussian variables and for those odd in the primed weights."""
        shape = tuple(n for n in u.type.shape if n > 1)
        if self.facts[u].gaussian or self.facts[u].odd or self.facts[u].zero:
            return Zero(shape)
        match u:
            case LinComb(terms=terms):
                return (yield from self._mean_of_sum(u, terms, shape))
            case PositionMap():
                return (yield from map_mean(u))
            case Nonlin():
                return (yield from expectation_of(u, self.facts, self.tolerance, Rules))
        raise InternalError(f"no rule for the mean of a {type(u).__name__}")

    def _mean_of_sum(self, u: Node, terms: tuple[tuple[float | Node, Node], ...], shape: tuple[int, ...]) -> Answer:
        letters = "".join(c if n > 1 else "1" for c, n in zip(fresh(""), u.type.shape, strict=False))
        out = letters.replace("1", "")
        parts = []
        for a, x in terms:
            if x.type.kind == "scalar":
                own = _against(letters, x)
                value = yield Value(x)
            else:
                own, value = out, (yield Mean(x))
            factors, spec, scale = [Operand(value)], own, 1.0
            if isinstance(a, Node):
                factors.insert(0, Operand((yield Value(a))))
                spec = f"{_against(letters, a)},{own}"
            else:
                scale = a
            parts.append((1.0, contract(f"{spec}->{out}", factors, shape, False, scale)))
        return combine(parts, shape, False)

    def _value(self, node: Node) -> Answer:
        """A deterministic variable: what makes it, or, for a Moment, the expectation it converges to."""
        if isinstance(node, Moment):
            found = yield from expectation_of(node, self.facts, self.tolerance, Rules)
            return Data(node, (Operand(found),), node.type.shape)
        if isinstance(node, ArrayOp) and node.primitive == EITHER:
            return (yield from self._either(node))
        parts = []
        for operand in operands(node):
            parts.append(Operand((yield Value(operand))))
        return Data(node, tuple(parts), node.type.shape)

    def _either(self, node: ArrayOp) -> Answer:
        """The first of two forms of one number for which there are rules."""
        first, second = node.args
        try:
            return (yield Value(first))
        except UnsupportedError:
            return (yield Value(second))


def _as_product(node: Node) -> Node:
    """A parameter used as vectors, as a product with one."""
    if not isinstance(node, Weight):
        return node
    letters = LETTERS[: len(node.shape)]
    return MatMul(f"{letters},->{letters}", node, Const(Literal.of(np.ones(()))), source=node.source)


def _against(letters: str, x: Node) -> str:
    """The letters of an array that broadcasts against an array with `letters`."""
    own = letters[len(letters) - len(x.type.shape) :]
    return "".join("1" if n == 1 else c for c, n in zip(own, x.type.shape, strict=True))


def _variance(coefficient: float | Node) -> Hyper | None:
    """The hyperparameter whose root a coefficient is: a standard deviation of `nn`. (Of the square of a root JAX has no slope at zero.)"""
    if isinstance(coefficient, Nonlin) and not coefficient.xs and coefficient.phi.expr == sympy.sqrt(parameter(0)):
        (theta,) = coefficient.thetas
        return theta if isinstance(theta, Hyper) and theta.nonnegative else None
    return None


def _copies(q: Second, present: str) -> float:
    """How often a term is counted that is constant along axes that the question sums over."""
    sizes = sizes_of((q.lu, q.u.type.shape), (q.lv, q.v.type.shape))
    count = 1
    for c in dict.fromkeys(q.lu + q.lv):
        if c != "1" and c not in q.out and c not in present:
            count *= sizes[c]
    return float(count)
