"""The tangent program and the adjoint program give one kernel, over the whole table of architectures.

Those that are sampled too: both ways sample the same functions at the same points (`tensorprog.kernel.paths`).
"""

from __future__ import annotations

import numpy as np
import pytest

import tensorprog as tp
from examples import architectures as zoo
from tests.uncompiled import uncompiled

QUICK = (
    "tied_layers", "rms_norm", "weight_norm", "maxout", "graph_attention", "dense_net", "bilinear", "deep_set", "gin", "gcn", "glu",
    "grouped_convolution", "separable_convolution",
)  # fmt: skip
SLOW = (
    "many_small_heads", "many_large_heads", "residual_after", "batch_norm", "instance_norm", "gru", "lstm", "max_over_time", "bidirectional",
    "siamese", "u_net", "masked_rnn", "highway",
)  # fmt: skip


def both(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The tangent kernels of both ways between two random inputs."""
    found = zoo.ARCHITECTURES[name]
    x = zoo.random_inputs(found.example, 2)
    compiled = (
        tp.compile(found.net, found.example, tolerance=found.tolerance, method=m) for m in ("tangent", "adjoint")
    )
    # with dropout an input with itself is another function, which `uncompiled` has not
    first, second = (
        np.asarray((kernel(x) if kernel.graph.noise else uncompiled(kernel, x)).ntk) for kernel in compiled
    )
    return first, second


def check(name: str) -> None:
    tangent, adjoint = both(name)
    np.testing.assert_allclose(adjoint, tangent, rtol=0, atol=1e-12 * np.abs(tangent).max())


@pytest.mark.parametrize("name", QUICK)
def test_quick_ones(name: str) -> None:
    check(name)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in zoo.ARCHITECTURES if name not in (*QUICK, *SLOW)])
def test_others(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_slow_ones(name: str) -> None:
    check(name)


def test_no_stale_exemption() -> None:
    assert set(QUICK) | set(SLOW) <= set(zoo.ARCHITECTURES)
