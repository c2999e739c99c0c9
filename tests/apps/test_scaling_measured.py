"""Powers of the width against finite networks that are trained: slopes of log sizes over log widths."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.apps.parametrization import PARAMETRIZATIONS
from tests.apps.test_scaling import HALF, QUARTER, averaged, perceptron, wavy

pytestmark = pytest.mark.slow

WIDTHS, DRAWS = (64, 128, 256, 512), 24
READOUTS = 50  # of which one is trained; the others show the size of an output at initialisation


def measured(one: tp.Parametrization, depth: int, average: bool = False) -> dict[str, np.ndarray]:
    """Slopes of the logarithm of sizes against that of the width: of every layer at initialisation, of its change after one and
    after two steps of gradient descent on the square loss of one input, seen at another. average: the output is one over the width."""
    x, seen = jnp.array([1.0, -0.5, 0.7]), jnp.array([0.4, 1.1, 0.6])
    phi, rate = (wavy, 0.05) if average else (jnp.tanh, 0.2)
    roles = [one.input, *[one.hidden] * (depth - 1), *([] if average else [one.output])]

    def layers(w: list, x: jax.Array, n: int) -> list:
        out = []
        for weight, (a, _) in zip(w, roles, strict=True):
            x = float(n) ** -float(a) * weight @ x
            out.append(x)
            x = phi(x)
        return [*out, jnp.mean(x)[None]] if average else out

    def sizes(w: list, n: int) -> list:
        loss = lambda w: (layers(w, x, n)[-1][0] - 3.0) ** 2 / 2
        step = lambda w: [p - rate * float(n) ** -float(one.c) * g for p, g in zip(w, jax.grad(loss)(w), strict=True)]
        first = step(w)
        start, one_step, two = (layers(v, seen, n) for v in (w, first, step(first)))
        rms = lambda h: jnp.mean(h**2)
        moved = lambda later: [rms((a - b)[: None if len(a) == n else 1]) for a, b in zip(later, start, strict=True)]
        return [[rms(h) for h in start], moved(one_step), moved(two)]

    rows = []
    for n in WIDTHS:
        rng = np.random.default_rng(n)
        shapes = [(n, 3), *[(n, n)] * (depth - 1), *([] if average else [(READOUTS, n)])]
        w = [rng.standard_normal((DRAWS, *s)) * float(n) ** -float(b) for s, (_, b) in zip(shapes, roles, strict=True)]
        draw = partial(sizes, n=n)
        run = jax.jit(lambda w, draw=draw: jax.lax.map(draw, w))
        rows.append(np.sqrt(np.mean(np.asarray(run([jnp.asarray(p) for p in w])), -1)))
    slopes = np.polyfit(np.log(WIDTHS), np.log(np.stack(rows)).reshape(len(WIDTHS), -1), 1)[0].reshape(3, depth + 1)
    return {"initial": slopes[0], "step": slopes[1], "later": slopes[2]}


OF_AVERAGES = {
    "at the rate 1": PARAMETRIZATIONS["ntk"],
    "at the rate n": replace(PARAMETRIZATIONS["ntk"], c=-1),
    "hidden weights alone": replace(PARAMETRIZATIONS["standard"], c=0),
    "between": tp.Parametrization((-QUARTER, QUARTER), (QUARTER, QUARTER), (0, 0), -HALF),
}


@pytest.mark.parametrize("name", OF_AVERAGES)
def test_measured_powers_of_averages(name: str) -> None:
    depth = 2
    found = tp.scaling(averaged(depth), jnp.zeros(3), OF_AVERAGES[name])
    slopes = measured(OF_AVERAGES[name], depth, average=True)
    rows = [*(r for r in found.rows if r.what.startswith("MatMul")), found.output]
    for which, wanted in slopes.items():
        counted = [float(getattr(r, which)) for r in rows]
        np.testing.assert_allclose(wanted, counted, atol=0.12, err_msg=f"{which}\n{found}")


MEASURED = {
    "ntk": PARAMETRIZATIONS["ntk"],
    "mup": PARAMETRIZATIONS["mup"],
    "standard at the rate 1/n": replace(PARAMETRIZATIONS["standard"], c=1),
    "trivial": replace(PARAMETRIZATIONS["ntk"], c=HALF),
    "features in the hidden layer alone": tp.Parametrization((0, 0), (0, HALF), (HALF, HALF)),
    "between": tp.Parametrization((-QUARTER, QUARTER), (QUARTER, QUARTER), (HALF, QUARTER)),
    "small readout": tp.Parametrization((-HALF, HALF), (0, HALF), (HALF, 1)),
}


@pytest.mark.parametrize("name", MEASURED)
def test_measured_powers(name: str) -> None:
    depth = 2
    found = tp.scaling(perceptron(depth), jnp.zeros(3), MEASURED[name])
    slopes = measured(MEASURED[name], depth)
    rows = [r for r in found.rows if r.what.startswith("MatMul")]
    for which, wanted in slopes.items():
        counted = [float(getattr(r, which)) for r in rows]
        # 24 draws over widths that differ by 8 leave about 0.05, the next order in 1/n as much; powers differ by 1/4 and more
        # with a small readout the next order is 1/sqrt(n), and powers differ by 1/2
        np.testing.assert_allclose(
            wanted, counted, atol=0.2 if name == "small readout" else 0.12, err_msg=f"{which}\n{found}"
        )


# ------------------------------------------------------------------------------------------ one weight in two roles


def tied_readout(v: jax.Array, w: jax.Array, x: jax.Array) -> list[jax.Array]:
    h = w @ x + v
    return [h, (v @ wavy(h))[None]]


def tied_embedding(e: jax.Array, w: jax.Array, x: jax.Array) -> list[jax.Array]:
    h = e.T @ x
    g = h + w @ wavy(h)
    return [g, e[:1] @ wavy(g)]


def network_of_tied(kind: str):  # type: ignore[no-untyped-def]
    def net(x: jax.Array) -> jax.Array:
        n = nn.width()
        if kind == "readout":
            return tied_readout(nn.weight((n,), name="v"), nn.weight((n, 3), name="w"), x)[-1]
        return tied_embedding(nn.weight((3, n), name="v"), nn.weight((n, n), name="w") / jnp.sqrt(n), x)[-1]

    return net


def measured_of_tied(kind: str, one: tp.Parametrization) -> dict[str, list[float]]:
    """Slopes of the sizes of the hidden layer and the output; multipliers of the tied weight stand at its use."""
    (a_in, b), (a_hidden, b_hidden), (a_out, _) = one.input, one.hidden, one.output
    net, x, seen = (
        {"readout": tied_readout, "embedding": tied_embedding}[kind],
        jnp.eye(3)[0],
        jnp.array([0.8, 0.3, 0.5]),
    )
    a_other, b_other = (a_in, b) if kind == "readout" else (a_hidden, b_hidden)
    rows = []
    for n in WIDTHS:
        power = lambda p, n=n: float(n) ** -float(p)

        def layers(w: list, x: jax.Array, power=power) -> list:  # type: ignore[no-untyped-def]
            h, f = net(power(a_in) * w[0], power(a_other) * w[1], x)
            return [h, power(a_out - a_in) * f]

        def sizes(w: list, n=n, layers=layers) -> list:  # type: ignore[no-untyped-def]
            gradient = jax.grad(lambda w: layers(w, x)[-1][0])(w)  # the loss's derivative counts as one
            later = [p - 0.2 * float(n) ** -float(one.c) * g for p, g in zip(w, gradient, strict=True)]
            start, end = layers(w, seen), layers(later, seen)
            return [
                *[jnp.mean(h**2) for h in start],
                *[jnp.mean((h - g) ** 2) for h, g in zip(start, end, strict=True)],
            ]

        rng = np.random.default_rng(n)
        shapes = [(n,), (n, 3)] if kind == "readout" else [(3, n), (n, n)]
        w = [rng.standard_normal((DRAWS, *s)) * power(q) for s, q in zip(shapes, (b, b_other), strict=True)]
        rows.append(np.sqrt(np.mean(jax.jit(lambda w, s=sizes: jax.lax.map(s, w))([jnp.asarray(p) for p in w]), -1)))
    slopes = np.polyfit(np.log(WIDTHS), np.log(np.stack(rows)), 1)[0]
    return {"initial": list(slopes[:2]), "step": list(slopes[2:])}


@pytest.mark.parametrize("name", ["ntk", "mup"])
@pytest.mark.parametrize("kind", ["readout", "embedding"])
def test_measured_powers_of_a_weight_in_two_roles(kind: str, name: str) -> None:
    found = tp.scaling(network_of_tied(kind), jnp.zeros(3), name)
    is_sum = lambda r: r.what.startswith("LinComb") and "v0" in r.what  # of the first layer and another
    hidden = next(r for r in found.rows if is_sum(r))
    output = next(r for r in reversed(found.rows) if r.what.startswith("MatMul"))
    for which, wanted in measured_of_tied(kind, PARAMETRIZATIONS[name]).items():
        counted = [float(getattr(r, which)) for r in (hidden, output)]
        np.testing.assert_allclose(wanted, counted, atol=0.12, err_msg=f"{which}\n{found}")  # powers differ by 1/2
