"""Functions of one Gaussian with rounding in them, cut into cells on which they are smooth.

`pieces.py` cuts the whole line at finitely many kinks. Rounding jumps at infinitely many, so that the line is cut up to `window` to either
side, as far as no more than `MOST` cells come of it: the places of an affine argument are known, those of others are found (`switches.py`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import sympy as sp

from ntk_rules.functions import Opaque, Rounding
from ntk_rules.intervals import bounds
from ntk_rules.pieces import KINKED, branches
from ntk_rules.switches import NotCuttable, sign_changes

__all__ = ["Cells", "cells_of"]

MOST = 512  # cells
WINDOW, LEAST_WINDOW = 100.0, 9.5  # the first is enough for a variance of 110, the second for 1
_INSIDE = 0.4871  # where in a cell functions are looked at


class _TooMany(Exception):
    """More cells than `MOST`."""


@dataclass(frozen=True)
class Cells:
    """`exprs[k]` between `places[k - 1]` and `places[k]`; beyond `window` to either side there may be more places."""

    places: tuple[float, ...]
    exprs: tuple[sp.Expr, ...]
    window: float


@functools.lru_cache(maxsize=1024)
def cells_of(expr: sp.Expr, z: sp.Symbol) -> Cells:
    """The cells of a function of `z` alone, or NotCuttable.

    >>> z = sp.Symbol("z", real=True)
    >>> from ntk_rules.functions import floor
    >>> cells = cells_of(sp.Max(floor(z), 0), z)
    >>> cells.places[:3], cells.exprs[:3], cells.window
    ((1.0, 2.0, 3.0), (0, 1, 2), 100.0)
    """
    if expr.free_symbols != {z}:
        raise NotCuttable(f"jumps of {expr} move with {sorted(map(str, expr.free_symbols - {z}))}")
    if expr.has(sp.atan2):
        raise NotCuttable(f"an angle in {expr} jumps along a half line")
    if expr.has(Opaque, sp.DiracDelta):
        raise NotCuttable(f"nothing symbolic is known of a function in {expr}")
    window = WINDOW
    while window >= LEAST_WINDOW:
        work = _Work(z, window)
        try:
            found = _merged(work.cut(expr, -math.inf, math.inf))
        except _TooMany:
            window /= 2
            continue
        return Cells(tuple(low for low, _ in found[1:]), tuple(e for _, e in found), work.window)
    raise NotCuttable(f"{expr} jumps at more than {MOST} places between {-LEAST_WINDOW:g} and {LEAST_WINDOW:g}")


Cell = tuple[float, sp.Expr]


def _merged(cells: list[Cell]) -> list[Cell]:
    out = cells[:1]
    for low, expr in cells[1:]:
        if expr != out[-1][1]:
            out.append((low, expr))
    return out


class _Work:
    """Cuts one function. window: infinite as long as all places have been found."""

    def __init__(self, z: sp.Symbol, reach: float):
        self.z, self.reach, self.window, self.count = z, reach, math.inf, 0

    def cut(self, expr: sp.Expr, low: float, high: float) -> list[Cell]:
        """The cells between two places: where each begins, and the smooth function there."""
        node = self._innermost(expr)
        if node is None:
            self.count += 1
            if self.count > 2 * MOST:
                raise _TooMany
            return [(low, expr)]
        places, values = self._kinks(node, low, high)
        out: list[Cell] = []
        for left, right in itertools.pairwise((low, *places, high)):
            out += self.cut(expr.xreplace({node: values(_inside(left, right))}), left, right)
        return out

    def _innermost(self, expr: sp.Expr) -> sp.Expr | None:
        for node in sp.postorder_traversal(expr):
            if isinstance(node, (*KINKED, Rounding)) and node.has(self.z):
                return node
        return None

    def _kinks(self, node: sp.Expr, low: float, high: float) -> tuple[list[float], Callable[[float], sp.Expr]]:
        """Where between two places a function has kinks, and what it is on the cell around a point."""
        if isinstance(node, Rounding):
            inner = node.args[0]
            at = _numeric(inner, self.z)
            return self._jumps(node, low, high), lambda x: sp.Integer(node.whole(at(x)))
        switch, above, below = branches(node)
        changes, positive = sign_changes(switch, self.z)
        places = sorted(float(p) for p in changes)

        def value(x: float) -> sp.Expr:
            return above if positive == (sum(p < x for p in places) % 2 == 0) else below

        return [p for p in places if low < p < high], value

    def _jumps(self, node: Rounding, low: float, high: float) -> list[float]:
        """Where its argument is a whole number plus the offset."""
        inner, offset = node.args[0], node.offset
        slope = sp.diff(inner, self.z)
        if slope == 0:
            return []
        if slope.is_number:
            ends = max(low, -self.reach), min(high, self.reach)
            self._bounded(low, high)
            if ends[0] >= ends[1]:
                return []
            start = inner.xreplace({self.z: sp.S.Zero}) - offset
            first, last = sorted(float(start + slope * sp.Float(e, 30)) for e in ends)
            solve = lambda k: float((k - start) / slope)
        else:
            first, last = bounds(inner - offset, self.z, (low, high))
            if not math.isfinite(last - first):
                low, high = max(low, -self.reach), min(high, self.reach)
                self._bounded(-math.inf, math.inf)
                if low >= high:
                    return []
                first, last = bounds(inner - offset, self.z, (low, high))
                if not math.isfinite(last - first):
                    raise NotCuttable(f"no bounds are known of {inner}, which is rounded")
            solve = None
        if last - first > MOST:
            raise _TooMany
        wholes = range(math.ceil(first), math.floor(last) + 1)
        if solve is not None:
            found = [solve(k) for k in wholes]
        else:
            found = [float(p) for k in wholes for p in sign_changes(inner - offset - k, self.z)[0]]
        return sorted({p for p in found if low < p < high})

    def _bounded(self, low: float, high: float) -> None:
        """Places beyond the reach are not looked for."""
        if low < -self.reach or high > self.reach:
            self.window = self.reach


def _inside(low: float, high: float) -> float:
    if math.isinf(low):
        return high - 1.0 if math.isfinite(high) else 0.0
    return low + 1.0 if math.isinf(high) else low + _INSIDE * (high - low)


@functools.lru_cache(maxsize=4096)
def _numeric(expr: sp.Expr, z: sp.Symbol) -> Callable[[float], sp.Expr]:
    return lambda x: expr.xreplace({z: sp.Float(x, 30)}).evalf(30)
