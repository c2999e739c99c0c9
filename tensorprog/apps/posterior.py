"""Gaussian-process regression with a network's kernel: posterior, samples, marginal likelihood.

An infinitely wide network at initialisation is a Gaussian process whose covariance is its NNGP kernel, so training all of
it in the Bayesian sense is Gaussian-process regression (Lee et al. 2018, section 2). Formulas: Rasmussen and Williams 2006,
algorithm 2.1 and equations 5.8 and 5.9.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from tensorprog.apps.checks import check_key, check_slopes, check_whole
from tensorprog.apps.factor import Factor, regularised
from tensorprog.apps.grams import Grams, Targets, check_number, check_one, count, kept, precision, widened
from tensorprog.errors import InputError, explain
from tensorprog.runtime.inputs import is_traced, real_number

__all__ = ["GaussianProcess", "Posterior", "log_marginal_likelihood", "marginal_likelihood_gradient"]


class Posterior(NamedTuple):
    """What is known at test inputs: mean (M, *S) or (M, *S, F), covariance (M, M, *S, *S), the same for each output."""

    mean: np.ndarray
    covariance: np.ndarray


class GaussianProcess:
    """The posterior of a Gaussian process after seeing y = f(x) + noise; the prior of f has the kernel's covariance.

    kernel: from `tp.compile` or `tp.load`. x: (N, *example), or a pytree of such arrays. y: (N, *S), or (N, *S, F) for F
    independent outputs, with S the axes of the kernel's output (mostly none). noise: the variance of the noise in y.
    diag_reg: added to the diagonal too, as a multiple of its mean; a means against singular matrices. get: "nngp", or
    "ntk" for the process with that covariance. dtype: of kernel and solves, float64 also where JAX runs in 32 bits.
    hypers: the kernel's hyperparameters.

    The matrix of the N inputs is factorised once, here; memory is that of a few N x N matrices. Results are NumPy arrays.

    Raises InputError for shapes that do not match, NaN, negative noise, and a matrix that is singular at this precision.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> kernel = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x, bias_var=0.1)), features=1), jnp.zeros(2))
        >>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> gp = apps.GaussianProcess(kernel, x, np.array([1.0, -1.0]), noise=1e-4)
        >>> gp.mean(np.array([[1.0, 0.0]])).round(2)
        array([1.])
    """

    def __init__(
        self, kernel: Callable[..., Any], x: Any, y: Any, *, noise: float, diag_reg: float = 0.0, get: str = "nngp",
        dtype: Any = np.float64, **hypers: float,
    ):  # fmt: skip
        self.noise, self.diag_reg = check_number(noise, "noise"), check_number(diag_reg, "diag_reg")
        self._grams, self._get = Grams(kernel, hypers, dtype), check_one(get, "GaussianProcess")
        gram, self._x = self._grams(get, x), kept(x)
        self._targets = Targets(y, count(x, "x"), self._grams.axes or (), dtype=dtype)
        self._factor = Factor(regularised(gram, self.noise, self.diag_reg))
        self._weights = self._factor.solve(self._targets.flat)

    def mean(self, x: Any) -> np.ndarray:
        """The posterior mean at x, (M, *S) or (M, *S, F)."""
        return self._targets.shaped(self._grams(self._get, x, self._x) @ self._weights)

    def predict(self, x: Any, *, noisy: bool = False) -> Posterior:
        """Mean and covariance at x of f, or with `noisy` of new observations of it."""
        cross = self._grams(self._get, x, self._x)
        return Posterior(
            self._targets.shaped(cross @ self._weights), self._grams.unflat(self._covariance(x, cross, noisy))
        )

    def trained(self, x: Any) -> Posterior:
        """Mean and covariance over initialisations of wide networks that were trained, of a process with get="ntk".

        x: (M, *example). Each network is trained to the end on the sum of squared errors plus `noise` times the squared distance of
        its parameters from where they began, which in the limit is regression with the NTK on what is left of y (Hu, Li and Yu 2020,
        arXiv:1905.11368); with noise towards 0 it is training on the square loss (Lee et al. 2019, equations 14 and 15 at t = infinity).
        The spread needs both kernels, and is not the posterior covariance of `predict`. diag_reg counts as noise.

        Raises InputError where get is not "ntk".
        """
        if self._get != "ntk":
            raise InputError(
                f"trained: get is {self._get!r}, expected GaussianProcess(.., get='ntk'): networks in training move by it"
            )
        cross, (nngp, prior) = self._grams("ntk", x, self._x), (self._grams("nngp", at) for at in (self._x, x))
        weights = self._factor.solve(cross.T).T
        once = weights @ self._grams("nngp", self._x, x)
        spread = prior + weights @ nngp @ weights.T - once - once.T
        return Posterior(self._targets.shaped(cross @ self._weights), self._grams.unflat(spread))

    def _covariance(self, x: Any, cross: np.ndarray, noisy: bool) -> np.ndarray:
        half = self._factor.half(cross.T)
        found = self._grams(self._get, x) - half.T @ half
        return found + self.noise * np.eye(len(found), dtype=found.dtype) if noisy else found

    def sample(self, x: Any, key: jax.Array, draws: int, *, noisy: bool = False) -> np.ndarray:
        """Draws of f (with `noisy`, of observations) at x from the posterior: (draws, M, *S) or (draws, M, *S, F)."""
        check_whole(draws, "sample: draws", 1)
        check_key(key, "sample: key")
        cross = self._grams(self._get, x, self._x)
        values, vectors = np.linalg.eigh(self._covariance(x, cross, noisy))
        root = vectors * np.sqrt(np.clip(values, 0, None))  # a posterior covariance may be singular
        with precision(self._grams.dtype) as dtype:
            size = (draws, root.shape[1], self._targets.flat.shape[1])
            normal = np.asarray(jax.random.normal(key, size, dtype))
        return self._targets.shaped(cross @ self._weights + root @ normal)

    @property
    def log_marginal_likelihood(self) -> float:
        """The log density of y under the prior and the noise, summed over independent outputs; -inf where it is below all numbers."""
        y = self._targets.flat
        with np.errstate(over="ignore"):
            fit = float(np.sum(np.square(self._factor.half(y).astype(np.float64))))
        return -0.5 * (fit + y.shape[1] * (self._factor.log_determinant + len(y) * math.log(2 * math.pi)))


def log_marginal_likelihood(
    kernel: Callable[..., Any], x: Any, y: Any, *, noise: Any, diag_reg: float = 0.0, get: str = "nngp", **hypers: Any
) -> jax.Array:
    """The log density of y, as a JAX function of `noise` and the hyperparameters: for jit, grad and samplers.

    Arguments as for `GaussianProcess`; nothing is checked but shapes and what the kernel checks, and the precision is that of x.
    A matrix without a Cholesky factor gives NaN, as do NaN in y and negative noise that makes one.

    Example:
        >>> import jax, jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> net = lambda x: nn.dense(jax.nn.relu(nn.dense(x, weight_var=tp.hyper("w", 2.0))), features=1)
        >>> kernel = tp.compile(net, jnp.zeros(2))
        >>> loss = lambda w: apps.log_marginal_likelihood(kernel, jnp.eye(2), jnp.ones(2), noise=0.1, w=w)
        >>> bool(jnp.isfinite(jax.grad(loss)(2.0)))
        True
    """
    if not is_traced((noise, diag_reg)):
        for name, number in (("noise", noise), ("diag_reg", diag_reg)):
            if real_number(number) is None:
                raise InputError(f"{name} is {number!r}, expected a number")
    if np.iscomplexobj(y):
        raise InputError(f"y is a {type(y).__name__} of {np.result_type(y)}, expected an array of real numbers")
    matrix = kernel(x, get=get, **hypers)
    half = (matrix.ndim - 2) // 2
    wanted = (matrix.shape[0], *matrix.shape[2 : 2 + half])
    n = math.prod(wanted)
    matrix = matrix.transpose(0, *range(2, 2 + half), 1, *range(2 + half, matrix.ndim)).reshape(n, n)
    if jnp.shape(y)[: len(wanted)] != wanted or jnp.ndim(y) > len(wanted) + 1:
        raise InputError(
            f"y has shape {jnp.shape(y)}, expected {wanted}, with an axis of outputs at the end or without"
        )
    values = jnp.asarray(y, matrix.dtype).reshape(n, 1 if jnp.ndim(y) == len(wanted) else -1)
    added = noise + diag_reg * jnp.mean(jnp.diagonal(matrix))
    lower = jnp.linalg.cholesky(matrix + added * jnp.eye(n, dtype=matrix.dtype))
    fit = jnp.sum(jnp.square(solve_triangular(lower, values, lower=True)))
    log_determinant = 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))
    return -0.5 * (fit + values.shape[1] * (log_determinant + n * math.log(2 * math.pi)))


def marginal_likelihood_gradient(
    kernel: Callable[..., Any], x: Any, y: Any, *, noise: float, diag_reg: float = 0.0, get: str = "nngp", **hypers: float
) -> tuple[float, dict[str, float]]:  # fmt: skip
    """The log marginal likelihood in float64, and its derivative in "noise" and every named hyperparameter.

    Hyperparameters that are not given are at their defaults, and have derivatives too.

    Example:
        >>> import jax, jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import apps, nn
        >>> net = lambda x: nn.dense(jax.nn.relu(nn.dense(x, weight_var=tp.hyper("w", 2.0))), features=1)
        >>> kernel = tp.compile(net, jnp.zeros(2))
        >>> value, gradient = apps.marginal_likelihood_gradient(kernel, jnp.eye(2), [1.0, 2.0], noise=0.1)
        >>> sorted(gradient)
        ['noise', 'w']
    """
    checked = GaussianProcess(kernel, x, y, noise=noise, diag_reg=diag_reg, get=get, **hypers)
    opened = {**getattr(kernel, "hypers", {}), **hypers, "noise": checked.noise}

    def value(named: dict[str, Any]) -> jax.Array:
        return log_marginal_likelihood(kernel, wide, np.asarray(y), diag_reg=diag_reg, get=get, **named)

    with precision():
        wide = jax.tree.map(jnp.asarray, widened(x))
        found, slopes = jax.value_and_grad(value)({name: jnp.asarray(v, float) for name, v in opened.items()})
    if not np.isfinite(found):
        raise InputError(
            explain(
                f"marginal_likelihood_gradient: the log marginal likelihood is {found}, and has no gradient",
                reason=f"the targets, up to {np.abs(checked._targets.flat).max():.3g}, are too unlikely for a number of float64",
                mend="divide y by its standard deviation, and give noise in its units",
            )
        )
    check_slopes(kernel, [*slopes.values()], "marginal_likelihood_gradient")
    return float(found), {name: float(slope) for name, slope in slopes.items()}
