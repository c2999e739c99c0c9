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


# Compiling a kernel takes seconds, and these compile many, or sample networks of growing width: `make slow` runs them. Of files with
# many cases alike, the costly ones.
SLOW = (
    "tests/agreement/test_gradients.py",
    "tests/agreement/test_precision.py",
    "tests/apps/test_scaling_measured.py",
    "tests/architectures/test_sampled.py",
    "tests/finite_width",
    "tests/ntk_rules/test_grammar.py",
    "tests/ntk_rules/test_kinked_plane.py",
    "tests/ntk_rules/test_numeric.py",
    "tests/ntk_rules/test_peer.py",
    "tests/ntk_rules/test_problems.py",
    "tests/test_finite_width.py",
    "tests/test_joint_sampled.py",
    "tests/test_references.py",
    "tests/agreement/test_composition.py::test_a_nonlinearity_after_pooling_is_refused[pool-then-tanh",
    "tests/agreement/test_composition.py::test_agrees[dependent-product",
    "tests/agreement/test_composition.py::test_agrees[one-relu-times-erf",
    "tests/agreement/test_composition.py::test_agrees[one-sigmoid-times-sigmoid",
    "tests/agreement/test_normalised.py::test_agrees[norm-image-relu",
    "tests/agreement/test_recurrent.py::test_agrees[rnn-loop-erf-average",
    "tests/agreement/test_recurrent.py::test_agrees[rnn-loop-relu-average",
    "tests/agreement/test_recurrent.py::test_agrees[rnn-scan-erf-average",
    "tests/agreement/test_recurrent.py::test_agrees[rnn-scan-relu-average",
    "tests/apps/test_depth.py::test_shaped_activations[tanh-1.1",
    "tests/apps/test_finite.py::test_check_agrees_and_draws",
    "tests/apps/test_finite.py::test_methods_outputs_and_batches_agree",
    "tests/architectures/test_adjoint.py::test_all_others",
    "tests/architectures/test_formulas.py::test_a_mask_is_a_shorter_sequence",
    "tests/architectures/test_formulas.py::test_many_large_heads",
    "tests/frontend/test_kernels.py::test_equal_functions_have_equal_kernels[and is a product",
    "tests/frontend/test_kernels.py::test_equal_functions_have_equal_kernels[clamp is min of max",
    "tests/frontend/test_kernels.py::test_equal_networks_have_equal_kernels[a split layer",
    "tests/frontend/test_kernels.py::test_equal_networks_have_equal_kernels[concatenated halves",
    "tests/frontend/test_kernels.py::test_equal_networks_have_equal_kernels[einsum",
    "tests/frontend/test_kernels.py::test_equal_networks_have_equal_kernels[scan is a loop",
    "tests/kernel/test_adjoint_alone.py::test_export[average",
    "tests/kernel/test_adjoint_alone.py::test_export[cubic",
    "tests/kernel/test_dropout.py::test_a_function_of_dropped_positions_is_sampled",
    "tests/kernel/test_dropout.py::test_masks_of_positions[shared1",
    "tests/kernel/test_dropout.py::test_own_draws_and_two_draws",
    "tests/kernel/test_tilted.py::test_more_members_than_features",
    "tests/kernel/test_tilted.py::test_relu_after_batch_norm[1e-05",
    "tests/kernel/test_tilted.py::test_the_tangent_kernel",
    "tests/lower/test_kernel.py::test_outputs_at_positions_with_features",
    "tests/lower/test_kernel.py::test_tiles_and_symmetry_change_nothing[pooled",
    "tests/lower/test_schedule.py::test_rolled_equals_unrolled[convolutional",
    "tests/lower/test_schedule.py::test_rolled_equals_unrolled[recurrent",
    "tests/lower/test_schedule.py::test_rolled_equals_unrolled[residual",
    "tests/models/test_doors.py::test_equinox_attention",
    "tests/models/test_doors.py::test_flax_cnn",
    "tests/models/test_doors.py::test_flax_mlp",
    "tests/models/test_doors.py::test_flax_transformer",
    "tests/models/test_doors.py::test_linen",
    "tests/models/test_doors.py::test_mean_logits_are_those_of_the_library_but_for_their_scale[False",
    "tests/ntk_rules/test_closed.py::test_derivatives_by_price[hard tanh",
    "tests/ntk_rules/test_closed.py::test_value[celu",
    "tests/ntk_rules/test_closed.py::test_value[elu",
    "tests/ntk_rules/test_closed.py::test_value[hard sigmoid",
    "tests/ntk_rules/test_closed.py::test_value[hard tanh",
    "tests/ntk_rules/test_closed.py::test_value[relu6",
    "tests/ntk_rules/test_closed.py::test_value[selu",
    "tests/ntk_rules/test_closed.py::test_value[shifted erf",
    "tests/ntk_rules/test_closed.py::test_value[shifted relu",
    "tests/ntk_rules/test_stability.py::test_float32_tails_of_elu",
    "tests/ntk_rules/test_stability.py::test_values_and_gradients_are_finite_everywhere[elu",
    "tests/ntk_rules/test_stability.py::test_values_and_gradients_are_finite_everywhere[hard tanh",
    "tests/passes/test_adjoint.py::test_tangent_is_adjoint[an output",
    "tests/passes/test_adjoint.py::test_tangent_is_adjoint[other widths",
    "tests/passes/test_adjoint.py::test_tangent_is_adjoint[residual",
    "tests/passes/test_adjoint.py::test_tangent_is_adjoint_for_random_programs",
    "tests/runtime/test_archive.py::test_convolution_of_structured_inputs",
    "tests/runtime/test_interpolated.py::test_agrees_with_the_layers[smooth",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of the slow files, before pytest selects by marker."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
