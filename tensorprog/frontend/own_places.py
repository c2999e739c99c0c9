"""Tables that every hidden coordinate reads in a column of its own: table[place, jnp.arange(n)], as jnp.choose is written.

Such an index has a column with the number of the coordinate, 0, 1, .., n - 1, which is no variable of a program. Beside the hidden places it
stands for itself until the gather that reads it, which takes from each coordinate's own column, as jnp.take_along_axis does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import lax
from jax.extend import core as jex

from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import Known, OwnPlaces, Value, Var, aval, kind_of, width_axis
from tensorprog.frontend.written_out import gathered

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["places_of_their_own", "read_by_each"]


def places_of_their_own(eqn: Equation, values: Sequence[Value]) -> OwnPlaces | None:
    """Columns of indices that are joined, one of which has the number of each coordinate; None for anything else."""
    axis = len(eqn.out_shapes()[0]) - 1
    if (
        eqn.primitive != "concatenate"
        or eqn.params[0]["dimension"] != axis
        or kind_of(eqn.eqns[0].outvars[0]) not in "iu"
    ):
        return None
    if not any(isinstance(v, Var) and v.random for v in values) or any(
        aval(v).shape[axis] != 1 for v in eqn.eqns[0].invars
    ):
        return None
    along = [_numbered(v) for v in values]
    found = [k for k, a in enumerate(along) if a is not None]
    return OwnPlaces(tuple(values), found[0], along[found[0]]) if len(found) == 1 else None  # type: ignore[arg-type]


def _numbered(value: Value) -> int | None:
    """Along which axis a known array has the numbers 0, 1, .. of the width; None where it is none of that."""
    if not isinstance(value, Known):
        return None
    axes = [i for i, (a, b) in enumerate(zip(*value.shapes, strict=True)) if a != b]
    if len(axes) != 1:
        return None
    (axis,) = axes
    for array in value.values:
        shape = [-1 if i == axis else 1 for i in range(array.ndim)]
        if not np.array_equal(array, np.broadcast_to(np.arange(array.shape[axis]).reshape(shape), array.shape)):
            return None
    return axis


def read_by_each(
    eqn: Equation, values: Sequence[Value]
) -> tuple[tuple[jex.ClosedJaxpr, jex.ClosedJaxpr], list[Value]] | None:
    """The code for a gather by such indices, and its operands: the table, and the columns that are hidden places; None for anything else."""
    if eqn.primitive != "gather":
        return None
    table, places = values
    if not isinstance(places, OwnPlaces):
        return None
    numbers = eqn.params[0]["dimension_numbers"]
    dim = numbers.start_index_map[places.own]
    along = width_axis(table.layout) if isinstance(table, Var) else None
    if (
        along is None
        or along != dim
        or any(p["slice_sizes"][dim] != 1 for p in eqn.params)
        or numbers.operand_batching_dims
    ):
        raise Refusal(
            "it takes entries of a table at the numbers of the hidden coordinates",
            "let every coordinate take from its own column of a hidden table, jnp.take_along_axis(table, place[None], 0)[0]",
        )
    kept = [k for k in range(len(places.columns)) if k != places.own]
    new = _batched(numbers, dim, places.axis, kept)
    columns = [places.columns[k] for k in kept]
    made = []
    for one in eqn.eqns:
        x, index = map(aval, one.invars)
        column = jax.ShapeDtypeStruct((*index.shape[:-1], 1), index.dtype)
        code = gathered(along, x.shape, columns, {**one.params, "dimension_numbers": new})
        made.append(jax.make_jaxpr(code)(jax.ShapeDtypeStruct(x.shape, x.dtype), *[column] * len(kept)))
    return (made[0], made[1]), [table, *columns]


def _batched(numbers: Any, dim: int, axis: int, kept: Sequence[int]) -> lax.GatherDimensionNumbers:
    """The width of the table and of the places as one axis of both."""
    return numbers._replace(
        collapsed_slice_dims=tuple(d for d in numbers.collapsed_slice_dims if d != dim),
        start_index_map=tuple(numbers.start_index_map[k] for k in kept),
        operand_batching_dims=(dim,),
        start_indices_batching_dims=(axis,),
    )
