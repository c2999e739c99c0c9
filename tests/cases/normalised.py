"""Layer norm, and residual networks with and without it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.cases import Case
from tests.cases.fully_connected import PHI
from tests.references import composite, convolution, duals, gram

SCALES = dict(weight_var=1.5, bias_var=0.1)
SHAPE = (6,)
EPSILON = 0.01

Step = Callable[..., object]


def flat(x: np.ndarray) -> gram.Gram:
    """Inputs (N, d) as a Gram with one position."""
    return gram.inputs(x[:, None, :])


def residual(phi: Callable, blocks: int, *, normed: bool) -> Step:
    def f(nn, x, features=1):
        h = nn.dense(x, **SCALES)
        for _ in range(blocks):
            h = h + nn.dense(phi(nn.layer_norm(h, EPSILON) if normed else h), **SCALES)
        return nn.dense(h, features=features)

    return f


def residual_reference(name: str, blocks: int, *, normed: bool) -> Step:
    def kernels(x):
        k = gram.dense(flat(x), **SCALES)
        for _ in range(blocks):
            inner = gram.layer_norm(k, EPSILON) if normed else k
            k = gram.add(k, gram.dense(gram.activation(inner, PHI[name][1]), **SCALES))
        return gram.readout(k)

    return kernels


def residual_case(name: str, blocks: int, *, normed: bool, sampled: bool = False) -> Case:
    return Case(
        f"residual-{name}-{blocks}-{'normed' if normed else 'plain'}",
        residual(PHI[name][0], blocks, normed=normed),
        SHAPE,
        residual_reference(name, blocks, normed=normed),
        sampled=sampled,
    )


# ------------------------------------------------------------------ layer norm, where and of what


def norm_before(phi: Callable, **affine: bool) -> Step:
    """phi(layer_norm(Gaussian)), two layers."""

    def f(nn, x, features=1):
        h = nn.dense(phi(nn.layer_norm(nn.dense(x, **SCALES), EPSILON, **affine)), **SCALES)
        return nn.dense(phi(nn.layer_norm(h, EPSILON, **affine)), features=features)

    return f


def norm_before_reference(name: str) -> Step:
    def kernels(x):
        k = flat(x)
        for _ in range(2):
            k = gram.activation(gram.layer_norm(gram.dense(k, **SCALES), EPSILON), PHI[name][1])
        return gram.readout(k)

    return kernels


def affine_reference(phi: duals.Dual, weighted: duals.Dual, *, gain: bool = False, shift: bool = False) -> Step:
    """``norm_before`` with a trainable gain and shift; ``weighted`` is the dual of u phi'(u)."""

    def kernels(x):
        k = flat(x)
        for _ in range(2):
            k = gram.layer_norm(gram.dense(k, **SCALES), EPSILON)
            k = composite.affine_activation(k, phi, weighted, gain=gain, shift=shift)
        return gram.readout(k)

    return kernels


def norm_after(phi: Callable) -> Step:
    """layer_norm(phi(Gaussian)): the mean over the width is not zero."""

    def f(nn, x, features=1):
        h = nn.layer_norm(phi(nn.dense(x, **SCALES)), EPSILON)
        h = nn.layer_norm(phi(nn.dense(h, **SCALES)), EPSILON)
        return nn.dense(h, features=features)

    return f


def norm_after_reference(name: str) -> Step:
    def kernels(x):
        k = flat(x)
        for _ in range(2):
            k = gram.layer_norm(gram.activation(gram.dense(k, **SCALES), PHI[name][1]), EPSILON)
        return gram.readout(k)

    return kernels


def norm_pixels(phi: Callable, **axes: tuple[int, ...]) -> Step:
    """Layer norm in a sequence: over the width at every position, or over the named axes."""

    def f(nn, x, features=1):
        h = nn.layer_norm(phi(nn.conv(x, (3,), padding="SAME", **SCALES)), EPSILON, **axes)
        h = phi(nn.layer_norm(nn.conv(h, (3,), padding="SAME", **SCALES), EPSILON, **axes))
        return nn.dense(nn.global_avg_pool(h), features=features)

    return f


def norm_pixels_reference(name: str, norm: Callable) -> Step:
    def kernels(x):
        _, index = convolution.patches(x.shape[1:-1], (3,), (1,), "SAME")
        k = gram.activation(convolution.conv(gram.inputs(x), index, **SCALES), PHI[name][1])
        k = norm(convolution.conv(norm(k, EPSILON), index, **SCALES), EPSILON)
        k = gram.activation(k, PHI[name][1])
        return gram.readout(gram.positions(k, gram.average(k.nngp.shape[1])))

    return kernels


# ------------------------------------------------------------------ h + layer_norm(h)


def plus_norm(phi: Callable, *, before: bool) -> Step:
    """h + layer_norm(h), of the Gaussian layer or of phi of it."""

    def f(nn, x, features=1):
        h = nn.dense(x, **SCALES)
        if before:
            h = phi(h + nn.layer_norm(h, EPSILON))
        else:
            h = phi(h)
            h = h + nn.layer_norm(h, EPSILON)
        h = nn.dense(h, **SCALES)
        return nn.dense(h + nn.layer_norm(h, EPSILON), features=features)

    return f


def plus_norm_reference(name: str, *, before: bool) -> Step:
    def kernels(x):
        k = gram.dense(flat(x), **SCALES)
        if before:
            k = gram.activation(composite.plus_layer_norm(k, EPSILON), PHI[name][1])
        else:
            k = composite.plus_layer_norm(gram.activation(k, PHI[name][1]), EPSILON)
        return gram.readout(composite.plus_layer_norm(gram.dense(k, **SCALES), EPSILON))

    return kernels


def case(title: str, net: Step, reference: Step, shape: tuple[int, ...] = SHAPE, *, sampled: bool = False) -> Case:
    return Case(title, net, shape, reference, sampled=sampled)


def affine_case(name: str, weighted: duals.Dual, *, sampled: bool = False, **affine: bool) -> Case:
    return case(
        f"norm-before-{name}-{'-'.join(affine)}",
        norm_before(PHI[name][0], **affine),
        affine_reference(PHI[name][1], weighted, **affine),
        sampled=sampled,
    )


CASES = [
    residual_case("relu", 3, normed=True, sampled=True),
    residual_case("relu", 3, normed=False, sampled=True),
    residual_case("erf", 10, normed=True),
    residual_case("gelu", 3, normed=True),
    residual_case("gelu", 5, normed=False),
    *[
        case(f"norm-before-{n}", norm_before(PHI[n][0]), norm_before_reference(n), sampled=n == "relu")
        for n in ("relu", "erf", "gelu")
    ],
    affine_case("erf", composite.erf_weighted, gain=True),
    affine_case("erf", composite.erf_weighted, shift=True),
    affine_case("erf", composite.erf_weighted, gain=True, shift=True, sampled=True),
    affine_case("relu", duals.relu, gain=True),  # u relu'(u) = relu(u)
    *[
        case(f"norm-after-{n}", norm_after(PHI[n][0]), norm_after_reference(n), sampled=n == "relu")
        for n in ("relu", "erf", "gelu")
    ],
    case(
        "norm-pixels-relu",
        norm_pixels(PHI["relu"][0]),
        norm_pixels_reference("relu", gram.layer_norm),
        (5, 3),
        sampled=True,
    ),
    case(
        "norm-image-relu",
        norm_pixels(PHI["relu"][0], axes=(-2, -1)),
        norm_pixels_reference("relu", gram.layer_norm_positions),
        (5, 3),
        sampled=True,
    ),
    *[
        case(
            f"plus-norm-{'before' if before else 'after'}-{n}",
            plus_norm(PHI[n][0], before=before),
            plus_norm_reference(n, before=before),
            sampled=n == "relu",
        )
        for n in ("relu", "gelu")
        for before in (True, False)
    ],
]
