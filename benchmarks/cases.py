"""What is measured: networks, input shapes and seeds as plain data. Nothing here imports JAX.

Both workers build their network from the same `Case`, so that the two sides compute the same function
(compare.py checks it on the numbers). Conventions, those of the NTK parametrisation:

- a layer is sqrt(weight_var / fan_in) W x + sqrt(bias_var) b, W and b standard Gaussian and trainable;
  for a convolution fan_in = channels x window. Every layer, the readout too, has the case's variances;
- depth is the number of hidden layers; a dense readout with one feature follows;
- inputs are standard Gaussian in float32, so that float32 and float64 runs see the same numbers.

Cases, sizes and targets are those of the project's plan for speed; `target` is peer's median / ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Dense:
    """An affine layer; features=None is an infinitely wide one."""

    features: int | None = None


@dataclass(frozen=True)
class Conv:
    """A 3x3 convolution, SAME zero padding, infinitely many channels."""

    stride: int = 1


@dataclass(frozen=True)
class Act:
    """An elementwise nonlinearity: relu, erf, gelu (the exact one), tanh_gelu, swish."""

    function: str


@dataclass(frozen=True)
class Residual:
    """main(x) + shortcut(x); an empty shortcut is the identity."""

    main: tuple[Layer, ...]
    shortcut: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Flatten:
    """All positions into the width."""


@dataclass(frozen=True)
class GlobalAvgPool:
    """The mean over all positions."""


Layer = Dense | Conv | Act | Residual | Flatten | GlobalAvgPool


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    title: str
    layers: tuple[Layer, ...]
    shape: tuple[int, ...]  # of one input, channels last
    n1: int
    n2: int | None = None  # None: the gram matrix of x1
    weight_var: float = 2.0
    bias_var: float = 0.0
    target: float | None = None  # peer's median / ours, at least
    nodes: int | None = None  # the peer does its nonlinearities by quadrature, with so many nodes
    peer_batch: int | None = None  # the peer is called through its own batching, in blocks of so many
    positions: str = "none"  # what the readout asks for: none, diagonal (flatten), pairs (pooling)
    reference_rows: int = 200  # the float64 reference is computed on the leading block of this size
    agreement: float = 1e-6  # how far apart the two float64 kernels may be
    slow: bool = False  # minutes on the peer's side; left out by --quick
    seed: int = 0


def inputs(case: Case) -> tuple[Array, Array | None]:
    """Seeded inputs: x1 of shape (n1, *shape), x2 of shape (n2, *shape) or None for a gram; float32."""
    rng = np.random.default_rng(case.seed)
    x1 = rng.standard_normal((case.n1, *case.shape), dtype=np.float32)
    return x1, None if case.n2 is None else rng.standard_normal((case.n2, *case.shape), dtype=np.float32)


def select(patterns: str | None, *, slow: bool = True) -> list[Case]:
    """The cases whose name matches one of the comma-separated globs; all of them when None.

    A slow case is left out when slow is False, unless it is named exactly.

    >>> [case.name for case in select("fc-erf*")]
    ['fc-erf-d5', 'fc-erf-d5-gram4000']
    >>> select("no-such-case")
    Traceback (most recent call last):
    ValueError: --cases 'no-such-case' matches none of the cases; see --list
    """
    globs = ["*"] if patterns is None else [p.strip() for p in patterns.split(",")]
    matching = [case for case in CASES if any(fnmatch(case.name, glob) for glob in globs)]
    chosen = [case for case in matching if slow or not case.slow or case.name in globs]
    if not chosen:
        raise ValueError(f"--cases {patterns!r} matches none of the cases; see --list")
    return chosen


def _mlp(function: str, depth: int) -> tuple[Layer, ...]:
    return (Dense(), Act(function)) * depth + (Dense(1),)


def _cnn(depth: int, head: Layer) -> tuple[Layer, ...]:
    return (Conv(), Act("relu")) * depth + (head, Dense(1))


def _block(*, mismatch: bool, stride: int = 1) -> Residual:
    """A pre-activation block of a wide residual net; the shortcut of a mismatch is a convolution."""
    return Residual((Act("relu"), Conv(stride), Act("relu"), Conv()), (Conv(stride),) if mismatch else ())


WIDE_RESNET: tuple[Layer, ...] = (
    Conv(),
    _block(mismatch=True),
    _block(mismatch=False),
    _block(mismatch=True, stride=2),
    _block(mismatch=False),
    GlobalAvgPool(),
    Dense(1),
)


def _relu(depth: int, target: float | None, *, biases: bool, gram: bool) -> Case:
    name = f"fc-relu-d{depth}" + ("-bias" if biases else "") + ("-gram4000" if gram else "")
    size, offsets = "gram 4000" if gram else "2000 x 2000", "biases" if biases else "no biases"
    return Case(
        name,
        f"FC ReLU, depth {depth}, {offsets}, {size}",
        _mlp("relu", depth),
        (64,),
        n1=4000 if gram else 2000,
        n2=None if gram else 2000,
        bias_var=0.1 if biases else 0.0,
        target=target,
        seed=depth,
    )


def _quadrature(function: str, n: int, target: float | None, *, batch: int | None = None) -> Case:
    name = f"fc-{function.replace('_', '-')}-quad-d3-gram{n}" + ("-batched" if batch else "")
    title = f"FC {function}, peer by quadrature (25 nodes), depth 3, gram {n}" + (
        f", peer in blocks of {batch}" if batch else ""
    )
    return Case(
        name,
        title,
        _mlp(function, 3),
        (64,),
        n,
        weight_var=1.5,
        bias_var=0.1,
        target=target,
        nodes=25,
        peer_batch=batch,
        reference_rows=24,
        slow=n > 500 and batch is None,
        seed=n,
    )


CASES: tuple[Case, ...] = (
    _relu(3, 9, biases=False, gram=False),
    _relu(3, 9, biases=True, gram=False),
    _relu(20, 90, biases=False, gram=False),
    _relu(20, 15, biases=True, gram=False),
    _relu(3, 15, biases=False, gram=True),
    _relu(3, None, biases=True, gram=True),
    _relu(20, 100, biases=False, gram=True),
    _relu(20, None, biases=True, gram=True),
    Case(
        "fc-erf-d5",
        "FC erf, depth 5, 2000 x 2000",
        _mlp("erf", 5),
        (64,),
        n1=2000,
        n2=2000,
        weight_var=1.5,
        bias_var=0.1,
        target=5,
        seed=5,
    ),
    Case(
        "fc-erf-d5-gram4000",
        "FC erf, depth 5, gram 4000",
        _mlp("erf", 5),
        (64,),
        4000,
        weight_var=1.5,
        bias_var=0.1,
        target=10,
        seed=6,
    ),
    Case(
        "fc-gelu-closed-d3-gram1000",
        "FC GELU, closed form, depth 3, gram 1000",
        _mlp("gelu", 3),
        (64,),
        1000,
        weight_var=1.5,
        bias_var=0.1,
        seed=7,
    ),
    _quadrature("gelu", 250, None),
    _quadrature("swish", 250, 30),
    _quadrature("tanh_gelu", 250, 30),
    _quadrature("gelu", 1000, None),
    _quadrature("swish", 1000, 300),
    _quadrature("tanh_gelu", 1000, 300),
    _quadrature("swish", 1000, None, batch=250),
    Case(
        "cnn-flatten-8x8x1-gram100",
        "5 x (conv 3x3, ReLU), flatten, 8x8x1, gram 100",
        _cnn(5, Flatten()),
        (8, 8, 1),
        100,
        target=4,
        positions="diagonal",
        reference_rows=32,
        seed=8,
    ),
    Case(
        "cnn-pool-8x8x1-gram40",
        "5 x (conv 3x3, ReLU), global pooling, 8x8x1, gram 40",
        _cnn(5, GlobalAvgPool()),
        (8, 8, 1),
        40,
        target=40,
        positions="pairs",
        reference_rows=8,
        seed=9,
    ),
    Case(
        "cnn-pool-16x16x3-gram16",
        "5 x (conv 3x3, ReLU), global pooling, 16x16x3, gram 16",
        _cnn(5, GlobalAvgPool()),
        (16, 16, 3),
        16,
        target=40,
        positions="pairs",
        reference_rows=4,
        seed=10,
    ),
    Case(
        "wide-resnet-8x8x3-gram24",
        "wide residual net, 4 blocks, global pooling, 8x8x3, gram 24",
        WIDE_RESNET,
        (8, 8, 3),
        24,
        target=20,
        positions="pairs",
        reference_rows=8,
        seed=11,
    ),
)
