"""Random networks, made by hypothesis as JAX functions: positive kernels, and right at finite width.

A network is a list of steps on registers, each a vector of the width. Register 0 is a dense layer of the
input; every step appends a register made of earlier ones; a readout of the last one follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.runtime import interpolated, tiles
from tensorprog.runtime import kernel as runtime
from tensorprog.runtime.optimisations import OPTIMISATIONS
from tests import sampling

pytestmark = pytest.mark.slow

INPUT = (4,)
PHI = {
    "relu": jax.nn.relu,
    "erf": jax.scipy.special.erf,
    "tanh": jnp.tanh,
    "abs": jnp.abs,
    "sin": jnp.sin,
    "softsign": lambda h: h / jnp.sqrt(1 + h * h),
}
Step = tuple


def run(steps: Sequence[Step]) -> Callable:
    """The network of a list of steps, over any namespace of layers."""

    def net(nn, x, features=1):
        shared = nn.weight((nn.width(), nn.width()))
        registers = [nn.dense(x, weight_var=1.5, bias_var=0.1)]
        for kind, *where in steps:
            a, b = (registers[i % len(registers)] for i in where[:2])
            if kind == "dense":
                new = nn.dense(a, weight_var=1.2)
            elif kind == "bias":
                new = a + nn.bias(a.shape, std=1.0)
            elif kind == "phi":
                new = PHI[where[2]](a)
            elif kind == "add":
                new = a + b
            elif kind == "multiply":
                new = a * b
            elif kind == "concatenate":
                new = nn.dense(jnp.concatenate([a, b]))
            elif kind == "norm":
                new = nn.layer_norm(a, 0.1)
            else:  # "reuse": the same weight, however often
                new = shared @ a / jnp.sqrt(a.shape[-1])
            registers.append(new)
        always = nn.dense(shared @ registers[0] / jnp.sqrt(nn.width()))  # every program uses the shared weight
        return nn.dense(registers[-1] + always, features=features)

    return net


place = st.integers(0, 5)
step = st.one_of(
    st.tuples(
        st.sampled_from(["dense", "phi", "add", "concatenate", "norm", "reuse", "bias"]),
        place,
        place,
        st.sampled_from(list(PHI)),
    ),
    st.tuples(st.just("phi"), st.just(-1), place, st.sampled_from(list(PHI))),
)


@st.composite
def programs(draw: st.DrawFn) -> list[Step]:
    """One to five steps, with at most one product: the tails of products of products are heavy."""
    steps = draw(st.lists(step, min_size=1, max_size=5))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(steps)))
        steps.insert(at, ("multiply", draw(place), draw(place), ""))
    return steps


def compiled(net: Callable) -> tp.Kernel:
    """The kernel; a program that the compiler refuses, with its reason, is no example."""
    try:
        return tp.compile(lambda x: net(tp.nn, x), jnp.zeros(INPUT))
    except tp.UnsupportedError as refusal:
        hypothesis.event(f"refused: {str(refusal).splitlines()[0][:60]}")
        hypothesis.reject()


def inputs(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *INPUT))


@hypothesis.given(programs())
@hypothesis.settings(max_examples=12)
def test_gram_matrices_are_symmetric_and_positive(steps: list[Step]) -> None:
    x = inputs(4)
    x = np.concatenate([x, x[:1], -x[:1], 0 * x[:1]])
    for k in compiled(run(steps))(x):
        k = np.asarray(k)
        scale = np.abs(k).max()
        assert np.all(np.isfinite(k))
        assert np.abs(k - k.T).max() <= 1e-10 * scale
        # Quadrature errors are asked to be below 1e-12 each; a gram matrix of seven adds few of them.
        assert np.linalg.eigvalsh((k + k.T) / 2).min() >= -1e-10 * scale


@hypothesis.given(programs())
@hypothesis.settings(max_examples=5)
def test_networks_approach_their_kernel(steps: list[Step]) -> None:
    net, x = run(steps), inputs(2)
    k = compiled(net)(x)
    network = sampling.tensorprog_network(net, x)
    # A single product has the tails of a chi-square: 4% instead of the 2% of the named architectures.
    sampling.check(network, (k.nngp, k.ntk), (12, 48, 192), (4096, 2048, 768), resolution=0.04)


@hypothesis.given(programs(), st.sampled_from(sorted(OPTIMISATIONS)))
@hypothesis.settings(max_examples=12)
def test_optimisations_change_no_value(steps: list[Step], name: str) -> None:
    x = inputs(40)
    x[1] = x[0]
    kernel = compiled(run(steps))
    with pytest.MonkeyPatch.context() as patch:  # small matrices as if they were large
        patch.setattr(interpolated, "LEAST_PAIRS", 1)
        patch.setattr(interpolated, "_cost", lambda shape: 0.0)
        patch.setattr(runtime, "CACHED", 256)
        patch.setattr(tiles, "CACHED", 256)
        try:
            on = kernel(x)
        except tp.InputError:  # variances beyond what quadrature holds for
            hypothesis.reject()
        off = kernel.without(name)(x)
    own = [np.sqrt(np.outer(k, k)) for k in kernel.diag(x)]
    for a, b, scale in zip(on, off, own, strict=True):
        assert np.max(np.abs(a - b) / np.where(scale == 0, 1, scale)) <= 1e-11


# ------------------------------------------------------------------ named ones that once were random

CORNERS = {
    "one vector in a sum, a product and a concatenation": [
        ("phi", 0, 0, "relu"),
        ("add", 0, 1, ""),
        ("multiply", 2, 1, ""),
        ("concatenate", 3, 0, ""),
    ],
    "a weight along a path three times": [
        ("reuse", 0, 0, ""),
        ("phi", 1, 0, "erf"),
        ("reuse", 2, 0, ""),
        ("phi", 3, 0, "relu"),
        ("reuse", 4, 0, ""),
    ],
    "norm of a product": [
        ("phi", 0, 0, "tanh"),
        ("multiply", 0, 1, ""),
        ("norm", 2, 0, ""),
        ("phi", 3, 0, "abs"),
    ],
}


def test_corners() -> None:
    x = inputs(2)
    for name, steps in CORNERS.items():
        net = run(steps)
        # The kink of the norm of a product moves with its mean, on a curve: sampled, far better than the networks are.
        tolerance = 1e-2 if name == "norm of a product" else None
        k = tp.compile(lambda v, net=net: net(tp.nn, v), jnp.zeros(INPUT), tolerance=tolerance)(x)
        network = sampling.tensorprog_network(net, x)
        found = sampling.report(network, (k.nngp, k.ntk), (12, 48, 192), (4096, 2048, 768))
        assert np.all(np.abs(found.offset) <= sampling.Z * found.error), (name, str(found))
