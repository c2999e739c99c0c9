"""Small networks that between them use every rule of the front end, for the tests of every stage.

POSITIONS: maps of a hidden array of shape (4, n). ELEMENTS: functions of two hidden vectors of shape (n,).
NETWORKS: whole networks by name, each with the shape of its input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import tensorprog as tp
from tensorprog import nn

Net = Callable[[Any], Any]
MATRIX = np.random.default_rng(0).standard_normal((4, 4))


def readout(h: jax.Array) -> jax.Array:
    return nn.dense(h.reshape(-1), features=1)


def grouped(h: jax.Array, groups: int, fan_in: int) -> jax.Array:
    """A convolution of window 3 in groups of channels."""
    w = nn.weight((3, fan_in, h.shape[-1])) / np.sqrt(3 * fan_in)
    numbers = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(h[None], w, (1,), "SAME", dimension_numbers=numbers, feature_group_count=groups)[0]


# Linear in h, positions first and the width last: with h the identity they give their own matrix.
POSITIONS: dict[str, Net] = {
    "transpose": lambda h: jnp.swapaxes(jnp.swapaxes(h[None], 0, 1), 0, 1)[0],
    "reshape": lambda h: h.reshape(2, 2, -1),
    "squeeze": lambda h: jnp.squeeze(lax.expand_dims(h, (0,)), 0),
    "expand": lambda h: h[:, None],
    "broadcast": lambda h: h + h[:1],
    "slice": lambda h: h[1:3],
    "stride": lambda h: h[::2],
    "reverse": lambda h: h[::-1],
    "copy": lambda h: jnp.copy(h) + jnp.array(h, copy=True),
    "all digits": lambda h: lax.reduce_precision(h, 11, 52),
    "gather": lambda h: h[jnp.array([0, 0, 3])],
    "take": lambda h: jnp.take(h, jnp.array([[0, 1], [3, 2]]), axis=0),
    "pad": lambda h: jnp.pad(h, ((1, 2), (0, 0))),
    "pad-inside": lambda h: lax.pad(h, 0.0, ((1, 0, 2), (0, 0, 0))),
    "concatenate": lambda h: jnp.concatenate([h, 2 * h[:2]]),
    "stack": lambda h: jnp.stack([h, h[::-1]], 1),
    "tile": lambda h: jnp.tile(h, (2, 1)) + jnp.concatenate([h[::-1], h]),
    "split": lambda h: jnp.concatenate(jnp.split(h, 2)[::-1]),
    "sum": lambda h: h.sum(0, keepdims=True),
    "mean": lambda h: h.mean(0, keepdims=True),
    "cumsum": lambda h: jnp.cumsum(h, 0) + lax.cumsum(h, 0, reverse=True),
    "matrix": lambda h: MATRIX @ h,
    "matrix-right": lambda h: (h.T @ MATRIX).T,
    "window-sum": lambda h: lax.reduce_window(h, 0.0, lax.add, (2, 1), (1, 1), "SAME"),
    "roll": lambda h: jnp.roll(h, 1, 0),
    "dynamic-slice": lambda h: lax.dynamic_slice(h, (1, 0), (2, h.shape[1])),
    "mask": lambda h: jnp.where(np.array([[True], [False], [True], [True]]), h, 0.0),
    "weights": lambda h: h * np.linspace(-1, 1, 4)[:, None] / 3,
    "at-add": lambda h: h.at[1:3].add(h[:2]).at[0].subtract(h[3]),
    "at-set": lambda h: h.at[1].set(h[0]),
    "at-multiply": lambda h: h.at[jnp.array([0, 3])].multiply(2.0),
    "update-slice": lambda h: lax.dynamic_update_slice(h, h[:2], (1, 0)),
    "segment-sum": lambda h: jax.ops.segment_sum(h, jnp.array([0, 1, 0, 2]), 4),
    "average": lambda h: nn.avg_pool(h, 2, strides=1, padding="SAME", normalize_edges=True),
}

# Not linear: of several positions at once.
SEVERAL: dict[str, Net] = {
    "max": lambda h: h.max(0),
    "min": lambda h: h[:2].min(0),
    "window-max": lambda h: lax.reduce_window(h, -jnp.inf, lax.max, (2, 1), (2, 1), "VALID"),
    "window-max-padded": lambda h: lax.reduce_window(h, -jnp.inf, lax.max, (3, 1), (2, 1), [(1, 1), (0, 0)]),
    "window-min": lambda h: lax.reduce_window(h, jnp.inf, lax.min, (2, 1), (2, 1), "VALID"),
    "segment-max": lambda h: jax.ops.segment_max(h, jnp.array([1, 0, 1, 2]), 3),
    "segment-min": lambda h: jax.ops.segment_min(h, jnp.array([1, 0, 1, 2]), 3),
    "softmax": lambda h: jax.nn.softmax(h, 0),
    "log-sum-exp": lambda h: jax.nn.logsumexp(h, 0, keepdims=True),
    "conv-grouped": lambda h: grouped(h, 2, h.shape[-1] // 2),
    "conv-depthwise": lambda h: grouped(h, h.shape[-1], 1),
    "product": lambda h: h[0] * h[1],
    "running product": lambda h: jnp.cumprod(h, 0),
    "running maximum": lambda h: lax.cummax(h, 0) + lax.cummin(h, 0, reverse=True),
    "running logsumexp": lambda h: lax.cumlogsumexp(h, 0),
    "running count": lambda h: jnp.cumsum(jnp.floor(h).astype(int), 0) * h,
    "product of all": lambda h: jnp.prod(h, 0),
    "all and any": lambda h: (
        h[0] * jnp.all(h > 0, 0) + h[1] * jnp.any(h > 0, 0) + h[2] * lax.reduce_xor(h > 0, axes=(0,))
    ),
    "sorted": lambda h: jnp.sort(h[:3], 0),
    "order": lambda h: h[:3] * jnp.argsort(h[:3], 0),
    "largest": lambda h: lax.top_k(h[1:].T, 2)[0].T,
    "places": lambda h: jnp.argmax(h, 0) * h + jnp.argmin(h, 0) * h,
    "at hidden places": lambda h: jnp.take_along_axis(h, jnp.argmax(jnp.tanh(h), 0)[None], 0),
    "pad-value": lambda h: jnp.pad(h, ((1, 2), (0, 0)), constant_values=1.5),
    "select": lambda h: jnp.where(np.array([[True], [False], [True], [True]]), h, 2 * jnp.tanh(h)),
    "layer-norm": nn.layer_norm,
    "layer-norm-positions": lambda h: nn.layer_norm(h, axes=(0, 1)),
    "gain-and-shift": lambda h: nn.layer_norm(h, gain=True, shift=True),
    "root-mean-square": lambda h: h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 1e-3),
    "overlaps": lambda h: (h @ h.T / h.shape[-1]) @ h,
    "attention": lambda h: jax.nn.softmax(nn.dense(h) @ nn.dense(h).T / h.shape[-1], -1) @ h,
    "gated": lambda h: (lambda a, b: a * jax.nn.sigmoid(b))(*jnp.split(nn.dense(h, width=2.0), 2, -1)),
    "widths": lambda h: jnp.concatenate([h, nn.dense(h, width=0.5)], -1),
    "conv": lambda h: nn.conv(h, 3, bias_var=0.3),
    "conv-circular": lambda h: nn.conv(h, 3, padding="CIRCULAR", strides=2),
    "conv-dilated": lambda h: nn.conv(h, 2, dilation=2, padding="VALID"),
    "conv-padded": lambda h: nn.conv(h, 3, padding=[(2, 1)], strides=2),
}

ELEMENTS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda h, g: jnp.tanh(h + 1.0) + g,
    "sub": lambda h, g: jnp.tanh(1.0 - h) - g,
    "mul": lambda h, g: h * g,
    "div": lambda h, g: h / (1 + g**2),
    "div by a number": lambda h, g: h / 3 + jnp.tanh(g) / np.sqrt(2),
    "neg": lambda h, g: -jnp.exp(-h),
    "square": lambda h, g: jnp.square(h),
    "integer_pow": lambda h, g: h**3,
    "polynomial": lambda h, g: jnp.polyval(jnp.array([0.2, -1.0, 0.3, 0.5]), h),
    "pow": lambda h, g: lax.pow(1 + h**2, 0.3),
    "sqrt": lambda h, g: jnp.sqrt(1 + h**2),
    "rsqrt": lambda h, g: lax.rsqrt(1 + h**2),
    "cbrt": lambda h, g: jnp.cbrt(h),
    "abs": lambda h, g: jnp.abs(h),
    "sign": lambda h, g: jnp.sign(h),
    "floor": lambda h, g: jnp.floor(h),
    "ceil": lambda h, g: jnp.ceil(2 * h) / 2,
    "round": lambda h, g: jnp.round(h) + lax.round(3 * g),
    "rem": lambda h, g: h % 1.0 + jnp.fmod(h, 0.7) + g // 0.5,
    "max": lambda h, g: jnp.maximum(h, 0.3),
    "min": lambda h, g: jnp.minimum(h, g),
    "clamp": lambda h, g: lax.clamp(-1.0, h, 0.5),
    "exp": lambda h, g: jnp.exp(h / 2),
    "exp2": lambda h, g: jnp.exp2(h / 2),
    "expm1": lambda h, g: jnp.expm1(h / 2),
    "log": lambda h, g: jnp.log(1 + h**2),
    "log1p": lambda h, g: jnp.log1p(h**2),
    "logistic": lambda h, g: jax.nn.sigmoid(h),
    "tanh": lambda h, g: jnp.tanh(h),
    "sin": lambda h, g: jnp.sin(h),
    "cos": lambda h, g: jnp.cos(h),
    "tan": lambda h, g: jnp.tan(jnp.sin(h)),
    "sinh": lambda h, g: jnp.sinh(h / 3),
    "cosh": lambda h, g: jnp.cosh(h / 3),
    "asin": lambda h, g: jnp.arcsin(jnp.tanh(h) / 2),
    "acos": lambda h, g: jnp.arccos(jnp.tanh(h) / 2),
    "atan": lambda h, g: jnp.arctan(h),
    "atan2": lambda h, g: jnp.arctan2(h, 1 + g**2) + jnp.arctan2(h, -1.0) + jnp.arctan2(2.0, h) + jnp.angle(h),
    "atan2 of two": lambda h, g: lax.stop_gradient(jnp.arctan2(h, g)),
    "acosh": lambda h, g: jnp.arccosh(2 + h**2),
    "atanh": lambda h, g: jnp.arctanh(jnp.tanh(h) / 2),
    "erf_inv": lambda h, g: lax.erf_inv(jnp.tanh(h) / 2),
    "lgamma": lambda h, g: lax.lgamma(1 + h**2),
    "digamma": lambda h, g: lax.digamma(1 + h**2),
    "polygamma": lambda h, g: lax.polygamma(1.0, 1 + h**2),
    "igamma": lambda h, g: lax.igamma(2.0, h**2),
    "igammac": lambda h, g: lax.igammac(2.0, h**2),
    "regularized_incomplete_beta": lambda h, g: lax.betainc(2.0, 3.0, jax.nn.sigmoid(h)),
    "bessel_i0e": lambda h, g: lax.bessel_i0e(h),
    "bessel_i1e": lambda h, g: lax.bessel_i1e(h),
    "asinh": lambda h, g: jnp.arcsinh(h),
    "erf": lambda h, g: jax.scipy.special.erf(h),
    "erfc": lambda h, g: jax.scipy.special.erfc(h),
    "exp_neg_sq": lambda h, g: jax.vmap(jax.grad(jax.scipy.special.erf))(h),
    "eq": lambda h, g: jnp.where(h == 0.25, 1.0, h),
    "ne": lambda h, g: jnp.where(h != 0.25, h, 2.0),
    "lt": lambda h, g: jnp.where(h < g, h, g / 2),
    "lt_to": lambda h, g: jnp.searchsorted(jnp.array([-0.5, 0.5]), h, side="right", method="compare_all") * g,
    "le_to": lambda h, g: jnp.searchsorted(jnp.array([-0.5, 0.5]), h, method="compare_all") * g,
    "order_statistic": lambda h, g: jnp.sort(jnp.stack([h, g, jnp.tanh(h + g)]), 0)[1],
    "order_statistic of four": lambda h, g: jnp.sort(jnp.stack([h, g, h + g, h - 2 * g + 1]), 0)[1],
    "has_rank": lambda h, g: jnp.argsort(jnp.stack([h, g, h + g, h - 2 * g + 1]), 0)[1] * g,
    "le": lambda h, g: jnp.where(h <= 0.5, h, 0.5),
    "gt": lambda h, g: jnp.where(h > 0, h, 0.1 * h),
    "ge": lambda h, g: jnp.where(h >= 0, h, 0.0),
    "and": lambda h, g: jnp.where((h > 0) & (h < 1), h, 0.0),
    "or": lambda h, g: jnp.where((h < 0) | (h > 1), h, 0.0),
    "xor": lambda h, g: jnp.where((h > 0) ^ (g > 0), h, 0.0),
    "eq of truths": lambda h, g: jnp.where((h > 0) == (g > 0), h, 0.0),
    "ne of truths": lambda h, g: jnp.where((h > 0) != (g > 0), h, 0.0),
    "not": lambda h, g: jnp.where(~(h > 0), h, 0.0),
    "select_n": lambda h, g: lax.select_n(h > 0, 2 * h, h),
    "convert_element_type": lambda h, g: (h > 0).astype(float) + g,
    "convert_element_type to whole numbers": lambda h, g: (
        (3 * h).astype(int) // 2 + h.astype(int) * 0.5 + g.astype(bool)
    ),
    "add_any": lambda h, g: jax.vmap(jax.grad(lambda a: a * jnp.sin(a)))(h),
}


def recurrent(x: jax.Array) -> jax.Array:
    """One weight at every step, by a loop."""
    n = nn.width()
    w, u = nn.weight((n, n)) / np.sqrt(n), nn.weight((n, 3)) / np.sqrt(3)
    h = jnp.zeros(n)
    for step in x:
        h = jnp.tanh(w @ h + u @ step)
    return readout(h)


def scanned(x: jax.Array) -> jax.Array:
    """The same by `lax.scan`."""
    n = nn.width()
    w, u = nn.weight((n, n)) / np.sqrt(n), nn.weight((n, 3)) / np.sqrt(3)
    step = lambda h, row: (jnp.tanh(w @ h + u @ row), None)
    return readout(lax.scan(step, jnp.zeros(n), x)[0])


def scanned_outputs(x: jax.Array) -> jax.Array:
    """A scan from the end, of which every state is read."""
    n = nn.width()
    w, u = nn.weight((n, n)) / np.sqrt(n), nn.weight((n, 3)) / np.sqrt(3)

    def step(h: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(w @ h + u @ row)
        return h, h

    return readout(lax.scan(step, jnp.zeros(n), x, reverse=True)[1])


def mixed(x: jax.Array) -> jax.Array:
    """Frozen layers, hyperparameters, an outer bias and a coefficient that depends on the input."""
    h = nn.dense(x, weight_var=tp.hyper("w2", 1.5), bias_var=0.1, train=False)
    h = jnp.tanh(h) * jnp.sin(x.sum()) + nn.dense(x, bias_var=tp.hyper("b2", 0.3))
    return readout(jax.nn.relu(h)) + jnp.sqrt(0.2) * nn.bias((1,))


def residual(x: jax.Array) -> jax.Array:
    h = nn.dense(x, weight_var=1.5, bias_var=0.1)
    for _ in range(2):
        h = h + nn.dense(jax.nn.relu(nn.layer_norm(h)))
    return nn.dense(h, features=1)


def features(x: jax.Array) -> jax.Array:
    return nn.dense(jax.nn.relu(nn.dense(x)), features=3)


NETWORKS: dict[str, tuple[Net, tuple[int, ...]]] = {
    "recurrent": (recurrent, (3, 3)),
    "scanned": (scanned, (3, 3)),
    "scanned-outputs": (scanned_outputs, (3, 3)),
    "mixed": (mixed, (3,)),
    "residual": (residual, (3,)),
    "features": (features, (3,)),
    "dropped": (lambda x: readout(nn.dropout(jax.nn.relu(nn.dense(x)), 0.3)), (4, 3)),
}
for _name, _op in (POSITIONS | SEVERAL).items():
    if _name in SEVERAL:
        NETWORKS[f"{_name} of hidden"] = ((lambda x, op=_op: readout(jnp.tanh(nn.dense(op(nn.dense(x)))))), (4, 3))
    if _name not in ("widths", "conv-grouped"):  # flattened concatenations of widths are refused
        NETWORKS[f"function of {_name}"] = ((lambda x, op=_op: readout(jax.nn.relu(op(nn.dense(x))))), (4, 3))
    NETWORKS[f"{_name} of images"] = (
        (lambda x, op=_op: readout(nn.dense(op(jax.nn.relu(nn.dense(x, bias_var=0.2)))))),
        (4, 3),
    )
for _name, _phi in ELEMENTS.items():
    NETWORKS[_name] = ((lambda x, phi=_phi: readout(phi(nn.dense(x), nn.dense(x, bias_var=0.5)))), (3,))


def an_input(name: str, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(NETWORKS[name][1])
