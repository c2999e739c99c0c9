"""Arrays beside each other, along positions or along the width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import sympy

from tensorprog.frontend.alignment import unflattened
from tensorprog.frontend.build import lincomb, nonlin, to_var
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import Known, Value, Var
from tensorprog.ir import Phi, position
from tensorprog.ir.phi import vector

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["beside", "concatenate", "join", "side_by_side", "stack", "stack_steps"]

_REAL = np.dtype(float)


def stack(eqn: Equation, *values: Value) -> Value:
    """Values along a new axis."""
    return stack_steps(values, eqn.params[0]["axis"], eqn.out_dtype)


def stack_steps(steps: Sequence[Value], axis: int = 0, dtype: np.dtype = _REAL) -> Value:
    """Values along a new axis. dtype: what they hold."""
    if all(isinstance(s, Known) for s in steps):
        return Known(tuple(np.stack([s.values[i] for s in steps], axis) for i in (0, 1)))  # type: ignore[union-attr, arg-type]
    variables = []
    for step in map(to_var, steps):
        layout = (*step.layout[:axis], (), *step.layout[axis:])
        shape = (*step.shape[:axis], 1, *step.shape[axis:])
        variables.append(map_positions(step, position("reshape", to=shape), layout))
    return _with_truths(variables, lambda numbers: join(numbers, axis), dtype)


def concatenate(eqn: Equation, *values: Value) -> Value:
    """One after the other, along positions or along the width."""
    axis = eqn.params[0]["dimension"]
    values = tuple(v for v in values if not (isinstance(v, Known) and not v.values[0].size)) or values[:1]
    variables = [to_var(v) for v in values]
    if any(isinstance(f, Fraction) for v in variables for f in v.layout[axis]):
        return beside(variables, axis)
    return _with_truths(variables, lambda numbers: join(numbers, axis), eqn.out_dtype)


def join(variables: Sequence[Var], axis: int) -> Var:
    """Concatenate along a finite axis: a sum of zero-padded parts."""
    total = sum(v.shape[axis] for v in variables)
    terms, at = [], 0
    for var in variables:
        size = var.shape[axis]
        config = tuple((at, total - at - size, 0) if i == axis else (0, 0, 0) for i in range(len(var.shape)))
        layout = tuple((() if total == 1 else (total,)) if i == axis else a for i, a in enumerate(var.layout))
        wide = next((v.layout for v in variables if v.random), var.layout)
        layout = tuple(a if i == axis or var.random else wide[i] for i, a in enumerate(layout))
        terms.append((1.0, map_positions(var, position("pad", config=config), layout)))
        at += size
    return lincomb(terms)


def _with_truths(variables: Sequence[Var], joined: Callable[[Sequence[Var]], Var], dtype: np.dtype) -> Var:
    """What is joined by adding up: of hidden truth values as numbers, which are truth values again."""
    if dtype.kind != "b" or not any(v.random for v in variables):
        return joined(variables)
    number = sympy.Piecewise((1, vector(0)), (0, True))
    made = joined([nonlin(Phi(number, 1), [v], []) if v.random else v for v in variables])
    return nonlin(Phi(sympy.Ne(vector(0), 0), 1), [made], [])


def beside(variables: Sequence[Var], axis: int) -> Var:
    """Hidden vectors one after the other along the width."""
    if any(v.det for v in variables):
        raise Refusal(
            "it concatenates hidden vectors with deterministic values along the width",
            "concatenate hidden vectors with hidden vectors; pass finite inputs through a layer first",
        )
    variables = [side_by_side(v, axis, "it concatenates along the width") for v in variables]
    if len({v.power for v in variables}) > 1:
        raise Refusal("it concatenates vectors that scale with different powers of the width")
    total = sum((v.layout[axis][0] for v in variables), Fraction(0))
    layout = tuple((total,) if i == axis else a for i, a in enumerate(variables[0].layout))
    return Var(tuple(b for v in variables for b in v.blocks), layout, variables[0].power)


def side_by_side(var: Var, axis: int, what: str) -> Var:
    """Positions that are flattened into the width as vectors beside each other."""
    made = unflattened(var, axis)
    if made is None:
        raise Refusal(
            f"{what} where positions are flattened into it behind the coordinates",
            "flatten (positions, n), by transposing first",
        )
    return made
