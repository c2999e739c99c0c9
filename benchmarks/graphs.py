"""Graph classification by the GNTK: `python -m benchmarks.graphs FOLDER`, where FOLDER/PROTEINS holds the data set.

The kernels of all graphs in float32 (`gntk.py`), then 10-fold cross-validation with a support vector machine, whose C is
chosen within the nine training folds, beside the number of Du et al. 2019, table 1.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC

import tensorprog as tp
from benchmarks import gntk, study
from benchmarks.gntk import Graph

PAPER = {"PROTEINS": "75.6 ± 4.2"}  # Du et al. 2019, table 1, GNTK
FILES = ("A", "graph_indicator", "graph_labels", "node_labels")
HOW = (
    "expected the data set in TU format: `{name}.zip` from https://chrsmrrs.github.io/datasets, unpacked "
    "into the folder that is given, so that FOLDER/{name}/{name}_A.txt exists"
)
PENALTIES = np.logspace(-2, 3, 11)  # of the support vector machine, C
FOLDS, INNER, SEED = 10, 5, 0
FEW = 12  # graphs whose kernel is computed in float64 too


@dataclass(frozen=True)
class Setting:
    """An architecture of the GNTK."""

    blocks: int
    layers: int
    scale: str

    def __str__(self) -> str:
        return f"{self.blocks} x (sum, {self.layers} layers), {self.scale}"


# ------------------------------------------------------------------------------------ data


def load(folder: Path, name: str) -> tuple[list[Graph], np.ndarray]:
    """Graphs with their node labels one-hot, and their classes; node attributes are not used, as in the paper."""
    files = study.find(folder / name, [f"{name}_{part}.txt" for part in FILES], HOW.format(name=name))
    edges, of, classes, labels = (np.loadtxt(path, dtype=int, delimiter=",") for path in files)
    one_hot = (labels[:, None] == np.unique(labels)).astype(float)
    sizes = np.bincount(of)[1:]
    first = np.concatenate([[0], np.cumsum(sizes)])
    if not np.array_equal(of, np.repeat(np.arange(1, len(classes) + 1), sizes)):
        raise SystemExit(f"{files[1]} is not sorted, or names other graphs than the {len(classes)} of {files[2]}")
    graphs = [(np.zeros((n, n)), one_hot[start : start + n]) for n, start in zip(sizes, first, strict=False)]
    for u, v in edges - 1:
        matrix, start = graphs[of[u] - 1][0], first[of[u] - 1]
        if u != v:
            matrix[u - start, v - start] = matrix[v - start, u - start] = 1
    return [Graph(*graph) for graph in graphs], classes


# ------------------------------------------------------------------------------------ kernels


def ntk(graphs: list[Graph], setting: Setting, dtype: type = np.float32) -> np.ndarray:
    """The GNTK of all pairs of graphs."""
    packed = gntk.pack(graphs, max(map(len, graphs)), dtype)
    net = gntk.network(blocks=setting.blocks, layers=setting.layers, scale=setting.scale)
    kernel = tp.compile(net, packed.example)
    return packed.gram(np.asarray(kernel(packed.inputs, get="ntk", progress=dtype == np.float32))).astype(np.float64)


def normalised(gram: np.ndarray) -> np.ndarray:
    """Cosines: without the sizes of graphs."""
    root = np.sqrt(np.diag(gram))
    return gram / np.outer(root, root)


def scaled(gram: np.ndarray) -> np.ndarray:
    """The same kernel with a mean of one on its diagonal."""
    return gram / np.mean(np.diag(gram))


VARIANTS = {"normalised": normalised, "as it is": scaled}


def rounding(graphs: list[Graph], gram: np.ndarray, setting: Setting) -> float:
    """The largest difference of a few graphs' normalised kernel to that in float64."""
    few = np.argsort([len(graph) for graph in graphs])[:: -(-len(graphs) // FEW)]
    with jax.enable_x64(True):
        exact = ntk([graphs[i] for i in few], setting, np.float64)
    return float(np.abs(normalised(gram[np.ix_(few, few)]) - normalised(exact)).max())


def kept(folder: Path | None, name: str, compute: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """A kernel and the seconds that it took, from a file of this name in the folder if it is there."""
    path = None if folder is None else folder / f"{name}.npz"
    if path is not None and path.exists():
        with np.load(path) as data:
            return data["gram"], float(data["seconds"])
    times: dict[str, float] = {}
    with study.timed(times, f"kernel {name}"):
        gram = compute()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, gram=gram, seconds=times[f"kernel {name}"])
    return gram, times[f"kernel {name}"]


# ------------------------------------------------------------------------------------ classification


@dataclass(frozen=True)
class Table:
    """Accuracies of kernels over folds and C, (kernels, folds, C).

    inner: means of a cross-validation within the training graphs. outer: on the test graphs.
    """

    inner: np.ndarray
    outer: np.ndarray

    def chosen(self) -> np.ndarray:
        """Of each fold, the test accuracy of the kernel and the C that its training graphs choose."""
        return np.array([outer.flat[inner.argmax()] for inner, outer in _by_fold(self.inner, self.outer)])

    def best(self) -> np.ndarray:
        """Of each fold, the test accuracy of the kernel and the C with the best mean over test folds."""
        k, c = np.unravel_index(self.outer.mean(1).argmax(), self.outer[:, 0].shape)
        return self.outer[k, :, c]

    def summary(self) -> dict[str, Any]:
        """Both, as numbers."""
        return {
            name: {"folds": found.tolist(), "mean": float(found.mean()), "std": float(found.std())}
            for name, found in (("chosen", self.chosen()), ("best", self.best()))
        }


def _by_fold(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    return zip(*(np.moveaxis(array, 1, 0) for array in arrays), strict=True)


def cross_validate(gram: np.ndarray, classes: np.ndarray) -> Table:
    """The table of one kernel."""
    inner, outer = [], []
    for train, test in StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(classes, classes):
        within = StratifiedKFold(INNER, shuffle=True, random_state=SEED).split(train, classes[train])
        inner.append(np.mean([_accuracies(gram, classes, train[a], train[b]) for a, b in within], axis=0))
        outer.append(_accuracies(gram, classes, train, test))
    return Table(np.array([inner]), np.array([outer]))


def _accuracies(gram: np.ndarray, classes: np.ndarray, train: np.ndarray, test: np.ndarray) -> list[float]:
    """Of a support vector machine, for every C."""
    first, cross = gram[np.ix_(train, train)], gram[np.ix_(test, train)]
    machines = (SVC(kernel="precomputed", C=c, cache_size=1000) for c in PENALTIES)
    return [machine.fit(first, classes[train]).score(cross, classes[test]) for machine in machines]


# ------------------------------------------------------------------------------------ the study


def main(argv: list[str] | None = None) -> None:
    """Compute the kernels, classify; the results are written again after each architecture."""
    args = _parse(argv)
    result = study.provenance()
    graphs, classes = load(args.folder, args.name)
    few = [i for i, graph in enumerate(graphs) if args.largest is None or len(graph) <= args.largest]
    if len(few) < FOLDS * INNER:
        raise SystemExit(f"--largest {args.largest} leaves {len(few)} graphs, expected {FOLDS * INNER} or more")
    left_out = len(graphs) - len(few)
    graphs, classes = [graphs[i] for i in few], classes[few]
    largest = max(map(len, graphs))
    print(f"{args.name}: {len(graphs)} graphs, the largest of {largest} nodes, {left_out} left out")
    result |= {"name": args.name, "graphs": len(graphs), "left_out": left_out, "largest": largest}
    result |= {"paper": PAPER.get(args.name), "rows": []}
    tables = []
    for setting in itertools.starmap(Setting, itertools.product(args.blocks, args.layers, args.scales)):
        name = f"{args.name}-{largest}-{setting.blocks}-{setting.layers}-{setting.scale}"
        gram, seconds = kept(args.grams, name, lambda setting=setting: ntk(graphs, setting))
        error = rounding(graphs, gram, setting)
        for variant, change in VARIANTS.items():
            times: dict[str, float] = {}
            with study.timed(times, f"cross-validation, {setting}, {variant}"):
                tables.append(cross_validate(change(gram), classes))
            row = {"setting": str(setting), "variant": variant, "kernel_s": seconds, "rounding": error}
            row |= {"cross_validation_s": sum(times.values()), **tables[-1].summary()}
            print(f"           {_score(row['chosen'])}, {_score(row['best'])}, float32 off by {error:.0e}", flush=True)
            result["rows"].append(row)
        every = Table(np.concatenate([t.inner for t in tables]), np.concatenate([t.outer for t in tables]))
        result["all"] = every.summary()
        study.write(args.out, f"{args.name} by the graph neural tangent kernel", result, _body(result))


def _body(result: dict[str, Any]) -> list[str]:
    left = f"{result['left_out']} larger ones left out" if result["left_out"] else "none left out"
    lines = [
        f"{result['graphs']} graphs of up to {result['largest']} nodes, {left}. Accuracy in percent over {FOLDS} stratified "
        f"folds (seed {SEED}), mean ± standard deviation, with a support vector machine. Chosen: its C (and in the last row "
        f"the kernel too) is the best of {INNER} folds within the training graphs. Best: the one with the best mean over the test folds, "
        "which flatters; the paper's published code chooses so. Kernels are float32, with jumping knowledge; error is the "
        f"largest difference to float64 on {FEW} graphs of all sizes, normalised.",
        "",
        "| architecture | kernel | chosen | best | kernel s | cross-validation s | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        scores = f"{_score(row['chosen'])} | {_score(row['best'])}"
        times = f"{row['kernel_s']:.0f} | {row['cross_validation_s']:.0f} | {row['rounding']:.0e}"
        lines.append(f"| {row['setting']} | {row['variant']} | {scores} | {times} |")
    scores = f"**{_score(result['all']['chosen'])}** | {_score(result['all']['best'])}"
    lines.append(f"| all of these | | {scores} | | | |")
    if result["paper"]:
        lines.append(f"| Du et al. 2019, table 1, other folds | | | {result['paper']} | | | |")
    return lines


def _score(found: dict[str, Any]) -> str:
    return f"{100 * found['mean']:.1f} ± {100 * found['std']:.1f}"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder that holds the data set's own, in TU format")
    parser.add_argument("--name", default="PROTEINS", help="the data set (default: PROTEINS)")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2], help="how often neighbours are summed")
    parser.add_argument("--layers", type=int, nargs="+", default=[2], help="layers after each sum")
    parser.add_argument("--scales", nargs="+", choices=gntk.SCALES, default=list(gntk.SCALES), help="of the sums")
    parser.add_argument("--largest", type=int, help="leave out graphs of more nodes (default: none)")
    parser.add_argument("--grams", type=Path, help="keep kernels in this folder, and read those that it holds")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/NAME, in small letters")
    args = parser.parse_args(argv)
    args.out = args.out or study.RESULTS / args.name.lower()
    return args


if __name__ == "__main__":
    main()
