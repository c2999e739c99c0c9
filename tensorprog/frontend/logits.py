"""Attention: why logits with 1/sqrt(n) have no Gaussian limit."""

from __future__ import annotations

from fractions import Fraction

from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import Var
from tensorprog.ir import Moment
from tensorprog.ir.nodes import Node, operands

__all__ = ["has_moment", "logits_refusal"]


def logits_refusal(var: Var) -> Refusal | None:
    """Where `var` is inner products of hidden vectors divided by sqrt(n): the reason they have no Gaussian limit."""
    if var.power != Fraction(1, 2) or not any(has_moment(node) for _, node in var.blocks):
        return None
    return Refusal(
        "it is a function of inner products of hidden vectors divided by sqrt(n), as the logits of attention are whose heads grow "
        "with the width: these stay random in the limit (or grow, where the vectors are correlated), so that the output "
        "is not Gaussian and no kernel describes it",
        "divide by n instead (attention_fn=tp.mean_logits_attention for flax.nnx.MultiHeadAttention, "
        "process_heads=tp.mean_logits_heads for equinox.nn.MultiheadAttention), or let the number of heads grow with the width and "
        "keep the dimension of a head fixed, or take the limit of infinitely many large heads, nn.many_heads",
    )


def has_moment(node: Node) -> bool:
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
