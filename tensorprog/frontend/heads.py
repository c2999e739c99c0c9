"""Attention heads: a width cut into finitely many, and why logits with 1/sqrt(n) have no Gaussian limit."""

from __future__ import annotations

from fractions import Fraction

from tensorprog.frontend.build import Refusal
from tensorprog.frontend.values import WIDTHS, Value, Var, width_axis
from tensorprog.ir import Moment
from tensorprog.ir.nodes import Node, operands

__all__ = ["logits_refusal", "split_heads"]


def split_heads(var: Var, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> Value | None:
    """The reshape (.., n) -> (.., heads, n/heads): one hidden vector as several, stacked. None for another reshape."""
    from tensorprog.frontend.primitives import cut, stack_steps

    axis = width_axis(var.layout)
    if axis is None or var.det or len(var.layout[axis]) != 1 or len(shapes[0]) != len(var.layout) + 1:
        return None
    size = sum((w for w, _ in var.blocks), Fraction(0))
    heads, parts = shapes[0][axis], (shapes[0][axis + 1], shapes[1][axis + 1])
    if heads != shapes[1][axis] or heads < 2 or any(heads * p != size * w for p, w in zip(parts, WIDTHS, strict=True)):
        return None
    others = [1 if i == axis else s for i, s in enumerate(var.shape)]
    before = list(zip(*(s[:axis] + s[axis + 2 :] for s in shapes), strict=True))
    if before != [(s, s) for i, s in enumerate(others) if i != axis]:
        return None
    pieces = []
    for k in range(heads):
        starts = [(k * parts[0], k * parts[1]) if i == axis else (0, 0) for i in range(len(others))]
        stops = [((k + 1) * parts[0], (k + 1) * parts[1]) if i == axis else (s, s) for i, s in enumerate(others)]
        pieces.append(cut(var, starts, stops, (1,) * len(others)))
    return stack_steps(pieces, axis)


def logits_refusal(var: Var) -> Refusal | None:
    """Where `var` is inner products of hidden vectors divided by sqrt(n): the reason they have no Gaussian limit."""
    if var.power != Fraction(1, 2) or not any(_has_moment(node) for _, node in var.blocks):
        return None
    return Refusal(
        "it is a function of inner products of hidden vectors divided by sqrt(n), as the logits of attention are whose heads grow "
        "with the width: these stay random in the limit (or grow, where the vectors are correlated), so that the output "
        "is not Gaussian and no kernel describes it",
        "divide by n instead (attention_fn=tp.mean_logits_attention for flax.nnx.MultiHeadAttention, "
        "process_heads=tp.mean_logits_heads for equinox.nn.MultiheadAttention), or let the number of heads grow with the width and "
        "keep the dimension of a head fixed",
    )


def _has_moment(node: Node) -> bool:
    """Is it made of a mean over the width, through deterministic steps?"""
    stack, seen = [node], set()
    while stack:
        current = stack.pop()
        if isinstance(current, Moment):
            return True
        if current not in seen:
            seen.add(current)
            stack.extend(x for x in operands(current) if x.type.kind == "scalar")
    return False
