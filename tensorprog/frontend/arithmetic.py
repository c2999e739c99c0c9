"""Arithmetic on parameters: what is still a parameter, scaled or symmetrised, after an elementwise primitive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tensorprog.frontend.build import constant, exact, nonlin, to_var
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import Known, Param, Squares, Value, Var, kind_of
from tensorprog.ir import Phi, position
from tensorprog.ir.phi import parameter

if TYPE_CHECKING:
    from tensorprog.frontend.walk import Equation

__all__ = ["param_arithmetic", "reciprocal", "squares", "symmetrised"]


def squares(eqn: Equation, values: Sequence[Value]) -> Squares | None:
    """A matrix times itself, entry by entry."""
    first, last = values[0], values[-1]
    if not (isinstance(first, Param) and first is last and sum(w is not None for w in first.widths) == 2):
        return None
    squares = eqn.primitive == "square" or (eqn.primitive == "integer_pow" and eqn.params[0]["y"] == 2)
    return Squares(first) if squares or (eqn.primitive == "mul" and len(values) == 2) else None


def param_arithmetic(eqn: Equation, values: Sequence[Value]) -> Param | None:
    """A matrix scaled by a number stays a parameter."""
    name = eqn.primitive
    params = [v for v in values if isinstance(v, Param) and sum(w is not None for w in v.widths) <= 2]
    if len(params) != 1:
        return None
    param = params[0]
    if name == "convert_element_type":
        return param if kind_of(eqn.eqns[0].outvars[0]) == "f" else None
    if name == "neg":
        return _scale_param(param, constant(np.float64(-1.0), ()))
    others = [v for v in values if v is not param]
    if (
        name in ("mul", "div")
        and len(others) == 1
        and _is_number(others[0])
        and not (name == "div" and values[1] is param)
    ):
        factor = to_var(others[0])
        return _scale_param(param, reciprocal(factor) if name == "div" else factor)
    return None


def symmetrised(name: str, values: Sequence[Value]) -> Param | None:
    """A square matrix plus its transpose: a symmetric matrix, whose entries off the diagonal have twice the variance."""
    if name not in ("add", "add_any"):
        return None
    first, second = values
    if not (isinstance(first, Param) and isinstance(second, Param)) or first.symmetric or first.mean:
        return None
    places = [i for i, a in enumerate(first.axes) if a is not None and first.widths[a] is not None]
    if len(places) != 2 or any(getattr(first, part) != getattr(second, part) for part in _SAME):
        return None
    i, j = places
    swapped = list(first.axes)
    swapped[i], swapped[j] = swapped[j], swapped[i]
    a, b = swapped[j], swapped[i]
    if tuple(swapped) != second.axes or a is None or b is None or first.region[a] != first.region[b]:
        return None
    root = math.sqrt(2.0)
    return replace(first.times(root), symmetric=True)


_SAME = ("name", "std", "tangent_std", "stopped", "widths", "region", "power", "scale", "symmetric")


def _is_number(value: Value) -> bool:
    if isinstance(value, Known):
        return all(v.size == 1 or (v.size > 0 and np.all(v == v.ravel()[0])) for v in value.values)
    return isinstance(value, Var) and value.det and math.prod(value.shape) == 1


def _scale_param(param: Param, factor: Var) -> Param:
    if math.prod(factor.shape) == 1 and factor.layout:
        factor = map_positions(factor, position("reshape", to=()), ())
    if param.scale is None:
        return replace(param, scale=factor)
    product = nonlin(
        Phi(parameter(0) * parameter(1), 0, 2), [], [param.scale, factor], param.scale.power + factor.power
    )
    a, b = exact(param.scale), exact(factor)
    if a is not None and b is not None:
        product = constant(np.float64(a) * np.float64(b), (), param.scale.power + factor.power)
    return replace(param, scale=product)


def reciprocal(var: Var) -> Var:
    """One over a deterministic value."""
    number = exact(var)
    if number is not None:
        if number == 0:
            raise Refusal("it divides by zero", "divide by a number that is not zero")
        return constant(np.float64(1.0) / np.float64(var.node.value.array().ravel()[0]), (), -var.power)  # type: ignore[attr-defined]
    return nonlin(Phi(1 / parameter(0), 0, 1), [], [var], -var.power)
