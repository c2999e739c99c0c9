"""Networks with known kernels: one list for the agreement tests and for the sampling tests.

A :class:`Case` is a network ``net(nn, x, features)`` over a namespace of layers
(``tensorprog.nn`` or ``tests.plain.Layers``) and the function of ``tests.references`` that
gives its kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Reference = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Case:
    """A network, the shape of one input, and its kernels by hand.

    ``tolerance`` is relative to the largest entry and is 1e-10 unless the case says why.
    ``sampled`` marks the cases of the everyday sampling suite, one per architecture.
    """

    name: str
    net: Callable[..., Any]
    shape: tuple[int, ...]
    reference: Reference
    tolerance: float = 1e-10
    sampled: bool = False
    scale: float = 1.0

    def inputs(self, count: int, seed: int = 0) -> np.ndarray:
        """Generic inputs, float64, (count, *shape)."""
        return self.scale * np.random.default_rng(seed).standard_normal((count, *self.shape))

    def __str__(self) -> str:
        return self.name
