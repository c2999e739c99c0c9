"""What kernels are for: inference, training dynamics, diagnosis, and networks of finite width.

Everything here stands on the compiled kernel and is imported as `from tensorprog import apps`; nothing of the compiler
imports it. Results are NumPy arrays in float64 unless a docstring says otherwise.
"""

from tensorprog.apps.agreement import Agreement, check
from tensorprog.apps.certificate import Certificate, certify
from tensorprog.apps.depth import Block, Phase
from tensorprog.apps.empirical import Empirical
from tensorprog.apps.expansion import linearised, taylor
from tensorprog.apps.functional import FunctionalDescent, Path, cross_entropy, square_loss
from tensorprog.apps.layers import Layers
from tensorprog.apps.learnability import Learnability, learnability
from tensorprog.apps.posterior import (
    GaussianProcess,
    Posterior,
    log_marginal_likelihood,
    marginal_likelihood_gradient,
)
from tensorprog.apps.rates import speeds
from tensorprog.apps.sampled import MonteCarlo, monte_carlo
from tensorprog.apps.shaping import Shaped, shape_activation
from tensorprog.apps.sweeps import Spectra, spectra
from tensorprog.apps.training import EarlyStop, Trained, Training

__all__ = [
    "Agreement", "Block", "Certificate", "EarlyStop", "Empirical", "FunctionalDescent", "GaussianProcess", "Layers", "Learnability",
    "MonteCarlo", "Path", "Phase", "Posterior", "Shaped", "Spectra", "Trained", "Training", "certify", "check", "cross_entropy",
    "learnability", "linearised", "log_marginal_likelihood", "marginal_likelihood_gradient", "monte_carlo",
    "shape_activation", "spectra", "speeds", "square_loss", "taylor",
]  # fmt: skip
