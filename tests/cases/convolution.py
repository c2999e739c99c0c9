"""Convolutional networks in one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

from tests.cases import Case
from tests.references import convolution, duals, gram

Layer = dict


def net(layers: Sequence[Layer], phi: Callable, head: str, scales: dict) -> Callable:
    """Convolutions, each followed by phi, then ``head``: "flatten" or "global"."""

    def f(nn, x, features=1):
        for layer in layers:
            x = phi(nn.conv(x, **layer, **scales))
        x = nn.flatten(x) if head == "flatten" else nn.global_avg_pool(x)
        return nn.dense(x, features=features, **scales)

    return f


def body(x: np.ndarray, layers: Sequence[Layer], phi: duals.Dual | None, scales: dict) -> tuple[gram.Gram, tuple]:
    """The Gram after the last convolution (and phi, if given), and its spatial shape."""
    shape = x.shape[1:-1]
    k = gram.inputs(x.reshape(len(x), -1, x.shape[-1]))
    for number, layer in enumerate(layers):
        ones = (1,) * len(shape)
        shape, index = convolution.patches(
            shape, layer["window"], layer.get("strides", ones), layer["padding"], layer.get("dilation", ones)
        )
        k = convolution.conv(k, index, **scales)
        if phi is not None or number + 1 < len(layers):
            k = gram.activation(k, phi)
    return k, shape


def reference(layers: Sequence[Layer], phi: duals.Dual, head: str, scales: dict) -> Callable:
    def kernels(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        k, _ = body(x, layers, phi, scales)
        pooled = gram.positions(k, gram.average(k.nngp.shape[1])) if head == "global" else gram.flatten(k)
        return gram.readout(pooled, **scales)

    return kernels


def case(
    name: str,
    shape: tuple[int, ...],
    layers: Sequence[Layer],
    head: str,
    phi: tuple[Callable, duals.Dual] = (jax.nn.relu, duals.relu),
    *,
    weight_var: float = 2.0,
    bias_var: float = 0.0,
    sampled: bool = False,
) -> Case:
    scales = dict(weight_var=weight_var, bias_var=bias_var)
    return Case(
        f"conv-{name}-{head}",
        net(layers, phi[0], head, scales),
        shape,
        reference(layers, phi[1], head, scales),
        sampled=sampled,
    )


ERF = (jax.scipy.special.erf, duals.erf)


def same(window: tuple[int, ...], count: int, **more: object) -> list[Layer]:
    return [dict(window=window, padding="SAME", **more)] * count


CASES = [
    # Arora et al.: 3x3, SAME, with and without global average pooling.
    case("arora", (8, 8, 3), same((3, 3), 3), "flatten"),
    case("arora", (6, 6, 3), same((3, 3), 3), "global"),
    case("bias", (5, 5, 2), same((3, 3), 2), "flatten", bias_var=0.3),
    case("bias", (5, 5, 2), same((3, 3), 2), "global", bias_var=0.3),
    case("erf", (5, 4, 2), same((3, 3), 2), "global", ERF, weight_var=1.3, bias_var=0.1),
    case("circular", (6, 5, 1), [dict(window=(3, 3), padding="CIRCULAR")] * 2, "global"),
    case("circular", (6, 5, 1), [dict(window=(3, 3), padding="CIRCULAR")] * 2, "flatten"),
    case("valid", (7, 6, 2), [dict(window=(3, 2), padding="VALID")] * 2, "flatten"),
    case("valid", (7, 6, 2), [dict(window=(3, 2), padding="VALID")] * 2, "global"),
    case("strided", (7, 8, 2), same((3, 3), 2, strides=(2, 2)), "global", bias_var=0.1),
    case("strided", (7, 8, 2), same((3, 3), 2, strides=(2, 1)), "flatten"),
    case("even-window", (6, 6, 2), same((2, 4), 2), "global"),
    case("explicit", (5, 5, 2), [dict(window=(3, 3), padding=((2, 0), (1, 1)), strides=(2, 1))] * 2, "global"),
    case("dilated", (8, 7, 2), same((3, 2), 2, dilation=(2, 2)), "global"),
    case(
        "mixed",
        (8, 8, 2),
        [*same((3, 3), 1), dict(window=(2, 2), padding="VALID", strides=(2, 2)), *same((3, 3), 1)],
        "global",
        bias_var=0.05,
    ),
    case("1d", (9, 3), same((3,), 2), "flatten", bias_var=0.1, sampled=True),
    case("1d", (6, 3), same((3,), 2), "global", bias_var=0.1, sampled=True),
    case("1d-circular", (6, 2), [dict(window=(3,), padding="CIRCULAR")] * 2, "global", sampled=True),
    case(
        "1d-strided-valid",
        (9, 2),
        [dict(window=(3,), padding="VALID", strides=(2,))] * 2,
        "global",
        ERF,
        weight_var=1.5,
        sampled=True,
    ),
    case("2d", (3, 4, 2), same((3, 3), 2), "global", sampled=True),
    case("3d", (3, 4, 3, 2), same((2, 3, 3), 2), "global", bias_var=0.1),
    case("3d", (3, 4, 3, 2), same((2, 3, 3), 2), "flatten"),
]
