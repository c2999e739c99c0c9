"""What of a program lies outside the hypotheses of the master theorem, though the formulas are known to hold.

For programs without transposes functions may grow like exp(C |x|^(2 - eps)) (Yang, Tensor Programs I, controlled functions); for those with
transposes the theorem asks for polynomial bounds and, of functions between a weight and its transpose, for derivatives (Tensor Programs III,
section 2, which defines the coefficients of others by the covariances instead).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction

import sympy

from tensorprog.errors import UnsupportedError
from tensorprog.ir import Moment, Node, Nonlin, Phi
from tensorprog.passes.powers import growth

__all__ = ["caveats"]

_FAST = (sympy.exp, sympy.sinh, sympy.cosh)


def caveats(nodes: Iterable[Node], transposes: bool) -> Iterator[str]:
    """One sentence for each function of the network that the theorem does not cover. transposes: are weights used with theirs?"""
    if not transposes:
        return
    functions = list(dict.fromkeys(node.phi for node in nodes if isinstance(node, (Nonlin, Moment)) and node.xs))
    for phi in functions:
        if phi.expr.has(*_FAST) and _outgrows_polynomials(phi):
            yield (
                f"`{phi.expr}` grows faster than every polynomial, and for programs with transposes the master theorem asks for a "
                "polynomial bound (Tensor Programs III); the formulas are those of the theorem, and their expectations are finite"
            )
    if any(phi.expr.has(sympy.DiracDelta) for phi in functions):
        yield (
            "a function between a weight and its transpose jumps, so that its derivative is a distribution; the coefficients are the mean of "
            "that, which is what their definition for functions without derivatives comes to (Tensor Programs III, section 2)"
        )


def _outgrows_polynomials(phi: Phi) -> bool:
    try:
        return growth(phi, (Fraction(1),) * phi.n_vectors + (Fraction(0),) * phi.n_parameters) == float("inf")
    except UnsupportedError:
        return False
