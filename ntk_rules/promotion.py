"""Arrays of different ranks meet here, as NumPy's do, whatever a user's setting of `jax_numpy_rank_promotion` asks of the user's own code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

__all__ = ["any_ranks"]

P = ParamSpec("P")
T = TypeVar("T")


def any_ranks(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, in which and in whose tracing arrays of different ranks may meet."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return call
