"""Random networks of a few positions that are exact: the tangent program and the adjoint program give the same kernels.

Norms over the width and over all axes, attention, averages of the width as factors, thresholds and logits, tied, transposed and symmetric
weights, several readouts, in any order. Of vectors: tests/passes/test_adjoint.py; with functions of several positions at once,
which are sampled: tests/passes/test_adjoint_sampled.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tensorprog as tp
from tensorprog import nn
from tests.everyday import everyday
from tests.uncompiled import uncompiled

erf, relu, softmax = jax.scipy.special.erf, jax.nn.relu, jax.nn.softmax
POSITIONS = 3
Step = tuple[str, int, int]


# ------------------------------------------------------------------------------------------ steps of networks


class Shared:
    """Parameters that a network may use at every step: a matrix, a symmetric one, and two vectors."""

    def __init__(self) -> None:
        n = nn.width()
        self.matrix = nn.weight((n, n)) / jnp.sqrt(n)
        self.symmetric = nn.symmetric(n) / jnp.sqrt(n)
        self.bias, self.gain = nn.bias((n,), std=0.8), nn.weight((n,))


def mean(h: jax.Array) -> jax.Array:
    """Over the width, at every position."""
    return jnp.mean(h, -1, keepdims=True)


def attention(a: jax.Array, b: jax.Array, values: jax.Array) -> jax.Array:
    return softmax(a @ b.T / nn.width(), -1) @ values


# Of two registers (positions, n) and the shared parameters.
STEPS: dict[str, Callable[[jax.Array, jax.Array, Shared], jax.Array]] = {
    "dense": lambda a, b, s: nn.dense(a, weight_var=1.2, bias_var=0.1),
    "frozen": lambda a, b, s: nn.dense(a, train=False),
    "conv": lambda a, b, s: nn.conv(a, 2),
    "weight": lambda a, b, s: a @ s.matrix,
    "transpose": lambda a, b, s: a @ s.matrix.T,
    "stopped": lambda a, b, s: a @ lax.stop_gradient(s.matrix).T,
    "symmetric": lambda a, b, s: a @ s.symmetric,
    "concatenate": lambda a, b, s: nn.dense(jnp.concatenate([a, b], -1)),
    "bias": lambda a, b, s: a + s.bias,
    "gain": lambda a, b, s: a * s.gain,
    "function of a gain": lambda a, b, s: relu(a) * (s.gain + jnp.sin(s.gain)),
    "relu": lambda a, b, s: relu(a),
    "erf": lambda a, b, s: erf(a),
    "sin": lambda a, b, s: jnp.sin(a),
    "add": lambda a, b, s: a + b,
    "subtract": lambda a, b, s: a - 0.5 * b,
    "reverse": lambda a, b, s: a[::-1],
    "pool": lambda a, b, s: 0.5 * b + a.mean(0),
    "pooled factor": lambda a, b, s: b * erf(a).mean(0),
}
NORMS = {
    "layer norm": lambda a, b, s: nn.layer_norm(a, 0.1),
    "gain and shift": lambda a, b, s: nn.layer_norm(a, 1e-3, gain=True, shift=True),
    "norm of all": lambda a, b, s: nn.layer_norm(a, 0.1, axes=(0, 1)),
    "RMS norm": lambda a, b, s: a / jnp.sqrt(mean(a * a)),
    "norm of another": lambda a, b, s: b / jnp.sqrt(mean(a * a) + 0.1),
}
MIXING = {
    "attention": lambda a, b, s: attention(a, b, a),
    "queries and keys": lambda a, b, s: attention(nn.dense(a), nn.dense(a), b),
    "tied attention": lambda a, b, s: attention(a @ s.matrix, a @ s.matrix, b @ s.matrix.T),
    "linear attention": lambda a, b, s: (a @ b.T / nn.width()) @ a,
}
AVERAGES = {
    "scale": lambda a, b, s: b * jnp.mean(erf(a) ** 2),
    "centre": lambda a, b, s: b - mean(relu(a)),
    "threshold": lambda a, b, s: relu(b - mean(jnp.abs(a))),
    "gate": lambda a, b, s: b * jax.nn.sigmoid(mean(a * b)),
    "largest": lambda a, b, s: b * jnp.max(mean(a * a)),
    "likeness": lambda a, b, s: a + b * jnp.mean(a * b) / jnp.sqrt(jnp.mean(a * a) * jnp.mean(b * b) + 0.1),
    "projection": lambda a, b, s: a - b * mean(a * b) / (mean(b * b) + 0.1),
    "logits": lambda a, b, s: jnp.sin(mean(s.bias * a)) * b + b,
}
STEPS |= NORMS | MIXING | AVERAGES


def twice(last: jax.Array, first: jax.Array) -> jax.Array:
    """Two readouts by one weight."""
    v = nn.weight((1, nn.width())) / jnp.sqrt(nn.width())
    return v @ last.sum(0) + v @ erf(first[0])


READOUTS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "mean": lambda last, first: nn.dense(last.mean(0), features=1),
    "all": lambda last, first: nn.dense(last.reshape(-1), features=1),
    "each": lambda last, first: nn.dense(last, features=1),
    "features": lambda last, first: nn.dense(last[0], features=2, bias_var=0.2),
    "two": lambda last, first: nn.dense(last.mean(0), features=1) + nn.dense(relu(first).reshape(-1), features=1),
    "twice": twice,
    "average": lambda last, first: jnp.mean(erf(last), -1),
}


def network(steps: Sequence[Step], out: str) -> Callable[[jax.Array], jax.Array]:
    """Steps on registers, of which the first is a layer of the input."""

    def net(x: jax.Array) -> jax.Array:
        shared, registers = Shared(), [nn.dense(x, weight_var=1.5, bias_var=0.1)]
        for kind, i, j in steps:
            a, b = (registers[k % len(registers)] for k in (i, j))
            registers.append(STEPS[kind](a, b, shared))
        return READOUTS[out](registers[-1], registers[0])

    return net


# ------------------------------------------------------------------------------------------ the two kernels


def inputs() -> np.ndarray:
    """One, one beside it, and a larger one."""
    x = np.random.default_rng(1).standard_normal((3, POSITIONS, 2))
    x[1] = x[0] + 1e-5 * x[1]
    x[2] *= 1.5
    return x


def check(net: Callable[[jax.Array], jax.Array]) -> None:
    """Both kernels, in units of sqrt(K(x, x) K(x', x')) of the entries of the output.

    Raises what `tp.compile` raises, or rejects the example where a variance is beyond what quadrature holds for.
    """
    x = inputs()
    kernels = [tp.compile(net, x[0], method=method) for method in ("tangent", "adjoint")]
    assert [kernel.method for kernel in kernels] == ["tangent", "adjoint"]
    for tangent, adjoint in zip(*(uncompiled(kernel, x) for kernel in kernels), strict=True):
        first, second = _matrix(tangent), _matrix(adjoint)
        infinite = [not np.isfinite(matrix).all() for matrix in (first, second)]
        if any(infinite):
            assert all(infinite)
            hypothesis.reject()
        size = np.sqrt(np.diag(first))
        np.testing.assert_array_less(np.abs(second - first), 1e-12 * np.outer(size, size) + 1e-300)


def _matrix(kernel: np.ndarray) -> np.ndarray:
    """(inputs and entries of the output) by the same."""
    count, entries = len(kernel), math.prod(kernel.shape[2 : 2 + (kernel.ndim - 2) // 2])
    return kernel.reshape(count, count, entries, entries).transpose(0, 2, 1, 3).reshape(count * entries, -1)


NAMED: dict[str, tuple[Sequence[Step], str]] = {
    "norms between a weight and its transpose": (
        [("weight", 0, 0), ("layer norm", -1, 0), ("relu", -1, 0), ("transpose", -1, 0), ("RMS norm", -1, 0)],
        "each",
    ),
    "two attentions, the second tied, and two readouts": (
        [("attention", 0, 0), ("relu", -1, 0), ("tied attention", -1, 1)],
        "two",
    ),
    "averages as thresholds and logits of a symmetric weight's images": (
        [("symmetric", 0, 0), ("threshold", -1, 0), ("symmetric", -1, 0), ("logits", -1, 1)],
        "twice",
    ),
    "a convolution, attention and a projection": (
        [("conv", 0, 0), ("relu", -1, 0), ("queries and keys", -1, 1), ("projection", -1, 0)],
        "all",
    ),
}


@pytest.mark.parametrize("name", everyday(NAMED))
def test_named_ones(name: str) -> None:
    check(network(*NAMED[name]))


place = st.one_of(st.just(-1), st.integers(0, 3))
step = st.one_of(*(st.tuples(st.sampled_from(sorted(some)), place, place) for some in (STEPS, NORMS, MIXING, AVERAGES)))


@pytest.mark.long
@hypothesis.given(st.lists(step, min_size=2, max_size=5), st.sampled_from(sorted(READOUTS)))
@hypothesis.settings(max_examples=30, suppress_health_check=list(hypothesis.HealthCheck))
def test_random_ones(steps: list[Step], out: str) -> None:
    try:
        check(network(steps, out))
    except tp.UnsupportedError as refusal:  # no rule for a function; or an average that moves as a whole
        hypothesis.event(f"refused: {str(refusal).splitlines()[0][:60]}")
        hypothesis.reject()
