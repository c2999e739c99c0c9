"""The graph neural tangent kernel as a network, and many graphs as few inputs of one shape.

The network of Du et al. 2019, "Graph Neural Tangent Kernel" (sections 3 and 4): blocks that sum over neighbours and then
apply layers at every node; with jumping knowledge, the readout sees the sum over nodes after every block. A kernel has one
input shape and graphs have many sizes, so an input here is a bin: several graphs side by side without an edge between
them, and one output for each. No work is spent on padding but the few nodes that fill up a bin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from tensorprog import nn

SCALES = ("uniform", "degree")
Bin = dict[str, jax.Array]


@dataclass(frozen=True)
class Graph:
    """adjacency: (n, n), 1 for an edge, symmetric, without self loops. features: (n, d)."""

    adjacency: np.ndarray
    features: np.ndarray

    def __post_init__(self) -> None:
        a, n = self.adjacency, len(self.features)
        if a.shape != (n, n) or self.features.ndim != 2 or np.any(a != a.T) or np.any(np.diag(a)):
            raise ValueError(
                f"adjacency has shape {a.shape} and features {self.features.shape}, expected (n, n), symmetric with a "
                "diagonal of zeros, and (n, d)"
            )

    def __len__(self) -> int:
        return len(self.features)


def network(*, blocks: int, layers: int, scale: str) -> Callable[[Bin], jax.Array]:
    """The network on one bin, with one output for each of its slots.

    blocks: how often neighbours are summed. layers: ReLU layers after each sum. scale: "uniform" (c_u = 1) or "degree"
    (c_u = 1 / (1 + the number of neighbours)). With their c_sigma = 2, and node features that are not divided by their number.
    """
    if scale not in SCALES or blocks < 1 or layers < 1:
        raise ValueError(
            f"blocks is {blocks}, layers is {layers}, scale is {scale!r}; expected positive numbers and one of {SCALES}"
        )

    def net(graphs: Bin) -> jax.Array:
        loops, h, members = graphs["adjacency"], graphs["nodes"], graphs["members"]
        if scale == "degree":
            loops = loops / jnp.maximum(loops.sum(1, keepdims=True), 1.0)  # a row of padding is zero and remains so
        weight_var = float(h.shape[1])
        total = nn.dense(members @ h, features=1, weight_var=weight_var)
        for _ in range(blocks):
            h = loops @ h
            for _ in range(layers):
                h = jax.nn.relu(nn.dense(h, weight_var=weight_var))
                weight_var = 2.0
            total = total + nn.dense(members @ h, features=1, weight_var=weight_var)
        return total[:, 0]

    return net


@dataclass(frozen=True)
class Packed:
    """Graphs in bins: the inputs of `network`, and where each graph went.

    inputs: adjacency (bins, nodes, nodes) with a self loop at every node of a graph, nodes (bins, nodes, d), members
    (bins, slots, nodes), which is 1 where a node belongs to the graph in a slot; all are 0 at padding.
    """

    inputs: dict[str, np.ndarray]
    bin: np.ndarray
    slot: np.ndarray

    @property
    def example(self) -> dict[str, np.ndarray]:
        """One input."""
        return {name: leaf[0] for name, leaf in self.inputs.items()}

    def gram(self, kernel: np.ndarray) -> np.ndarray:
        """(graphs, graphs) out of a kernel (bins, bins, slots, slots)."""
        return kernel[self.bin[:, None], self.bin, self.slot[:, None], self.slot]


def pack(graphs: Sequence[Graph], nodes: int, dtype: type = np.float32) -> Packed:
    """Pack graphs into bins of `nodes` nodes, largest graph first, each into the emptiest bin."""
    sizes = np.array([len(graph) for graph in graphs])
    if sizes.max() > nodes:
        raise ValueError(f"the largest graph has {sizes.max()} nodes, expected at most {nodes}, the size of a bin")
    content = _content(sizes, nodes)
    slots = max(map(len, content))
    adjacency = np.zeros((len(content), nodes, nodes), dtype)
    features = np.zeros((len(content), nodes, graphs[0].features.shape[1]), dtype)
    members = np.zeros((len(content), slots, nodes), dtype)
    bins, places = np.zeros((2, len(graphs)), int)
    for b, inside in enumerate(content):
        ends = np.cumsum(sizes[inside])
        for slot, (index, end) in enumerate(zip(inside, ends, strict=True)):
            at = slice(end - sizes[index], end)
            adjacency[b, at, at] = graphs[index].adjacency + np.eye(sizes[index])
            features[b, at] = graphs[index].features
            members[b, slot, at] = 1
            bins[index], places[index] = b, slot
    return Packed({"adjacency": adjacency, "nodes": features, "members": members}, bins, places)


def _content(sizes: np.ndarray, nodes: int) -> list[list[int]]:
    """The graphs of each bin, in as few bins as this simple rule finds."""
    count = -(-int(sizes.sum()) // nodes)
    while True:
        free, content = np.full(count, nodes), [[] for _ in range(count)]
        for index in np.argsort(-sizes, kind="stable"):
            emptiest = int(np.argmax(free))
            free[emptiest] -= sizes[index]
            content[emptiest].append(int(index))
        if free.min() >= 0:
            return content
        count += 1
