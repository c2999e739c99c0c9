"""A network's kernel in other Gaussian-process libraries, with hyperparameters that train: tinygp, numpyro, GPJax, GPyTorch.

A compiled kernel is a JAX function of inputs and hyperparameters, so each recipe is a few lines to copy; PyTorch takes its values and
derivatives through a function of its own. scikit-learn has an adapter
of its own, `tensorprog.sklearn`. Run `python examples/recipes.py` with the libraries installed; those that are not are left out.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import tensorprog as tp
from tensorprog import nn


def net(x: jax.Array) -> jax.Array:
    """One hidden layer with an open weight variance."""
    return nn.dense(jax.nn.relu(nn.dense(x, weight_var=tp.hyper("w", 1.5), bias_var=0.1)), features=1)


def with_tinygp(kernel: tp.Kernel, x: Any, y: Any, noise: float) -> tuple[float, float]:
    """The log likelihood at w = 1.5 and its derivative in w, by tinygp."""
    import tinygp

    class Network(tinygp.kernels.Kernel):
        w: jax.Array

        def evaluate(self, a: jax.Array, b: jax.Array) -> jax.Array:
            return kernel(a[None], b[None], get="nngp", w=self.w)[0, 0]

    def likelihood(w: jax.Array) -> jax.Array:
        return tinygp.GaussianProcess(Network(w), x, diag=noise).log_probability(y)

    value, slope = jax.jit(jax.value_and_grad(likelihood))(jnp.asarray(1.5))
    return float(value), float(slope)


def with_numpyro(kernel: tp.Kernel, x: Any, y: Any, noise: float) -> tuple[float, float]:
    """The same by a numpyro model, whose w and noise could be sampled by NUTS."""
    import numpyro
    import numpyro.distributions as dist

    def model() -> None:
        w = numpyro.sample("w", dist.LogNormal(0.0, 1.0))
        covariance = kernel(x, get="nngp", w=w) + noise * jnp.eye(len(x))
        numpyro.sample("y", dist.MultivariateNormal(0.0, covariance), obs=y)

    def likelihood(w: jax.Array) -> jax.Array:
        density, _ = numpyro.infer.util.log_density(model, (), {}, {"w": w})
        return density - dist.LogNormal(0.0, 1.0).log_prob(w)

    value, slope = jax.value_and_grad(likelihood)(jnp.asarray(1.5))
    return float(value), float(slope)


def with_gpjax(kernel: tp.Kernel, x: Any, y: Any, noise: float) -> tuple[float, float]:
    """The same by GPJax, whose `fit` would train w."""
    import gpjax as gpx
    from gpjax.kernels.base import val
    from gpjax.parameters import PositiveReal

    class Network(gpx.kernels.AbstractKernel):
        w: Any

        def __init__(self, w: Any) -> None:
            self.w = PositiveReal(w)
            super().__init__(n_dims=x.shape[1])

        def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
            return kernel(a[None], b[None], get="nngp", w=val(self.w))[0, 0]

    data = gpx.Dataset(X=x, y=jnp.asarray(y)[:, None])

    def likelihood(w: jax.Array) -> jax.Array:
        prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=Network(w), jitter=0.0)
        noisy = gpx.likelihoods.Gaussian(obs_stddev=jnp.sqrt(noise))
        return gpx.objectives.conjugate_mll(prior * noisy, data)

    value, slope = jax.value_and_grad(likelihood)(jnp.asarray(1.5))
    return float(value), float(slope)


def with_gpytorch(kernel: tp.Kernel, x: Any, y: Any, noise: float) -> tuple[float, float]:
    """The same by GPyTorch, whose optimisers would train w: the kernel is a PyTorch function with JAX behind it."""
    import gpytorch
    import torch

    def values(w: Any, a: Any, b: Any) -> jax.Array:
        with jax.enable_x64(True):
            return kernel(a, b, get="nngp", w=w)

    class Gram(torch.autograd.Function):
        """The matrix of two sets of inputs, with its derivative in w."""

        @staticmethod
        def forward(context: Any, w: Any, a: Any, b: Any) -> Any:
            context.save_for_backward(w, a, b)
            return torch.tensor(np.asarray(values(w.item(), a.numpy(), b.numpy())))

        @staticmethod
        def backward(context: Any, above: Any) -> Any:
            w, a, b = (t.detach().numpy() for t in context.saved_tensors)
            with jax.enable_x64(True):
                slope = jax.jvp(lambda w: kernel(a, b, get="nngp", w=w), (jnp.asarray(w),), (jnp.ones_like(w),))[1]
            return torch.sum(above * torch.tensor(np.asarray(slope))), None, None

    class Network(gpytorch.kernels.Kernel):
        def __init__(self, w: Any) -> None:
            super().__init__()
            self.register_parameter("w", torch.nn.Parameter(w))

        def forward(self, a: Any, b: Any, diag: bool = False, **options: Any) -> Any:
            matrix = Gram.apply(self.w, a.detach(), b.detach())
            return torch.diagonal(matrix) if diag else matrix

    class Model(gpytorch.models.ExactGP):
        def __init__(self, inputs: Any, targets: Any, likelihood: Any) -> None:
            super().__init__(inputs, targets, likelihood)
            self.mean, self.network = gpytorch.means.ZeroMean(), Network(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, z: Any) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(z), self.network(z))

    inputs, targets = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y))
    likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(
        torch.full((len(targets),), noise, dtype=torch.float64)
    )
    model = Model(inputs, targets, likelihood)
    exact = gpytorch.settings.fast_computations(log_prob=False)  # Cholesky, not conjugate gradients
    with exact:
        value = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)(model(inputs), targets) * len(targets)
    value.backward()
    return float(value.detach()), float(model.network.w.grad)


RECIPES = {"tinygp": with_tinygp, "numpyro": with_numpyro, "gpjax": with_gpjax, "gpytorch": with_gpytorch}


def main() -> None:
    """Print what each installed library finds; all agree with `apps.marginal_likelihood_gradient`."""
    from tensorprog import apps

    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 3))
    y = np.sin(x.sum(1))
    kernel = tp.compile(net, jnp.zeros(3))
    value, slopes = apps.marginal_likelihood_gradient(kernel, x, y, noise=0.1)
    print(f"{'tensorprog':>10}: log likelihood {value:.6f}, derivative in w {slopes['w']:.6f}")
    with jax.enable_x64(True):
        for name, recipe in RECIPES.items():
            if importlib.util.find_spec(name) is None:
                print(f"{name:>10}: not installed")
                continue
            value, slope = recipe(kernel, jnp.asarray(x), jnp.asarray(y), 0.1)
            print(f"{name:>10}: log likelihood {value:.6f}, derivative in w {slope:.6f}")


if __name__ == "__main__":
    main()
