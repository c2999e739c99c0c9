"""What every test has: float64, the CPU, no window, and one table of tolerances."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # several workers at once must not share one accelerator
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)

# Everyday examples are the same in every run: red means that the code changed. `thorough` draws new ones.
# Compiling takes seconds, so there is no deadline for one example.
hypothesis.settings.register_profile("everyday", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=300, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "everyday"))

# Relative to the largest entry. A looser one stands in its test with the reason beside it.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


@pytest.fixture(scope="session")
def tolerance() -> Callable[[Any], float]:
    """The relative tolerance of a dtype: ``tolerance(k.nngp.dtype)``, ``tolerance("float32")``."""
    return lambda dtype: TOLERANCE[np.dtype(dtype).name]


def pytest_collection_finish() -> None:
    """What was imported stays: nobody needs to look for cycles in it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
