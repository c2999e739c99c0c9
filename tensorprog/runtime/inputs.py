"""Checking what a kernel is called with, once, so that every later step can rely on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog.errors import InputError
from tensorprog.ir import Input

__all__ = ["check_hypers", "check_inputs", "is_traced", "real_number"]


def is_traced(tree: Any) -> bool:
    """Is any leaf inside jit, grad or vmap?"""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def real_number(value: Any) -> float | None:
    """One number; None for anything else, texts and truth values among it, which Python would read as numbers."""
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if isinstance(value, (bool, str, bytes, bytearray)) or kind in ("b", "S", "U") or np.shape(value) != ():
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def check_inputs(value: Any, argument: str, inputs: Sequence[Input], tree: Any) -> list[jax.Array]:
    """The leaves of a batch of inputs as JAX arrays of one floating dtype, each of shape (N, *example).

    Raises InputError for another structure, shape or dtype, differing batch sizes, and NaN or infinite entries.
    """
    leaves, found = jax.tree.flatten(value)
    if found != tree:
        shown = str(found) if len(str(found)) < 200 else f"{str(found)[:160]}.. of {len(leaves)} leaves"
        raise InputError(
            f"kernel: {argument} has the structure {shown}, expected {tree}, that of the example input the kernel was compiled with"
            + _as_array(value, leaves, argument, inputs, tree)
        )
    arrays = [_leaf(leaf, argument, spec) for leaf, spec in zip(leaves, inputs, strict=True)]
    counts = {a.shape[0] for a in arrays}
    if len(counts) > 1:
        raise InputError(
            f"kernel: the arrays of {argument} hold {sorted(counts)} examples, expected one number for all"
        )
    kinds = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    kind = jnp.result_type(*kinds) if kinds else jnp.result_type(float)
    return [a.astype(kind) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in arrays]


def _as_array(value: Any, leaves: Sequence[Any], argument: str, inputs: Sequence[Input], tree: Any) -> str:
    """The mend for a list or tuple of numbers, or of whole examples, in the place of one array."""
    if not isinstance(value, (list, tuple)):
        return ""
    kind, ranks = type(value).__name__, {np.ndim(leaf) for leaf in leaves}
    if ranks == {0}:
        return f"\n  to mend: a {kind} of numbers is no array here, give np.asarray({argument})"
    if jax.tree_util.treedef_is_leaf(tree) and ranks == {len(inputs[0].shape)}:
        return f"\n  to mend: a {kind} of examples is no array here, give np.stack({argument})"
    return ""


def _leaf(leaf: Any, argument: str, spec: Input) -> jax.Array:
    what = argument if spec.name == "x" else f"{argument} ({spec.name})"
    if np.ma.is_masked(leaf):
        raise InputError(
            f"kernel: {what} is a masked array with {np.ma.count_masked(leaf)} masked entries, expected finite numbers\n"
            "  to mend: remove or impute such rows before computing the kernel"
        )
    try:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    except (TypeError, ValueError) as error:
        raise InputError(f"kernel: {what} is a {type(leaf).__name__}, expected an array of numbers ({error})") from None
    real = spec.dtype == "float64"
    if jnp.issubdtype(array.dtype, jax.dtypes.extended):  # random keys, of which NumPy knows no dtype
        raise InputError(f"kernel: {what} has dtype {array.dtype}, expected {'real numbers' if real else spec.dtype}")
    kind = np.dtype(array.dtype)
    numeric = kind.kind in "fiub" or jnp.issubdtype(array.dtype, jnp.floating)
    if not numeric or (not real and kind.kind == "f"):
        expected = "real numbers" if real else f"{spec.dtype}, as in the example input"
        raise InputError(f"kernel: {what} has dtype {kind}, expected {expected}")
    if array.ndim != len(spec.shape) + 1 or tuple(array.shape[1:]) != spec.shape:
        shown = ", ".join(["N", *map(str, spec.shape)]) + ("," if not spec.shape else "")
        raise InputError(
            f"kernel: {what} has shape {tuple(array.shape)}, expected ({shown}): a batch of examples of shape {spec.shape}"
            + (f"\n  to mend: add the batch axis, {argument}[None]" if tuple(array.shape) == spec.shape else "")
        )
    with np.errstate(over="ignore"):  # what float32 does not hold is named below
        array = jnp.asarray(array)
    if real and not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(float)
    if jnp.issubdtype(array.dtype, jnp.floating) and not is_traced(array) and array.size and not _finite(array):
        bad = tuple(int(i) for i in np.argwhere(~np.isfinite(np.asarray(array)))[0])
        if np.isfinite(given := np.asarray(leaf)[bad]):
            raise InputError(
                f"kernel: {what} has {given} at {bad}, more than {array.dtype} holds\n"
                "  to mend: compute in float64, with jax.config.update('jax_enable_x64', True), or scale the inputs"
            )
        raise InputError(
            f"kernel: {what} has {array[bad]} at {bad}, expected finite numbers\n"
            "  to mend: remove or impute such rows before computing the kernel"
        )
    return array


def _finite(array: jax.Array) -> bool:
    """Are all entries finite? On the host NumPy looks, for which nothing is compiled."""
    on_host = all(device.platform == "cpu" for device in array.devices())
    return bool(np.isfinite(np.asarray(array)).all() if on_host else jnp.isfinite(array).all())


def check_hypers(
    given: Mapping[str, Any], defaults: Mapping[str, float], nonnegative: frozenset[str], dtype: Any
) -> dict[str, jax.Array]:
    """Hyperparameters with defaults filled in."""
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        names = ", ".join(sorted(defaults)) or "none"
        raise InputError(
            f"kernel: unknown argument {unknown[0]!r}; this kernel's hyperparameters are: {names}\n"
            "  to mend: name a number in the network with tp.hyper(name, default) to make it an argument"
        )
    values = {}
    for name, default in defaults.items():
        value = given.get(name, default)
        if np.shape(value) != ():
            raise InputError(f"kernel: hyperparameter {name!r} has shape {np.shape(value)}, expected one number")
        if not is_traced(value):
            wanted = "a finite number >= 0 (it is a variance)" if name in nonnegative else "a finite number"
            number = real_number(value)
            if number is None or not math.isfinite(number) or (name in nonnegative and number < 0):
                shown = repr(value) if number is None else number
                raise InputError(f"kernel: hyperparameter {name!r} is {shown}, expected {wanted}")
        values[name] = jnp.asarray(value, dtype)
    return values
