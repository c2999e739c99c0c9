"""A network's kernel in other Gaussian-process libraries, with hyperparameters that train: tinygp, numpyro, GPJax.

A compiled kernel is a JAX function of inputs and hyperparameters, so each recipe is a few lines to copy. scikit-learn has an adapter
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


RECIPES = {"tinygp": with_tinygp, "numpyro": with_numpyro, "gpjax": with_gpjax}


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
