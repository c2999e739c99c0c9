"""States carried through many layers by elementwise code: the memory of a GRU or an LSTM, the carry of a highway network.

h' = z h + (1 - z) tanh(u), with gates z and u made by weights from h itself, is a function of the Gaussians of every step so
far. Written out, the expressions of a hundred steps would grow with the square of the steps, and no quadrature is good for
so many variables. Such a state is kept a variable of its own, one step at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from tensorprog.ir import Node, operands, topological
from tensorprog.passes.structure import Structure

__all__ = ["carried_states"]

MOST_LINKS = 2  # levels of weights under a function that is still written out in its Gaussians


def carried_states(outputs: Sequence[Node], deciding: Sequence[Node] | None = None) -> frozenset[Node]:
    """The variables that elementwise code goes on with above the next weights, if it does so often. deciding: in what is below these, if
    not in all: a backward pass, with twice as many weights one above the other, keeps a state where the forward pass does."""
    facts = Structure(outputs)
    variables = facts.variables() if deciding is None else topological(deciding)
    if max((facts[node].links for node in variables if node.type.kind == "vector"), default=1) <= MOST_LINKS:
        return frozenset()
    return frozenset(
        inner
        for node in topological(outputs)
        if node.type.kind != "vector" or not facts[node].gaussian
        for inner in operands(node)
        if inner.type.kind == "vector"
        and not facts[inner].gaussian
        and node.type.kind == "vector"
        and facts[node].level > facts[inner].level
    )
