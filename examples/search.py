"""Architecture search without training: twenty networks ranked by the accuracy of their NNGP kernels on digits.

    python examples/search.py [--out docs/images]

Each architecture's NNGP kernel classifies held-out digits after 200 examples, by Gaussian-process regression on one-hot labels; then
finite networks of the same functions are trained, and Kendall's tau says how well the ranking foretold theirs (Park et al.
2020, Towards NNGP-guided neural architecture search). The rates of training come from the kernels too. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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

TRAIN, HELD_OUT, STEPS, SEEDS, MOMENTUM = 200, 1000, 300, 2, 0.9
WIDTHS = {"connected": 128, "convolutional": 32}
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
    "erf, 4": partial(connected, phi=erf, depth=4, w=1.5),
    "erf, 4, chaotic": partial(connected, phi=erf, depth=4, w=6.0),
    "erf, 8, chaotic": partial(connected, phi=erf, depth=8, w=6.0),
    "sin, 1": partial(connected, phi=jnp.sin, depth=1, w=4.0),
    "sin, 3": partial(connected, phi=jnp.sin, depth=3, w=4.0),
    "gelu, 2": partial(connected, phi=jax.nn.gelu),
    "abs, 2": partial(connected, phi=jnp.abs, w=1.0),
    "residual relu, 4": residual,
    "normalised relu, 3": normalised,
    "conv relu, 1": partial(convolutional, depth=1),
    "conv relu, 2": convolutional,
    "conv relu, 3": partial(convolutional, depth=3),
    "conv erf, 2": partial(convolutional, phi=erf, w=1.5),
    "conv relu, 2, pooled": partial(convolutional, pool=True),
}


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, 8, 8, 1), of mean zero and variance one over all, and classes: for training, held out."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[: TRAIN + HELD_OUT]
    x = (x[order] - x[order[:TRAIN]].mean()) / x[order[:TRAIN]].std()
    images = x.reshape(-1, 8, 8, 1).astype(np.float32)
    return images[:TRAIN], y[order[:TRAIN]], images[TRAIN:], y[order[TRAIN:]]


def by_kernel(kernel: Any, x: Any, labels: Any, held: Any, truth: Any) -> float:
    """Accuracy of the posterior mean of the NNGP."""
    process = apps.GaussianProcess(kernel, x, np.eye(10)[labels] - 0.1, noise=0.0, diag_reg=1e-3, dtype=np.float32)
    return float((process.mean(held).argmax(1) == truth).mean())


def by_training(net: Network, width: int, rate: float, x: Any, labels: Any, held: Any, truth: Any) -> float:
    """Mean accuracy of trained networks: gradient descent with momentum on the square loss."""
    goal = jnp.eye(10)[labels] - 0.1
    values = lambda p, x: jax.vmap(lambda one: tp.apply(net, p, one))(x)
    gradient = jax.grad(lambda p: 0.5 * jnp.sum(jnp.square(values(p, x) - goal)) / len(goal))

    @jax.jit  # one step at a time: XLA's convolutions are slow inside loops on CPUs
    def step(p: Any, v: Any) -> Any:
        v = jax.tree.map(lambda a, g: MOMENTUM * a + g, v, gradient(p))
        return jax.tree.map(lambda a, b: a - rate * b, p, v), v

    accuracies = []
    for seed in range(SEEDS):
        p = tp.init(net, x[0], width, jax.random.key(seed))
        v = jax.tree.map(jnp.zeros_like, p)
        for _ in range(STEPS):
            p, v = step(p, v)
        accuracies.append((np.asarray(values(p, held)).argmax(1) == truth).mean())
    return float(np.mean(accuracies))


def draw(found: dict[str, tuple[float, float]], path: Path) -> None:
    """Trained accuracy over that of the kernel, and how well one foretells the other."""
    kernel, trained = np.array(list(found.values())).T
    tau, p_value = kendalltau(kernel, trained)
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for (name, (a, b)), mark in zip(found.items(), "ovs^Dv<>ph*XPd8ovs^D", strict=True):
        axes.plot(100 * a, 100 * b, mark, ms=7, label=name, color="tab:red" if name.startswith("conv") else "tab:blue")
    low, high = 100 * min(kernel.min(), trained.min()) - 1, 100 * max(kernel.max(), trained.max()) + 1
    axes.plot([low, high], [low, high], ":", color="gray", lw=1)
    axes.set(xlabel="NNGP, accuracy in %", ylabel=f"trained networks, accuracy in % (mean of {SEEDS})")
    axes.set_title(f"20 architectures on {TRAIN} digits: Kendall's tau {tau:.2f} (p = {p_value:.0e})", fontsize=10)
    figure.legend(fontsize=7, loc="outside right center")
    figure.savefig(path, dpi=110)
    print(f"Kendall's tau {tau:.3f}, p = {p_value:.1e}; wrote {path}")


def main() -> None:
    """Rank, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    data = load()
    found: dict[str, tuple[float, float]] = {}
    for name, net in ARCHITECTURES.items():
        start = time.perf_counter()
        kernel = tp.compile(partial(net, features=1), data[0][0])
        accuracy = by_kernel(kernel, *data)
        ranked = time.perf_counter() - start
        rate = 0.3 * apps.Training(kernel, data[0], np.eye(10)[data[1]] - 0.1).critical_rate(MOMENTUM)
        width = WIDTHS["convolutional" if name.startswith("conv") else "connected"]
        trained = by_training(partial(net, features=10), width, rate, *data)
        found[name] = accuracy, trained
        seconds = f"{ranked:.1f} s and {time.perf_counter() - start - ranked:.1f} s"
        print(f"{name:22} NNGP {accuracy:.1%}, trained {trained:.1%}, in {seconds}", flush=True)
    draw(found, out / "search.png")


if __name__ == "__main__":
    main()
