"""A picture of a program: its graph from the inputs at the top to the output at the bottom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorprog.errors import InputError
from tensorprog.ir.nodes import Const, LinComb, MatMul, Moment, Node, Nonlin, PositionMap, Weight, operands

if TYPE_CHECKING:
    from tensorprog.ir.program import Program

__all__ = ["draw_program"]

_COLOURS = {"Weight": "#f0c987", "MatMul": "#8fb8de", "Nonlin": "#9ccfa8", "Moment": "#d9a5c7", "LinComb": "#d6dbe0"}


def draw_program(program: Program, path: str | Path) -> None:
    """Draw a program to a picture file of any kind matplotlib writes (png, svg, pdf).

    Raises InputError when matplotlib, the extra `plot`, is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing a program needs matplotlib: pip install 'tensorprog[plot]'") from None
    shown = [node for node in program.nodes if not isinstance(node, Const)]
    places = _places(shown)
    rows, columns = 1 + max(r for _, r in places.values()), 1 + max(c for c, _ in places.values())
    figure = Figure(figsize=(max(4.0, 2.2 * columns), max(3.0, 0.62 * rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(-0.6, columns - 0.4)
    axes.set_ylim(rows - 0.4, -0.6)
    for node in shown:
        for operand in dict.fromkeys(operands(node)):
            if operand in places:
                _arrow(axes, places[operand], places[node])
    for node in shown:
        kind = type(node).__name__
        column, row = places[node]
        box = {"boxstyle": "round,pad=0.3", "facecolor": _COLOURS.get(kind, "#ffffff"), "edgecolor": "#445566"}
        axes.text(column, row, _caption(node, program), ha="center", va="center", fontsize=8, bbox=box, zorder=3)
    figure.savefig(path, dpi=130)


def _places(nodes: list[Node]) -> dict[Node, tuple[float, int]]:
    """A row for each instruction, after its operands; the main line on the left, weights and scalars to its right."""
    depth: dict[Node, int] = {}
    for node in nodes:
        depth[node] = 1 + max((depth[o] for o in operands(node) if o in depth), default=-1)
    for node in reversed(nodes):  # a weight stands just above its first use
        users = [depth[u] for u in nodes if node in operands(u)]
        if isinstance(node, Weight) and users:
            depth[node] = min(users) - 1
    taken: dict[int, int] = {}
    places = {}
    for node in sorted(nodes, key=lambda n: (isinstance(n, Weight), n.type.kind == "scalar")):
        row = depth[node]
        places[node] = (float(taken.get(row, 0)), row)
        taken[row] = taken.get(row, 0) + 1
    return places


def _arrow(axes: Any, start: tuple[float, int], stop: tuple[float, int]) -> None:
    straight = start[0] == stop[0] and stop[1] - start[1] > 1
    style = {"arrowstyle": "-|>", "color": "#778899", "shrinkA": 9, "shrinkB": 9}
    style["connectionstyle"] = "arc3,rad=0.35" if straight else "arc3,rad=0.0"
    axes.annotate("", xy=stop, xytext=start, arrowprops=style, zorder=1)


def _caption(node: Node, program: Program) -> str:
    name = program.names[node]
    match node:
        case Weight():
            return f"{node.label} {node.dims}"
        case Nonlin(phi=phi) | Moment(phi=phi):
            written = str(phi)
            what = written if len(written) < 28 else written[:26] + ".."
            return f"{name} {node.type} = {'mean ' if isinstance(node, Moment) else ''}{what}"
        case PositionMap(op=op):
            return f"{name} {node.type} = {op.name}"
        case LinComb() | MatMul():
            return f"{name} {node.type} = {type(node).__name__}"
    return f"{name} {node.type} {getattr(node, 'name', '')}".rstrip()
