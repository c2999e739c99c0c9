"""What an infinitely wide network predicts while it is trained on the square loss, in closed form.

In the limit the network is linear in its parameters, so its outputs move under gradient descent by the NTK alone, and are
Gaussian over initialisations at every time. Source: Lee et al. 2019 (Wide neural networks of any depth evolve as linear
models), equations 8 to 11 for one network, 14 to 16 for the law over initialisations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tensorprog.apps.grams import Grams, Targets, check_number, count, kept
from tensorprog.apps.spectral import Filter, descent, flow, spectrum
from tensorprog.errors import InputError, explain

__all__ = ["EarlyStop", "Trained", "Training"]


class Trained(NamedTuple):
    """Predictions at times of shape T: mean (*T, M, *S) or (*T, M, *S, F); covariance (*T, M, M, *S, *S) over
    initialisations, the same for each output, or None where the network at time 0 was given."""

    mean: np.ndarray
    covariance: np.ndarray | None


class EarlyStop(NamedTuple):
    """The time of least validation loss, that loss, and the losses at all times that were tried."""

    time: float
    loss: float
    losses: np.ndarray


class Training:
    """An infinitely wide network trained on (x, y) with the square loss; all its parameters move, at the rates that their
    `tangent_std` sets.

    kernel: from `tp.compile` or `tp.load`. x: (N, *example), or a pytree. y: (N, *S), or (N, *S, F) for F outputs. loss:
    "mean" is 1/(2N) sum over examples of |f(x_i) - y_i|^2, "sum" is without the 1/N (as in Lee et al. 2019). hypers: the
    kernel's hyperparameters.

    The NTK is diagonalised once, here. Where it is singular (equal inputs, say), components of eigenvalue zero are never
    learned: at t = infinity the prediction is that of the pseudoinverse. Everything is float64 and NumPy.

    Raises InputError for shapes that do not match, NaN, and bad hyperparameters.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> kernel = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), jnp.zeros(2))
        >>> training = apps.Training(kernel, np.eye(2), np.array([1.0, -1.0]))
        >>> found = training.flow([0.0, 1.0, np.inf])
        >>> found.mean[1:].round(2), found.covariance.shape
        (array([[ 0.19, -0.19],
               [ 1.  , -1.  ]]), (3, 2, 2))
    """

    def __init__(self, kernel: Callable[..., Any], x: Any, y: Any, *, loss: str = "mean", **hypers: float):
        if loss not in ("mean", "sum"):
            raise InputError(f"loss is {loss!r}, expected 'mean' or 'sum'")
        self._grams = Grams(kernel, hypers)
        (self._nngp, ntk), self._x = self._grams.both(("nngp", "ntk"), x), kept(x)
        self._n = count(x, "x")
        self._targets = Targets(y, self._n, self._grams.axes or ())
        self.spectrum = spectrum(ntk)
        self._scale = 1 / self._n if loss == "mean" and self._n else 1.0

    # ---- three ways of training

    def flow(self, t: Any, x: Any = None, *, f0: Any = None, f0_test: Any = None, covariance: bool = True) -> Trained:
        """Gradient flow, d theta / dt = - gradient of the loss, up to the times t.

        t: a number or an array of numbers >= 0; infinity is allowed. x: test inputs (M, *example); None means the training
        inputs. f0, f0_test: what the network computes before training at the training and test inputs, shaped like y; without
        them the result is the mean and covariance over initialisations. covariance: compute it?
        """
        times = _times(t, "t")
        made = flow(self.spectrum.values * self._scale, times.ravel())
        return self._predict(made, times.shape, x, f0, f0_test, covariance)

    def descent(
        self, steps: Any, rate: float, x: Any = None, *, momentum: float = 0.0, f0: Any = None, f0_test: Any = None,
        covariance: bool = True,
    ) -> Trained:  # fmt: skip
        """Full-batch gradient descent with a learning rate, after these numbers of steps; the rest is as for `flow`.

        momentum: m in v <- m v + gradient, theta <- theta - rate v, from v = 0.
        Raises InputError for a rate at or above `critical_rate`, with which training diverges.
        """
        counts = _times(steps, "steps")
        if (np.isfinite(counts) & (counts != np.floor(counts))).any():
            raise InputError(f"steps is {steps!r}, expected whole numbers >= 0, or infinity")
        rate, momentum = check_number(rate, "rate", positive=True), _momentum(momentum)
        if rate >= self.critical_rate(momentum):
            raise InputError(
                explain(
                    f"rate is {rate!r}, expected less than the critical rate {self.critical_rate(momentum):.6g}",
                    reason="the component of the largest eigenvalue would grow with every step",
                    mend="take a smaller rate; fastest_rate() is the best one without momentum",
                )
            )
        made = descent(self.spectrum.values * self._scale, counts.ravel(), rate, momentum)
        return self._predict(made, counts.shape, x, f0, f0_test, covariance)

    def critical_rate(self, momentum: float = 0.0) -> float:
        """The learning rate from which gradient descent diverges: 2 (1 + momentum) / largest eigenvalue of the NTK over N."""
        largest = float(self.spectrum.values.max(initial=0.0)) * self._scale
        return 2 * (1 + _momentum(momentum)) / largest if largest else math.inf

    def fastest_rate(self) -> float:
        """The learning rate with the best worst case, 2 / (smallest + largest eigenvalue); eigenvalues of zero are left out."""
        values = self.spectrum.values[self.spectrum.values > 0] * self._scale
        return 2 / float(values[0] + values[-1]) if len(values) else math.inf

    # ---- what is learned when

    def early_stopping(self, x: Any, y: Any, times: Any, *, f0: Any = None, f0_test: Any = None) -> EarlyStop:
        """The time along gradient flow of the least mean square error (1/M) |f - y|^2 at validation inputs x (M, *example).

        Without f0 the error is that of the mean over initialisations, which is that of a large ensemble.
        """
        if not np.size(times) or not count(x, "x"):
            raise InputError(
                f"early_stopping: {np.size(times)} times and {count(x, 'x')} validation inputs are given, expected at least one of each"
            )
        at = _times(times, "times")
        found = self.flow(at, x, f0=f0, f0_test=f0_test, covariance=False).mean
        wanted = self._targets.shaped(self._targets.like(y, count(x, "x"), "y (validation)"))
        losses = np.square(found - wanted).reshape(*at.shape, -1).sum(-1) / max(1, len(wanted))
        best = np.unravel_index(int(np.argmin(losses)), losses.shape)
        return EarlyStop(float(at[best]), float(losses[best]), losses)

    # ---- the law at each time

    def _predict(
        self, made: Filter, shape: tuple[int, ...], x: Any, f0: Any, f0_test: Any, covariance: bool
    ) -> Trained:
        if (f0 is None) != (f0_test is None) and x is not None:
            raise InputError(
                "f0 and f0_test go together: give the network before training at both sets of inputs, or at neither"
            )
        if x is None and f0_test is not None:
            raise InputError("f0_test is given without test inputs: give x, or leave f0_test out")
        start = None if f0 is None else self._targets.like(f0, self._n, "f0")
        mean, spread = (self._at_training if x is None else self._at_test)(made, x, start, f0_test, covariance)
        wanted = covariance and f0 is None
        return Trained(
            self._targets.shaped(mean.reshape(*shape, *mean.shape[1:])),
            self._grams.unflat(spread.reshape(*shape, *spread.shape[1:])) if wanted and spread is not None else None,
        )

    def _at_training(
        self, made: Filter, x: Any, start: np.ndarray | None, f0_test: Any, covariance: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """f_t = y + left (f_0 - y), with `left` a matrix that has the eigenvectors of the NTK."""
        vectors, y = self.spectrum.vectors, self._targets.flat
        error = (0.0 if start is None else start) - y
        mean = y + _through(vectors, made.left, error)
        if not covariance or start is not None:
            return mean, None
        inner = vectors.T @ self._nngp @ vectors
        return mean, np.stack([(vectors * r) @ inner @ (vectors * r).T for r in made.left]) if len(
            made.left
        ) else np.zeros((0, *self._nngp.shape))

    def _at_test(
        self, made: Filter, x: Any, start: np.ndarray | None, f0_test: Any, covariance: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """f_t(x) = f_0(x) - NTK(x, X) moved (f_0(X) - y), equations 10, 14 and 15."""
        vectors, scale = self.spectrum.vectors, self._scale
        cross_nngp, cross_ntk = self._grams.both(("nngp", "ntk"), x, self._x)
        projected = cross_ntk @ vectors * scale
        error = vectors.T @ ((0.0 if start is None else start) - self._targets.flat)
        mean = -np.einsum("mk,tk,kf->tmf", projected, made.moved, error, optimize=True)
        if start is not None:
            return mean + self._targets.like(f0_test, count(x, "x"), "f0_test"), None
        if not covariance:
            return mean, None
        prior, inner, mixed = self._grams("nngp", x), vectors.T @ self._nngp @ vectors, vectors.T @ cross_nngp.T
        spread = np.empty((len(made.moved), *prior.shape))
        for k, moved in enumerate(made.moved):
            weights = projected * moved
            once = weights @ mixed
            spread[k] = prior + weights @ inner @ weights.T - once - once.T
        return mean, spread


def _through(vectors: np.ndarray, values: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.einsum("ik,tk,kf->tif", vectors, values, vectors.T @ right, optimize=True)


def _times(t: Any, name: str) -> np.ndarray:
    try:
        times = np.asarray(t, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} is a {type(t).__name__}, expected numbers >= 0") from None
    bad = times[np.isnan(times) | (times < 0)]
    if bad.size:
        raise InputError(f"{name} has {bad.flat[0]}, expected numbers >= 0, or infinity")
    return times


def _momentum(value: Any) -> float:
    number = check_number(value, "momentum")
    if number >= 1:
        raise InputError(f"momentum is {value!r}, expected a number in [0, 1)")
    return number
