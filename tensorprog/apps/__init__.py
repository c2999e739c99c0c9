"""What kernels are for: inference, training dynamics, diagnosis, and networks of finite width.

Everything here stands on the compiled kernel and is imported as `from tensorprog import apps`; nothing of the compiler
imports it. Results are NumPy arrays in float64 unless a docstring says otherwise.
"""

from tensorprog.apps.certificate import Certificate, certify
from tensorprog.apps.functional import FunctionalDescent, Path, cross_entropy, square_loss
from tensorprog.apps.posterior import (
    GaussianProcess,
    Posterior,
    log_marginal_likelihood,
    marginal_likelihood_gradient,
)
from tensorprog.apps.training import EarlyStop, Trained, Training

__all__ = [
    "Certificate", "EarlyStop", "FunctionalDescent", "GaussianProcess", "Path", "Posterior", "Trained", "Training",
    "certify", "cross_entropy", "log_marginal_likelihood", "marginal_likelihood_gradient", "square_loss",
]  # fmt: skip
