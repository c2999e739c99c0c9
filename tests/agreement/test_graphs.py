"""Graphs: the kernel of the benchmark's network is the GNTK of Du et al. 2019, however the graphs are packed."""

from __future__ import annotations

import numpy as np
import pytest

import tensorprog as tp
from tests.everyday import everyday

gntk = pytest.importorskip("benchmarks.gntk", reason="the source distribution has no benchmarks")


def random_graphs(sizes: tuple[int, ...], seed: int = 0) -> list:
    """Graphs with about half of all edges and Gaussian features; the last node of each has no neighbours."""
    rng = np.random.default_rng(seed)
    graphs = []
    for n in sizes:
        upper = np.triu(rng.random((n, n)) < 0.5, 1)
        upper[:, -1] = False
        graphs.append(gntk.Graph((upper | upper.T).astype(float), rng.standard_normal((n, 3))))
    return graphs


GRAPHS = random_graphs((5, 2, 7, 1, 4))


# ------------------------------------------------------------------------- the paper's recursion, pair by pair


def block(sigma: np.ndarray, theta: np.ndarray, q1: np.ndarray, q2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One layer of a block: Sigma_(r) and Theta_(r) = Theta_(r-1) * dot Sigma_(r) + Sigma_(r), with c_sigma = 2."""
    norm = np.sqrt(np.outer(q1, q2))
    angle = np.arccos(np.clip(sigma / norm, -1, 1))
    after = norm * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi
    return after, theta * (np.pi - angle) / np.pi + after


def aggregate(matrix: np.ndarray, graphs: tuple, scale: str) -> np.ndarray:
    """c_u c_u' times the sum over v in N(u) and u, v' in N(u') and u', written as sums over neighbourhoods."""
    near = [[np.flatnonzero(row) for row in g.adjacency + np.eye(len(g))] for g in graphs]
    return np.array(
        [[matrix[np.ix_(u, v)].sum() / (len(u) * len(v) if scale == "degree" else 1) for v in near[1]] for u in near[0]]
    )


def layers_of(pair: tuple, variances: tuple, shape: tuple[int, int], scale: str) -> tuple[list, list]:
    """Sigma after every layer, and Theta after every block with that of the input first.

    variances: the diagonals of Sigma before every layer, of both graphs.
    """
    blocks, layers = shape
    sigma = pair[0].features @ pair[1].features.T
    theta = sigma
    sigmas, thetas = [], [theta]
    for b in range(blocks):
        sigma, theta = aggregate(sigma, pair, scale), aggregate(theta, pair, scale)
        for r in range(layers):
            sigmas.append(sigma)
            known = [v[b * layers + r] if v else np.diag(sigma) for v in variances]
            sigma, theta = block(sigma, theta, *known)
        thetas.append(theta)
    return sigmas, thetas


def reference(graphs: list, blocks: int, layers: int, scale: str) -> np.ndarray:
    """The sum over node pairs of Theta of all blocks (jumping knowledge), for all pairs of graphs."""
    shape = blocks, layers
    diagonals = [[np.diag(s) for s in layers_of((g, g), (None, None), shape, scale)[0]] for g in graphs]

    def value(i: int, j: int) -> float:
        return sum(t.sum() for t in layers_of((graphs[i], graphs[j]), (diagonals[i], diagonals[j]), shape, scale)[1])

    return np.array([[value(i, j) for j in range(len(graphs))] for i in range(len(graphs))])


# ------------------------------------------------------------------------- the checks


def agrees(nodes: int, blocks: int, layers: int, scale: str) -> None:
    """The NTK of GRAPHS in bins of this size, through the public API, is the recursion's."""
    packed = gntk.pack(GRAPHS, nodes, np.float64)
    net = gntk.network(blocks=blocks, layers=layers, scale=scale)
    got = packed.gram(np.asarray(tp.compile(net, packed.example)(packed.inputs, get="ntk")))
    want = reference(GRAPHS, blocks, layers, scale)
    assert np.abs(got - want).max() <= 1e-10 * np.abs(want).max()


@pytest.mark.parametrize("scale", everyday(gntk.SCALES, long=["uniform"]))
def test_is_the_gntk(scale: str) -> None:
    agrees(8, blocks=2, layers=2, scale=scale)


@pytest.mark.parametrize(
    "nodes", [7, *(pytest.param(n, marks=pytest.mark.long) for n in (11, 40))]
)  # alone or together, with little padding or with much
def test_packing_changes_nothing(nodes: int) -> None:
    agrees(nodes, blocks=1, layers=1, scale="degree")


def test_padding_takes_no_part() -> None:
    """Nothing but zeros at padding: neither an edge, nor a feature, nor a place in a sum."""
    packed = gntk.pack(GRAPHS, 11)
    inside = packed.inputs["members"].sum(1)
    assert set(np.unique(inside)) == {0, 1} and inside.sum() == sum(map(len, GRAPHS))
    outside = inside == 0
    assert not packed.inputs["adjacency"][outside].any() and not packed.inputs["nodes"][outside].any()
    assert len(np.unique(packed.bin * 100 + packed.slot)) == len(GRAPHS)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="has 7 nodes, expected at most 6"):
        gntk.pack(GRAPHS, 6)
    with pytest.raises(ValueError, match="scale is 'mean'"):
        gntk.network(blocks=1, layers=1, scale="mean")
    with pytest.raises(ValueError, match=r"adjacency has shape \(2, 2\)"):
        gntk.Graph(np.eye(2), np.ones((2, 3)))
