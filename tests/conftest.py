"""What every test has: float64, the CPU, no window, and one table of tolerances."""

from __future__ import annotations

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


# Compiling a kernel takes seconds, and these compile many, or sample networks of growing width: `make slow` runs them.
SLOW = (
    "tests/agreement/test_gradients.py",
    "tests/agreement/test_precision.py",
    "tests/apps/test_scaling_measured.py",
    "tests/architectures/test_sampled.py",
    "tests/finite_width",
    "tests/ntk_rules/test_grammar.py",
    "tests/ntk_rules/test_kinked_plane.py",
    "tests/ntk_rules/test_numeric.py",
    "tests/ntk_rules/test_problems.py",
    "tests/test_finite_width.py",
    "tests/test_joint_sampled.py",
    "tests/test_references.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of the slow files, before pytest selects by marker."""
    for item in items:
        if item.path.relative_to(config.rootpath).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
