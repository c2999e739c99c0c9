"""The adjoint program: backpropagation, instruction by instruction, as a tensor program.

With dh = sqrt(n) df/dh for a readout f, and dh = n df/dh for an average over the width (Yang, Tensor Programs II, section 5):

    dx = W' dy for y = W x        dx_i = d_i phi(x) dy for y = phi(x)        dx = L' dy for a map L of positions

where W' is the transpose, whose products with what was made from W x have Zdots (`passes.dots` writes them out). Through a
deterministic theta, dtheta = E[dy d phi/d theta], and back through a Moment theta = (1/n) sum psi(x), dx = psi'(x) dtheta.
The neural tangent kernel is then (Tensor Programs II, theorem 2.1)

    sum over W, over pairs of uses y = W z, y' = W z', of tangent_std^2 E[dy dy'] E[z z']

with the sums over positions that the instructions make. It asks nothing of the readout: unlike the tangent program
(`passes.tangent`) it holds for averages over the width and for readouts that are tied to other weights.

A readout whose weights are used for nothing else is independent of all that its gradients meet. It stands as a fresh copy
(primed) in this program, so that its sign tells what vanishes: Moments and Zdots of what is odd in it. Beside the gradients of
another output that reads those weights it is no copy (`beside`); what vanished by its sign vanishes all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from tensorprog.ir import Const, Literal, Node, Program, Weight, operands, topological
from tensorprog.ir.rebuild import rebuild
from tensorprog.passes.backward import Backward, Use

__all__ = ["Adjoint", "Use", "adjoint", "beside"]


@dataclass(frozen=True)
class Adjoint:
    """The backward pass of one output. lead: the sizes of its axes of different entries, each of which has gradients of its own;
    of axes of independent copies the first entry stands for all."""

    output: Node
    lead: tuple[int, ...]
    uses: tuple[Use, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The variables that the neural tangent kernel is made of."""
        return tuple(dict.fromkeys(n for use in self.uses for n in (use.dy, use.z) if n is not None))

    def renamed(self, new: Callable[[Node], Node]) -> Adjoint:
        """The same with other variables in the place of these."""
        uses = (replace(u, dy=new(u.dy), z=None if u.z is None else new(u.z)) for u in self.uses)
        return replace(self, output=new(self.output), uses=tuple(uses))


def adjoint(program: Program, copies: tuple[int, ...] | None = None) -> Adjoint:
    """The backward pass of a fused program. copies: the axes of the output that hold independent copies (default: all that the
    program says).

    Raises UnsupportedError where a gradient goes back through an operation that is simply run.
    """
    shape = program.output.type.shape
    first = [i for i in (program.mirrored if copies is None else copies) if shape[i] > 1]
    own = [i for i, n in enumerate(shape) if n > 1 and i not in first]
    back = Backward(program, tuple(shape[i] for i in own))
    return Adjoint(program.output, back.lead, tuple(back.run(_seed(shape, own))))


def beside(found: Adjoint, names: Iterable[str]) -> Adjoint:
    """The gradients of a readout beside those of an output that reads its weights too: `names` are no fresh copies here."""
    chosen = frozenset(names)
    new: dict[Node, Node] = {}
    for node in topological([found.output, *found.nodes]):
        if isinstance(node, Weight) and node.primed and node.name in chosen:
            new[node] = replace(node, primed=False)
        else:
            new[node] = rebuild(node, [new[o] for o in operands(node)])
    return found.renamed(new.__getitem__)


def _seed(shape: tuple[int, ...], own: list[int]) -> Const:
    """The gradients of the output's entries in itself: those of all its own axes, of the first of copies."""
    lead = tuple(shape[i] for i in own)
    value = np.zeros((*lead, *shape))
    for place in np.ndindex(*lead):
        at = dict(zip(own, place, strict=True))
        value[(*place, *(at.get(i, 0) for i in range(len(shape))))] = 1.0
    return Const(Literal.of(value))
