"""Complex numbers made of hidden values, as pairs of real ones.

A Fourier transform over positions is a product with a matrix of cosines and one of sines; its real and imaginary parts are linear maps of
positions like any other. Every primitive that reads or makes complex hidden values is written in real ones, by one row of `PAIRS` each, and
walked through in its place. Along the width nothing is transformed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jex

from tensorprog.frontend.refusals import Refusal, advice
from tensorprog.frontend.values import Complex, Known, Param, Value, Var, aval, kind_of, width_axis

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["PAIRS", "Written", "in_pairs"]

Pair = tuple[jax.Array, jax.Array]
Code = Callable[..., Any]


@dataclass(frozen=True)
class Written:
    """The code at both widths that stands for an equation, its operands, and which of its results are pairs."""

    jaxprs: tuple[jex.ClosedJaxpr, jex.ClosedJaxpr]
    values: list[Value]
    pairs: tuple[bool, ...]

    def joined(self, results: Sequence[Value]) -> list[Value]:
        """The equation's results, of those of the code."""
        rest = iter(results)
        return [Complex(next(rest), next(rest)) if pair else next(rest) for pair in self.pairs]


def in_pairs(eqn: Equation, values: Sequence[Value]) -> Written | None:
    """An equation with complex numbers of hidden values, in real ones; None for any other."""
    makes = any(kind_of(v) == "c" for v in eqn.eqns[0].outvars)
    hidden = any(isinstance(v, Param) or (isinstance(v, Var) and v.random) for v in values)
    if not any(isinstance(v, Complex) for v in values) and not (makes and hidden):
        return None
    row = PAIRS.get(eqn.primitive)
    if row is None:
        raise Refusal(*advice(eqn.primitive, of_complex=True))
    if eqn.primitive == "fft":
        _check_width(eqn, values[0])
    values = [_real(v) for v in values]
    made = []
    for one in eqn.eqns:
        structs = [_struct(v, value) for v, value in zip(one.invars, values, strict=True)]
        code = _flat(row, [isinstance(v, Complex) for v in values], one)
        made.append(jax.make_jaxpr(code)(*[s for some in structs for s in some]))
    flat = [part for v in values for part in ((v.real, v.imag) if isinstance(v, Complex) else (v,))]
    return Written((made[0], made[1]), flat, tuple(kind_of(v) == "c" for v in eqn.eqns[0].outvars))


def _real(value: Value) -> Value:
    """Known complex numbers without an imaginary part as real ones: these may scale with a power of the width, as zeros do not."""
    if isinstance(value, Known) and value.values[0].dtype.kind == "c" and not any(np.any(v.imag) for v in value.values):
        return Known((value.values[0].real, value.values[1].real))
    return value


def _struct(atom: Any, value: Value) -> list[jax.ShapeDtypeStruct]:
    shape, dtype = aval(atom).shape, aval(atom).dtype
    if isinstance(value, Known) and dtype.kind == "c":
        dtype = value.values[0].dtype
    if isinstance(value, Complex):
        return [jax.ShapeDtypeStruct(shape, np.finfo(dtype).dtype)] * 2
    return [jax.ShapeDtypeStruct(shape, dtype)]


def _flat(row: Code, pairs: Sequence[bool], eqn: jex.JaxprEqn) -> Code:
    """The row as code of real arrays and of complex ones that are not hidden."""

    def code(*args: jax.Array) -> list[jax.Array]:
        rest = iter(args)
        operands: list[Any] = []
        for pair in pairs:
            x = next(rest)
            if pair:
                operands.append((x, next(rest)))
            else:
                operands.append((lax.real(x), lax.imag(x)) if x.dtype.kind == "c" else x)
        made = row(eqn, *operands)
        return list(made) if isinstance(made, tuple) else [made]

    return code


def _check_width(eqn: Equation, value: Value) -> None:
    x = value.real if isinstance(value, Complex) else value
    layout = getattr(x, "layout", ())
    axis = None if isinstance(x, Known) else width_axis(layout)
    if axis is not None and axis >= len(layout) - len(eqn.params[0]["fft_lengths"]):
        raise Refusal(*advice("fft"))


# ------------------------------------------------------------------------------------------ rows


def _each(eqn: jex.JaxprEqn, *operands: Any) -> Pair:
    """What moves or adds entries does so with both parts, of which a real number's second is zero."""
    wanted = [kind_of(v) == "c" for v in eqn.invars]
    pairs = [
        (x, jnp.zeros_like(x)) if c and not isinstance(x, tuple) else x for x, c in zip(operands, wanted, strict=True)
    ]
    one = lambda k: eqn.primitive.bind(*(x[k] if isinstance(x, tuple) else x for x in pairs), **eqn.params)
    return one(0), one(1)


def _times(a: Any, b: Any, product: Code = jnp.multiply) -> Pair:
    """A product, of which one factor may be real."""
    if not isinstance(a, tuple):
        return product(a, b[0]), product(a, b[1])
    if not isinstance(b, tuple):
        return product(a[0], b), product(a[1], b)
    return product(a[0], b[0]) - product(a[1], b[1]), product(a[0], b[1]) + product(a[1], b[0])


def _divided(eqn: jex.JaxprEqn, a: Any, b: Any) -> Pair:
    if not isinstance(b, tuple):
        return a[0] / b, a[1] / b
    size = b[0] ** 2 + b[1] ** 2
    above = _times(a, (b[0], -b[1]))
    return above[0] / size, above[1] / size


def _dot(eqn: jex.JaxprEqn, a: Any, b: Any) -> Pair:
    params = {**eqn.params, "preferred_element_type": None}
    return _times(a, b, lambda x, y: eqn.primitive.bind(x, y, **params))


def _power(eqn: jex.JaxprEqn, a: Pair) -> Pair:
    if eqn.params["y"] < 1:
        raise Refusal("it takes a negative power of complex hidden values", "divide by the square of the modulus")
    made = a
    for _ in range(eqn.params["y"] - 1):
        made = _times(made, a)
    return made


def _converted(eqn: jex.JaxprEqn, x: Any) -> Any:
    if isinstance(x, tuple):  # JAX takes the real part where the result is real
        return x if np.dtype(eqn.params["new_dtype"]).kind == "c" else x[0]
    real = x.astype(np.finfo(eqn.params["new_dtype"]).dtype)
    return real, jnp.zeros_like(real)


def _fourier(eqn: jex.JaxprEqn, x: Any) -> Any:
    """lax.fft over the last axes, one after the other."""
    kind, lengths = eqn.params["fft_type"].name, eqn.params["fft_lengths"]
    pair = x if isinstance(x, tuple) else (x, None)
    rank = pair[0].ndim
    axes = list(zip(range(rank - len(lengths), rank), lengths, strict=True))
    if kind == "IRFFT":
        for axis, n in axes[:-1]:
            pair = _transformed(pair, axis, *_waves(n, n, 1.0, 1 / n))
        return _back(pair, *axes[-1])
    sign, scale = (1.0, True) if kind == "IFFT" else (-1.0, False)
    for axis, n in reversed(axes):
        kept = n // 2 + 1 if kind == "RFFT" and axis == rank - 1 else n
        pair = _transformed(pair, axis, *_waves(n, kept, sign, 1 / n if scale else 1.0))
    return pair


def _waves(n: int, kept: int, sign: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and signed sines of 2 pi j k / n, (n, kept)."""
    angle = 2 * np.pi / n * (np.outer(np.arange(n), np.arange(kept)) % n)
    return scale * np.cos(angle), scale * sign * np.sin(angle)


def _along(x: jax.Array, axis: int, matrix: np.ndarray) -> jax.Array:
    return jnp.moveaxis(jnp.tensordot(x, jnp.asarray(matrix, x.dtype), ((axis,), (0,))), -1, axis)


def _transformed(pair: tuple[jax.Array, jax.Array | None], axis: int, wave: np.ndarray, turned: np.ndarray) -> Pair:
    re, im = pair
    if im is None:
        return _along(re, axis, wave), _along(re, axis, turned)
    return _along(re, axis, wave) - _along(im, axis, turned), _along(re, axis, turned) + _along(im, axis, wave)


def _back(pair: tuple[jax.Array, jax.Array], axis: int, n: int) -> jax.Array:
    """The real signal of length n of which these are the first frequencies."""
    wave, turned = _waves(n, n // 2 + 1, 1.0, 1 / n)
    count = np.full(n // 2 + 1, 2.0)  # each stands for its negative too, but for zero and the highest of an even number
    count[0] = 1.0
    if n % 2 == 0:
        count[-1] = 1.0
    return _along(pair[0], axis, (count * wave).T) - _along(pair[1], axis, (count * turned).T)


PAIRS: dict[str, Code] = {
    **dict.fromkeys(
        (
            "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "slice", "dynamic_slice", "gather", "pad", "rev",
            "concatenate", "copy", "copy_p", "neg", "add", "add_any", "sub", "reduce_sum", "cumsum", "select_n", "stop_gradient",
        ),
        _each,
    ),
    "mul": lambda eqn, a, b: _times(a, b),
    "div": _divided,
    "dot_general": _dot,
    "square": lambda eqn, a: _times(a, a),
    "integer_pow": _power,
    "conj": lambda eqn, a: (a[0], -a[1]) if isinstance(a, tuple) else (a, jnp.zeros_like(a)),
    "real": lambda eqn, a: a[0],
    "imag": lambda eqn, a: a[1],
    "complex": lambda eqn, a, b: (a, b),
    "abs": lambda eqn, a: jnp.sqrt(a[0] ** 2 + a[1] ** 2),
    "exp": lambda eqn, a: (jnp.exp(a[0]) * jnp.cos(a[1]), jnp.exp(a[0]) * jnp.sin(a[1])),
    "convert_element_type": _converted,
    "fft": _fourier,
}  # fmt: skip
