"""Finite networks in plain JAX: every layer written out, every parameter a standard Gaussian.

A network of the tests is a function ``net(nn, x, features)`` of a namespace of layers, so
that the same lines run through ``tensorprog.nn`` and through :class:`Layers` below.  What
is written here is the definition the references are tested against; it uses no
``tensorprog``.  All parameters are standard Gaussian with their scales outside (the NTK
parametrisation), so the NTK is the plain inner product of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Net = Callable[..., Any]


class Layers:
    """Layers at one width; ``take(shape, initial)`` hands out the next parameter.

    ``initial`` is "normal", or a number for a parameter that starts as a constant.
    """

    def __init__(self, width: int, take: Callable[[tuple[int, ...], str | float], jax.Array]):
        self._width = width
        self._take = take

    def width(self, relative: float = 1.0) -> int:
        return round(self._width * relative)

    def weight(self, shape: Sequence[int], *, std: float = 1.0) -> jax.Array:
        return std * self._take(tuple(shape), "normal")

    bias = weight

    def dense(
        self,
        x: jax.Array,
        features: int | None = None,
        *,
        width: float = 1.0,
        weight_var: float = 1.0,
        bias_var: float = 0.0,
    ) -> jax.Array:
        out, fan_in = features or self.width(width), x.shape[-1]
        h = float(np.sqrt(weight_var / fan_in)) * (x @ self.weight((fan_in, out)))
        return h + float(np.sqrt(bias_var)) * self.bias((out,)) if bias_var else h

    def conv(
        self,
        x: jax.Array,
        window: Sequence[int],
        *,
        strides: Sequence[int] | None = None,
        padding: str | Sequence[tuple[int, int]] = "SAME",
        dilation: Sequence[int] | None = None,
        features: int | None = None,
        width: float = 1.0,
        weight_var: float = 1.0,
        bias_var: float = 0.0,
    ) -> jax.Array:
        d = len(window)
        strides, dilation = strides or (1,) * d, dilation or (1,) * d
        channels, out = x.shape[-1], features or self.width(width)
        if padding == "CIRCULAR":
            x, padding = wrap(x, window, strides, dilation), "VALID"
        w = self.weight((*window, channels, out))
        spatial = "DHW"[-d:]
        h = jax.lax.conv_general_dilated(
            x[None],
            w,
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=("N" + spatial + "C", spatial + "IO", "N" + spatial + "C"),
        )[0]
        h = float(np.sqrt(weight_var / (channels * int(np.prod(window))))) * h
        return h + float(np.sqrt(bias_var)) * self.bias((out,)) if bias_var else h

    def avg_pool(
        self, x: jax.Array, window: Sequence[int], *, strides: Sequence[int], padding: str = "VALID"
    ) -> jax.Array:
        if padding == "CIRCULAR":
            x, padding = wrap(x, window, strides, (1,) * len(window)), "VALID"
        if padding != "VALID":
            raise NotImplementedError(padding)
        total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (*window, 1), (*strides, 1), padding)
        return total / int(np.prod(window))

    def global_avg_pool(self, x: jax.Array) -> jax.Array:
        return x.mean(tuple(range(x.ndim - 1)))

    def flatten(self, x: jax.Array) -> jax.Array:
        return x.reshape(-1)

    def layer_norm(
        self,
        x: jax.Array,
        epsilon: float,
        *,
        gain: bool = False,
        shift: bool = False,
        axes: Sequence[int] = (-1,),
    ) -> jax.Array:
        axes = tuple(axes)
        y = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + epsilon)
        if gain:
            y = y * self._take((x.shape[-1],), 1.0)
        return y + self._take((x.shape[-1],), 0.0) if shift else y


def wrap(x: jax.Array, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> jax.Array:
    """Periodic padding by the amounts of SAME."""
    pads = []
    for n, w, s, d in zip(x.shape, window, strides, dilation, strict=False):
        total = max((-(-n // s) - 1) * s + (w - 1) * d + 1 - n, 0)
        pads.append((total // 2, total - total // 2))
    return jnp.pad(x, [*pads, (0, 0)], mode="wrap")


def init(net: Net, example: jax.Array, width: int, key: jax.Array) -> list[jax.Array]:
    """The parameters of ``net(nn, x)`` at this width, in the order of their use."""
    shapes: list[tuple[tuple[int, ...], str | float]] = []

    def record(shape: tuple[int, ...], initial: str | float) -> jax.Array:
        shapes.append((shape, initial))
        return jnp.zeros(shape, example.dtype)

    jax.eval_shape(lambda x: net(Layers(width, record), x), example)
    keys = jax.random.split(key, len(shapes))
    return [
        jax.random.normal(k, shape, example.dtype) if initial == "normal" else jnp.full(shape, initial, example.dtype)
        for k, (shape, initial) in zip(keys, shapes, strict=True)
    ]


def apply(net: Net, params: list[jax.Array], x: jax.Array, width: int) -> jax.Array:
    """``net(nn, x)`` with these parameters."""
    left = iter(params)
    return net(Layers(width, lambda shape, initial: next(left)), x)
