"""How many elementwise operations a traced function has: what a choice between two ways of computing goes by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

__all__ = ["operations"]

_WHILE = 16  # rounds of a loop whose number of rounds is not known


def operations(jaxpr: Any) -> float:
    """Operations, entries counted; the bodies of loops as often as they run."""
    return sum(_times(eqn) * sum(map(operations, _inner(eqn))) or _entries(eqn) for eqn in jaxpr.eqns)


def _entries(eqn: Any) -> float:
    return sum(math.prod(v.aval.shape) for v in eqn.outvars)


def _times(eqn: Any) -> float:
    match eqn.primitive.name:
        case "scan":
            return eqn.params["length"]
        case "while":
            return _WHILE
    return 1


def _inner(eqn: Any) -> Iterator[Any]:
    for value in eqn.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(one, "jaxpr"):
                yield one.jaxpr
            elif hasattr(one, "eqns"):
                yield one
