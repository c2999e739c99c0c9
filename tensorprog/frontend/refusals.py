"""Refusals of what stands in a network: the exception that rules raise, and the words for primitives without a rule."""

from __future__ import annotations

from tensorprog.errors import UnsupportedError, explain
from tensorprog.ir import Source

__all__ = ["Refusal", "advice"]


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


_WIDTH_MIXERS = {
    "sort": "sorting mixes the coordinates of a hidden vector, which the theorem treats one by one",
    "argmax": "an argmax over hidden coordinates is not a function of each coordinate",
    "argmin": "an argmin over hidden coordinates is not a function of each coordinate",
    "top_k": "a top-k over hidden coordinates is not a function of each coordinate",
    "fft": "a Fourier transform along the width mixes coordinates with fixed coefficients",
}


_ROUNDED = (
    "it jumps at every whole number, and no rule integrates over infinitely many jumps to the error that is promised"
)
_UNRULED = {
    "floor": _ROUNDED, "ceil": _ROUNDED, "round": _ROUNDED, "rem": _ROUNDED,
    "atan2": "an angle jumps along a half line of its plane, and no rule integrates a function of two variables with a cut",
}  # fmt: skip
_INSTEAD = {
    "atan2": "use jnp.arctan(a / b) where b has one sign, or a function of one hidden vector",
}
_STEPS = "write the jumps that count as a sum of steps, sum((h > k) for k in range(-3, 4)), or use one step, jnp.sign or h > 0"


def advice(primitive: str) -> tuple[str, str]:
    """Why there is no rule for a primitive, and what to do instead."""
    if primitive in _UNRULED:
        return _UNRULED[primitive], _INSTEAD.get(primitive, _STEPS)
    reason = _WIDTH_MIXERS.get(
        primitive, f"the primitive {primitive!r} is not in the table of rules for hidden vectors"
    )
    mend = "use elementwise functions, products with weights, means over the width and linear maps of positions"
    return reason, mend
