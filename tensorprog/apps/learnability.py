"""What the spectrum of a neural tangent kernel says about learning: which parts of the labels, how fast, and how safely.

Along kernel principal component i, with eigenvalue l_i, gradient flow on the mean square loss learns at the rate l_i / N
(Jacot et al. 2018, section 5), so gradient descent at its fastest stable rate needs about l_max / (2 l_i) steps for a factor e.
The effective dimension is sum l_i / (l_i + N r) at a ridge r per example (Hastie, Tibshirani and Friedman 2009, equation 3.50).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorprog.apps.grams import Grams, Targets, check_number, count
from tensorprog.apps.spectral import spectrum
from tensorprog.errors import InputError

__all__ = ["Learnability", "learnability"]

NAMED = 5  # components that one warning names


@dataclass(frozen=True)
class Learnability:
    """Kernel principal components of a training set, the largest eigenvalue first.

    eigenvalues (n,): of the kernel matrix. vectors (n, n): components, as columns. shares (n,): of the squared length of the labels that
    lies along each. times (n,): N / eigenvalue, in which gradient flow learns a component up to 1/e; infinite for zero. steps
    (n,): the same in steps of gradient descent at half the critical rate. condition: largest over smallest eigenvalue.
    effective_dimension: at the ridge asked for.
    """

    eigenvalues: np.ndarray
    vectors: np.ndarray
    shares: np.ndarray
    times: np.ndarray
    steps: np.ndarray
    condition: float
    effective_dimension: float

    def learned(self, steps: float) -> float:
        """The share of the labels' squared length that lies along components learned up to 1/e within so many steps."""
        if not isinstance(steps, (int, float, np.integer, np.floating)) or not steps >= 0:
            raise InputError(f"learned: steps is {steps!r}, expected a number >= 0")
        return float(self.shares[self.steps <= steps].sum())

    def warnings(self, budget: float = 1e5, share: float = 1e-3) -> list[str]:
        """What to worry about, in sentences; components that hold less than `share` of the labels do not count.

        budget: how many steps of gradient descent one is ready to make.
        """
        budget, share = check_number(budget, "budget", positive=True), check_number(share, "share")
        said = []
        slow = [i for i in np.argsort(-self.shares) if self.steps[i] > budget and self.shares[i] >= share]
        for i in slow[:NAMED]:
            time = (
                "cannot be learned: its eigenvalue is zero"
                if np.isinf(self.steps[i])
                else f"needs {self.steps[i]:.0e} steps"
            )
            said.append(
                f"component {i + 1} of your labels {time}; it holds {self.shares[i]:.1%} of their squared length"
            )
        if len(slow) > NAMED:
            rest = self.shares[slow[NAMED:]].sum()
            said.append(
                f"{len(slow) - NAMED} more components, with {rest:.1%} of the labels, need more than {budget:.0e} steps"
            )
        zero = int((self.eigenvalues == 0).sum())
        if zero:
            said.append(
                f"the matrix is singular: {zero} of {len(self.eigenvalues)} eigenvalues are zero at working precision"
            )
        elif self.condition > 1e7:
            limit = "float32 holds no digit of a solve" if self.condition < 1e15 else "float64 holds none either"
            said.append(f"the condition number is {self.condition:.1e}: {limit}")
        return said

    def __str__(self) -> str:
        head = (
            f"{len(self.eigenvalues)} components, eigenvalues from {self.eigenvalues[0]:.3g} to {self.eigenvalues[-1]:.3g}, condition "
            f"number {self.condition:.2e}, effective dimension {self.effective_dimension:.1f}"
        )
        return "\n".join([head, *(f"- {line}" for line in self.warnings())])


def learnability(
    kernel: Callable[..., Any], x: Any, y: Any, *, ridge: float = 1e-3, get: str = "ntk", **hypers: float
) -> Learnability:
    """The spectrum of the kernel matrix of inputs x (N, *example), and of labels y (N, *S) or (N, *S, F) in it.

    ridge: of the effective dimension, as a multiple of the mean eigenvalue. Raises InputError as `Training` does.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> kernel = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), jnp.zeros(1))
        >>> x = np.array([[1.0], [2.0], [-1.0]])
        >>> apps.learnability(kernel, x, np.array([1.0, -1.0, 0.0])).warnings()[0]
        'component 3 of your labels cannot be learned: its eigenvalue is zero; it holds 90.0% of their squared length'
    """
    ridge = check_number(ridge, "ridge")
    grams = Grams(kernel, hypers)
    values, vectors = spectrum(grams(get, x))
    targets = Targets(y, n := count(x, "x"), grams.axes or ())
    values, vectors = values[::-1], vectors[:, ::-1]
    along = np.square(vectors.T @ targets.flat).sum(1)
    total = along.sum()
    if not len(values):
        raise InputError("x holds no inputs, expected at least one")
    with np.errstate(divide="ignore", invalid="ignore"):
        times = n / values
        steps = np.where(values > 0, values[:1] / values, np.inf)
    level = ridge * float(values.mean()) if len(values) else 0.0
    dimension = float(np.sum(values / np.where(values + level > 0, values + level, 1.0)))
    condition = float(values[0] / values[-1]) if len(values) and values[-1] > 0 else float("inf")
    return Learnability(values, vectors, along / total if total else along, times, steps, condition, dimension)
