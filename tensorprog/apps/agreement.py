"""Do a kernel and its network agree? Random networks of growing width against the limit, and the rate they come at.

Over draws of a network of width n the mean kernel is K + c/n + O(1/n^2), and one draw strays by O(1/sqrt(n)), with K the
limit (Yang 2020, Tensor Programs II; Novak et al. 2020, figure 1). So the means, extrapolated to 1/n = 0, must meet K
within their errors, and the distance of one network must fall with the exponent 1/2.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from tensorprog.apps.checks import check_whole
from tensorprog.apps.empirical import operations
from tensorprog.apps.grams import count, widened
from tensorprog.apps.sampled import draws, last_layer
from tensorprog.errors import InputError
from tensorprog.frontend.params import Constant, Gaussian

__all__ = ["Agreement", "check"]

Z = 4.5  # standard errors; a kernel that is right is called wrong with a probability below 1e-5 for each entry
WIDTHS = (64, 128, 256, 512)
OPERATIONS = 5e10  # seconds
RESOLUTION = 0.02  # of the largest entry: a larger standard error of the extrapolated mean decides nothing


@dataclass(frozen=True)
class Agreement:
    """What sampled networks say about a kernel; lengths relative to the kernel's largest entry.

    agrees: True, False, or None where the draws were too few to tell. widths, distances: the root mean square distance of one
    network's NTK (of its NNGP kernel where there is none) at each width. exponent, exponent_error: of the distance,
    n^-exponent. offset, error: of the means extrapolated to infinite width, where they stray most in units of their errors.
    """

    agrees: bool | None
    widths: tuple[int, ...]
    distances: tuple[float, ...]
    exponent: float
    exponent_error: float
    offset: float
    error: float

    def __str__(self) -> str:
        far = f"extrapolated to infinite width the networks are {abs(self.offset):.2%} +- {self.error:.2%} from the kernel"
        rate = f"one network strays from it like n^-{self.exponent:.2f} (+- {self.exponent_error:.2f}; theory: n^-0.50)"
        if self.agrees is None:
            return f"Too few draws to tell whether kernel and network agree: {far}."
        return f"Kernel and network {'agree' if self.agrees else 'DO NOT AGREE'}: {far}, and {rate}."

    def __bool__(self) -> bool:
        return self.agrees is True

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the distance over the width, with the fitted and the expected line (needs the extra `plot`)."""
        from matplotlib.figure import Figure

        widths = np.array(self.widths, float)
        middle = np.exp(np.mean(np.log(widths)))
        level = np.exp(np.mean(np.log(self.distances)))
        figure = Figure(figsize=(5, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.loglog(widths, self.distances, "o", label="sampled networks")
        axes.loglog(widths, level * (widths / middle) ** -self.exponent, label=f"fit: $n^{{-{self.exponent:.2f}}}$")
        axes.loglog(widths, level * (widths / middle) ** -0.5, "--", color="gray", label="theory: $n^{-1/2}$")
        axes.set(xlabel="width n", ylabel="distance from the limit / largest entry", xticks=self.widths)
        axes.set_xticklabels([str(w) for w in self.widths])
        axes.minorticks_off()
        axes.legend()
        figure.savefig(path, dpi=120)


def check(
    kernel: Any,
    x: Any,
    widths: Sequence[int] | None = None,
    *,
    samples: int = 256,
    seed: int = 0,
    **hypers: float,
) -> Agreement:
    """Sample the kernel's own network at growing width, and say whether the two agree. Also `kernel.check(x, ..)`.

    kernel: what `tp.compile` made. x: a few inputs (N, *example); 3 to 6 tell most. widths: at least two, growing; None takes 64,
    128, 256 and 512, or a half or quarter of these where that would be much work. samples: networks at the largest width;
    smaller ones are sampled more often, as is cheap. seed: of the draws. hypers: values of hyperparameters. `print` of the
    result is a sentence; it is true as a condition where they agree.

    Raises InputError for a kernel whose network is not known (from a file, or a program) and widths that do not grow.

    Example:
        >>> import jax, jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> kernel = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), jnp.zeros(2))
        >>> bool(apps.check(kernel, jnp.eye(2), widths=(32, 64, 128)))
        True
    """
    sizes = None if widths is None else _checked(widths)
    model = getattr(kernel, "model", None)
    if model is None:
        raise InputError(
            f"check: the network of {kernel!r} is not known, expected a kernel that tp.compile made of a function or a model\n"
            "  to mend: compile the network here; a file and a program hold only its limit"
        )
    check_whole(samples, "check: samples", 8)
    check_whole(seed, "check: seed", 0)
    if not count(x, "x"):
        raise InputError("check: x holds no inputs, expected a few")
    limit = [np.asarray(k, float) for k in kernel(x, **hypers)]
    scales = [float(np.abs(k).max()) or 1.0 for k in limit]
    output = kernel.program.output.type.shape
    copies = tuple(i for i, size in enumerate(output) if size == 1 or i in kernel.program.mirrored)
    sizes = sizes or _affordable(model, x, samples, {**model.hypers, **hypers})
    last = last_layer(model, x, sizes[0], first=copies, hypers=hypers)
    means, errors, strays = [], [], []
    for k, width in enumerate(sizes):
        number = samples * max(1, min(8, sizes[-1] // width))
        key = jax.random.fold_in(jax.random.key(seed), k)
        nngp, ntk = draws(model, x, width, number, key, last=last, first=copies, hypers=hypers)
        found = nngp, ntk * float(width) ** kernel.ntk_power
        scaled = [(a - b) / s for a, b, s in zip(found, limit, scales, strict=True)]
        entries = np.concatenate([a.reshape(number, -1) for a in scaled], 1)
        means.append(entries.mean(0))
        errors.append(entries.std(0, ddof=1) / math.sqrt(number))
        which = scaled[1] if np.abs(limit[1]).max() else scaled[0]
        strays.append(np.square(which.reshape(number, -1)).mean(1))
    offset, error = _extrapolated(np.array(sizes, float), np.array(means), np.array(errors))
    exponent, spread = _exponent(np.array(sizes, float), strays)
    worst = int(np.argmax(np.abs(offset) / error))
    agrees: bool | None = bool((np.abs(offset) <= Z * error).all())
    if agrees and error.max() > RESOLUTION:
        agrees, worst = None, int(np.argmax(error))
    distances = tuple(float(np.sqrt(s.mean())) for s in strays)
    return Agreement(agrees, sizes, distances, exponent, spread, float(offset[worst]), float(error[worst]))


def _checked(widths: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(widths) if np.ndim(widths) == 1 else ()
    whole = all(isinstance(w, (int, np.integer)) and w >= 1 for w in sizes)
    if len(sizes) < 2 or not whole or sorted(set(sizes)) != list(sizes):
        raise InputError(f"check: widths is {widths!r}, expected at least two whole numbers that grow")
    return tuple(map(int, sizes))


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, (Gaussian, Constant))


def _affordable(model: Any, x: Any, samples: int, hypers: dict[str, float]) -> tuple[int, ...]:
    """Four widths, the largest such that the operations of all draws stay below `OPERATIONS`."""
    specs = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, np.float32), model.specs(WIDTHS[0]), is_leaf=_is_spec)
    one = jax.tree.map(lambda a: np.asarray(a, np.float32)[0], widened(x))
    each = 3 * count(x, "x") * operations(lambda p, x: model.run(WIDTHS[0], p, hypers, x), specs, one)
    for part in (1, 2, 4):
        if 4 * samples * each * (WIDTHS[-1] / part / WIDTHS[0]) ** 2 <= OPERATIONS:
            break
    return tuple(w // part for w in WIDTHS)


def _extrapolated(widths: np.ndarray, means: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means at 1/n = 0 minus the limit, for each entry, and their errors: weighted least squares in 1 and 1/n, and in 1/n^2
    too where there are four widths."""
    powers = 3 if len(widths) > 3 else 2
    design = (widths[0] / widths)[:, None] ** np.arange(powers)
    sigma = errors + 1e-6  # rounding of float32
    normal = np.einsum("wa,we,wb->eab", design, sigma**-2, design)
    right = np.einsum("wa,we,we->ea", design, sigma**-2, means)
    covariance = np.linalg.inv(normal)
    return np.einsum("ea,ea->e", covariance[:, 0], right), np.sqrt(covariance[:, 0, 0])


def _exponent(widths: np.ndarray, squares: list[np.ndarray]) -> tuple[float, float]:
    """The exponent of the root mean square distance, and its standard error."""
    logs = np.array([0.5 * np.log(s.mean() + 1e-300) for s in squares])
    sigma = np.array([0.5 * s.std(ddof=1) / (math.sqrt(len(s)) * s.mean() + 1e-300) + 1e-9 for s in squares])
    design = np.stack([np.ones_like(widths), -np.log(widths)], 1)
    covariance = np.linalg.inv(design.T @ (design / sigma[:, None] ** 2))
    return float((covariance @ design.T @ (logs / sigma**2))[1]), float(np.sqrt(covariance[1, 1]))
