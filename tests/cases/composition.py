"""Sums, products, concatenations and pooling: where a table of layers goes wrong."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from tests.cases import Case
from tests.cases.fully_connected import PHI
from tests.cases.normalised import flat
from tests.references import composite, convolution, duals, gram

SCALES = dict(weight_var=1.5, bias_var=0.1)
WIDE, LONG = (6,), (6, 3)  # one vector; a sequence of six positions with three channels
relu, erf = jax.nn.relu, jax.scipy.special.erf
Net = Callable[..., object]


# ------------------------------------------------------------------ one pre-activation, several times


def single(phi: Callable) -> Net:
    """Two layers of one (composite) nonlinearity."""

    def f(nn, x, features=1):
        h = nn.dense(phi(nn.dense(x, **SCALES)), **SCALES)
        return nn.dense(phi(h), features=features)

    return f


def single_reference(phi: duals.Dual) -> Net:
    def kernels(x):
        k = flat(x)
        for _ in range(2):
            k = gram.activation(gram.dense(k, **SCALES), phi)
        return gram.readout(k)

    return kernels


def doubled(phi: Callable, *, before: bool) -> Net:
    """x + x of the pre-activation, or of the activation."""

    def f(nn, x, features=1):
        h = nn.dense(x, **SCALES)
        h = phi(h + h) if before else phi(h) + phi(h)
        h = nn.dense(h, **SCALES)
        return nn.dense(phi(h) + phi(h), features=features)

    return f


def doubled_reference(name: str, *, before: bool) -> Net:
    phi, two = PHI[name][1], np.float64(2)

    def kernels(x):
        k = gram.dense(flat(x), **SCALES)
        k = gram.activation(gram.scale(k, two), phi) if before else gram.scale(gram.activation(k, phi), two)
        k = gram.scale(gram.activation(gram.dense(k, **SCALES), phi), two)
        return gram.readout(k)

    return kernels


ONE = [
    Case(f"one-{name}", single(f), WIDE, single_reference(d), sampled=sampled)
    for name, f, d, sampled in [
        ("x-plus-relu", lambda h: h + relu(h), composite.plus_relu, False),
        ("x-times-erf", lambda h: h * erf(h), composite.times_erf, True),
        ("relu-times-erf", lambda h: relu(h) * erf(h), composite.relu_times_erf, True),
        ("relu-of-erf", lambda h: relu(erf(h)), composite.relu_of_erf, True),
        ("erf-of-relu", lambda h: erf(relu(h)), composite.erf_of_relu, False),
        ("relu-of-relu", lambda h: relu(relu(h)), duals.relu, False),
        (
            "sigmoid-times-sigmoid",
            lambda h: jax.nn.sigmoid(h) * jax.nn.sigmoid(h),
            composite.sigmoid_squared,
            False,
        ),
    ]
] + [
    Case(
        f"doubled-{n}-{'before' if b else 'after'}",
        doubled(PHI[n][0], before=b),
        WIDE,
        doubled_reference(n, before=b),
        sampled=b,
    )
    for n, b in [("relu", True), ("erf", False), ("erf", True)]
]


# ------------------------------------------------------------------ positions: pooling and concatenation


def convolved(x: np.ndarray) -> gram.Gram:
    """A 1-D convolution, window 3, SAME, of raw inputs (N, positions, channels)."""
    return conv_again(gram.inputs(x))


def conv_again(k: gram.Gram) -> gram.Gram:
    _, index = convolution.patches((k.nngp.shape[1],), (3,), (1,), "SAME")
    return convolution.conv(k, index, **SCALES)


def conv(nn, x):
    return nn.conv(x, (3,), padding="SAME", **SCALES)


def plus_pool(*, before: bool) -> Net:
    """h + avg_pool(h), window 3, periodic; of the pre-activation or the activation."""

    def f(nn, x, features=1):
        h = conv(nn, x)
        h = h if before else relu(h)
        h = h + nn.avg_pool(h, (3,), strides=(1,), padding="CIRCULAR")
        h = relu(h) if before else conv(nn, h)
        return nn.dense(nn.flatten(relu(h)), features=features)

    return f


def plus_pool_reference(*, before: bool) -> Net:
    def kernels(x):
        length = x.shape[1]
        _, index = convolution.patches((length,), (3,), (1,), "CIRCULAR")
        matrix = np.eye(length) + convolution.pool(length, index)
        k = convolved(x)
        if before:
            k = gram.activation(gram.positions(k, matrix), duals.relu)
        else:
            k = gram.positions(gram.activation(k, duals.relu), matrix)
            k = gram.activation(conv_again(k), duals.relu)
        return gram.readout(gram.flatten(k))

    return kernels


def pooled(head: str) -> Net:
    """conv, relu, avg_pool(2, stride 2), conv, relu, head."""

    def f(nn, x, features=1):
        h = nn.avg_pool(relu(conv(nn, x)), (2,), strides=(2,), padding="VALID")
        h = relu(conv(nn, h))
        h = nn.flatten(h) if head == "flatten" else nn.global_avg_pool(h)
        return nn.dense(h, features=features)

    return f


def pooled_reference(head: str) -> Net:
    def kernels(x):
        _, index = convolution.patches((x.shape[1],), (2,), (2,), "VALID")
        k = gram.positions(gram.activation(convolved(x), duals.relu), convolution.pool(x.shape[1], index))
        k = gram.activation(conv_again(k), duals.relu)
        k = gram.flatten(k) if head == "flatten" else gram.positions(k, gram.average(k.nngp.shape[1]))
        return gram.readout(k)

    return kernels


def twice_along_positions(head: str) -> Net:
    """A sequence followed by itself, then a convolution over the seam."""

    def f(nn, x, features=1):
        h = relu(conv(nn, x))
        h = relu(conv(nn, jnp.concatenate([h, h], axis=0)))
        h = nn.flatten(h) if head == "flatten" else nn.global_avg_pool(h)
        return nn.dense(h, features=features)

    return f


def twice_along_positions_reference(head: str) -> Net:
    def kernels(x):
        k = gram.activation(convolved(x), duals.relu)
        k = gram.positions(k, np.concatenate([np.eye(x.shape[1])] * 2))
        k = gram.activation(conv_again(k), duals.relu)
        k = gram.flatten(k) if head == "flatten" else gram.positions(k, gram.average(k.nngp.shape[1]))
        return gram.readout(k)

    return kernels


def pool_then(outer: Callable) -> Net:
    """outer(mean of erf at two positions): the argument is not Gaussian."""

    def f(nn, x, features=1):
        h = erf(nn.dense(x, weight_var=0.5, bias_var=0.1))
        h = nn.avg_pool(h, (2,), strides=(2,), padding="VALID")[0]
        return nn.dense(outer(h), features=features)

    return f


def pool_then_reference(outer: tuple) -> Net:
    def kernels(x):
        k = gram.dense(gram.inputs(x), weight_var=0.5, bias_var=0.1)
        return gram.readout(composite.pooled_pair(k, composite.ERF, outer))

    return kernels


POSITIONS = [
    *[
        Case(
            f"plus-pool-{'before' if b else 'after'}",
            plus_pool(before=b),
            LONG,
            plus_pool_reference(before=b),
            sampled=True,
        )
        for b in (True, False)
    ],
    *[Case(f"pooled-{h}", pooled(h), LONG, pooled_reference(h), sampled=h == "global") for h in ("flatten", "global")],
    *[
        Case(
            f"twice-along-positions-{h}",
            twice_along_positions(h),
            (4, 2),
            twice_along_positions_reference(h),
            sampled=h == "global",
        )
        for h in ("flatten", "global")
    ],
]

# Four-dimensional expectations; the quadrature of the reference is good to 1e-9 here.
AFTER_POOLING = [
    Case(
        "pool-then-relu",
        pool_then(relu),
        (2, 3),
        pool_then_reference(composite.RELU),
        tolerance=1e-8,
        sampled=True,
    ),
    Case("pool-then-tanh", pool_then(jnp.tanh), (2, 3), pool_then_reference(composite.TANH), tolerance=1e-8),
]


# ------------------------------------------------------------------ width: concatenation


def twice_along_width(nn, x, features=1):
    h = relu(nn.dense(x, **SCALES))
    h = nn.dense(jnp.concatenate([h, h], axis=-1), **SCALES)
    h = relu(h)
    return nn.dense(jnp.concatenate([h, h], axis=-1), features=features)


def twice_along_width_reference(x):
    k = flat(x)
    for _ in range(2):
        k = gram.activation(gram.dense(k, **SCALES), duals.relu)
        k = gram.concat_width((k, 1), (k, 1))
    return gram.readout(k)


def unequal_widths(*, normed: bool) -> Net:
    """[relu(a), erf(b)] with b three times as wide as a, and a branch of half the width later."""

    def f(nn, x, features=1):
        a, b = relu(nn.dense(x, **SCALES)), erf(nn.dense(x, width=3.0, **SCALES))
        h = jnp.concatenate([a, b], axis=-1)
        h = nn.layer_norm(h, 0.01) if normed else h
        c, d = relu(nn.dense(h, width=0.5, **SCALES)), nn.dense(h, **SCALES)
        return nn.dense(jnp.concatenate([c, d], axis=-1), features=features)

    return f


def unequal_widths_reference(*, normed: bool) -> Net:
    def kernels(x):
        h = gram.dense(flat(x), **SCALES)
        k = gram.concat_width((gram.activation(h, duals.relu), 1), (gram.activation(h, duals.erf), 3))
        k = gram.layer_norm(k, 0.01) if normed else k
        h = gram.dense(k, **SCALES)
        return gram.readout(gram.concat_width((gram.activation(h, duals.relu), 0.5), (h, 1)))

    return kernels


WIDTH = [
    Case("twice-along-width", twice_along_width, WIDE, twice_along_width_reference, sampled=True),
    Case(
        "unequal-widths",
        unequal_widths(normed=False),
        WIDE,
        unequal_widths_reference(normed=False),
        sampled=True,
    ),
    Case("unequal-widths-normed", unequal_widths(normed=True), WIDE, unequal_widths_reference(normed=True)),
]


# ------------------------------------------------------------------ products


def product_of_branches(nn, x, features=1):
    """relu(a) * erf(b) of two dense layers of one hidden layer."""
    h = relu(nn.dense(x, **SCALES))
    return nn.dense(relu(nn.dense(h, **SCALES)) * erf(nn.dense(h, **SCALES)), features=features)


def product_of_branches_reference(x):
    h = gram.dense(gram.activation(gram.dense(flat(x), **SCALES), duals.relu), **SCALES)
    return gram.readout(gram.product(gram.activation(h, duals.relu), gram.activation(h, duals.erf)))


def product_with_skip(nn, x, features=1):
    """u * W relu(u): the second factor is independent of the first, given a fresh W."""
    u = nn.dense(x, **SCALES)
    return nn.dense(u * nn.dense(relu(u), **SCALES), features=features)


def product_with_skip_reference(x):
    u = gram.dense(flat(x), **SCALES)
    return gram.readout(gram.product(u, gram.dense(gram.activation(u, duals.relu), **SCALES)))


def dependent_product(nn, x, features=1):
    """sin(u) * cos(u / 2 + v): two correlated arguments, four Gaussians per pair of inputs."""
    u, v = nn.dense(x), nn.dense(x)
    return nn.dense(jnp.sin(u) * jnp.cos(0.5 * u + v), features=features)


def dependent_product_reference(x):
    f = (np.sin, np.cos)
    g = (np.cos, lambda w: -np.sin(w))
    return gram.readout(composite.product_of_dependent(flat(x), 0.5, f, g))


PRODUCTS = [
    Case("product-of-branches", product_of_branches, WIDE, product_of_branches_reference, sampled=True),
    Case("product-with-skip", product_with_skip, WIDE, product_with_skip_reference, sampled=True),
    Case("dependent-product", dependent_product, WIDE, dependent_product_reference, sampled=True),
]


# ------------------------------------------------------------------ raw inputs and tied weights


def raw_nonlinearity(nn, x, features=1):
    """A nonlinearity on the raw input."""
    return nn.dense(relu(nn.dense(relu(x), **SCALES)), features=features)


def raw_nonlinearity_reference(x):
    return gram.readout(gram.activation(gram.dense(flat(np.maximum(x, 0)), **SCALES), duals.relu))


def raw_coefficient(nn, x, features=1):
    """A layer multiplied by a number computed from the input, and shifted by another."""
    h = relu(nn.dense(x, **SCALES))
    h = nn.dense(jnp.tanh(x[0]) * h, **SCALES) + x[1] * nn.dense(h, **SCALES)
    return nn.dense(erf(h), features=features)


def raw_coefficient_reference(x):
    k = gram.activation(gram.dense(flat(x), **SCALES), duals.relu)
    first = gram.dense(gram.scale(k, np.tanh(x[:, :1])), **SCALES)
    h = gram.add(first, gram.scale(gram.dense(k, **SCALES), x[:, 1:2]))
    return gram.readout(gram.activation(h, duals.erf))


TIED_VARIANCE = 1.2


def tied(phi: Callable) -> Net:
    """h1 + h2 with h1 = W z, h2 = W phi(h1): one weight, twice along a path and in one sum."""

    def f(nn, x, features=1):
        w = nn.weight((nn.width(), nn.width()))
        apply = lambda z: jnp.sqrt(TIED_VARIANCE / z.shape[-1]) * (w @ z)
        h1 = apply(relu(nn.dense(x, **SCALES)))
        return nn.dense(phi(h1 + apply(phi(h1))), features=features)

    return f


def tied_reference(name: str) -> Net:
    def kernels(x):
        z = gram.activation(gram.dense(flat(x), **SCALES), duals.relu)
        phi = PHI[name][1]
        return gram.readout(gram.activation(composite.tied_sum(z, phi, TIED_VARIANCE), phi))

    return kernels


OTHER = [
    Case("raw-nonlinearity", raw_nonlinearity, WIDE, raw_nonlinearity_reference, sampled=True),
    Case("raw-coefficient", raw_coefficient, WIDE, raw_coefficient_reference, sampled=True),
    Case("tied-relu", tied(relu), WIDE, tied_reference("relu"), sampled=True),
    Case("tied-gelu", tied(PHI["gelu"][0]), WIDE, tied_reference("gelu")),
]

CASES = ONE + POSITIONS + WIDTH + PRODUCTS + OTHER
