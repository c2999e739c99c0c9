"""A network's kernel in other Gaussian-process libraries, with hyperparameters that train: tinygp, numpyro, GPJax, GPyTorch.

A compiled kernel is a JAX function of inputs and hyperparameters, so each recipe is a few lines to copy; PyTorch takes its values and
derivatives through a function of its own. Each gives the log likelihood at w = 1.5, its derivative there, and the w of the greatest
likelihood, found by the library's own way of training from there. scikit-learn has an adapter
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

STEPS, RATE = 600, 0.1  # of Adam
Found = tuple[float, float, float]  # the log likelihood at w = 1.5, its derivative in w, the likeliest w


def net(x: jax.Array) -> jax.Array:
    """One hidden layer with an open weight variance."""
    return nn.dense(jax.nn.relu(nn.dense(x, weight_var=tp.hyper("w", 1.5), bias_var=0.1)), features=1)


def with_tinygp(kernel: tp.Kernel, x: Any, y: Any, noise: float) -> Found:
    """By tinygp, whose models are pytrees, trained by optax as its tutorials do."""
    import optax
    import tinygp

    class Network(tinygp.kernels.Kernel):
        w: jax.Array

        def evaluate(self, a: jax.Array, b: jax.Array) -> jax.Array:
            return kernel(a[None], b[None], get="nngp", w=self.w)[0, 0]

    def likelihood(w: jax.Array) -> jax.Array:
        return tinygp.GaussianProcess(Network(w), x, diag=noise).log_probability(y)

    climb = jax.jit(jax.value_and_grad(likelihood))
    value, slope = climb(jnp.asarray(1.5))
    loss = jax.jit(jax.grad(lambda log_w: -likelihood(jnp.exp(log_w))))
    log_w, adam = jnp.log(1.5), optax.adam(RATE)
    state = adam.init(log_w)
    for _ in range(STEPS):
        change, state = adam.update(loss(log_w), state)
        log_w = log_w + change
    return float(value), float(slope), float(jnp.exp(log_w))


def with_numpyro(kernel: tp.Kernel, x: Any, y: Any, noise: float) -> Found:
    """By a numpyro model, which NUTS can sample, and in which stochastic variational inference finds a w without a prior."""
    import numpyro
    import numpyro.distributions as dist

    def model() -> None:
        w = numpyro.sample("w", dist.LogNormal(0.0, 1.0))
        covariance = kernel(x, get="nngp", w=w) + noise * jnp.eye(len(x))
        numpyro.sample("y", dist.MultivariateNormal(0.0, covariance), obs=y)

    def without_prior() -> None:
        w = numpyro.param("w", 1.5, constraint=dist.constraints.positive)
        covariance = kernel(x, get="nngp", w=w) + noise * jnp.eye(len(x))
        numpyro.sample("y", dist.MultivariateNormal(0.0, covariance), obs=y)

    def likelihood(w: jax.Array) -> jax.Array:
        density, _ = numpyro.infer.util.log_density(model, (), {}, {"w": w})
        return density - dist.LogNormal(0.0, 1.0).log_prob(w)

    value, slope = jax.value_and_grad(likelihood)(jnp.asarray(1.5))
    svi = numpyro.infer.SVI(without_prior, lambda: None, numpyro.optim.Adam(RATE), numpyro.infer.Trace_ELBO())
    fitted = svi.run(jax.random.key(0), STEPS, progress_bar=False).params
    return float(value), float(slope), float(fitted["w"])


def with_gpjax(kernel: tp.Kernel, x: Any, y: Any, noise: float) -> Found:
    """By GPJax, trained by its `fit`."""
    import gpjax as gpx
    import optax
    import paramax
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

    def model(w: Any) -> Any:
        prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=Network(w), jitter=0.0)
        return prior * paramax.non_trainable(gpx.likelihoods.Gaussian(obs_stddev=jnp.sqrt(noise)))

    likelihood = lambda w: gpx.objectives.conjugate_mll(paramax.unwrap(model(w)), data)
    value, slope = jax.value_and_grad(likelihood)(jnp.asarray(1.5))
    fitted, _ = gpx.fit(
        model=model(1.5), objective=lambda m, d: -gpx.objectives.conjugate_mll(m, d), train_data=data,
        optim=optax.adam(RATE), num_iters=STEPS, verbose=False,
    )  # fmt: skip
    return float(value), float(slope), float(val(fitted.prior.kernel.w))


def with_gpytorch(kernel: tp.Kernel, x: Any, y: Any, noise: float) -> Found:
    """By GPyTorch, trained by PyTorch: the kernel is a PyTorch function with JAX behind it."""
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
    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    adam, found = torch.optim.Adam([model.network.w], lr=RATE), []
    with exact:
        for _ in range(STEPS):
            adam.zero_grad()
            loss = -evidence(model(inputs), targets) * len(targets)
            loss.backward()
            found.append((-float(loss.detach()), -float(model.network.w.grad)))
            adam.step()
    return *found[0], model.network.w.item()


RECIPES = {"tinygp": with_tinygp, "numpyro": with_numpyro, "gpjax": with_gpjax, "gpytorch": with_gpytorch}


def likeliest(kernel: tp.Kernel, x: Any, y: Any) -> float:
    """The w of the greatest likelihood at noise 0.1, to 1e-8, where its derivative changes its sign."""
    from tensorprog import apps

    low, high = 1e-3, 1e3
    while high - low > 1e-8 * high:
        middle = (low * high) ** 0.5
        slope = apps.marginal_likelihood_gradient(kernel, x, y, noise=0.1, w=middle)[1]["w"]
        low, high = (middle, high) if slope > 0 else (low, middle)
    return low


def main() -> None:
    """Print what each installed library finds; all agree with `apps.marginal_likelihood_gradient`."""
    from tensorprog import apps

    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 3))
    y = np.sin(x.sum(1))
    kernel = tp.compile(net, jnp.zeros(3))
    value, slopes = apps.marginal_likelihood_gradient(kernel, x, y, noise=0.1)
    print(
        f"{'tensorprog':>10}: log likelihood {value:.6f}, derivative in w {slopes['w']:.6f}; likeliest w {likeliest(kernel, x, y):.6f}"
    )
    with jax.enable_x64(True):
        for name, recipe in RECIPES.items():
            if importlib.util.find_spec(name) is None:
                print(f"{name:>10}: not installed")
                continue
            value, slope, best = recipe(kernel, jnp.asarray(x), jnp.asarray(y), 0.1)
            print(f"{name:>10}: log likelihood {value:.6f}, derivative in w {slope:.6f}; likeliest w {best:.6f}")


if __name__ == "__main__":
    main()
