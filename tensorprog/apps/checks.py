"""What several functions ask of their arguments, with the errors that say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import InputError, UnsupportedError, explain

__all__ = ["check_key", "check_params", "check_slopes", "check_whole", "output_of"]


def check_whole(value: Any, what: str, least: int, reason: str = "") -> int:
    """A whole number, at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{what} is {value!r}, expected a whole number >= {least}{reason}")
    return int(value)


def check_slopes(kernel: Any, slopes: Any, what: str) -> None:
    """Derivatives of values that are finite."""
    if getattr(kernel, "sampled", False) and np.isnan(np.asarray(slopes)).any():
        raise UnsupportedError(
            explain(
                f"{what}: the kernel has no derivative in its hyperparameters",
                reason="expectations of functions that jump, as the slope of relu in a tangent kernel, are sampled in it, and no slope "
                "of a sample shows how the mean of a jump moves",
                mend="take differences of values (an optimiser without gradients), the NNGP kernel, or a smooth nonlinearity",
            )
        )  # fmt: skip


def check_key(key: Any, what: str) -> Any:
    """A JAX random key."""
    try:
        jax.eval_shape(jax.random.bits, key)
    except (TypeError, ValueError):
        raise InputError(
            f"{what} is a {type(key).__name__}, expected one JAX random key, as jax.random.key(0)"
        ) from None
    return key


def check_params(params: Any, what: str) -> Any:
    """A pytree of arrays of real numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path) or "itself"
        dtype = getattr(leaf, "dtype", None) if hasattr(leaf, "shape") else np.asarray(leaf).dtype
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(
                f"{what} holds {'an array of dtype ' + str(dtype) if dtype is not None else type(leaf).__name__} at {name}, expected "
                "arrays of real numbers\n  to mend: keep what is not trained out of params, in the function f itself"
            )
    return params


def output_of(f: Callable[[Any, Any], Any], params: Any, x: Any, what: str) -> Any:
    """The shape and dtype of f(params, x) for one example x: one array of real numbers, of which there are some."""
    try:
        found = jax.eval_shape(f, params, x)
    except Exception as error:
        shapes = jax.tree.map(np.shape, x)
        raise InputError(
            f"{what}: f(params, x) fails for one example of shape {shapes}: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    if not hasattr(found, "shape"):
        raise InputError(f"{what}: f(params, x) returns a {type(found).__name__}, expected one array")
    if not jnp.issubdtype(found.dtype, jnp.floating) or 0 in found.shape:
        raise InputError(
            f"{what}: f(params, x) returns an array of shape {found.shape} and dtype {found.dtype}, expected real numbers"
        )
    return found
