"""Arrays as rows, one for each position along an axis: what functions of positions are written out in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from tensorprog.frontend.refusals import Refusal

__all__ = ["Along", "Code", "apart", "rows_of"]

Code = Callable[..., Any]
Along = Sequence[int | None]  # the width axis of each operand


def apart(along: Along, axes: Sequence[int], what: str) -> None:
    """Refuse what goes along the width."""
    if any(axis in axes for axis in along):
        raise Refusal(
            f"{what} over the width, whose coordinates the theorem treats one by one",
            "let it go over positions, heads or classes, not over hidden coordinates",
        )


def rows_of(x: jax.Array, axis: int) -> list[jax.Array]:
    """What stands at each place along an axis."""
    return [lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]
