"""Simple recurrent networks: one weight used at every time, by a loop and by lax.scan."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from tests.cases import Case
from tests.references import duals, gram, recurrent

STEPS, CHANNELS = 5, 3
VARIANCES = dict(w_var=1.4, u_var=0.8, b_var=0.2)


def drive(nn, x: jax.Array) -> jax.Array:
    """U x_t / sqrt(d) + b for all times at once, with their variances: (T, width)."""
    return nn.dense(x, weight_var=VARIANCES["u_var"], bias_var=VARIANCES["b_var"])


def matrix(nn) -> jax.Array:
    """The recurrent weight, standard Gaussian."""
    return nn.weight((nn.width(), nn.width()))


def step(phi: Callable, w: jax.Array, state: jax.Array, u: jax.Array) -> jax.Array:
    return phi(jnp.sqrt(VARIANCES["w_var"] / state.shape[-1]) * (w @ state) + u)


def loop(phi: Callable, head: str, *, initial_zero: bool = False) -> Callable:
    """States by a Python loop; ``initial_zero`` feeds a vector of zeros into the first step."""

    def f(nn, x, features=1):
        u, w = drive(nn, x), matrix(nn)
        state = step(phi, w, jnp.zeros_like(u[0]), u[0]) if initial_zero else phi(u[0])
        states = [state]
        for t in range(1, x.shape[0]):
            states.append(step(phi, w, states[-1], u[t]))
        h = states[-1] if head == "last" else sum(states) / len(states)
        return nn.dense(h, features=features)

    return f


def scan(phi: Callable, head: str) -> Callable:
    """The same by ``jax.lax.scan``."""

    def f(nn, x, features=1):
        u, w = drive(nn, x), matrix(nn)

        def body(state, u_t):
            state = step(phi, w, state, u_t)
            return state, state

        last, states = jax.lax.scan(body, jnp.zeros_like(u[0]), u)
        return nn.dense(last if head == "last" else states.mean(0), features=features)

    return f


def case(name: str, f: Callable, phi: duals.Dual, head: str, *, sampled: bool = False) -> Case:
    reduce = recurrent.last if head == "last" else recurrent.averaged
    reference = lambda x: gram.readout(reduce(recurrent.states(x, phi, **VARIANCES)))
    return Case(f"rnn-{name}-{head}", f, (STEPS, CHANNELS), reference, sampled=sampled)


ERF, RELU = jax.scipy.special.erf, jax.nn.relu
CASES = [
    case("loop-erf", loop(ERF, "last"), duals.erf, "last", sampled=True),
    case("loop-erf", loop(ERF, "average"), duals.erf, "average", sampled=True),
    case("loop-relu", loop(RELU, "last"), duals.relu, "last"),
    case("loop-relu", loop(RELU, "average"), duals.relu, "average", sampled=True),
    case("loop-zeros-erf", loop(ERF, "last", initial_zero=True), duals.erf, "last"),
    case("scan-erf", scan(ERF, "last"), duals.erf, "last"),
    case("scan-erf", scan(ERF, "average"), duals.erf, "average"),
    case("scan-relu", scan(RELU, "average"), duals.relu, "average"),
]
