"""abc-parametrisations: how powers of the width enter multipliers, initial variances and learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Rational
from typing import Any

from tensorprog.errors import InputError
from tensorprog.ir import MatMul, Node, Weight
from tensorprog.passes.powers import NEVER, Power, Scales, over_width

__all__ = ["PARAMETRIZATIONS", "Parametrization", "parametrization_of"]

Pair = tuple[Any, Any]
HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Parametrization:
    """Powers of the width n: weights n^-a w, w of variance n^-2b, trained at the rate n^-c.

    input, hidden, output: (a, b) of weights that the network sums over a fixed number of entries with (and of biases, gains and
    all vectors), over a width to a wide layer, and over a width to an output. c: that of the common rate. given: (a, b) of
    parameters by name. Biases of an output start and move at the size one. Numbers are whole or fractions, such as 0.5 or "1/2".

    Example:
        >>> import tensorprog as tp
        >>> tp.Parametrization(input=(0, 0), hidden=("1/2", 0), output=("1/2", 0))       # that of neural tangent kernels
        Parametrization(input=(0, 0), hidden=(1/2, 0), output=(1/2, 0), c=0)
    """

    input: Pair
    hidden: Pair
    output: Pair
    c: Any = Fraction(0)
    given: Mapping[str, Pair] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in ("input", "hidden", "output"):
            object.__setattr__(self, role, _pair(getattr(self, role), role))
        object.__setattr__(self, "c", _fraction(self.c, "c"))
        object.__setattr__(self, "given", {name: _pair(pair, f"given[{name!r}]") for name, pair in self.given.items()})

    def pair(self, node: Node, weight: Weight) -> tuple[Fraction, Fraction]:
        """(a, b) of a weight where an instruction uses it."""
        return self.given.get(weight.name) or self._by_role(node, weight)

    def scales(self, node: Node, weight: Weight) -> Scales:
        """How a weight scales where an instruction uses it."""
        a, b = self.pair(node, weight)
        start: Power = -(a + b) if weight.std else NEVER
        return Scales(Fraction(0) if weight.per_input else start, -(2 * a + self.c) if weight.tangent_std else NEVER)

    def _by_role(self, node: Node, weight: Weight) -> tuple[Fraction, Fraction]:
        if weight.type.kind == "vector" and weight.type.width is None:
            return -self.c / 2, self.c / 2
        if not isinstance(node, MatMul):
            return self.input
        return self.input if not over_width(node) else self.output if node.type.width is None else self.hidden

    def __repr__(self) -> str:
        pairs = [f"{role}=({', '.join(map(str, getattr(self, role)))})" for role in ("input", "hidden", "output")]
        extra = [f"given={dict(self.given)}"] if self.given else []
        return f"Parametrization({', '.join([*pairs, f'c={self.c}', *extra])})"


def _fraction(value: Any, what: str) -> Fraction:
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str, Rational)):
            raise ValueError
        made = Fraction(value)
    except (ValueError, OverflowError, ZeroDivisionError):
        made = Fraction(1, 997)
    if made.denominator > 60:
        raise InputError(
            f"Parametrization: {what} is {value!r}, expected a fraction such as 0, 0.5 or '1/2', of denominator 60 at most"
        )
    return made


def _pair(value: Any, what: str) -> tuple[Fraction, Fraction]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise InputError(f"Parametrization: {what} is {value!r}, expected a pair (a, b)")
    return _fraction(value[0], f"a of {what}"), _fraction(value[1], f"b of {what}")


# Tensor Programs IV, table 1. The mean-field one is muP for one hidden layer, and vanishes for more.
PARAMETRIZATIONS = {
    "standard": Parametrization((0, 0), (0, HALF), (0, HALF)),
    "ntk": Parametrization((0, 0), (HALF, 0), (HALF, 0)),
    "mup": Parametrization((-HALF, HALF), (0, HALF), (HALF, HALF)),
    "mean_field": Parametrization((0, 0), (1, 0), (1, 0), -1),
}


def parametrization_of(given: Any) -> Parametrization:
    """A parametrisation, by its name or as it is."""
    if isinstance(given, Parametrization):
        return given
    if isinstance(given, str) and given in PARAMETRIZATIONS:
        return PARAMETRIZATIONS[given]
    names = ", ".join(map(repr, PARAMETRIZATIONS))
    raise InputError(f"scaling: parametrization is {given!r}, expected {names} or a tp.Parametrization")
