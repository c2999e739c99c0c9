"""Outputs of every kind: Gaussian readouts, hidden layers, averages over the width.

A readout sums over the width with independent weights, divided by sqrt(n): it is Gaussian in the limit. A hidden layer is
a vector of exchangeable neurons, described by the law of one of them. An average over the width, (1/n) sum_a phi(h_a),
converges to its expectation (the master theorem itself: Yang, Tensor Programs III, theorem 2.10); a readout divided by n, as in
mean-field networks (Mei, Montanari and Nguyen 2018), is the average of weight times hidden coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from tensorprog.errors import NetworkError, UnsupportedError, explain
from tensorprog.frontend.build import to_var
from tensorprog.frontend.divided import averaged
from tensorprog.frontend.logits import has_moment, logits_refusal
from tensorprog.frontend.mirrored import mirrored_axes
from tensorprog.frontend.values import Value, Var, width_axis
from tensorprog.ir import Node

__all__ = ["Output", "average_of", "output_of"]


@dataclass(frozen=True)
class Output:
    """One array that a network returns.

    label: its place in what the network returns. kind: "gaussian", "hidden" or "average". mirrored: axes along which a Gaussian
    output holds independent copies. width: of a hidden layer, relative to n.
    """

    label: str
    kind: str
    node: Node
    mirrored: tuple[int, ...] = ()
    width: Fraction | None = None


def output_of(value: Value, label: str) -> Output:
    """What kind of output a value is.

    Raises NetworkError where it has no finite limit, or is no function of a wide layer.
    """
    out = to_var(value)
    if len(out.blocks) > 1:
        raise _refused(
            label, out, "is layers of different weights beside each other", "its neurons are not exchangeable",
            "return the parts one by one",
        )  # fmt: skip
    if out.random and width_axis(out.layout) is not None:
        _check_power(label, out)
        return Output(label, "hidden", out.node, (), out.node.type.width)
    if out.random:
        if out.power == Fraction(-1, 2):
            return Output(label, "average", _averaged(label, out))
        _check_power(label, out)
        return Output(label, "gaussian", out.node, mirrored_axes(out.node))
    if not has_moment(out.node):
        raise _refused(
            label, out, "is the input or a constant", "no parameter has a part in it", "return what depends on the parameters"
        )  # fmt: skip
    _check_power(label, out)
    return Output(label, "average", out.node)


def average_of(value: Value, *, divided: bool = True) -> Node | None:
    """The variable of an average over the width, with `divided` a readout divided by n among them; None for other values."""
    out = to_var(value)
    if len(out.blocks) > 1 or width_axis(out.layout) is not None:
        return None
    if out.random:
        divided = divided and out.power == Fraction(-1, 2) and out.node.type.width is None
        return _averaged("output", out) if divided else None
    return out.node if not out.power and has_moment(out.node) and logits_refusal(out) is None else None


def _check_power(label: str, out: Var) -> None:
    if out.power:
        grows = "grows" if out.power > 0 else "vanishes"
        raise _refused(
            label, out, f"{grows} with the width n like n^{out.power}", "it has no finite, nonzero limit",
            "divide a sum over the width by sqrt(n) where its terms are independent and have mean zero, by n otherwise",
        )  # fmt: skip


def _refused(label: str, out: Var, what: str, reason: str, mend: str) -> NetworkError:
    source = out.blocks[0][1].source
    return NetworkError(
        explain(f"the output {label!r} {what}", where=str(source) if source else None, reason=reason, mend=mend)
    )


def _averaged(label: str, out: Var) -> Node:
    """A readout over sqrt(n), as the average over the width of weight times hidden coordinate."""
    made = averaged(out)
    if made is None:
        raise UnsupportedError(
            explain(
                f"the output {label!r} vanishes with the width n like n^-1/2", where=str(out.node.source or ""),
                reason="it is not a sum over the width with one vector of weights, which divided by n would be an average",
                mend="divide by sqrt(n), or return the average of weights times hidden coordinates",
            )
        )  # fmt: skip
    return made.node
