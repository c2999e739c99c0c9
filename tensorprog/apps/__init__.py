"""What kernels are for: inference, training dynamics, diagnosis, and networks of finite width.

Everything here stands on the compiled kernel and is imported as `from tensorprog import apps`; nothing of the compiler
imports it. Results are NumPy arrays in float64 unless a docstring says otherwise.
"""

from tensorprog.apps.posterior import (
    GaussianProcess,
    Posterior,
    log_marginal_likelihood,
    marginal_likelihood_gradient,
)

__all__ = ["GaussianProcess", "Posterior", "log_marginal_likelihood", "marginal_likelihood_gradient"]
