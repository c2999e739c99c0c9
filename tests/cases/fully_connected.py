"""Fully connected networks, and every nonlinearity with a closed form."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tests.cases import Case
from tests.references import composite, duals, fully_connected


def halved(phi: duals.Dual) -> duals.Dual:
    """The dual of u -> phi(u / 2)."""
    return duals.Dual(
        f"{phi.name}(u/2)",
        lambda q1, q2, c: phi.value(q1 / 4, q2 / 4, c / 4),
        lambda q1, q2, c: phi.slope(q1 / 4, q2 / 4, c / 4) / 4,
        lambda q: phi.mean(q / 4),
    )


PHI: dict[str, tuple[Callable, duals.Dual]] = {
    "relu": (jax.nn.relu, duals.relu),
    "abs": (jnp.abs, duals.absolute),
    "leaky_relu": (lambda h: jax.nn.leaky_relu(h, 0.2), duals.abrelu(0.2, 1.0, "leaky_relu")),
    "identity": (lambda h: h, duals.identity),
    "erf": (jax.scipy.special.erf, duals.erf),
    "gelu": (lambda h: jax.nn.gelu(h, approximate=False), duals.gelu),
    "sin": (jnp.sin, duals.sin),
    "cos": (jnp.cos, duals.cos),
    "exp": (lambda h: jnp.exp(h / 2), halved(duals.exp)),
    "square": (jnp.square, duals.square),
    "cube": (lambda h: h**3, duals.cube),
    "tanh": (jnp.tanh, composite.tanh),
    "erf(relu)": (lambda h: jax.scipy.special.erf(jax.nn.relu(h)), composite.erf_of_relu),
}


def net(phi: Callable, depth: int, weight_var: float, bias_var: float) -> Callable:
    """``depth`` hidden layers and a readout, all with the same variances."""
    scales = dict(weight_var=weight_var, bias_var=bias_var)

    def f(nn, x, features=1):
        h = nn.dense(x, **scales)
        for _ in range(depth - 1):
            h = nn.dense(phi(h), **scales)
        return nn.dense(phi(h), features=features, **scales)

    return f


def case(name: str, depth: int, weight_var: float = 1.0, bias_var: float = 0.0, *, sampled: bool = False) -> Case:
    phi, dual = PHI[name]
    return Case(
        f"fc-{name}-depth{depth}-wv{weight_var}-bv{bias_var}",
        net(phi, depth, weight_var, bias_var),
        (7,),
        lambda x: fully_connected.kernels(x, dual, depth, weight_var, bias_var),
        sampled=sampled,
    )


DEPTHS = [
    case(name, depth, wv, bv, sampled=(depth == 3))
    for name, wv, bv in [("relu", 2.0, 0.1), ("erf", 1.5, 0.2)]
    for depth in (1, 2, 3, 5, 10, 20, 30)
]
NO_BIAS = [case("relu", depth, 2.0) for depth in (1, 4, 30)] + [case("erf", 4)]
ACTIVATIONS = [
    case(name, 2, wv, 0.1)
    for name, wv in [
        ("abs", 1.0),
        ("leaky_relu", 1.7),
        ("identity", 1.0),
        ("gelu", 1.5),
        ("sin", 1.2),
        ("cos", 1.2),
        ("exp", 0.6),
        ("square", 0.5),
        ("cube", 0.3),
        ("tanh", 1.3),
        ("erf(relu)", 1.3),
    ]
]
CASES = DEPTHS + NO_BIAS + ACTIVATIONS
