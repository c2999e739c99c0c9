"""MNIST by kernel ridge regression: `python -m benchmarks.mnist FOLDER`, where FOLDER holds the four files of MNIST.

A fully connected and a convolutional network without pooling, both kernels of each, in float32; the linear systems are
solved in float64. The ridge is the one with the fewest errors on a fifth of the training images, held out.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import tensorprog as tp
from benchmarks import study
from tensorprog import nn

FILES = tuple(
    f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)  # in the order of `load`
HOW = "expected the four files of MNIST, gzipped, as at https://ossci-datasets.s3.amazonaws.com/mnist"
CLASSES, SEED = 10, 0
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # in units of the mean diagonal entry


def fully_connected(x: jax.Array) -> jax.Array:
    """Five ReLU layers."""
    h = nn.flatten(x)
    for _ in range(5):
        h = jax.nn.relu(nn.dense(h, weight_var=2.0, bias_var=0.1))
    return nn.dense(h, features=1)


def convolutional(x: jax.Array) -> jax.Array:
    """Three ReLU convolutions of 3x3, then all positions and channels at once: no pooling."""
    h = x
    for _ in range(3):
        h = jax.nn.relu(nn.conv(h, 3, weight_var=2.0, bias_var=0.1))
    return nn.dense(nn.flatten(h), features=1)


class Split(NamedTuple):
    """Images (N, side, side, 1) and their classes (N,)."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Study:
    """A network, and what it is given: pixels are averaged in squares of `average`, and `test` images are classified."""

    net: Callable[[jax.Array], jax.Array]
    average: int
    test: int

    @property
    def name(self) -> str:
        return self.net.__name__.replace("_", " ")


# ------------------------------------------------------------------------------------ data


def load(folder: Path) -> tuple[Split, Split]:
    """The training and the test images, pixels from 0 to 1, each in an order drawn with a fixed seed."""
    arrays = [_idx(path) for path in study.find(folder, FILES, HOW)]
    rng = np.random.default_rng(SEED)
    splits = []
    for images, classes in (arrays[:2], arrays[2:]):
        order = rng.permutation(len(classes))
        splits.append(Split(images[order, ..., None].astype(np.float32) / 255, classes[order].astype(int)))
    return splits[0], splits[1]


def _idx(path: Path) -> np.ndarray:
    """An array of bytes in MNIST's format: two zeros, the type 8, the number of axes, their sizes, the bytes."""
    data = gzip.decompress(path.read_bytes())
    if data[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} starts with {data[:3]!r}, expected an IDX file of bytes: two zeros and 8")
    shape = np.frombuffer(data, ">u4", data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def averaged(x: np.ndarray, size: int) -> np.ndarray:
    """Means over squares of `size` x `size` pixels."""
    n, side = x.shape[:2]
    return x.reshape(n, side // size, size, side // size, size, 1).mean((2, 4))


# ------------------------------------------------------------------------------------ regression


def fit(gram: np.ndarray, cross: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Ridge regression of the classes: the ridge chosen on held-out training images, accuracy on the test images.

    gram: (train, train). cross: (test, train). train, test: classes.
    """
    held = len(train) // 5
    ridge = max(RIDGES, key=lambda r: accuracy(gram[:held, held:], gram[held:, held:], r, train[held:], train[:held]))
    return {"ridge": ridge, "accuracy": accuracy(cross, gram, ridge, train, test)}


def accuracy(cross: np.ndarray, gram: np.ndarray, ridge: float, train: np.ndarray, test: np.ndarray) -> float:
    """The share of images whose largest output is that of their class."""
    system = gram.astype(np.float64)
    system[np.diag_indices_from(system)] += ridge * np.trace(system) / len(system)
    weights = np.linalg.solve(system, np.eye(CLASSES)[train] - 1 / CLASSES)
    return float(np.mean(np.argmax(cross @ weights, -1) == test))


# ------------------------------------------------------------------------------------ the study


def investigate(chosen: Study, train: Split, test: Split) -> dict[str, Any]:
    """Compute the kernels of one network, classify; what was found and how long it took."""
    images, others = (averaged(x, chosen.average) for x in (train.x, test.x[: chosen.test]))
    mean, scale = images.mean(), images.std()
    images, others = (images - mean) / scale, (others - mean) / scale
    times: dict[str, float] = {}
    with study.timed(times, f"{chosen.name}: {len(images)} training images with each other"):
        kernel = tp.compile(chosen.net, images[0])
        grams = jax.block_until_ready(kernel(images, progress=True))
    with study.timed(times, f"{chosen.name}: {len(others)} test images with them"):
        crosses = jax.block_until_ready(kernel(others, images, progress=True))
    found = {}
    with study.timed(times, f"{chosen.name}: ridge regression, both kernels"):
        for name, gram, cross in zip(("nngp", "ntk"), grams, crosses, strict=True):
            found[name] = fit(np.asarray(gram), np.asarray(cross), train.y, test.y[: len(others)])
            print(f"           {name} {found[name]['accuracy']:.2%}, ridge {found[name]['ridge']:g}", flush=True)
    shape = {"train": len(images), "test": len(others), "side": images.shape[1]}
    return {"network": chosen.name, **shape, **found, "seconds": list(times.values())}


def main(argv: list[str] | None = None) -> None:
    """Investigate both networks; the results are written again after each."""
    args = _parse(argv)
    result = study.provenance()
    train, test = load(args.folder)
    train = Split(train.x[: args.train], train.y[: args.train])
    studies = [Study(fully_connected, 1, args.test), Study(convolutional, args.average, args.convolutional_test)]
    result["rows"] = []
    for chosen in studies:
        result["rows"].append(investigate(chosen, train, test))
        study.write(args.out, "MNIST by kernel ridge regression", result, _body(result))


def _body(result: dict[str, Any]) -> list[str]:
    lines = [
        "Accuracy in percent, ± one standard error of the test images; images are drawn with a fixed seed, and the ridge is "
        "chosen on a fifth of the training images. Fully connected: 5 ReLU layers. Convolutional: 3 ReLU convolutions of 3x3, "
        "flattened, no pooling. Kernels are float32, both at once; the solve is float64.",
        "",
        "| network | training images | test images | pixels | NNGP | NTK | gram s | test kernel s | fits s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        scores = " | ".join(_score(row[name]["accuracy"], row["test"]) for name in ("nngp", "ntk"))
        times = " | ".join(f"{seconds:.0f}" for seconds in row["seconds"])
        lines.append(
            f"| {row['network']} | {row['train']} | {row['test']} | {row['side']} x {row['side']} | {scores} | {times} |"
        )
    return lines


def _score(share: float, count: int) -> str:
    return f"{100 * share:.2f} ± {100 * (share * (1 - share) / count) ** 0.5:.2f}"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder with the four files of MNIST")
    parser.add_argument("--train", type=int, default=5000, help="training images (default: 5000)")
    parser.add_argument("--test", type=int, default=10_000, help="test images (default: all 10000)")
    parser.add_argument(
        "--convolutional-test", type=int, default=2000, help="test images of the convolution (default: 2000)"
    )
    parser.add_argument(
        "--average", type=int, choices=(1, 2, 4), default=1, help="average pixels before the convolution"
    )
    parser.add_argument("--out", type=Path, default=study.RESULTS / "mnist", help="default: benchmarks/results/mnist")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
