"""The spectrum of a kernel matrix along a hyperparameter, or over networks of growing depth.

The condition number says what training can do: gradient descent learns the component of the smallest eigenvalue in about as many
steps (Xiao, Pennington and Schoenholz 2020, Disentangling trainability and generalization in deep neural networks, section 2).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorprog.apps.grams import Grams, check_number, count
from tensorprog.apps.spectral import spectrum
from tensorprog.errors import InputError

__all__ = ["Spectra", "spectra"]


@dataclass(frozen=True)
class Spectra:
    """Of what was varied its name and values (T,); at each the largest and smallest eigenvalue, the condition number, and the effective
    dimension at the ridge asked for."""

    name: str
    values: tuple[Any, ...]
    largest: np.ndarray
    smallest: np.ndarray
    condition: np.ndarray
    effective_dimension: np.ndarray

    def __str__(self) -> str:
        head = f"{self.name:>12} {'largest':>10} {'smallest':>10} {'condition':>10} {'dimension':>10}"
        columns = zip(self.values, self.largest, self.smallest, self.condition, self.effective_dimension, strict=True)
        return "\n".join(
            [head, *(f"{v:>12.6g} {a:>10.3g} {b:>10.3g} {c:>10.3g} {d:>10.1f}" for v, a, b, c, d in columns)]
        )

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw eigenvalues and condition number (needs the extra `plot`)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for row, label in ((self.largest, "largest eigenvalue"), (self.smallest, "smallest eigenvalue")):
            left.semilogy(self.values, np.where(row > 0, row, np.nan), "o-", label=label)
        right.semilogy(
            self.values, np.where(np.isfinite(self.condition), self.condition, np.nan), "o-", label="condition number"
        )
        right.semilogy(self.values, self.effective_dimension, "s--", label="effective dimension")
        for axes in (left, right):
            axes.set_xlabel(self.name)
            axes.legend(fontsize=8)
        figure.savefig(path, dpi=110)


def spectra(
    kernel: Callable[..., Any] | Mapping[Any, Callable[..., Any]],
    x: Any,
    *,
    get: str = "ntk",
    ridge: float = 1e-3,
    **hypers: Any,
) -> Spectra:
    """Extreme eigenvalues, condition number and effective dimension of the kernel matrix of x (N, *example), along a parameter.

    kernel: one kernel, and then one of the hyperparameters has several values; or a dict of kernels, as those of networks of several
    depths, {depth: kernel}. ridge: of the effective dimension, as a multiple of the mean eigenvalue.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> net = lambda x: nn.dense(jax.nn.relu(nn.dense(x, bias_var=tp.hyper("bias_var", 0.1))), features=1)
        >>> kernel = tp.compile(net, jnp.zeros(2))
        >>> found = apps.spectra(kernel, np.eye(2), bias_var=[0.0, 1.0, 10.0])
        >>> bool(found.condition[2] > found.condition[0])
        True
    """
    ridge, n = check_number(ridge, "ridge"), count(x, "x")
    if not n:
        raise InputError("x holds no inputs, expected at least one")
    for name, value in hypers.items():
        if np.asarray(value).dtype.kind not in "biuf":
            raise InputError(
                f"spectra: {name} is {value!r}, expected a number, or one hyperparameter's several numbers"
            )
    swept = [name for name, value in hypers.items() if np.ndim(value) == 1 and np.size(value)]
    if isinstance(kernel, Mapping):
        if swept or not kernel:
            raise InputError(
                f"spectra: {len(kernel)} kernels and several values of {swept} are given, expected several of one"
            )
        name, steps = "network", [(value, one, hypers) for value, one in kernel.items()]
    elif len(swept) == 1:
        name = swept[0]
        steps = [(float(value), kernel, {**hypers, name: float(value)}) for value in hypers[name]]
    else:
        raise InputError(
            f"spectra: {len(swept)} hyperparameters are varied, expected one hyperparameter with several values"
        )
    rows = [spectrum(Grams(one, given)(get, x)).values for _, one, given in steps]
    largest, smallest = (np.array([row[k] for row in rows]) for k in (-1, 0))
    levels = [ridge * float(row.mean()) for row in rows]
    dimension = [
        np.sum(row / np.where(row + level > 0, row + level, 1.0)) for row, level in zip(rows, levels, strict=True)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        condition = np.where(smallest > 0, largest / smallest, np.inf)
    return Spectra(name, tuple(value for value, _, _ in steps), largest, smallest, condition, np.array(dimension))
