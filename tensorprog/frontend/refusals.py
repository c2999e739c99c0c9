"""Refusals of what stands in a network: the exception that rules raise, and the words for primitives without a rule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tensorprog.errors import UnsupportedError, explain
from tensorprog.frontend.values import WIDTHS, Known, Value
from tensorprog.ir import LinComb, MatMul, Node, PositionMap, Source

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["Refusal", "advice", "check_numbers", "moves_from_zero", "same_place"]


class Refusal(Exception):
    """A rule cannot take an equation; the interpreter adds where and which, and raises `UnsupportedError`."""

    def __init__(self, reason: str, mend: str = "write this part of the network with operations the theorem covers"):
        super().__init__(reason)
        self.reason, self.mend = reason, mend

    def at(self, primitive: str, source: Source | None) -> UnsupportedError:
        where = str(source) if source else None
        return UnsupportedError(
            explain(
                f"the network's {primitive!r} has no infinite-width rule here",
                where=where,
                reason=self.reason,
                mend=self.mend,
            )
        )


def check_numbers(eqn: Equation, values: Sequence[Value]) -> None:
    """Refuse an equation whose numbers, as the length of a loop, an exponent or a place, are others at another width. Groups of channels
    may grow."""
    first, second = eqn.params
    for key, number in first.items():
        alike = not isinstance(number, (int, float)) or np.array_equal(number, second[key], equal_nan=True)
        if not alike and key != "feature_group_count":
            what = {"length": "the length of a loop", "y": "an exponent"}.get(key, f"the number {key!r} of it")
            raise Refusal(f"{what} {_by_width(number, second[key])}", _ALIKE).at(eqn.primitive, eqn.source)
    moves = eqn.primitive == "gather" or eqn.primitive.startswith("scatter")
    here, there = values[1].values if moves and isinstance(values[1], Known) else (np.zeros(0), np.zeros(0))
    differ = here.shape == there.shape and not np.array_equal(here, there)
    if differ or first.get("padding_config") != second.get("padding_config"):
        raise Refusal("the positions that it moves depend on the width", _ALIKE).at(eqn.primitive, eqn.source)


def same_place(pair: tuple[int, int]) -> int:
    """A position that is one at both widths."""
    if pair[0] != pair[1]:
        raise Refusal(f"a position that it takes {_by_width(*pair)}", _ALIKE)
    return pair[0]


def _by_width(first: float, second: float) -> str:
    return f"depends on the width: {first} at width {WIDTHS[0]} and {second} at width {WIDTHS[1]}"


_ALIKE = "let only the sizes of layers depend on the width"
_WIDTH_MIXERS = {
    "fft": "a Fourier transform along the width mixes coordinates with fixed coefficients",
}


_BITS = "it works on the bits of its argument, for which there is no rule"
_NO_SLOPE = "JAX has no derivative of it, which the tangent kernel needs"
_UNRULED = {
    **dict.fromkeys(("clz", "population_count", "shift_left", "shift_right_arithmetic", "shift_right_logical", "mulhi"), _BITS),
    **dict.fromkeys(("bitcast_convert_type", "nextafter", "reduce_precision"), _BITS),
    **dict.fromkeys(("zeta", "igamma_grad_a", "random_gamma_grad"), _NO_SLOPE),
}  # fmt: skip
_ARITHMETIC = "write it with arithmetic of real numbers, as jnp.round(h / 0.25) * 0.25 for fewer digits"
_INSTEAD = {name: _ARITHMETIC for name, reason in _UNRULED.items() if reason == _BITS}
_ELSE = "use elementwise functions, products with weights, means over the width and linear maps of positions"


def advice(primitive: str, of_complex: bool = False) -> tuple[str, str]:
    """Why there is no rule for a primitive, and what to do instead. of_complex: with complex numbers of hidden values."""
    if of_complex:
        return (
            f"the primitive {primitive!r} has no rule for complex numbers of hidden values",
            "write it with sums, products and real and imaginary parts; of the input alone any complex function may be taken",
        )
    if primitive in _UNRULED:
        return _UNRULED[primitive], _INSTEAD.get(primitive, _ELSE)
    reason = _WIDTH_MIXERS.get(
        primitive, f"the primitive {primitive!r} is not in the table of rules for hidden vectors"
    )
    return reason, _ELSE


def moves_from_zero(nodes: Iterable[Node]) -> tuple[str, str] | None:
    """The reason and the mend where a weight that starts at zero made one of these, which grow with the width, through sums and maps of
    positions: it is how the weight moves that grows then."""
    left = list(nodes)
    while left:
        node = left.pop()
        if isinstance(node, MatMul) and node.root.std == 0:
            name = node.root.name
            return (
                f"the weight {name!r} starts at zero and moves by numbers of order one, of which a sum over the width makes a part of the "
                "tangent kernel that grows like n",
                f"let it move by 1/sqrt(n): {name!r} as tp.Constant(value=0.0, tangent_std=width**-0.5), of a model by "
                f"init={{{name!r}: lambda width: tp.Constant(value=0.0, tangent_std=width**-0.5)}}",
            )
        if isinstance(node, LinComb):
            left += [x for _, x in node.terms]
        elif isinstance(node, PositionMap):
            left.append(node.args[0])
    return None
