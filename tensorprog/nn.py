"""Layers: thin helpers that make their parameters as they are called, inside an ordinary JAX function of one example.

Every layer is a few lines of JAX over `weight` and `bias`, in the NTK parametrisation (Jacot et al. 2018):
parameters are standard Gaussians, and the factor sqrt(variance / fan_in) stands in the code. The compiler knows none
of them by name; the same function runs at finite width through `tp.init` and `tp.apply`. Arrays are channels last,
without a batch axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.frontend.params import Constant, Gaussian, Hyper, Spec
from tensorprog.frontend.recording import Recorder, current

__all__ = [
    "avg_pool", "bias", "constant", "conv", "dense", "dropout", "flatten", "global_avg_pool", "layer_norm",
    "many_heads", "sum_pool", "symmetric", "weight", "width",
]  # fmt: skip

Number = float | Hyper | jax.Array
Padding = str | Sequence[tuple[int, int]]


def _recorder(what: str) -> Recorder:
    recorder = current()
    if recorder is None:
        raise NetworkError(
            explain(
                f"nn.{what} was called outside a network",
                reason="it makes parameters, which exist only while tp.compile, tp.init or tp.apply runs the network",
                mend="put it inside the function that you give to tp.compile",
            )
        )
    return recorder


def width(relative: float = 1.0) -> int:
    """The number of coordinates of a hidden layer: `relative` times the width n at which the network runs now.

    Raises InputError where that is not a whole number.
    """
    n = _recorder("width").width
    size = Fraction(relative).limit_denominator(10_000) * n
    if size.denominator != 1 or size <= 0:
        raise InputError(
            f"width: relative is {relative!r}, expected a positive multiple that makes {relative} * {n} a whole number"
        )
    return int(size)


def weight(
    shape: Sequence[int], *, std: float = 1.0, tangent_std: float | None = None, train: bool = True, name: str | None = None
) -> jax.Array:  # fmt: skip
    """A parameter with independent N(0, std^2) entries, trained unless `train` is False.

    shape: finite sizes and multiples of `width()`. tangent_std: how fast it moves, as for `tp.Gaussian`: its learning rate is
    tangent_std^2 times the common one (None: std^2).
    Sharing a weight is using the array twice, its transpose `W.T` included.
    """
    return _parameter(name or _auto("weight"), Gaussian(tuple(shape), std, tangent_std if train else 0.0))


def symmetric(
    size: int, *, std: float = 1.0, tangent_std: float | None = None, train: bool = True, name: str | None = None
) -> jax.Array:
    """A symmetric weight of shape (size, size): independent N(0, std^2) entries above the diagonal, N(0, 2 std^2) on it.

    size: a multiple of `width()`. It is (G + G.T) / sqrt(2) for a trained matrix G of independent entries, which the compiler
    also knows when it is written out: the Gaussian orthogonal ensemble. tangent_std: how fast G moves, as for `weight`.

    Example:
        >>> import jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import nn
        >>> def net(x):
        ...     n = nn.width()
        ...     w, h = nn.symmetric(n), nn.dense(x)
        ...     return nn.dense(w @ (w @ h) / n, features=1)
        >>> float(tp.compile(net, jnp.zeros(1))(jnp.ones((1, 1))).nngp[0, 0])  # the fourth moment of the semicircle
        2.0
    """
    g = weight((size, size), std=std, tangent_std=tangent_std, train=train, name=name or _auto("symmetric"))
    return (g + g.T) / math.sqrt(2.0)


def bias(
    shape: Sequence[int], *, std: float = 1.0, tangent_std: float | None = None, train: bool = True, name: str | None = None
) -> jax.Array:  # fmt: skip
    """Like `weight`, for a parameter that is added: independent N(0, std^2) entries."""
    return _parameter(name or _auto("bias"), Gaussian(tuple(shape), std, tangent_std if train else 0.0))


def constant(
    shape: Sequence[int], value: float = 0.0, *, tangent_std: float = 1.0, train: bool = True, name: str | None = None
) -> jax.Array:
    """A parameter whose entries all start at `value`, such as the gain of a norm, trained unless `train` is False.

    tangent_std: how fast it moves, as for `tp.Constant`.
    """
    return _parameter(name or _auto("constant"), Constant(tuple(shape), value, tangent_std if train else 0.0))


def _auto(kind: str) -> str:
    return _recorder(kind).layer_name(kind, None)


def _parameter(name: str, spec: Spec) -> jax.Array:
    return _recorder("weight").parameter(name, spec)


def _variance(value: Number, argument: str, layer: str) -> Number:
    """Check a variance given as a number; a hyperparameter is checked when the kernel is called."""
    if isinstance(value, Hyper):
        recorder = _recorder(layer)
        recorder.nonnegative.add(value.name)
        _check_variance(value.default, argument, layer)
        return jnp.asarray(value)
    if isinstance(value, (int, float)):
        _check_variance(float(value), argument, layer)
    return value


def _check_variance(value: float, argument: str, layer: str) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"nn.{layer}: {argument} is {value!r}, expected a finite number >= 0 (it is a variance)")


def _root(variance: Number, fan_in: int = 1) -> Any:
    if isinstance(variance, (int, float)):
        return math.sqrt(variance / fan_in)
    return jnp.sqrt(variance / fan_in)


def _has_bias(variance: Number) -> bool:
    return not (isinstance(variance, (int, float)) and variance == 0)


def dense(
    x: jax.Array, features: int | None = None, *, width: float = 1.0, weight_var: Number = 1.0, bias_var: Number = 0.0,
    train: bool = True, name: str | None = None,
) -> jax.Array:  # fmt: skip
    """sqrt(weight_var / fan_in) W x + sqrt(bias_var) b along the last axis, W and b standard Gaussian and trainable.

    x: (..., channels). features: how many outputs; None makes an infinitely wide layer of `width` times n.
    Source: the NTK parametrisation of Jacot, Gabriel and Hongler 2018, section 4.

    Example:
        >>> import jax, jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import nn
        >>> net = lambda x: nn.dense(jax.nn.relu(nn.dense(x, weight_var=2.0)), features=1)
        >>> k = tp.compile(net, jnp.zeros(2))(jnp.eye(2))
        >>> [round(float(v), 4) for v in k.nngp[0]]
        [0.5, 0.1592]
    """
    weight_var, bias_var = _variance(weight_var, "weight_var", "dense"), _variance(bias_var, "bias_var", "dense")
    label = _recorder("dense").layer_name("dense", name)
    size = _features(features, width, "dense")
    _check_channels(x, "dense")
    fan_in = x.shape[-1]
    w = weight((size, fan_in), train=train, name=f"{label}.weight")
    y = _root(weight_var, fan_in) * jnp.einsum("oi,...i->...o", w, x)
    if _has_bias(bias_var):
        y = y + _root(bias_var) * bias((size,), train=train, name=f"{label}.bias")
    return y


def _check_channels(x: jax.Array, layer: str) -> None:
    if not (x.ndim and x.shape[-1]):
        raise InputError(f"nn.{layer}: x has shape {x.shape}, expected a last axis of one channel or more")


def _features(features: int | None, relative: float, layer: str) -> int:
    if features is None:
        return width(relative)
    if not isinstance(features, int) or features < 1:
        raise InputError(
            f"nn.{layer}: features is {features!r}, expected a positive whole number, or None for a wide layer"
        )
    return features


def conv(
    x: jax.Array, window: int | Sequence[int], *, strides: int | Sequence[int] = 1, padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1, features: int | None = None, width: float = 1.0, weight_var: Number = 1.0,
    bias_var: Number = 0.0, train: bool = True, name: str | None = None,
) -> jax.Array:  # fmt: skip
    """Convolution of x (positions.., channels) in 1 to 3 dimensions; fan_in is channels times the window's size.

    window: its size per dimension (one number for all). padding: "SAME", "VALID", "CIRCULAR", or (low, high) per
    dimension.
    The result is (positions.., features), scaled like `dense`.
    Source: Arora et al. 2019, section 4 (there with weight_var for their factor c_sigma).
    """
    weight_var, bias_var = _variance(weight_var, "weight_var", "conv"), _variance(bias_var, "bias_var", "conv")
    sizes = _window(window, x, "conv")
    steps, spread = _per_dim(strides, len(sizes), "strides", "conv"), _per_dim(dilation, len(sizes), "dilation", "conv")
    label = _recorder("conv").layer_name("conv", name)
    _check_channels(x, "conv")
    channels, fan_in = x.shape[-1], x.shape[-1] * math.prod(sizes)
    w = weight((*sizes, channels, _features(features, width, "conv")), train=train, name=f"{label}.weight")
    x, pads = _padded(x, sizes, steps, spread, padding, "conv")
    d = "DHW"[3 - len(sizes) :]
    numbers = lax.conv_dimension_numbers((1, *x.shape), w.shape, (f"N{d}C", f"{d}IO", f"N{d}C"))
    dtype = jnp.promote_types(x.dtype, w.dtype)
    y = lax.conv_general_dilated(
        x[None].astype(dtype), w.astype(dtype), steps, pads, rhs_dilation=spread, dimension_numbers=numbers
    )[0]
    if 0 in y.shape:
        raise InputError(
            f"nn.conv: no window of {sizes} fits into x of shape {x.shape} with padding {padding!r} and dilation {spread}, expected one "
            "position at least"
        )
    y = _root(weight_var, fan_in) * y
    if _has_bias(bias_var):
        y = y + _root(bias_var) * bias(w.shape[-1:], train=train, name=f"{label}.bias")
    return y


def _window(window: int | Sequence[int], x: jax.Array, layer: str) -> tuple[int, ...]:
    dims = x.ndim - 1
    sizes = (window,) * dims if isinstance(window, int) else tuple(window)
    if not 1 <= len(sizes) <= 3 or len(sizes) != dims or any(k < 1 for k in sizes):
        raise InputError(
            f"nn.{layer}: window is {window!r} and x has shape {x.shape}, expected x of shape (positions.., channels) with 1 to 3 "
            "position axes and one positive window size for each"
        )
    return sizes


def _per_dim(value: int | Sequence[int], dims: int, argument: str, layer: str) -> tuple[int, ...]:
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims or any(not isinstance(v, int) or v < 1 for v in values):
        raise InputError(f"nn.{layer}: {argument} is {value!r}, expected a positive whole number, or {dims} of them")
    return values


def _padded(
    x: jax.Array,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    dilation: tuple[int, ...],
    padding: Padding,
    layer: str,
) -> tuple[jax.Array, list[tuple[int, int]]]:
    """x, wrapped around where the padding is circular, and the zero padding that is left."""
    reach = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    if padding == "VALID":
        return x, [(0, 0)] * len(window)
    if padding in ("SAME", "CIRCULAR"):
        pads = []
        for size, stride, r in zip(x.shape, strides, reach, strict=False):
            total = max((math.ceil(size / stride) - 1) * stride + r - size, 0)
            pads.append((total // 2, total - total // 2))
        if padding == "SAME":
            return x, pads
        for axis, (low, high) in enumerate(pads):
            around = np.arange(-low, x.shape[axis] + high) % x.shape[axis]
            x = jnp.take(x, around, axis=axis, mode="clip")
        return x, [(0, 0)] * len(window)
    if isinstance(padding, str) or len(padding) != len(window) or any(len(p) != 2 or min(p) < 0 for p in padding):
        raise InputError(
            f"nn.{layer}: padding is {padding!r}, expected 'SAME', 'VALID', 'CIRCULAR' or a (low, high) pair for each of the "
            f"{len(window)} position axes"
        )
    return x, [(int(low), int(high)) for low, high in padding]


def sum_pool(
    x: jax.Array, window: int | Sequence[int], *, strides: int | Sequence[int] | None = None, padding: Padding = "VALID"
) -> jax.Array:
    """Sums of x (positions.., channels) over windows. strides: None means the window itself."""
    sizes = _window(window, x, "sum_pool")
    steps = sizes if strides is None else _per_dim(strides, len(sizes), "strides", "sum_pool")
    x, pads = _padded(x, sizes, steps, (1,) * len(sizes), padding, "sum_pool")
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, (*sizes, 1), (*steps, 1), [*pads, (0, 0)])


def avg_pool(
    x: jax.Array, window: int | Sequence[int], *, strides: int | Sequence[int] | None = None, padding: Padding = "VALID",
    normalize_edges: bool = False,
) -> jax.Array:  # fmt: skip
    """Averages of x (positions.., channels) over windows. strides: None means the window itself.

    normalize_edges: divide at the edges by the number of positions inside x instead of by the whole window.
    """
    total = sum_pool(x, window, strides=strides, padding=padding)
    sizes = _window(window, x, "avg_pool")
    if not normalize_edges or padding in ("VALID", "CIRCULAR"):
        return total / math.prod(sizes)
    inside = sum_pool(jnp.ones((*x.shape[:-1], 1), x.dtype), window, strides=strides, padding=padding)
    return total / inside


def global_avg_pool(x: jax.Array) -> jax.Array:
    """The mean of x (positions.., channels) over all positions: (channels,)."""
    if x.ndim < 2:
        raise InputError(f"nn.global_avg_pool: x has shape {x.shape}, expected (positions.., channels)")
    return jnp.mean(x, axis=tuple(range(x.ndim - 1)))


def flatten(x: jax.Array) -> jax.Array:
    """x as one axis."""
    return jnp.reshape(x, (-1,))


def layer_norm(
    x: jax.Array,
    epsilon: float = 1e-6,
    *,
    gain: bool = False,
    shift: bool = False,
    axes: Sequence[int] = (-1,),
    name: str | None = None,
) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) over the last axis (the width), or over it and the position axes named
    in `axes`.

    gain, shift: multiply by trainable ones and add trainable zeros, one for each entry of the last axis.
    Source: Ba, Kiros and Hinton 2016; in the limit theory.md and Yang 2020 (Tensor Programs II), appendix B.
    """
    if not (isinstance(epsilon, (int, float)) and epsilon >= 0):
        raise InputError(f"nn.layer_norm: epsilon is {epsilon!r}, expected a number >= 0")
    over = tuple(sorted(a % x.ndim for a in axes))
    if x.ndim - 1 not in over:
        raise InputError(
            f"nn.layer_norm: axes is {tuple(axes)}, expected to include the last axis of x, of shape {x.shape}"
        )
    mean = jnp.mean(x, over, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), over, keepdims=True)
    y = (x - mean) / jnp.sqrt(variance + epsilon)
    label = _recorder("layer_norm").layer_name("layer_norm", name)
    if gain:
        y = y * _parameter(f"{label}.gain", Constant(x.shape[-1:], 1.0))
    if shift:
        y = y + _parameter(f"{label}.shift", Constant(x.shape[-1:], 0.0))
    return y


def dropout(x: jax.Array, rate: float, *, shared: Sequence[int] = (), name: str | None = None) -> jax.Array:
    """x with its coordinates set to zero with probability `rate` and divided by 1 - rate otherwise, as in training.

    x: (positions.., width), a hidden layer. shared: the position axes along which one mask holds; masks of other positions are
    independent. Every input has its own masks: E[h h] of one input with itself is divided by 1 - rate, that of two inputs is
    unchanged, as in the train mode of neural-tangents' `stax.Dropout`; the diagonal of a gram matrix differs in that from
    all else. Over the width a mask averages out, so that this is the limit, not an average over masks.

    At finite width the parameter `<name>.noise` decides what is dropped: where its entry is beyond the (1 - rate)-quantile of the
    normal law. Draw it anew for every input and step. Source: Srivastava et al. 2014.

    Example:
        >>> import jax, jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import nn
        >>> net = lambda x: nn.dense(nn.dropout(nn.dense(x), 0.5), features=1)
        >>> print(tp.compile(net, jnp.zeros(2))(jnp.ones((2, 2))).nngp)
        [[2. 1.]
         [1. 2.]]
    """
    if not (isinstance(rate, (int, float)) and 0 <= rate < 1):
        raise InputError(f"nn.dropout: rate is {rate!r}, expected a number >= 0 and < 1 (the share that is dropped)")
    axes = tuple(range(x.ndim - 1))
    if any(not -x.ndim <= a < x.ndim for a in shared) or not {a % x.ndim for a in shared} <= set(axes):
        raise InputError(
            f"nn.dropout: shared is {tuple(shared)}, expected some of the position axes {axes} of x, of shape {x.shape}"
        )
    if rate == 0:
        return x
    shape = tuple(1 if a in {b % x.ndim for b in shared} else n for a, n in enumerate(x.shape))
    label = _recorder("dropout").layer_name("dropout", name)
    noise = _parameter(f"{label}.noise", Gaussian(shape, per_input=True))
    return x * jnp.where(noise < NormalDist().inv_cdf(1 - rate), 1 / (1 - rate), 0.0)


def many_heads(x: jax.Array, *, mask: Any = None, name: str | None = None) -> jax.Array:
    """Self-attention with logits q.k/sqrt(d), in the limit of infinitely many heads of growing dimension d.

    x: (tokens, width or features). mask: where a token (first axis) attends to another (second), or None for everywhere. Returns
    (tokens, width), one coordinate of a value per head; a dense layer after it is the output projection.

    In that limit the logits of the heads are independent Gaussians with Cov(G_st, G_uv) = C_su C_tv, C the covariance of the tokens
    (Hron et al. 2020, theorem 3, with weights of variance one). They are drawn from products of queries and keys by a frozen
    layer, which has that covariance and, with queries and keys trained, the tangent kernel of q.k/sqrt(d). Fixed heads whose
    dimension grows have no Gaussian limit; those of a fixed dimension are written as they are (docs/architectures.md). A softmax over
    hidden positions is sampled: give `tp.compile` a tolerance.

    Example:
        >>> import jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import nn
        >>> net = lambda x: nn.dense(nn.many_heads(x).mean(0), features=1)
        >>> tp.compile(net, jnp.zeros((2, 3)), tolerance=1e-2)(jnp.ones((1, 2, 3))).nngp
        Array([[1.]], dtype=float32)
    """
    if x.ndim != 2:
        raise InputError(f"nn.many_heads: x has shape {x.shape}, expected (tokens, width or features)")
    label = _recorder("many_heads").layer_name("many_heads", name)
    q, k, v = (dense(x, name=f"{label}.{part}") for part in ("query", "key", "value"))
    logits = dense(q[:, None] * k[None], train=False, name=f"{label}.heads")
    if mask is not None:
        logits = jnp.where(jnp.asarray(mask)[..., None], logits, -1e30)
    return (jax.nn.softmax(logits, axis=1) * v[None]).sum(1)
