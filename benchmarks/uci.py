"""Regression on UCI data: the NTK and the NNGP kernel of a network beside RBF and Matern kernels, cross-validated.

    python -m benchmarks.uci FOLDER [--sets yacht energy ..] [--rows 1000] [--out benchmarks/results/uci]

FOLDER holds NAME.csv.gz, the last column the target (as github.com/treforevans/uci_datasets has them). All kernels are treated
alike: inputs and targets are standardised on the training folds, gram matrices scaled to a mean diagonal of one, and the ridge
and one parameter of the kernel (the variance of biases, or the length) chosen by cross-validation within the training
folds, by scikit-learn's KernelRidge. Sets of more than --rows rows are thinned at random. Results are written after each set.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.gaussian_process.kernels import RBF, Matern
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, KFold

import tensorprog as tp
from benchmarks.study import RESULTS, find, provenance, write
from tensorprog import nn
from tensorprog.sklearn import NetworkKernel

SETS = (
    "yacht", "housing", "energy", "concrete", "airfoil", "wine", "elevators", "bike", "pol", "kin40k", "protein"
)  # fmt: skip
SOURCE = "they are at github.com/treforevans/uci_datasets"
RIDGES = np.logspace(-5, 0, 6)
BIASES, LENGTHS = (0.01, 0.1, 1.0, 10.0), (0.3, 0.6, 1.2, 2.4)
OUTER, INNER = 5, 3
NAMES = ("NTK", "NNGP", "RBF", "Matern 3/2", "Matern 5/2")


def network(x: Any) -> Any:
    """Two hidden layers of ReLU, all biases of one variance."""
    bias = tp.hyper("bias_var", 0.1)
    h = jax.nn.relu(nn.dense(x, weight_var=2.0, bias_var=bias))
    return nn.dense(jax.nn.relu(nn.dense(h, weight_var=2.0, bias_var=bias)), features=1)


def kernels(features: int) -> dict[str, list[Callable[[np.ndarray], np.ndarray]]]:
    """Each kernel at the values of its own parameter."""
    compiled = tp.compile(network, np.zeros(features))
    lengths = [s * np.sqrt(features) for s in LENGTHS]
    made: dict[str, list[Callable[[np.ndarray], np.ndarray]]] = {
        get.upper(): [NetworkKernel(compiled, np.zeros(features), get=get, bias_var=b) for b in BIASES]
        for get in ("ntk", "nngp")
    }
    made["RBF"] = [RBF(length) for length in lengths]
    return made | {f"Matern {int(2 * nu)}/2": [Matern(length, nu=nu) for length in lengths] for nu in (1.5, 2.5)}


def thinned(table: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of at most so many rows, without columns that do not vary in them."""
    chosen = np.random.default_rng(0).permutation(len(table))[:rows]
    x, y = table[chosen, :-1], table[chosen, -1]
    return x[:, np.ptp(x, axis=0) > 0], y


def errors(made: list[Callable[[np.ndarray], np.ndarray]], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The root mean square error on each held-out fold, in standard deviations of y."""
    found = []
    for train, test in KFold(OUTER, shuffle=True, random_state=1).split(x):
        mean, spread = x[train].mean(0), x[train].std(0)
        points = (x - mean) / np.where(spread > 0, spread, 1.0)
        level, scale = y[train].mean(), y[train].std()
        searches = [(search(gram := unit(k(points)), train, (y[train] - level) / scale), gram) for k in made]
        best, gram = max(searches, key=lambda pair: pair[0].best_score_)
        predicted = level + scale * best.predict(gram[np.ix_(test, train)])
        found.append(np.sqrt(np.mean(np.square(predicted - y[test]))) / y.std())
    return np.array(found)


def unit(gram: np.ndarray) -> np.ndarray:
    """A gram matrix whose mean diagonal is one, so that ridges mean the same for every kernel."""
    return gram / np.mean(np.diagonal(gram))


def search(gram: np.ndarray, train: np.ndarray, y: np.ndarray) -> GridSearchCV:
    """The ridge, chosen within the training folds, and the fit with it."""
    folds = KFold(INNER, shuffle=True, random_state=0)
    ridge = KernelRidge(kernel="precomputed")
    chosen = GridSearchCV(ridge, {"alpha": RIDGES}, cv=folds, scoring="neg_root_mean_squared_error")
    return chosen.fit(gram[np.ix_(train, train)], y)


def body(result: dict[str, Any]) -> list[str]:
    """The table, and the mean rank of each kernel."""
    lines = [
        f"Root mean square error in standard deviations of the target, mean ± standard error over {OUTER} held-out folds; at most "
        f"{result['rows']} random rows of each set. The network has two hidden layers of ReLU. Ridge (of {len(RIDGES)} values) and "
        f"one parameter of the kernel (variance of biases, or length; of {len(BIASES)}) are chosen by {INNER}-fold cross-validation "
        "within the training folds. Bold: the least.",
        "",
        f"| data | rows x columns | {' | '.join(NAMES)} | seconds |",
        f"|---|---|{'---|' * (len(NAMES) + 1)}",
    ]
    ranks = []
    for name, row in result["sets"].items():
        means = [float(np.mean(row["errors"][k])) for k in NAMES]
        ranks.append(np.argsort(np.argsort(means)) + 1)
        cells = []
        for k, mean in zip(NAMES, means, strict=True):
            error = np.std(row["errors"][k], ddof=1) / np.sqrt(OUTER)
            text = f"{mean:.3f}"
            cells.append((f"**{text}**" if mean == min(means) else text) + f" ± {error:.3f}")
        lines.append(f"| {name} | {row['shape'][0]} x {row['shape'][1]} | {' | '.join(cells)} | {row['seconds']:.0f} |")
    mean_ranks = [f"{r:.1f}" for r in np.mean(ranks, 0)]
    return [*lines, f"| mean rank | | {' | '.join(mean_ranks)} | |"]


def main() -> None:
    """Measure every set, writing what is there after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, metavar="NAME", help=", ".join(SETS))
    parser.add_argument("--rows", type=int, default=1000, help="of each set, at most (default: 1000)")
    parser.add_argument("--out", type=Path, default=RESULTS / "uci", help="results, without the ending")
    given = parser.parse_args()
    result: dict[str, Any] = {**provenance(), "rows": given.rows, "sets": {}}
    for name, path in zip(given.sets, find(given.folder, [f"{s}.csv.gz" for s in given.sets], SOURCE), strict=True):
        x, y = thinned(np.loadtxt(path, delimiter=","), given.rows)
        start = time.perf_counter()
        found = {kernel: errors(made, x, y) for kernel, made in kernels(x.shape[1]).items()}
        print(name, {k: f"{v.mean():.3f}" for k, v in found.items()}, flush=True)
        result["sets"][name] = {
            "shape": list(x.shape),
            "seconds": time.perf_counter() - start,
            "errors": {k: v.tolist() for k, v in found.items()},
        }
        write(given.out, "UCI regression sets by kernel ridge regression", result, body(result))


if __name__ == "__main__":
    main()
