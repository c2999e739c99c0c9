"""Functions of JAX that call what they are given more than once, in what is one call to their user.

A layer that is called twice is two layers, with weights of their own (`tensorprog.frontend.recording`). Inside of these functions nobody
means that.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any

import jax
from jax import lax

from tensorprog.errors import NetworkError, explain

__all__ = ["check_callers"]


def check_callers(name: str, outermost: CodeType) -> None:
    """Raises NetworkError where the parameter called `name` is asked for inside of one of them. outermost: what calls the network."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not outermost:
        found = _CALLERS.get(frame.f_code)
        if found is not None and (reason := found(frame.f_locals)) is not None:
            called, why, mend = reason
            raise NetworkError(
                explain(
                    f"{name!r} is asked for in a function that {called} calls more than once",
                    reason=f"a layer that is called twice is two layers, each with its own weights, and {why}",
                    mend=f"{mend}, or make the weights before it, with nn.weight, and use them inside",
                )
            )
        frame = frame.f_back


Reason = tuple[str, str, str]


def _map(given: Mapping[str, Any]) -> Reason | None:
    size = given.get("batch_size")
    lengths = {len(leaf) for leaf in jax.tree.leaves(given.get("xs"))}
    if not size or all(n % size == 0 for n in lengths):
        return None
    n = lengths.pop()
    what = f"jax.lax.map with batch_size={size}, of {n}"
    return (
        what,
        f"the last {n % size}, no whole batch, are a call of their own",
        f"choose a batch_size that divides {n}",
    )


def _associative_scan(given: Mapping[str, Any]) -> Reason | None:
    return (
        "jax.lax.associative_scan",
        "it calls it for every level of a tree",
        "write the recurrence with jax.lax.scan",
    )


def _code(function: Callable[..., Any]) -> CodeType | None:
    return getattr(inspect.unwrap(function), "__code__", None)


_CALLERS = {_code(lax.map): _map, _code(lax.associative_scan): _associative_scan}
