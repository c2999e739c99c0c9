"""Arrays of different ranks meet here, as NumPy's do, whatever a user's setting of `jax_numpy_rank_promotion` asks of the user's own code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

__all__ = ["any_ranks"]

F = TypeVar("F", bound=Callable[..., Any])


def any_ranks(function: F) -> F:
    """`function`, in which and in whose tracing arrays of different ranks may meet."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]
