"""Networks in training beside their infinitely wide limit: figures of two papers, drawn again.

    python examples/training.py [--out docs/images] [--wide 2000]

- circle.png: Jacot, Gabriel and Hongler 2018, figure 1. The NTK of networks on the unit circle, at two widths, before and after
  training, and its limit.
- regression.png: figure 2 there. Four points on the circle: trained networks, and the law of the limit.
- components.png: figure 3 there. Convergence along a kernel principal component of handwritten digits.
- linearised.png: Lee et al. 2019, figures 2 and 3. Trained networks and their linearisations part the less, the wider they are.
- early_stopping.png: the error of the limit on unseen noisy data along training.

Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import tensorprog as tp
from tensorprog import apps, nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NETWORKS = 150  # that the percentiles of figure 2 are taken over


def network(x: Any, depth: int = 4) -> Any:
    """ReLU layers with small biases (Jacot et al. 2018: beta = 0.1), in all `depth` of them linear."""
    h = x
    for _ in range(depth - 1):
        h = jax.nn.relu(nn.dense(h, weight_var=2.0, bias_var=0.01))
    return nn.dense(h, features=1, bias_var=0.01)[0]


def shallow(x: Any) -> Any:
    """Two hidden layers of erf."""
    return network_of(jax.scipy.special.erf, x)


def network_of(phi: Callable[[Any], Any], x: Any) -> Any:
    """Two hidden layers of a nonlinearity."""
    h = phi(nn.dense(x, weight_var=2.0, bias_var=0.1))
    return nn.dense(phi(nn.dense(h, weight_var=2.0, bias_var=0.1)), features=1)[0]


def values(net: Any, params: Any, x: Any) -> jax.Array:
    """The outputs at many inputs."""
    return jax.vmap(lambda one: tp.apply(net, params, one))(x)


def trainer(f: Any, x: Any, y: Any, rate: float, steps: int, watch: Any = None) -> Any:
    """A compiled function of parameters: gradient descent on 1/(2N) |f(params, x) - y|^2. It gives the parameters after it and
    f(params, watch) after each step; y may be given to it instead."""

    def run(params: Any, y: Any = y) -> tuple[Any, Any]:
        gradient = jax.grad(lambda p: 0.5 * jnp.mean(jnp.square(f(p, x) - y)))

        def step(p: Any, _: Any) -> Any:
            p = jax.tree.map(lambda a, g: a - rate * g, p, gradient(p))
            return p, None if watch is None else f(p, watch)

        return jax.lax.scan(step, params, length=steps)

    return jax.jit(run)


def on_circle(angles: np.ndarray) -> jax.Array:
    """Points of the unit circle, (N, 2)."""
    return jnp.asarray(np.stack([np.cos(angles), np.sin(angles)], -1), jnp.float32)


def circle(out: Path, wide: int) -> None:
    """Jacot et al. 2018, figure 1."""
    angles = np.linspace(-np.pi, np.pi, 81)
    points, centre = on_circle(angles), on_circle(np.zeros(1))
    infinite = tp.compile(network, jnp.zeros(2))
    limit = infinite(points, centre).ntk[:, 0]
    x = jax.random.normal(jax.random.key(1), (16, 2))
    y = x[:, 0] * x[:, 1]
    rate, steps = 0.5 * apps.Training(infinite, x, np.asarray(y)).critical_rate(), 60
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for width, networks, color in ((500, 5, "tab:green"), (wide, 1 if wide > 5000 else 3, "tab:red")):
        train = trainer(partial(values, network), x, y, rate, steps)
        kernel = jax.jit(lambda p: apps.Empirical(partial(tp.apply, network), p)(points, centre, get="ntk"))
        for k in range(networks):
            params = tp.init(network, jnp.zeros(2), width, jax.random.key(k))
            for style in ("-", "--"):
                if style == "--":
                    params, _ = train(params)
                label = f"n = {width}, {'before' if style == '-' else 'after'} training" if k == 0 else None
                axes.plot(angles, kernel(params)[:, 0], style, color=color, alpha=0.5, lw=1, label=label)
            print(f"  width {width}, network {k + 1} of {networks}", flush=True)
    axes.plot(angles, limit, color="black", lw=1.5, label="limit")
    axes.set(xlabel="angle", ylabel="NTK((1, 0), x)", xticks=[-np.pi, 0, np.pi], xticklabels=["-π", "0", "π"])
    axes.legend(fontsize=8)
    figure.savefig(out / "circle.png", dpi=110)


def regression(out: Path, wide: int) -> None:
    """Jacot et al. 2018, figure 2."""
    at = np.array([-2.3, -0.8, 0.5, 1.6])
    y = np.array([0.5, -0.3, 0.6, -0.2])
    angles = np.linspace(-np.pi, np.pi, 121)
    kernel = tp.compile(network, jnp.zeros(2))
    training = apps.Training(kernel, on_circle(at), y)
    rate, steps = 0.5 * training.critical_rate(), 300
    band = training.descent(steps, rate, on_circle(angles))
    spread = 1.2816 * np.sqrt(np.diagonal(band.covariance))  # tenth and ninetieth percentiles
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.fill_between(
        angles, band.mean - spread, band.mean + spread, color="tab:blue", alpha=0.25, label="limit, 10 to 90 %"
    )
    axes.plot(angles, band.mean, color="tab:blue", label="limit, mean")
    width, f = min(wide, 250), partial(values, network)
    train = trainer(f, on_circle(at), jnp.asarray(y, jnp.float32), rate, steps)
    one = lambda key: f(train(tp.init(network, jnp.zeros(2), width, key))[0], on_circle(angles))
    curves = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(0), NETWORKS)))
    inside = (np.abs(curves - band.mean) <= spread).mean()
    print(f"  {inside:.1%} of {NETWORKS} networks of width {width} are inside the band, on average over the angles")
    axes.plot(angles, curves[:8].T, color="tab:red", lw=0.6, alpha=0.6)
    axes.plot([], [], color="tab:red", lw=0.6, label=f"8 trained networks, n = {width}")
    for k, level in enumerate(np.percentile(curves, [10, 90], axis=0)):
        label = None if k else f"{NETWORKS} trained networks, 10 and 90 %"
        axes.plot(angles, level, "--", color="tab:red", lw=1.2, label=label)
    axes.plot(at, y, "ko", ms=5)
    axes.set(xlabel="angle", ylabel="f", xticks=[-np.pi, 0, np.pi], xticklabels=["-π", "0", "π"])
    axes.legend(fontsize=8)
    figure.savefig(out / "regression.png", dpi=110)


def components(out: Path, wide: int) -> None:
    """Jacot et al. 2018, figure 3."""
    from sklearn.datasets import load_digits

    x = load_digits().data[:128] / 16 - 0.3
    kernel = tp.compile(shallow, jnp.zeros(64))
    training = apps.Training(kernel, x, np.zeros(128))
    second = training.spectrum.vectors[:, -2] * np.sqrt(128)  # of unit mean square
    eigenvalue = training.spectrum.values[-2] / 128
    rate, steps = 0.5 * training.critical_rate(), 120
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    points = jnp.asarray(x, jnp.float32)
    f = partial(values, shallow)
    for width, color in ((100, "tab:green"), (min(wide, 400), "tab:red")):
        train = trainer(f, points, None, rate, steps, points)
        for k in range(2):
            params = tp.init(shallow, jnp.zeros(64), width, jax.random.key(k))
            start = np.asarray(f(params, points))
            goal = jnp.asarray(start + 0.5 * second, jnp.float32)
            path = np.asarray(train(params, goal)[1]) - np.asarray(goal)
            along = path @ second / 128
            label = f"n = {width}" if k == 0 else None
            axes[0].semilogy(np.arange(1, steps + 1), np.abs(along), color=color, lw=1, label=label)
            across = np.sqrt(np.square(path - along[:, None] * second).mean(1))
            axes[1].plot(np.arange(1, steps + 1), across, color=color, lw=1, label=label)
    counts = np.arange(steps + 1)
    axes[0].semilogy(counts, 0.5 * (1 - rate * eigenvalue) ** counts, "k--", lw=1, label="limit")
    axes[1].axhline(0, color="black", ls="--", lw=1, label="limit")
    axes[0].set(xlabel="step", title="error along component 2")
    axes[1].set(xlabel="step", title="error across it")
    for a in axes:
        a.legend(fontsize=8)
    figure.savefig(out / "components.png", dpi=110)


def linear_at(params: Any) -> Any:
    """The linearised network, as a function of parameters and many inputs."""
    line = apps.linearised(partial(tp.apply, shallow), params)
    return lambda p, x: jax.vmap(lambda one: line(p, one))(x)


def linearised(out: Path, wide: int) -> None:
    """Lee et al. 2019, figures 2 and 3."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((16, 4)), jnp.float32)
    test = jnp.asarray(rng.standard_normal((32, 4)), jnp.float32)
    y = jnp.sin(x.sum(1))
    training = apps.Training(tp.compile(shallow, jnp.zeros(4)), x, np.asarray(y))
    rate, steps, widths = 0.5 * training.critical_rate(), 200, [2**k for k in range(5, 11) if 2**k <= max(wide, 64)]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    gaps = []
    for width in widths:
        found = []
        real = trainer(partial(values, shallow), x, y, rate, steps, test)
        linear = jax.jit(lambda start: trainer(linear_at(start), x, y, rate, steps, test)(start))
        for k in range(4):
            params = tp.init(shallow, jnp.zeros(4), width, jax.random.key(k))
            paths = [np.asarray(train(params)[1]) for train in (real, linear)]
            found.append(np.sqrt(np.square(paths[0][-1] - paths[1][-1]).mean()))
            if width == widths[-1] and k == 0:
                axes[0].plot(paths[0][:, :6], color="tab:red", lw=1)
                axes[0].plot(paths[1][:, :6], "k--", lw=1)
        gaps.append(np.mean(found))
    slope = np.polyfit(np.log(widths), np.log(gaps), 1)[0]
    axes[0].set(xlabel="step", title=f"outputs at 6 test points, n = {widths[-1]}\nred: network, dashed: linearised")
    axes[1].loglog(widths, gaps, "o-", label=f"measured, $n^{{{slope:.2f}}}$")
    for power, style, whose in ((0.5, "k--", "bound of Lee et al. 2019"), (1, "k:", "Dyer and Gur-Ari 2020")):
        line = gaps[-1] * (np.array(widths) / widths[-1]) ** -power
        axes[1].loglog(widths, line, style, lw=1, label=f"$n^{{-{'1/2' if power == 0.5 else 1}}}$, {whose}")
    axes[1].set(xlabel="width n", title="distance after training (root mean square)")
    axes[1].legend()
    figure.savefig(out / "linearised.png", dpi=110)


def early_stopping(out: Path, wide: int) -> None:
    """The error along training, inside and outside the training set."""
    rng = np.random.default_rng(0)
    x, unseen = rng.standard_normal((60, 3)), rng.standard_normal((400, 3))
    truth = lambda x: np.sin(x.sum(1))
    y = truth(x) + 0.5 * rng.standard_normal(60)
    training = apps.Training(tp.compile(shallow, jnp.zeros(3)), x, y)
    times = np.geomspace(0.1, 1e7, 120)
    found = training.early_stopping(unseen, truth(unseen), times)
    inside = np.square(training.flow(times, covariance=False).mean - y).mean(1)
    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    axes.loglog(times, inside, label="training")
    axes.loglog(times, found.losses, label="unseen, without noise")
    axes.axvline(found.time, color="gray", ls=":", label=f"best time, {found.time:.3g}")
    axes.set(xlabel="time t of gradient flow", ylabel="mean square error", ylim=(1e-3, 2))
    axes.legend()
    figure.savefig(out / "early_stopping.png", dpi=110)


FIGURES = {f.__name__: f for f in (circle, regression, components, linearised, early_stopping)}


def main() -> None:
    """Draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs"))
    parser.add_argument(
        "--wide", type=int, default=2000, help="the largest width (the paper, and the pictures kept: 10000)"
    )
    parser.add_argument("--only", nargs="+", choices=list(FIGURES), default=list(FIGURES))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        print(f"{name}: drawing {given.out / name}.png", flush=True)
        FIGURES[name](given.out, given.wide)


if __name__ == "__main__":
    main()
