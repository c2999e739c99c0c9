"""Regression on UCI data: the NTK and NNGP kernel of a network beside RBF and Matern kernels, cross-validated.

    python -m benchmarks.uci FOLDER [--sets yacht energy ..] [--rows 500]

FOLDER holds NAME.csv.gz, the last column the target (as github.com/treforevans/uci_datasets has them). Every kernel is given to
scikit-learn's KernelRidge in the same way: inputs and targets standardised on the training folds, ridge and one parameter of the
kernel (a variance of biases, or a length) chosen by cross-validation within them. Printed: root mean square errors, in standard
deviations of the target, on held-out folds. Large sets are thinned to --rows random rows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.gaussian_process.kernels import RBF, Matern
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import tensorprog as tp
from benchmarks.study import find
from tensorprog import nn
from tensorprog.sklearn import NetworkKernel

SETS = ("yacht", "energy", "housing", "concrete")
RIDGES = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]


def network(x: Any) -> Any:
    """Two hidden layers of ReLU."""
    bias = tp.hyper("bias_var", 0.1)
    h = jax.nn.relu(nn.dense(x, weight_var=2.0, bias_var=bias))
    return nn.dense(jax.nn.relu(nn.dense(h, weight_var=2.0, bias_var=bias)), features=1)


def kernels(features: int) -> dict[str, tuple[Any, dict[str, list[float]]]]:
    """Each kernel and the values of its own parameter."""
    compiled = tp.compile(network, np.zeros(features))
    lengths = [float(s * np.sqrt(features)) for s in (0.3, 0.6, 1.2, 2.4)]
    made: dict[str, tuple[Any, dict[str, list[float]]]] = {
        get.upper(): (NetworkKernel(compiled, np.zeros(features), get=get), {"bias_var": [0.01, 0.1, 1.0]})
        for get in ("ntk", "nngp")
    }
    return made | {
        "RBF": (RBF(), {"length_scale": lengths}),
        "Matern 3/2": (Matern(nu=1.5), {"length_scale": lengths}),
    }


def errors(kernel: Any, own: dict[str, list[float]], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Errors on each of five held-out folds."""
    prefix = "regressor__kernelridge__"
    model = TransformedTargetRegressor(
        make_pipeline(StandardScaler(), KernelRidge(kernel=kernel)), transformer=StandardScaler()
    )
    grid = {f"{prefix}alpha": RIDGES} | {f"{prefix}kernel__{name}": values for name, values in own.items()}
    search = GridSearchCV(model, grid, cv=KFold(3, shuffle=True, random_state=0), scoring="neg_mean_squared_error")
    folds = KFold(5, shuffle=True, random_state=1)
    return np.sqrt(-cross_val_score(search, x, y, cv=folds, scoring="neg_mean_squared_error")) / y.std()


def main() -> None:
    """Print a table of errors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--rows", type=int, default=500)
    given = parser.parse_args()
    how = "they are at github.com/treforevans/uci_datasets"
    rows = []
    for name, path in zip(given.sets, find(given.folder, [f"{s}.csv.gz" for s in given.sets], how), strict=True):
        table = np.loadtxt(path, delimiter=",")
        chosen = np.random.default_rng(0).permutation(len(table))[: given.rows]
        x, y = table[chosen, :-1], table[chosen, -1]
        cells = []
        for kernel, own in kernels(x.shape[1]).values():
            start = time.perf_counter()
            found = errors(kernel, own, x, y)
            cells.append(f"{found.mean():.3f} ± {found.std(ddof=1) / np.sqrt(len(found)):.3f}")
            print(f"{name}: {kernel}: {cells[-1]} in {time.perf_counter() - start:.0f} s", flush=True)
        rows.append([f"{name} ({len(y)} x {x.shape[1]})", *cells])
    print("\n| data | NTK | NNGP | RBF | Matern 3/2 |\n|---|---|---|---|---|")
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))


if __name__ == "__main__":
    main()
