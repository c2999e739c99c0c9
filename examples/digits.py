"""Handwritten digits from end to end: two networks as JAX functions, and their infinite-width kernels.

Run `make demo`, or `python examples/digits.py` where tensorprog is installed with its `demo` extra. It prints
the program and the recursion of a fully connected and of a convolutional network, fits their NNGP and neural
tangent kernels to scikit-learn's 8x8 digits by ridge regression, trains a finite network of the same function
beside them, compares the kernels with sampled networks of growing width, and draws `outputs/digits.png`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.image import AxesImage
from sklearn.datasets import load_digits

import tensorprog as tp
from tensorprog import nn

SEED = 0
CLASSES = 10
RIDGES = tuple(10.0**p for p in range(-8, 1))  # relative to the mean of the diagonal; from the rounding of float32 on

Net = Callable[[jax.Array], jax.Array]


# ------------------------------------------------------------------------------------ the two networks


def fully_connected(x: jax.Array) -> jax.Array:
    """Three hidden ReLU layers on the pixels of one image (8, 8, 1)."""
    h = nn.flatten(x)
    for _ in range(3):
        h = jax.nn.relu(nn.dense(h, weight_var=2.0, bias_var=0.1))
    return nn.dense(h, features=CLASSES)


def convolutional(x: jax.Array) -> jax.Array:
    """Three 3x3 convolutions without padding, 8x8 -> 6x6 -> 4x4 -> 2x2, flattened, then a readout."""
    h = x
    for _ in range(3):
        h = jax.nn.relu(nn.conv(h, 3, padding="VALID", weight_var=2.0, bias_var=0.1))
    return nn.dense(nn.flatten(h), features=CLASSES)


@dataclass(frozen=True)
class Study:
    """One network, the width at which it is trained, and the widths and draws at which it is sampled.

    Draws are many where the mean over draws is wanted (its error is far smaller than that of one draw).
    """

    name: str
    net: Net
    train_width: int
    draws: dict[int, int]


STUDIES = (
    Study(
        "fully connected",
        fully_connected,
        256,
        {4: 65536, 8: 65536, 16: 65536, 32: 131072, 64: 64, 128: 64, 256: 64, 512: 64},
    ),
    Study("convolutional", convolutional, 32, {4: 64, 8: 64, 16: 64, 32: 64, 64: 64}),
)
MANY = 1024  # from this number of draws on, the error of their mean is reported too,
GROUPS = 16  # with an uncertainty from this number of groups of draws


# ------------------------------------------------------------------------------------ data


class Split(NamedTuple):
    """Images (N, 8, 8, 1) with values in [-1, 1], and their classes (N,)."""

    x: np.ndarray
    y: np.ndarray

    @property
    def targets(self) -> np.ndarray:
        """One-hot, with mean zero: (N, 10)."""
        return np.eye(CLASSES, dtype=np.float32)[self.y] - 1 / CLASSES


def load() -> tuple[Split, Split, Split]:
    """A train, a validation and a test split of the 1797 digits, shuffled with a fixed seed."""
    data = load_digits()
    x = (data.images[..., None] / 8 - 1).astype(np.float32)
    order = np.random.default_rng(SEED).permutation(len(x))
    parts = np.split(order, [1000, 1250])
    return tuple(Split(x[part], data.target[part]) for part in parts)  # type: ignore[return-value]


# ------------------------------------------------------------------------------------ kernel regression


class Fit(NamedTuple):
    """A kernel regression: the ridge that the validation split chose, and its test accuracy."""

    ridge: float
    accuracy: float


def fit(kernel: np.ndarray, splits: tuple[Split, Split, Split]) -> Fit:
    """Ridge regression, fitted on the train split, with a kernel over all splits in order.

    The ridge is the one with the least squared error on the validation split.
    """
    train, validation, test = splits
    n, m = len(train.y), len(train.y) + len(validation.y)
    gram = kernel[:n, :n].astype(np.float64)
    scale = np.trace(gram) / n
    weights = {r: np.linalg.solve(gram + r * scale * np.eye(n), train.targets) for r in RIDGES}
    error = {r: np.mean((kernel[n:m, :n] @ w - validation.targets) ** 2) for r, w in weights.items()}
    best = min(RIDGES, key=error.__getitem__)
    return Fit(best, accuracy(kernel[m:, :n] @ weights[best], test))


def accuracy(outputs: np.ndarray, split: Split) -> float:
    """The share of images whose largest output is that of their class."""
    return float(np.mean(np.argmax(outputs, -1) == split.y))


# ------------------------------------------------------------------------------------ training at finite width


class Trained(NamedTuple):
    """A trained finite network: its width, the epoch the validation split chose, its test accuracy."""

    width: int
    epoch: int
    accuracy: float


def train_finite(
    study: Study, splits: tuple[Split, Split, Split], largest: float, *, epochs: int = 30, batch: int = 100
) -> Trained:
    """Train the same function at finite width on the square loss, by gradient descent with momentum 0.9.

    largest: the largest eigenvalue of the NTK on the train split, which sets the step size: gradient flow on
    the mean square loss over N images moves along it at the rate `largest / N`. The best epoch is chosen on the
    validation split.
    """
    train, validation, test = splits
    run = jax.vmap(lambda p, x: tp.apply(study.net, p, x), (None, 0))
    rate, momentum = len(train.y) / largest, 0.9

    def step(state, data):
        params, speed = state
        x, y = data
        slope = jax.grad(lambda p: 0.5 * jnp.mean(jnp.sum((run(p, x) - y) ** 2, -1)))(params)
        speed = jax.tree.map(lambda v, g: momentum * v - rate * g, speed, slope)
        return (jax.tree.map(jnp.add, params, speed), speed), None

    @jax.jit
    def epoch(state, order):
        batches = (jnp.asarray(a)[order].reshape(-1, batch, *a.shape[1:]) for a in (train.x, train.targets))
        state, _ = jax.lax.scan(step, state, tuple(batches))
        return state, run(state[0], validation.x), run(state[0], test.x)

    params = tp.init(study.net, train.x[0], study.train_width, jax.random.key(SEED))
    state = (params, jax.tree.map(jnp.zeros_like, params))
    shuffles = np.random.default_rng(SEED)
    history = []
    for number in range(1, epochs + 1):
        state, on_validation, on_test = epoch(state, shuffles.permutation(len(train.y)))
        error = float(np.mean((on_validation - validation.targets) ** 2))
        history.append((error, number, accuracy(np.asarray(on_test), test)))
    _, best, reached = min(history)
    return Trained(study.train_width, best, reached)


# ------------------------------------------------------------------------------------ sampled networks


class Sampled(NamedTuple):
    """Empirical NTKs of many networks of one width, compared with the limit, relative to its Frobenius norm.

    one: the root mean square error of one draw. mean: the error of the mean over draws, freed of the noise that
    is left in it, and an interval of one standard error; None where the draws are too few to tell.
    """

    width: int
    draws: int
    one: float
    mean: tuple[float, float, float] | None


def empirical_ntk(net: Net, params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """The inner products of gradients at one draw of the parameters, (N, N), for the first output."""
    gradients = jax.vmap(jax.grad(lambda p, one: tp.apply(net, p, one)[0]), (None, 0))(params, x)
    flat = [g.reshape(len(x), -1) for g in jax.tree.leaves(gradients)]
    return sum(g @ g.T for g in flat)


def empirical_ntks(net: Net, x: np.ndarray, params: dict[str, jax.Array]) -> jax.Array:
    """The same at many draws, (draws, N, N); a few at a time, which stay in the cache."""
    return jax.lax.map(lambda p: empirical_ntk(net, p, x), params, batch_size=256)


def sample(study: Study, x: np.ndarray, limit: np.ndarray) -> list[Sampled]:
    """Compare empirical NTKs on the images x with the infinite-width NTK, at each width."""
    found = []
    for width, draws in study.draws.items():
        rng = np.random.Generator(np.random.SFC64([SEED, width]))
        chunk = min(draws, 2048 if draws >= MANY else 16)
        run = jax.jit(partial(empirical_ntks, study.net, x))
        kernels = [np.asarray(run(draw_parameters(study.net, x[0], width, chunk, rng))) for _ in range(draws // chunk)]
        errors = (np.concatenate(kernels).astype(np.float64) - limit) / np.linalg.norm(limit)
        found.append(compare(width, errors.reshape(draws, -1)))
    return found


def draw_parameters(net: Net, x: np.ndarray, width: int, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters of `count` networks, like `tp.init`, which makes one, with a leading axis.

    In the NTK parametrisation each is a standard Gaussian; NumPy draws them, as it has nothing to compile.
    """
    shapes = jax.eval_shape(lambda: tp.init(net, x, width, jax.random.key(0)))
    return jax.tree.map(lambda leaf: rng.standard_normal((count, *leaf.shape), dtype=np.float32), shapes)


def compare(width: int, errors: np.ndarray) -> Sampled:
    """Errors of draws, shape (draws, entries), summarised.

    The squared error of a mean over K draws is that of the expectation plus a K-th of the variance of one draw.
    Only products of the means of different groups of draws are summed, which leaves the variance out, so that
    the result does not depend on K. Its uncertainty comes from leaving out one group at a time (the jackknife).
    """
    draws = len(errors)
    one = float(np.sqrt(np.mean(np.sum(errors**2, -1))))
    if draws < MANY:
        return Sampled(width, draws, one, None)
    groups = np.stack([group.mean(0) for group in np.split(errors, GROUPS)])
    square = product_of_different(groups)
    without = np.array([product_of_different(np.delete(groups, i, 0)) for i in range(GROUPS)])
    spread = np.sqrt((GROUPS - 1) * np.var(without))
    mean, low, high = (float(np.sqrt(max(s, 0.0))) for s in (square, square - spread, square + spread))
    return Sampled(width, draws, one, (mean, low, high))


def product_of_different(rows: np.ndarray) -> float:
    """The mean inner product of two different rows."""
    products = rows @ rows.T
    return float((products.sum() - np.trace(products)) / (len(rows) * (len(rows) - 1)))


# ------------------------------------------------------------------------------------ report


class Result(NamedTuple):
    """All there is to report on one network."""

    study: Study
    nngp: np.ndarray
    ntk: np.ndarray
    fits: dict[str, Fit]
    trained: Trained
    sampled: list[Sampled]


def investigate(study: Study, splits: tuple[Split, Split, Split]) -> Result:
    """Compile, print, fit, train and sample one network."""
    heading(f"The {study.name} network")
    kernel = tp.compile(study.net, splits[0].x[0])
    print(f"Its tensor program:\n\n{kernel.program}\n")
    print(f"{kernel.derivation()}\n")
    x = np.concatenate([split.x for split in splits])
    with timed(f"kernels of all {len(x)} images with each other"):
        nngp, ntk = map(np.asarray, kernel(x))
    with timed("ridge regression"):
        fits = {"NNGP": fit(nngp, splits), "NTK": fit(ntk, splits)}
    largest = float(np.linalg.eigvalsh(ntk[:1000, :1000].astype(np.float64))[-1])
    with timed(f"training at width {study.train_width}"):
        trained = train_finite(study, splits, largest)
    few = splits[0].x[:4]
    with timed(f"sampling {sum(study.draws.values())} networks"):
        sampled = sample(study, few, np.asarray(kernel(few).ntk, np.float64))
    return Result(study, nngp, ntk, fits, trained, sampled)


class timed:
    """Print how long a step took."""

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *problem: object) -> None:
        print(f"  {time.perf_counter() - self.start:6.1f} s  {self.what}", flush=True)


def heading(text: str) -> None:
    """A line that stands out."""
    print(f"\n{text}\n{'=' * len(text)}\n")


def report(results: list[Result]) -> None:
    """Print what was found."""
    heading("Test accuracy on digits (the ridge and the epoch chosen on the validation split)")
    for r in results:
        for name, found in r.fits.items():
            print(f"  {r.study.name:16} {name:4} of infinite width, ridge {found.ridge:7.0e}   {found.accuracy:7.1%}")
        t = r.trained
        print(f"  {r.study.name:16} trained at width {t.width}, {t.epoch} epochs      {t.accuracy:7.1%}")
    heading("The NTK of sampled networks against the limit (relative error, Frobenius norm, 4 images)")
    for r in results:
        print(f"  {r.study.name}\n    width   draws   one draw   mean over draws (one standard error)")
        for s in r.sampled:
            mean = "-" if s.mean is None else f"{s.mean[0]:.4f}   ({s.mean[1]:.4f} to {s.mean[2]:.4f})"
            print(f"    {s.width:5d}   {s.draws:5d}   {s.one:8.4f}   {mean}")
        one, mean = rates(r.sampled)
        print(f"    error of one draw falls like width^{one:.2f} (theory: -1/2)")
        if mean is not None:
            print(f"    error of the mean falls like width^{mean[0]:.2f} +- {mean[1]:.2f} (theory: -1)")
        print()


def rates(sampled: list[Sampled]) -> tuple[float, tuple[float, float] | None]:
    """The exponent of the error of one draw, and that of the mean over draws with its standard error."""
    one = np.polyfit(np.log([s.width for s in sampled]), np.log([s.one for s in sampled]), 1)[0]
    means = np.array([(s.width, *s.mean) for s in sampled if s.mean is not None and s.mean[1] > 0])
    if len(means) < 2:
        return float(one), None
    n, mean, low, high = means.T
    weights = 2 * mean / (high - low)  # the inverse standard error of log(mean)
    fitted, covariance = np.polyfit(np.log(n), np.log(mean), 1, w=weights, cov="unscaled")
    return float(one), (float(fitted[0]), float(np.sqrt(covariance[0, 0])))


# ------------------------------------------------------------------------------------ picture

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # of Okabe and Ito, told apart by the colour-blind


def draw(results: list[Result], classes: np.ndarray, path: Path) -> None:
    """The gram matrices, images sorted by class, and the error of finite networks over their width."""
    figure = plt.figure(figsize=(11.5, 5.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.12, 1))
    axes = left.subplots(2, 2, sharex=True, sharey=True)
    for row, result in zip(axes, results, strict=True):
        for ax, name in zip(row, ("nngp", "ntk"), strict=True):
            image = draw_gram(ax, getattr(result, name), classes, f"{result.study.name}, {name.upper()}")
    left.supxlabel("class of the image", fontsize=10)
    left.supylabel("class of the image", fontsize=10)
    bar = left.colorbar(image, ax=axes, shrink=0.75, pad=0.02)
    bar.set_label(r"$K(x, x')\,/\,\sqrt{K(x, x)\,K(x', x')}$")
    draw_rates(right.subplots(), results)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_gram(ax: plt.Axes, kernel: np.ndarray, classes: np.ndarray, title: str) -> AxesImage:
    """Twenty images of each class, as a matrix of correlations."""
    shown = np.concatenate([np.flatnonzero(classes == c)[:20] for c in range(CLASSES)])
    scale = np.sqrt(np.diag(kernel))[shown]
    image = ax.imshow(
        kernel[np.ix_(shown, shown)] / np.outer(scale, scale),
        cmap="cividis",
        vmin=0.1,
        vmax=1,
        interpolation="none",
    )
    ax.set_title(title, fontsize=10)
    ticks = np.arange(CLASSES) * 20 + 10
    ax.set_xticks(ticks, range(CLASSES))
    ax.set_yticks(ticks, range(CLASSES))
    ax.tick_params(length=0, labelsize=8)
    return image


def draw_rates(ax: plt.Axes, results: list[Result]) -> None:
    """Errors over width on logarithmic axes, with lines of the slopes that theory gives."""
    for result, colour, marker in zip(results, (BLUE, GREEN), "os", strict=True):
        widths = np.array([s.width for s in result.sampled], float)
        one = np.array([s.one for s in result.sampled])
        slope, mean_slope = rates(result.sampled)
        name = result.study.name
        ax.loglog(widths, one, marker, color=colour, label=f"{name}, one draw: slope ${slope:.2f}$")
        ax.loglog(widths, through(widths, one, 0.5), "-", color=colour, lw=1, alpha=0.7)
        means = [(s.width, *s.mean) for s in result.sampled if s.mean is not None]
        if means:
            n, mean, low, high = np.array(means).T
            bars = np.abs(np.stack([mean - low, high - mean]))
            label = f"{name}, mean over many draws: slope ${mean_slope[0]:.2f} \\pm {mean_slope[1]:.2f}$"
            ax.errorbar(n, mean, bars, fmt="D", color=ORANGE, capsize=3, label=label)
            ax.loglog(n, through(n, mean, 1.0), "--", color=ORANGE, lw=1, alpha=0.8)
    ax.plot([], [], "-", color="grey", lw=1, label=r"slope $-1/2$")
    ax.plot([], [], "--", color="grey", lw=1, label=r"slope $-1$")
    ticks = sorted({s.width for r in results for s in r.sampled})
    ax.set_xticks(ticks, ticks)
    ax.minorticks_off()
    ax.grid(alpha=0.25)
    ax.set_xlabel("width of the sampled networks")
    ax.set_ylabel("relative error of the empirical NTK")
    ax.set_title("sampled networks approach the limit", fontsize=10)
    ax.legend(fontsize=8, loc="upper right")
    ax.set_ylim(top=3 * ax.get_ylim()[1])  # room for the legend


def through(widths: np.ndarray, errors: np.ndarray, power: float) -> np.ndarray:
    """The line of errors c / width^power, with c the geometric mean."""
    return np.exp(np.mean(np.log(errors * widths**power))) / widths**power


def main() -> None:
    """Investigate both networks, report, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/digits.png"), help="where the picture goes")
    out = parser.parse_args().out
    start = time.perf_counter()
    splits = load()
    train, validation, test = (len(split.y) for split in splits)
    print(f"{train} digits to train, {validation} to validate, {test} to test")
    results = [investigate(study, splits) for study in STUDIES]
    report(results)
    draw(results, np.concatenate([split.y for split in splits]), out)
    print(f"drew {out}; all of it took {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
