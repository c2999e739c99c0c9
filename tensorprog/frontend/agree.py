"""Bringing a hidden vector to the division of the weight's axis that it meets (`frontend.division`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

from tensorprog.frontend.alignment import cut_at, unflattened
from tensorprog.frontend.division import MOST_CUT, Redo, borders, common, division_of, finer_by, finer_origins
from tensorprog.frontend.mapped import map_positions
from tensorprog.frontend.refusals import Refusal
from tensorprog.frontend.values import Axis, Division, Key, Layout, Param, Var, unit_shape
from tensorprog.ir import position

__all__ = ["Places", "agreeing", "alike", "among_zeros", "at_places", "check_symmetry", "in_whole", "places_of"]


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
    if division.parts:
        return _cut(param, axis, x, along)
    if x.det:
        return _repeated(x, along, want)
    if len(x.blocks) > 1 and have == (size,):
        return _stacked(param, axis, x, along)
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
    whole, found = param.widths[i], []
    assert whole is not None
    for axis in (i, j):
        made: Division | None = param.division(axis) or Division()
        for used in param.uses.get((param.name, axis), {}):
            made = common(made, division_of(used), whole) if made else None
        if made is None:
            raise _orders(param.name)
        found.append(made)
    both = common(found[0], found[1], whole)
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
    if (apart := unflattened(x, along)) is None:
        raise Redo(wanted=_joined(key, division, division_of(x.layout[along]), param))
    x = apart
    ends = [stop - start for _, stop in param.pieces(axis)]
    own = list(itertools.accumulate(width for width, _ in x.blocks)) if len(x.blocks) > 1 or x.random else ends[-1:]
    if not set(own) <= set(ends):
        raise Redo(wanted=_joined(key, division, Division(parts=tuple(start + e for e in own[:-1])), param))
    if x.random:
        return cut_at(x, ends)
    nodes = [next(node for end, (_, node) in zip(own, x.blocks, strict=True) if stop <= end) for stop in ends]
    widths = [stop - start for start, stop in param.pieces(axis)]
    return Var(tuple(zip(widths, nodes, strict=True)), x.layout, x.power)


def _joined(key: Key, a: Division, b: Division, param: Param) -> dict[Key, Division]:
    whole = param.widths[key[1]]
    assert whole is not None
    made = common(a, b, whole)
    if made is None:
        raise _orders(param.name)
    return {key: made}


def _stacked(param: Param, axis: int, x: Var, along: int) -> Var:
    """Vectors beside each other as positions, cut at every one of them."""
    from tensorprog.frontend.joining import stack_steps

    want, division, start = param.laid(axis), param.division(axis), param.region[axis][0]
    assert division is not None
    if division.behind > 1:  # vectors beside each other are positions before the coordinates
        raise _orders(param.name)
    unit = next(f for f in want if isinstance(f, Fraction))
    ends = list(itertools.accumulate(width for width, _ in x.blocks))
    if any((end / unit).denominator != 1 for end in ends):
        parts = Division(parts=tuple(start + end for end in ends[:-1]))
        raise Redo(wanted=_joined((param.name, axis), division, parts, param))
    x = cut_at(x, [unit * (k + 1) for k in range(int(ends[-1] / unit))])
    layout = (*x.layout[:along], (unit,), *x.layout[along + 1 :])
    steps = [Var(((width, node),), layout, x.power) for width, node in x.blocks]
    stacked = stack_steps(steps, along)
    assert isinstance(stacked, Var)
    whole: Layout = (*x.layout[:along], want, *x.layout[along + 1 :])
    return map_positions(stacked, position("reshape", to=unit_shape(whole)), whole)


# ------------------------------------------------------------------------------------------ parts of a weight


@dataclass(frozen=True)
class Places:
    """Which positions of a divided axis a part of a weight is: from start to stop, of so many."""

    start: int
    stop: int
    count: int


def places_of(param: Param, axis: int) -> Places | None:
    """Which positions of an axis are in use; None where all are, or there are none.

    Raises Redo where these are not whole positions, Refusal where they cannot be.
    """
    division, whole = param.division(axis), param.widths[axis]
    if (
        division is None
        or whole is None
        or division.before * division.behind == 1
        or param.region[axis] == (Fraction(0), whole)
    ):
        return None
    if division.before <= MOST_CUT and division.behind == 1:
        axes = [i for i, w in enumerate(param.widths) if w is not None] if param.symmetric else [axis]
        raise Redo(wanted={(param.name, i): Division(parts=borders(division, whole)) for i in axes})
    if division.behind > 1:
        raise Refusal(
            f"it multiplies by a part of the weight {param.name!r} whose positions are flattened behind the coordinates in another use",
            "flatten (positions, n), by transposing first, so that a part of the weight belongs to some of the positions",
        )
    start, stop = (end * division.before / whole for end in param.region[axis])
    if start.denominator != 1 or stop.denominator != 1:
        ends = tuple(end for end in param.region[axis] if 0 < end < whole)
        raise Redo(wanted=_joined((param.name, axis), division, Division(parts=ends), param))
    return Places(int(start), int(stop), division.before)


def in_whole(param: Param, axis: int) -> Param:
    """The parameter with the whole of an axis."""
    whole = param.widths[axis]
    assert whole is not None
    return replace(param, region=(*param.region[:axis], (Fraction(0), whole), *param.region[axis + 1 :]))


def among_zeros(x: Var, along: int, places: Places, axis: Axis) -> Var:
    """A vector at some positions of a divided axis, with zeros at the others: what a part of a weight multiplies is so multiplied
    by the whole weight."""
    config = tuple(
        (places.start, places.count - places.stop, 0) if i == along else (0, 0, 0) for i in range(len(x.shape))
    )
    layout = (*x.layout[:along], axis, *x.layout[along + 1 :])
    return map_positions(x, position("pad", config=config), layout)


def at_places(product: Var, along: int, places: Places, axis: Axis) -> Var:
    """Some positions of a product with the whole weight: the product with a part of it."""
    start = tuple(places.start if i == along else 0 for i in range(len(product.shape)))
    stop = tuple(places.stop if i == along else n for i, n in enumerate(product.shape))
    layout = (*product.layout[:along], axis, *product.layout[along + 1 :])
    return map_positions(product, position("slice", start=start, stop=stop, stride=(1,) * len(start)), layout)


def alike(param: Param, axes: tuple[int, int], ends: Iterable[Fraction]) -> dict[Key, Division]:
    """Both axes of a symmetric weight cut at the same places."""
    whole = param.widths[axes[0]]
    assert whole is not None
    parts = Division(parts=tuple(sorted({end for end in ends if 0 < end < whole})))
    made = _joined((param.name, axes[0]), param.division(axes[0]) or Division(), parts, param)
    return {(param.name, axis): next(iter(made.values())) for axis in axes}
