"""Functions of averages that are zero in the limit: the theorem asks them to be continuous there.

A scalar theta converges to its limit theta0, and a nonlinearity of it has to be parameter-controlled at theta0 (Yang, Tensor Programs
III, section 2), which a jump is not: sign((1/n) sum_a tanh(h_a)) is 1 or -1 with equal chances at every width, and has no limit, though
theta0 = 0 and sign(0) = 0. Nor have ratios of two such averages. That an average is zero is known by symmetry: it is odd in Gaussians
that are independent of all others in it. Averages that are equal by chance of the input are not seen.

Where the output is an average its gradient goes through these functions too, and their slopes have to be continuous.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np
import sympy
from sympy.core.relational import Relational

from ntk_rules import functions as nf
from tensorprog.errors import UnsupportedError, explain
from tensorprog.ir import ArrayOp, Const, LinComb, Moment, Node, Nonlin, Phi, PositionMap, Program, topological
from tensorprog.ir.phi import parameter
from tensorprog.passes.fuse import fuse
from tensorprog.passes.structure import Structure, parity_of, tied_weights

__all__ = ["check_scalars"]

_JUMPING = (sympy.sign, sympy.Heaviside, sympy.Piecewise, Relational, sympy.log, *nf.JUMPING)
_KINKED = (sympy.Abs, sympy.Max, sympy.Min)
_DECIDING = frozenset(
    {"eq", "ne", "lt", "le", "gt", "ge", "sign", "floor", "ceil", "argmax", "argmin", "to_boolean", "to_integer"}
)
STEP, GAP = 1e-9, 1e-3  # a root of the step stays below the gap; jumps are larger
POINTS = 64


def check_scalars(program: Program) -> None:
    """Refuse functions that jump where averages are zero in the limit. The program is as it was traced, or fused."""
    gradients = program.output.type.kind == "scalar"
    if not any(_may_jump(node, gradients) for node in program.nodes):
        return
    whole = fuse(program, keep_means=True)
    facts = Structure([], frozenset(w.name for w in tied_weights(whole.nodes)))
    zero: set[Node] = set()
    for node in topological([whole.output]):
        if isinstance(node, ArrayOp) and _is_decided(node, zero):
            raise _refusal(node, False)
        if node.type.kind == "scalar" and _vanishes(node, zero, facts):
            zero.add(node)
        found = [i for i, theta in enumerate(getattr(node, "thetas", ())) if theta in zero]
        if isinstance(node, (Nonlin, Moment)) and found and _may_jump(node, gradients):
            for phi in _looked_at(node.phi, found, gradients):
                if _jumps(phi, found):
                    raise _refusal(node, phi is not node.phi)


def _may_jump(node: Node, gradients: bool) -> bool:
    """Does a function have parts, of averages among others, that may jump or have poles?"""
    if isinstance(node, ArrayOp):
        return node.primitive in _DECIDING and any(_is_average(x) for x in node.args)
    if not isinstance(node, (Nonlin, Moment)) or not any(_is_average(theta) for theta in node.thetas):
        return False
    symbols = set(node.phi.parameters)
    kinds = (*_JUMPING, *(_KINKED if gradients else ()))
    for part in sympy.preorder_traversal(nf.value_of(node.phi.expr)):
        pole = isinstance(part, sympy.Pow) and not (part.exp.is_Integer and part.exp.is_positive)
        if (pole or isinstance(part, kinds)) and part.free_symbols & symbols:
            return True
    return False


def _is_decided(node: ArrayOp, zero: set[Node]) -> bool:
    """Is it a comparison of averages that vanish with each other or with zeros, or their sign?"""
    known = [x in zero or (isinstance(x, Const) and not np.any(x.value.array())) for x in node.args]
    return node.primitive in _DECIDING and all(known) and any(x in zero for x in node.args)


def _is_average(node: Node) -> bool:
    return any(isinstance(n, Moment) for n in topological([node], skip=lambda n: n.type.kind != "scalar"))


def _vanishes(node: Node, zero: set[Node], facts: Structure) -> bool:
    """Is a deterministic array zero in the limit, and not at finite width?"""
    match node:
        case Moment(phi=phi, xs=xs):
            return _odd(phi, xs, facts)
        case LinComb(terms=terms):
            return all(x in zero or a in zero for a, x in terms)
        case PositionMap(args=args):
            return args[0] in zero
        case Nonlin(phi=phi, xs=(), thetas=thetas):
            gone = {parameter(i): sympy.S.Zero for i, theta in enumerate(thetas) if theta in zero}
            return bool(gone) and phi.expr.subs(gone) == 0
    return False


def _odd(phi: Phi, xs: Sequence[Node], facts: Structure) -> bool:
    """Does a function change its sign with some of its Gaussians, which are independent of the others?"""
    known = [facts[x] for x in xs]
    if any(not f.gaussian or any(name in facts.tied for name, *_ in f.roots) for f in known):
        return False
    flips = (tuple(i in group for i in range(len(xs))) for group in _groups([f.roots for f in known]))
    return any(parity_of(phi.expr, flip) for flip in flips)


def _groups(roots: Sequence[frozenset]) -> Iterator[set[int]]:
    """Variables that share weights at their surface, directly or by others."""
    left = set(range(len(roots)))
    while left:
        group = {left.pop()}
        while more := {i for i in left if any(roots[i] & roots[j] for j in group)}:
            group |= more
            left -= more
        yield group


def _looked_at(phi: Phi, at: Sequence[int], gradients: bool) -> Iterator[Phi]:
    yield phi
    if gradients:
        for i in at:
            yield Phi(phi.diff_parameter(i), phi.n_vectors, phi.n_parameters)


def _jumps(phi: Phi, at: Sequence[int]) -> bool:
    """Is a function another one at small values of some parameters than where these are zero? Looked at in random places."""
    rng = np.random.default_rng(0)
    zs, directions = rng.standard_normal((phi.n_vectors, POINTS)), rng.standard_normal((phi.n_parameters, POINTS))
    others = np.abs(rng.standard_normal((phi.n_parameters, POINTS))) + 0.5
    code = nf.to_jax(nf.value_of(phi.expr), (*phi.vectors, *phi.parameters))
    values = []
    for step in (0.0, STEP):
        given = [step * directions[i] if i in at else others[i] for i in range(phi.n_parameters)]
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            values.append(np.broadcast_to(np.asarray(code(*zs, *given), float), (POINTS,)))
    here, beside = values
    defined = np.isfinite(beside)
    with np.errstate(invalid="ignore"):
        return bool(np.any(defined & ~(np.abs(beside - here) <= GAP * (1 + np.abs(beside)))))


def _refusal(node: Node, slope: bool) -> UnsupportedError:
    what = "the slope of a function" if slope else "a function"
    shown = node.primitive if isinstance(node, ArrayOp) else node.phi  # type: ignore[attr-defined]
    return UnsupportedError(
        explain(
            f"{what} of averages over the width jumps, or has a pole, where they are zero, as they are in the limit",
            where=str(node.source or ""),
            reason=f"of `{shown}` the master theorem asks that it is continuous in its parameters at their limits (parameter-controlled; "
            "Tensor Programs III, section 2): the averages are of order 1/sqrt(n) and of either sign at every width",
            mend="add a number to what is divided by; or use averages that do not vanish, as of squares",
        )
    )
