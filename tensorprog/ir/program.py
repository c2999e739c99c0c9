"""A tensor program: its output variable and everything that makes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tensorprog.ir.nodes import Hyper, Input, Node, Source, Weight, operands, topological

if TYPE_CHECKING:
    import networkx

__all__ = ["Program"]


@dataclass(frozen=True, eq=False)
class Program:
    """A straight-line program over hash-consed instructions, with one output.

    inputs: every leaf of the example input in order, used or not.
    output: the variable whose covariance is the kernel.
    mirrored: axes of the output along which its entries are independent copies (the features of a readout).
    """

    inputs: tuple[Input, ...]
    output: Node
    mirrored: tuple[int, ...] = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Program):
            return NotImplemented
        return (self.inputs, self.output, self.mirrored) == (other.inputs, other.output, other.mirrored)

    def __hash__(self) -> int:
        return hash((self.inputs, self.output, self.mirrored))

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All instructions, operands before their users."""
        order: dict[Node, None] = dict.fromkeys(self.inputs)
        order.update(dict.fromkeys(topological([self.output])))
        return tuple(order)

    @cached_property
    def names(self) -> dict[Node, str]:
        """What each instruction is called in the text form: x inputs, c constants, W weights, v vectors, s scalars."""
        from tensorprog.ir.text import name_nodes

        return name_nodes(self)

    @property
    def weights(self) -> tuple[Weight, ...]:
        return tuple(node for node in self.nodes if isinstance(node, Weight))

    @property
    def hypers(self) -> dict[str, float]:
        """The named arguments of the kernel and their defaults."""
        return {node.name: node.default for node in self.nodes if isinstance(node, Hyper)}

    @property
    def nonnegative(self) -> frozenset[str]:
        """The named arguments that are variances."""
        return frozenset(node.name for node in self.nodes if isinstance(node, Hyper) and node.nonnegative)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process the text goes, whose instructions are there the same objects as equal ones, and where they came from."""
        from tensorprog.ir.text import print_program

        return _read_again, (print_program(self, comments=False), [node.source for node in self.nodes])

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __str__(self) -> str:
        from tensorprog.ir.text import print_program

        return print_program(self)

    def __repr__(self) -> str:
        return f"<Program of {len(self)} instructions, output {self.output.type}>"

    def mermaid(self) -> str:
        """The graph as a Mermaid flowchart, which Jupyter and Git hosts draw in Markdown."""
        lines = ["flowchart TD"]
        for node in self.nodes:
            lines.append(f'  {self.names[node]}["{self.names[node]} = {type(node).__name__} {node.type}"]')
        lines += [f"  {self.names[o]} --> {self.names[n]}" for n in self.nodes for o in dict.fromkeys(operands(n))]
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        """For Jupyter: the text form, and the graph."""
        return f"```\n{self}\n```\n\n```mermaid\n{self.mermaid()}\n```"

    def graph(self) -> networkx.DiGraph:
        """The program as a directed graph: one vertex per instruction, an edge from each operand to its user."""
        import networkx

        graph = networkx.DiGraph()
        for node in self.nodes:
            graph.add_node(self.names[node], instruction=type(node).__name__, type=str(node.type), node=node)
        for node in self.nodes:
            for operand in operands(node):
                graph.add_edge(self.names[operand], self.names[node])
        return graph

    def draw(self, path: str) -> None:
        """Draw the graph to a picture file (needs the extra `plot`)."""
        from tensorprog.ir.picture import draw_program

        draw_program(self, path)


def _read_again(text: str, sources: Sequence[Source | None]) -> Program:
    from tensorprog.ir.text import parse_program

    program = parse_program(text)
    for node, source in zip(program.nodes, sources, strict=True):
        if node.source is None:
            object.__setattr__(node, "source", source)
    return program
