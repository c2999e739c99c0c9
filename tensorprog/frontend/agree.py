"""Bringing a hidden vector to the division of the weight's axis that it meets (`frontend.division`)."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

from tensorprog.frontend.build import Refusal, cut_at, map_positions
from tensorprog.frontend.division import Redo, common, division_of, finer_by, finer_origins
from tensorprog.frontend.values import Axis, Division, Key, Layout, Param, Var, unit_shape
from tensorprog.ir import position

__all__ = ["agreeing", "check_symmetry"]


def agreeing(param: Param, axis: int, x: Var, along: int) -> Var:
    """x, built along an axis as the parameter is along that of its own which it meets.

    Raises Redo where other parameters have to be divided for that, Refusal where they cannot be.
    """
    have, division = x.layout[along], param.division(axis)
    size, key = Fraction(param.size(axis)), (param.name, axis)
    if any(isinstance(f, int) for f in have):
        _note(param, axis, have)
    if division is None:
        if param.symmetric and len(x.blocks) > 1:
            raise Redo(_parts_of(param, x))
        return x
    want = param.laid(axis)
    if x.det:
        return _repeated(x, along, want)
    if division.parts:
        return _cut(param, axis, x, along)
    if len(x.blocks) > 1 and have == (size,):
        return _stacked(key, x, along, want)
    if have == want:
        return x
    own, other = division_of(have), division_of(want)
    made = common(own, other, size)
    if made is None:
        raise _orders(param.name)
    if made != other:
        raise Redo(finer={key: finer_by(made, other)})
    raise finer_origins([node for _, node in x.blocks], finer_by(made, own))


def _parts_of(param: Param, x: Var) -> dict[Key, Division]:
    """Both axes of a symmetric weight in the parts of a vector that it multiplies."""
    ends = tuple(itertools.accumulate(width for width, _ in x.blocks))[:-1]
    axes = [k for k, w in enumerate(param.widths) if w is not None]
    return {(param.name, k): Division(parts=tuple(param.region[k][0] + e for e in ends)) for k in axes}


def check_symmetry(param: Param) -> None:
    """Both width axes of a symmetric weight are divided alike. Raises Redo where they have to be divided first."""
    if not param.symmetric:
        return
    i, j = (k for k, w in enumerate(param.widths) if w is not None)
    found = []
    for axis in (i, j):
        made: Division | None = param.division(axis) or Division()
        for used in param.uses.get((param.name, axis), {}):
            made = common(made, division_of(used), Fraction(param.size(axis))) if made else None
        if made is None:
            raise _orders(param.name)
        found.append(made)
    both = common(found[0], found[1], Fraction(param.size(i)))
    if both is None:
        raise _orders(param.name)
    if (param.division(i) or Division(), param.division(j) or Division()) != (both, both):
        raise Redo({(param.name, i): both, (param.name, j): both})


def _orders(name: str) -> Refusal:
    return Refusal(
        f"the weight {name!r} multiplies vectors in which positions and coordinates were flattened in different orders, so that each of its "
        "entries meets unlike coordinates",
        "flatten all of them in one order, such as (positions, n) by transposing first, or use two independent weights",
    )


def _note(param: Param, axis: int, have: Axis) -> None:
    """Remember a flattened vector that meets an axis. Raises Refusal where another was flattened in another order."""
    size, whole = Fraction(param.size(axis)), param.widths[axis]
    assert whole is not None
    used = division_of(have)
    if size != whole and used.behind == 1:
        used = Division(int(used.before * whole / size))
    seen = param.uses.setdefault((param.name, axis), {})
    if any(common(used, division_of(other), whole) is None for other in seen):
        raise _orders(param.name)
    seen[used.axis(whole, whole)] = None


def _repeated(x: Var, along: int, want: Axis) -> Var:
    """What is the same for all coordinates, at the positions of a finer division."""
    have = x.layout[along]
    if have == want or not any(isinstance(f, int) for f in want):
        return x
    own, fine = division_of(have), division_of(want)
    by, (first, second) = finer_by(fine, own), (math.prod(x.shape[:along]), math.prod(x.shape[along + 1 :]))
    layout: Layout = (*x.layout[:along], want, *x.layout[along + 1 :])
    full = (first, own.before, by.before, by.behind, own.behind, second)
    thin = map_positions(x, position("reshape", to=(first, own.before, 1, 1, own.behind, second)), ((),) * 6)
    wide = map_positions(thin, position("broadcast", to=full, axes=tuple(range(6))), ((),) * 6)
    return map_positions(wide, position("reshape", to=unit_shape(layout)), layout)


def _cut(param: Param, axis: int, x: Var, along: int) -> Var:
    """x in the parts of the parameter's axis."""
    division, key, start = param.division(axis), (param.name, axis), param.region[axis][0]
    assert division is not None
    if len(x.layout[along]) > 1:
        raise Redo(wanted=_joined(key, division, division_of(x.layout[along]), param))
    ends = [stop - start for _, stop in param.pieces(axis)]
    at, own = Fraction(0), []
    for width, _ in x.blocks:
        at += width
        own.append(at)
    if not set(own) <= set(ends):
        raise Redo(wanted=_joined(key, division, Division(parts=tuple(start + e for e in own[:-1])), param))
    return cut_at(x, ends)


def _joined(key: Key, a: Division, b: Division, param: Param) -> dict[Key, Division]:
    whole = param.widths[key[1]]
    assert whole is not None
    made = common(a, b, whole)
    if made is None:
        raise _orders(param.name)
    return {key: made}


def _stacked(key: Key, x: Var, along: int, want: Axis) -> Var:
    """Vectors beside each other as positions."""
    from tensorprog.frontend.moves import stack_steps

    unit = next(f for f in want if isinstance(f, Fraction))
    if any(width != unit for width, _ in x.blocks):
        raise Refusal(
            f"the weight {key[0]!r} multiplies flattened positions one time, and vectors of other widths beside each other another time",
            "cut the weight's axis in one way everywhere, or use two weights",
        )
    layout = (*x.layout[:along], (unit,), *x.layout[along + 1 :])
    steps = [Var(((width, node),), layout, x.power) for width, node in x.blocks]
    stacked = stack_steps(steps, along)
    assert isinstance(stacked, Var)
    whole: Layout = (*x.layout[:along], want, *x.layout[along + 1 :])
    return map_positions(stacked, position("reshape", to=unit_shape(whole)), whole)
