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


def advice(primitive: str) -> tuple[str, str]:
    """Why there is no rule for a primitive, and what to do instead."""
    if primitive in _UNRULED:
        return _UNRULED[primitive], _INSTEAD.get(primitive, _ELSE)
    reason = _WIDTH_MIXERS.get(
        primitive, f"the primitive {primitive!r} is not in the table of rules for hidden vectors"
    )
    return reason, _ELSE
