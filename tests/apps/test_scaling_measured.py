"""Powers of the width against finite networks that are trained: slopes of log sizes over log widths."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog.apps.parametrization import PARAMETRIZATIONS
from tests.apps.test_scaling import HALF, QUARTER, averaged, perceptron, wavy

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
