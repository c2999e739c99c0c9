"""What JAX's primitives compute, in NumPy: the table of `interpreted.py`.

A row takes an equation's parameters and gives a function of arrays, or None for parameters that it does not cover. A primitive without
a row is left to JAX.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["RULES"]

Rule = Callable[[dict[str, Any]], Callable[..., Any] | None]


def _always(function: Callable[..., Any]) -> Rule:
    return lambda params: function


def _reduced(function: Callable[..., Any]) -> Rule:
    return lambda params: lambda x: function(x, axis=tuple(params["axes"]))


def _power(params: dict[str, Any]) -> Callable[..., Any]:
    """By repeated squaring, as JAX has it."""
    n = params["y"]

    def power(x: Any) -> Any:
        total, square, left = None, x, abs(n)
        while left:
            if left & 1:
                total = square if total is None else total * square
            left >>= 1
            square = square * square if left else square
        if total is None:
            return np.ones_like(x)
        return 1 / total if n < 0 else total

    return power


def _select(which: Any, *cases: Any) -> Any:
    if which.dtype == bool:
        return np.where(which, cases[1], cases[0])
    return np.choose(which, cases) if len(cases) < 32 and which.shape in ((), cases[0].shape) else None


def _bits(params: dict[str, Any]) -> Callable[..., Any] | None:
    to = np.dtype(params["new_dtype"])
    return lambda x: np.ascontiguousarray(x).view(to).reshape(x.shape)


def _broadcast(params: dict[str, Any]) -> Callable[..., Any]:
    shape, places = params["shape"], params["broadcast_dimensions"]

    def broadcast(x: Any, *_: Any) -> Any:
        sizes = [1] * len(shape)
        for place, size in zip(places, x.shape, strict=True):
            sizes[place] = size
        return np.broadcast_to(x.reshape(sizes), shape)

    return broadcast


def _pad(params: dict[str, Any]) -> Callable[..., Any] | None:
    config = params["padding_config"]
    if any(low < 0 or high < 0 for low, high, _ in config):
        return None

    def pad(x: Any, value: Any) -> Any:
        gaps = [(inner + 1) * max(n - 1, 0) + min(n, 1) for n, (_, _, inner) in zip(x.shape, config, strict=True)]
        found = np.full([low + n + high for n, (low, high, _) in zip(gaps, config, strict=True)], value, x.dtype)
        found[tuple(slice(low, low + n, inner + 1) for n, (low, _, inner) in zip(gaps, config, strict=True))] = x
        return found

    return pad


def _slice(params: dict[str, Any]) -> Callable[..., Any]:
    steps = params["strides"] or [1] * len(params["start_indices"])
    at = tuple(map(slice, params["start_indices"], params["limit_indices"], steps))
    return lambda x: x[at]


def _places(starts: tuple[Any, ...], sizes: Any, shape: tuple[int, ...]) -> tuple[slice, ...]:
    firsts = [min(max(int(i), 0), n - size) for i, size, n in zip(starts, sizes, shape, strict=True)]
    return tuple(slice(i, i + size) for i, size in zip(firsts, sizes, strict=True))


def _dynamic_slice(params: dict[str, Any]) -> Callable[..., Any]:
    return lambda x, *starts: x[_places(starts, params["slice_sizes"], x.shape)]


def _dynamic_update_slice(x: Any, update: Any, *starts: Any) -> Any:
    found = x.copy()
    found[_places(starts, update.shape, x.shape)] = update
    return found


def _iota(params: dict[str, Any]) -> Callable[..., Any]:
    shape, axis = params["shape"], params["dimension"]
    row = np.arange(shape[axis], dtype=params["dtype"])
    return lambda *_: np.broadcast_to(row.reshape([-1 if k == axis else 1 for k in range(len(shape))]), shape)


def _product(params: dict[str, Any]) -> Callable[..., Any]:
    """A product of matrices for every place of the batch axes."""
    (left, right), (batch1, batch2) = params["dimension_numbers"]
    kind = params.get("preferred_element_type")

    def product(a: Any, b: Any) -> Any:
        free1 = [k for k in range(a.ndim) if k not in (*left, *batch1)]
        free2 = [k for k in range(b.ndim) if k not in (*right, *batch2)]
        shape = [a.shape[k] for k in (*batch1, *free1)] + [b.shape[k] for k in free2]
        batch = [a.shape[k] for k in batch1]
        inner = math.prod(a.shape[k] for k in left)
        rows = math.prod(a.shape[k] for k in free1)
        columns = math.prod(b.shape[k] for k in free2)
        one = a.transpose(*batch1, *free1, *left).reshape(*batch, rows, inner)
        other = b.transpose(*batch2, *right, *free2).reshape(*batch, inner, columns)
        if kind is not None:
            one, other = one.astype(kind, copy=False), other.astype(kind, copy=False)
        return np.matmul(one, other).reshape(shape)

    return product


def _cumulative(function: Callable[..., Any]) -> Rule:
    def rule(params: dict[str, Any]) -> Callable[..., Any]:
        axis = params["axis"]
        if params.get("reverse"):
            return lambda x: np.flip(function(np.flip(x, axis), axis=axis), axis)
        return lambda x: function(x, axis=axis)

    return rule


def _logical_shift(x: Any, by: Any) -> Any:
    if x.dtype.kind == "u":
        return np.where(by < 8 * x.itemsize, np.right_shift(x, by), 0)
    unsigned = np.dtype(f"u{x.itemsize}")
    return _logical_shift(x.view(unsigned), by.view(unsigned)).astype(unsigned).view(x.dtype)


def _converted(params: dict[str, Any]) -> Callable[..., Any] | None:
    to = np.dtype(params["new_dtype"])
    # what a float beyond an integer's range becomes is the machine's own affair
    return (lambda x: x.astype(to)) if to.kind in "fcb" else (lambda x: x.astype(to) if x.dtype.kind in "iub" else None)


def _complex(a: Any, b: Any) -> Any:
    found = np.empty(np.broadcast_shapes(a.shape, b.shape), np.result_type(a, np.complex64))
    found.real, found.imag = a, b  # a + 1j b has no infinite parts
    return found


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "abs": np.abs,
    "max": np.maximum, "min": np.minimum, "pow": np.power, "sign": np.sign, "floor": np.floor, "ceil": np.ceil,
    "exp": np.exp, "exp2": np.exp2, "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "sqrt": np.sqrt, "cbrt": np.cbrt,
    "square": np.square, "sin": np.sin, "cos": np.cos, "tan": np.tan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh,
    "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2,
    "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "is_finite": np.isfinite, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "not": np.invert, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "real": np.real, "imag": np.imag, "conj": np.conj, "complex": _complex,
    "rsqrt": lambda x: 1 / np.sqrt(x), "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "shift_right_logical": _logical_shift, "stop_gradient": lambda x: x, "copy": lambda x: x, "copy_p": lambda x: x,
}  # fmt: skip
RULES: dict[str, Rule] = {
    **{name: _always(function) for name, function in _ELEMENTWISE.items()},
    "dynamic_update_slice": _always(_dynamic_update_slice),
    "select_n": _always(_select),
    "div": _always(lambda a, b: a / b if a.dtype.kind in "fc" else None),
    "rem": _always(lambda a, b: np.fmod(a, b) if a.dtype.kind == "f" else None),
    "integer_pow": _power,
    "convert_element_type": _converted,
    "bitcast_convert_type": _bits,
    "broadcast_in_dim": _broadcast,
    "reshape": lambda params: None if params.get("dimensions") else lambda x, *_: x.reshape(params["new_sizes"]),
    "squeeze": lambda params: lambda x: np.squeeze(x, tuple(params["dimensions"])),
    "transpose": lambda params: lambda x: x.transpose(params["permutation"]),
    "rev": lambda params: lambda x: np.flip(x, tuple(params["dimensions"])),
    "concatenate": lambda params: lambda *xs: np.concatenate(xs, params["dimension"]),
    "stack": lambda params: lambda *xs: np.stack(xs, params["axis"]),
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "iota": _iota,
    "dot_general": _product,
    "reduce_sum": _reduced(np.sum), "reduce_prod": _reduced(np.prod), "reduce_max": _reduced(np.max), "reduce_min": _reduced(np.min),
    "reduce_and": _reduced(np.all), "reduce_or": _reduced(np.any),
    "cumsum": _cumulative(np.cumsum), "cumprod": _cumulative(np.cumprod), "cummax": _cumulative(np.maximum.accumulate),
    "cummin": _cumulative(np.minimum.accumulate),
}  # fmt: skip
