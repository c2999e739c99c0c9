"""Position maps in covariances: the map itself, applied over one side's axes.

Three ways, the first that fits: both sides are windows whose offsets are summed together (a convolution), so
covariances are summed along shifts; both carry the same selecting map along a diagonal, so it acts on the diagonal
itself; otherwise the map acts on one side and the diagonal, if asked for, is taken afterwards.
"""

from __future__ import annotations

from tensorprog.ir import Node, PositionMap
from tensorprog.ir.nodes import Const
from tensorprog.kernel.graph import Apply, Operand, Quantity, Shifts, Zero, is_zero
from tensorprog.kernel.questions import Answer, Mean, Second, Value, ask, contract, fresh, sizes_of

__all__ = ["copies", "map_mean", "map_second", "original"]


def map_second(q: Second, *, first: bool) -> Answer:
    """E[(L x) v], E[u (L y)] or E[(L x) (L y)]. first: open u's map before v's."""
    if isinstance(q.u, PositionMap) and isinstance(q.v, PositionMap) and _same_map(q.u, q.v, q.cross):
        if _convolves(q, q.u):
            return (yield from _shifted(q, q.u, q.v))
        if _along_diagonal(q.u, q.lu, q.lv):
            return (yield from _on_diagonal(q, q.u, q.v))
    return (yield from _one_side(q, first=first))


def _same_map(u: PositionMap, v: PositionMap, cross: bool) -> bool:
    same = u.op == v.op and u.args[1:] == v.args[1:] and u.args[0].type.shape == v.args[0].type.shape
    return same and (not cross or all(isinstance(a, Const) for a in u.args[1:]))


def _touched(u: PositionMap) -> list[int]:
    source = u.op.same_axis(u.args[0].type.shape)
    return [j for j, i in enumerate(source) if i is None and u.type.shape[j] > 1]


def _along_diagonal(u: PositionMap, lu: str, lv: str) -> bool:
    return u.op.selects and all(lu[j] == lv[j] for j in _touched(u))


def _inner_letters(u: PositionMap, letters: str, taken: str) -> str:
    """Letters for the axes of the map's argument: those it leaves alone keep theirs, the others get new ones."""
    shape = u.args[0].type.shape
    kept = {i: letters[j] for j, i in enumerate(u.op.same_axis(shape)) if i is not None}
    spare = fresh(taken)
    return "".join("1" if n == 1 else kept[i] if i in kept else next(spare) for i, n in enumerate(shape))


def _on_diagonal(q: Second, u: PositionMap, v: PositionMap) -> Answer:
    taken = q.lu + q.lv
    lx = _inner_letters(u, q.lu, taken)
    ly = _inner_letters(v, q.lv, taken)
    have = "".join(dict.fromkeys((lx + ly).replace("1", "")))
    inner = yield from ask(u.args[0], lx, v.args[0], ly, have, q.cross)
    return (yield from _applied(q, u, inner, have, lx, q.lu, 0))


def _one_side(q: Second, *, first: bool) -> Answer:
    node, letters, other, others = (q.u, q.lu, q.v, q.lv) if first else (q.v, q.lv, q.u, q.lu)
    assert isinstance(node, PositionMap)
    inner_letters = _inner_letters(node, letters, q.lu + q.lv)
    have = "".join(dict.fromkeys((inner_letters + others).replace("1", "")))
    sides = (node.args[0], inner_letters, other, others)
    inner = yield from ask(*(sides if first else (*sides[2:], *sides[:2])), have, q.cross)
    return (yield from _applied(q, node, inner, have, inner_letters, letters, 0 if first else 1))


def _applied(q: Second, u: PositionMap, inner: Quantity, have: str, lx: str, lu: str, side: int) -> Answer:
    """The map over the axes `lx` of an inner covariance with axes `have`; then what the question asks of the result."""
    sizes = sizes_of((q.lu, q.u.type.shape), (q.lv, q.v.type.shape))
    shape = tuple(sizes[c] for c in q.out)
    if is_zero(inner):
        return Zero(shape)
    aux = []
    for node in u.args[1:]:
        aux.append(Operand((yield Value(node)), side if q.cross else None))
    if _only_moves(u):
        return contract(f"{_moved(u, have, lx, lu)}->{q.out}", [Operand(inner)], shape, q.cross)
    places = tuple(None if c == "1" else have.index(c) for c in lx)
    rest = "".join(c for c in have if c not in lx)
    inner_sizes = sizes | sizes_of((lx, u.args[0].type.shape))
    made = "".join(c for c in lu if c != "1") + rest
    made_shape = tuple(n for n in u.type.shape if n > 1) + tuple(inner_sizes[c] for c in rest)
    mapped = Apply(u.op, (Operand(inner), *aux), places, made_shape, q.cross)
    return contract(f"{made}->{q.out}", [Operand(mapped)], shape, q.cross)


# What these do to axes of size one is nothing. (A product with a matrix may scale them, a gather or a window may miss them.)
_MOVES = ("reshape", "transpose", "broadcast", "slice", "rev", "sum", "cumsum")


def _only_moves(u: PositionMap) -> bool:
    """Does the map at most reorder axes, and add or drop axes of size one?"""
    if u.op.name not in _MOVES:
        return False
    inner = u.args[0].type.shape
    source = u.op.same_axis(inner)
    kept = [i for i, n in zip(source, u.type.shape, strict=True) if n > 1]
    return sorted(i for i in kept if i is not None) == [i for i, n in enumerate(inner) if n > 1] and None not in kept


def _moved(u: PositionMap, have: str, lx: str, lu: str) -> str:
    """The letters of `have` as the map names them."""
    source = u.op.same_axis(u.args[0].type.shape)
    names = {lx[i]: lu[j] for j, i in enumerate(source) if i is not None and lx[i] != "1"}
    return "".join(names.get(c, c) for c in have)


def _convolves(q: Second, u: PositionMap) -> bool:
    """Windows on both sides with offsets shared and summed; places all different, or the same along an axis."""
    if u.op.name != "patches":
        return False
    axes, n = u.op.kw["axes"], len(u.args[0].type.shape)
    offsets = range(n, n + len(axes))
    if any(u.args[0].type.shape[a] == 1 or "1" in (q.lu[a], q.lv[a]) for a in axes):
        return False  # a window over a single place, or a single window
    return all(q.lu[j] == "1" == q.lv[j] or (q.lu[j] == q.lv[j] and q.lu[j] not in q.out) for j in offsets) and all(
        q.lu[a] == q.lv[a] or (q.lu[a] not in q.lv and q.lv[a] not in q.lu) for a in axes
    )


def _shifted(q: Second, u: PositionMap, v: PositionMap) -> Answer:
    axes, n = u.op.kw["axes"], len(u.args[0].type.shape)
    lx, ly = q.lu[:n], q.lv[:n]
    have = "".join(dict.fromkeys((lx + ly).replace("1", "")))
    keep = "".join(c for c in have if c in q.out or c in [lx[a] for a in axes] + [ly[a] for a in axes])
    inner = yield from ask(u.args[0], lx, v.args[0], ly, keep, q.cross)
    sizes = sizes_of((q.lu, q.u.type.shape), (q.lv, q.v.type.shape))
    shape = tuple(sizes[c] for c in q.out)
    if is_zero(inner):
        return Zero(shape)
    places = tuple(tuple(keep.index(c) for c in dict.fromkeys(lx[a] + ly[a])) for a in axes)
    made = Shifts(u.op, (Operand(inner),), places, tuple(sizes[c] for c in keep), q.cross)
    return contract(f"{keep}->{q.out}", [Operand(made)], shape, q.cross)


def map_mean(u: PositionMap) -> Answer:
    """E[L x] = L E[x]."""
    mean = yield Mean(u.args[0])
    shape = tuple(n for n in u.type.shape if n > 1)
    if is_zero(mean):
        return Zero(shape)
    aux = []
    for node in u.args[1:]:
        aux.append(Operand((yield Value(node))))
    inner = u.args[0].type.shape
    count = 0
    places: list[int | None] = []
    for n in inner:
        places.append(None if n == 1 else count)
        count += n > 1
    return Apply(u.op, (Operand(mean), *aux), tuple(places), shape, False)


def original(x: Node, letters: str) -> tuple[Node, str]:
    """The variable that maps only repeat and reorder the entries of, and the letters of its axes.

    What a function reads is then one Gaussian for each of its own places, however often it stands in an array.
    """
    while isinstance(x, PositionMap) and copies(x):
        inner = x.args[0]
        names = {i: letters[j] for j, i in enumerate(x.op.same_axis(inner.type.shape)) if i is not None}
        x, letters = inner, "".join("1" if n == 1 else names[i] for i, n in enumerate(inner.type.shape))
    return x, letters


def copies(u: Node) -> bool:
    """Is it a map that only repeats and reorders the entries of its argument?"""
    return isinstance(u, PositionMap) and (_only_moves(u) or _repeats(u))


def _repeats(u: PositionMap) -> bool:
    """Does it copy its argument along new axes, and do no more?"""
    return u.op.name == "broadcast"
