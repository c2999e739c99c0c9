"""Architecture search without training: twenty networks ranked by the accuracy of their NNGP kernels on digits.

    python examples/search.py [--out docs/images]

Each architecture's NNGP kernel classifies held-out digits after 200 examples, by Gaussian-process regression on one-hot labels; then
finite networks of the same functions are trained, at the rate and for the time that are best on other digits, and Kendall's tau
says how well the ranking foretold theirs (Park et al. 2020, Towards NNGP-guided neural architecture search). Its interval is over
resampled digits and networks. The neural tangent kernel is asked in the same way, and the rates to choose from come from it too.
Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from scipy.stats import kendalltau
from sklearn.datasets import load_digits

import tensorprog as tp
from tensorprog import apps, nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TRAIN, VALID, HELD_OUT, SEEDS, MOMENTUM = 200, 300, 1200, 3, 0.9
STOPS = (0, 25, 50, 100, 200, 400)  # steps of training after which one may stop
RATES = (0.01, 0.1, 0.5)  # of the critical one
CONNECTED, CONVOLUTIONAL = 128, 32  # widths
GOOD = 0.85  # accuracy of the kernel, from which on an architecture would not be given up at a glance
erf = jax.scipy.special.erf
Network = Callable[..., Any]  # of an image (8, 8, 1), with `features` outputs


def connected(x: Any, features: int, phi: Any = jax.nn.relu, depth: int = 2, w: float = 2.0, b: float = 0.05) -> Any:
    """Fully connected layers."""
    h = nn.flatten(x)
    for _ in range(depth):
        h = phi(nn.dense(h, weight_var=w, bias_var=b))
    return nn.dense(h, features=features)


def residual(x: Any, features: int, depth: int = 4) -> Any:
    """Layers of ReLU that are added to what they read."""
    h = nn.dense(nn.flatten(x))
    for _ in range(depth):
        h = h + nn.dense(jax.nn.relu(h))
    return nn.dense(h, features=features)


def profile(x: Any, features: int, axis: int = 0) -> Any:
    """Sees the sums over rows, or over columns, alone."""
    h = jax.nn.relu(nn.dense(x.mean(axis)[:, 0], weight_var=2.0, bias_var=0.05))
    return nn.dense(h, features=features)


def pixels(x: Any, features: int) -> Any:
    """Sees which shades of gray there are, and not where."""
    h = jax.nn.relu(nn.dense(x, weight_var=2.0, bias_var=0.5))
    return nn.dense(nn.global_avg_pool(h), features=features)


def normalised(x: Any, features: int, depth: int = 3) -> Any:
    """ReLU after layer norm."""
    h = nn.flatten(x)
    for _ in range(depth):
        h = jax.nn.relu(nn.layer_norm(nn.dense(h)))
    return nn.dense(h, features=features)


def convolutional(
    x: Any, features: int, phi: Any = jax.nn.relu, depth: int = 2, w: float = 2.0, pool: bool = False
) -> Any:
    """Convolutions of 3 x 3, the first with stride 2, and a readout of all positions or of their mean."""
    h = x
    for k in range(depth):
        h = phi(nn.conv(h, 3, strides=1 if k else 2, weight_var=w, bias_var=0.05))
    return nn.dense(nn.global_avg_pool(h) if pool else nn.flatten(h), features=features)


ARCHITECTURES: dict[str, Network] = {
    "linear": partial(connected, phi=lambda h: h, depth=1, w=1.0),
    "relu, 1 layer": partial(connected, depth=1),
    "relu, 3": partial(connected, depth=3),
    "relu, 8": partial(connected, depth=8),
    "erf, 1": partial(connected, phi=erf, depth=1),
    "erf, 4, ordered": partial(connected, phi=erf, depth=4, w=0.6, b=0.3),
    "erf, 4, chaotic": partial(connected, phi=erf, depth=4, w=6.0),
    "erf, 10, chaotic": partial(connected, phi=erf, depth=10, w=6.0),
    "sin, 1, steep": partial(connected, phi=jnp.sin, depth=1, w=9.0),
    "sin, 3, steep": partial(connected, phi=jnp.sin, depth=3, w=9.0),
    "gelu, 2": partial(connected, phi=jax.nn.gelu),
    "abs, 2": partial(connected, phi=jnp.abs, w=1.0),
    "residual relu, 4": residual,
    "normalised relu, 3": normalised,
    "columns": profile,
    "pixels": pixels,
    "conv relu, 1": partial(convolutional, depth=1),
    "conv relu, 3": partial(convolutional, depth=3),
    "conv relu, 1, pooled": partial(convolutional, depth=1, pool=True),
    "conv relu, 3, pooled": partial(convolutional, depth=3, pool=True),
}


class Digits(NamedTuple):
    """Images (N, 8, 8, 1) and classes (N,)."""

    images: np.ndarray
    classes: np.ndarray


def load() -> tuple[Digits, Digits, Digits]:
    """For training, to choose rate and time by, and held out; the first of mean zero and variance one over all."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[: TRAIN + VALID + HELD_OUT]
    x = (x[order] - x[order[:TRAIN]].mean()) / x[order[:TRAIN]].std()
    images, classes = x.reshape(-1, 8, 8, 1).astype(np.float32), y[order]
    parts = (slice(None, TRAIN), slice(TRAIN, TRAIN + VALID), slice(TRAIN + VALID, None))
    return tuple(Digits(images[part], classes[part]) for part in parts)  # type: ignore[return-value]


def goals(classes: np.ndarray) -> np.ndarray:
    """One-hot targets of mean zero."""
    return np.eye(10, dtype=np.float32)[classes] - 0.1


def by_kernel(kernel: Any, get: str, train: Digits, held: Digits) -> np.ndarray:
    """Which held-out digits the posterior mean of the NNGP, or the regression with the NTK, gets right."""
    options = dict(noise=0.0, diag_reg=1e-3, get=get, dtype=np.float32)
    process = apps.GaussianProcess(kernel, train.images, goals(train.classes), **options)
    return process.mean(held.images).argmax(1) == held.classes


def by_training(net: Network, width: int, critical: float, train: Digits, valid: Digits, held: Digits) -> np.ndarray:
    """Which held-out digits each of several networks gets right, (SEEDS, N), after gradient descent on the square loss.

    The rate is the one with which the first network does best on the digits to choose by; each network stops where it does best there.
    """
    goal = jnp.asarray(goals(train.classes))
    values = lambda p, x: jax.vmap(lambda one: tp.apply(net, p, one))(x)
    gradient = jax.grad(lambda p: 0.5 * jnp.sum(jnp.square(values(p, train.images) - goal)) / len(goal))
    right = jax.jit(lambda p, part: values(p, part.images).argmax(1) == part.classes)

    @jax.jit  # one step at a time: XLA's convolutions are slow inside loops on CPUs
    def step(p: Any, v: Any, rate: float) -> Any:
        v = jax.tree.map(lambda a, g: MOMENTUM * a + g, v, gradient(p))
        return jax.tree.map(lambda a, b: a - rate * b, p, v), v

    def run(seed: int, rate: float) -> tuple[float, np.ndarray]:
        """The best accuracy on the way, and what is right on held-out digits there."""
        p = tp.init(net, train.images[0], width, jax.random.key(seed))
        v, best = jax.tree.map(jnp.zeros_like, p), (-1.0, np.zeros(0))
        for first, last in pairwise(STOPS):
            for _ in range(first, last):
                p, v = step(p, v, rate)
            accuracy = float(right(p, valid).mean())
            if accuracy > best[0]:
                best = accuracy, np.asarray(right(p, held))
        return best

    tried = [(run(0, share * critical), share) for share in RATES]
    (_, first), share = max(tried, key=lambda found: found[0][0])
    return np.stack([first, *(run(seed, share * critical)[1] for seed in range(1, SEEDS))])


class Found(NamedTuple):
    """Of each architecture, which held-out digits are right: by the two kernels (2, A, N), by trained networks (A, SEEDS, N)."""

    kernels: np.ndarray
    trained: np.ndarray

    def tau(self, k: int, which: Any = slice(None)) -> str:
        """Kendall's tau of a kernel and some architectures, with the interval of 95 percent over resampled digits and networks."""
        kernel, trained = self.kernels[k][which], self.trained[which]
        rng = np.random.default_rng(0)
        drawn = []
        for _ in range(1000):
            digits, seeds = rng.integers(kernel.shape[1], size=kernel.shape[1]), rng.integers(SEEDS, size=SEEDS)
            drawn.append(kendalltau(kernel[:, digits].mean(1), trained[:, seeds][:, :, digits].mean((1, 2)))[0])
        low, high = np.percentile(drawn, (2.5, 97.5))
        return f"{kendalltau(kernel.mean(1), trained.mean((1, 2)))[0]:.2f} ({low:.2f} to {high:.2f})"


def draw(found: Found, path: Path) -> None:
    """Errors of trained networks over those of either kernel, and how well one ranking foretells the other."""
    trained = 100 - 100 * found.trained.mean(2)
    good = np.flatnonzero(found.kernels[0].mean(1) >= GOOD)
    figure, both = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for k, (axes, kind) in enumerate(zip(both, ("NNGP", "NTK"), strict=True)):
        kernel = 100 - 100 * found.kernels[k].mean(1)
        for i, name, mark in zip(range(len(kernel)), ARCHITECTURES, "ovs^D2<>ph*XPdx1vs^D", strict=True):
            color = "tab:red" if name.startswith("conv") else "tab:blue"
            spread = trained[i].std(ddof=1) / np.sqrt(SEEDS)
            axes.errorbar(
                kernel[i], trained[i].mean(), spread, fmt=mark, ms=6, label=name, color=color, lw=1, alpha=0.8
            )
        axes.plot([4, 90], [4, 90], ":", color="gray", lw=1)
        axes.set(
            xlabel=f"{kind}, error in %",
            ylabel=f"trained networks, error in % (mean of {SEEDS})",
            xscale="log",
            yscale="log",
        )
        words = f"Kendall's tau {found.tau(k)};\nof the {len(good)} above {GOOD:.0%} by NNGP: {found.tau(k, good)}"
        axes.set_title(words, fontsize=9)
        print(f"{kind}: {' '.join(words.split())}")
    figure.legend(*both[0].get_legend_handles_labels(), fontsize=7, loc="outside right center")
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def main() -> None:
    """Rank, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    train, valid, held = load()
    kernels, networks = [], []
    for name, net in ARCHITECTURES.items():
        start = time.perf_counter()
        kernel = tp.compile(partial(net, features=1), train.images[0])
        kernels.append([by_kernel(kernel, get, train, held) for get in ("nngp", "ntk")])
        ranked = time.perf_counter() - start
        critical = apps.Training(kernel, train.images, goals(train.classes)).critical_rate(MOMENTUM)
        width = CONVOLUTIONAL if name.startswith("conv") else CONNECTED
        networks.append(by_training(partial(net, features=10), width, critical, train, valid, held))
        nngp, ntk = (right.mean() for right in kernels[-1])
        seconds = f"{ranked:.1f} s and {time.perf_counter() - start - ranked:.1f} s"
        print(f"{name:22} NNGP {nngp:.1%}, NTK {ntk:.1%}, trained {networks[-1].mean():.1%}, in {seconds}", flush=True)
    draw(Found(np.stack(kernels, 1), np.stack(networks)), out / "search.png")


if __name__ == "__main__":
    main()
