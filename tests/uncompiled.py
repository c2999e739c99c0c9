"""Kernels of a few inputs without XLA, for tests of what is derived: its compiler would take most of their time.

What XLA makes of kernels, and the matrices and tiles around them, is looked at by tests/agreement, tests/lower and tests/runtime.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import tensorprog as tp
from ntk_rules.interpreted import by_numpy
from tensorprog.runtime.kernel import KernelResult

__all__ = ["uncompiled"]


def uncompiled(kernel: tp.Kernel | tp.JointKernel, x1: Any, x2: Any = None, **hypers: float) -> KernelResult:
    """Both kernels between all inputs, as `kernel(x1, x2, **hypers)` has them, of the very function that XLA would be given."""
    assert not kernel.graph.noise  # of which the diagonal of a gram matrix is another function
    first, second = ([np.asarray(leaf) for leaf in jax.tree.leaves(x)] for x in (x1, x1 if x2 is None else x2))
    values = {name: np.asarray(value, float) for name, value in (kernel.hypers | hypers).items()}
    if isinstance(kernel, tp.Kernel):
        return KernelResult(*map(np.asarray, by_numpy(kernel.functions.block)(first, second, values)))
    found = by_numpy(kernel._functions(kernel.graph).block)(first, second, values)
    count = len(kernel.outputs) ** 2  # blocks of each kernel, row by row
    return KernelResult(*(kernel._nested(list(map(np.asarray, part))) for part in (found[:count], found[count:])))
