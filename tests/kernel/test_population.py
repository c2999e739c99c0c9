"""States carried through many layers: populations against recursions that are exact, and how they are lowered."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from examples import architectures as zoo
from tensorprog import nn
from tensorprog.kernel.graph import Average
from tensorprog.lower import lower
from tensorprog.lower.schedule import Loop, schedule
from tensorprog.passes import structure
from tests.uncompiled import uncompiled

LAYERS = 3


def gated(x: jax.Array) -> jax.Array:
    """y <- y g(W y), a new W in each layer: the gate's Gaussian is independent of y in every coordinate."""
    y = nn.dense(x)
    for _ in range(LAYERS):
        y = y * _gate(nn.dense(y))
    return nn.dense(y, features=1)


def _gate(u: jax.Array) -> jax.Array:
    return 1 + jnp.tanh(u) / 2


def _gated_kernels(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q' = q E[g(u) g(u')], t' = t E[g(u) g(u')] + q E[dg(u) dg(u')] (t + q), with u of the covariance q: the terms that
    mix y's tangent and the gate's have mean zero."""
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    gate, slope = lambda u: 1 + np.tanh(u) / 2, lambda u: (1 - np.tanh(u) ** 2) / 2

    def dual(f, q):
        spread = np.sqrt(np.diag(q))
        out = np.empty_like(q)
        for i, a in enumerate(spread):
            for j, b in enumerate(spread):
                c = np.clip(q[i, j] / (a * b), -1, 1)
                second = b * (c * z[:, None] + np.sqrt(1 - c * c) * z[None, :])
                out[i, j] = np.einsum("i,j,ij", weights, weights, f(a * z)[:, None] * f(second))
        return out

    q = x @ x.T / x.shape[1]
    t = q.copy()
    for _ in range(LAYERS):
        g, dg = dual(gate, q), dual(slope, q)
        q, t = q * g, t * g + q * dg * (t + q)
    return q, t + q


@pytest.mark.long
@pytest.mark.parametrize("positions", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_gates_against_their_recursion(positions: int) -> None:
    x = np.random.default_rng(0).normal(size=(2, positions, 5))
    net = gated if positions > 1 else lambda a: gated(a[0])
    kernel = tp.compile(net, x[0], tolerance=1e-2)
    assert kernel.sampled and any(isinstance(q, Average) for q in kernel.graph.nodes)
    with jax.enable_x64(True):
        found = kernel(jnp.asarray(x)) if positions > 1 else uncompiled(kernel, x)
        error = kernel.standard_error(jnp.asarray(x)) if positions > 1 else (None, None)  # which is compiled apart
    nngp, ntk = _gated_kernels(x.reshape(2 * positions, 5))
    for values, errors, exact in zip(found, error, (nngp, ntk), strict=True):
        # Two standard errors of a Gaussian's variance; these products have heavier tails.
        assert np.all(
            np.abs(_matrix(values, positions) - exact) < 1.5e-2 * np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
        )
        if errors is None:
            continue
        # Eight shifts know an error to a quarter of it; six of them leave room for every entry.
        assert np.all(
            np.abs(_matrix(values, positions) - exact) < 6 * _matrix(errors, positions) + 1e-4 * np.abs(exact)
        )
        assert np.all(_matrix(errors, positions) < 2e-2 * exact.max())


def _matrix(k: jax.Array, positions: int) -> np.ndarray:
    """Inputs and positions as one axis."""
    return np.moveaxis(np.asarray(k).reshape(2, 2, positions, positions), 2, 1).reshape(2 * positions, -1)


def test_a_gate_alone_stays_exact() -> None:
    """One level of gates is a product of expectations, as before."""
    kernel = tp.compile(
        lambda x: nn.dense(jnp.tanh(nn.dense(x)) * jax.nn.sigmoid(nn.dense(x)), features=1), jnp.zeros(3)
    )
    assert not kernel.sampled


def remembering(x: jax.Array) -> jax.Array:
    """A state of its own coordinates, gated by one weight at every step."""
    w, u = zoo.matrix(nn.width(), nn.width()), zoo.matrix(nn.width(), x.shape[1])
    y = u @ x[0]
    for step in x[1:]:
        gate = jax.nn.sigmoid(w @ y + u @ step)
        y = gate * y + (1 - gate) * jnp.tanh(u @ step)
    return nn.dense(y, features=1)


@pytest.mark.slow
def test_rolled_and_written_out_agree() -> None:
    kernel = tp.compile(remembering, np.zeros((7, 3)), tolerance=5e-2)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 3)), jnp.float32)
    found = []
    for roll in (True, False):
        lowered = lower(kernel.graph, kernel.program.inputs, () if roll else ("loops",))
        run = jax.jit(lambda a, b, lowered=lowered: lowered.pair(lowered.state([a], {}), lowered.state([b], {})))
        found.append(np.asarray(run(x[0], x[1])))
    # The same numbers in another order: rounding in float32, which a population of 4096 neurons amplifies little.
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)


def test_steps_become_a_loop() -> None:
    """The code of a recurrent net does not grow with its steps."""

    def code(steps: int) -> int:
        kernel = tp.compile(remembering, np.zeros((steps, 3)), tolerance=5e-2)
        made = schedule([kernel.graph.nngp, kernel.graph.ntk], True)
        assert any(isinstance(step, Loop) for step in made)
        return sum(len(step.reads) if isinstance(step, Loop) else bool(getattr(step, "operands", ())) for step in made)

    assert code(24) <= code(12)


def test_sampling_is_refused_unless_allowed() -> None:
    with pytest.raises(tp.UnsupportedError, match=r"carried .* several layers") as refusal:
        tp.compile(zoo.gru, np.zeros((4, 3)))
    assert "architectures.py" in str(refusal.value) and "tolerance=1e-2" in str(refusal.value)
    with pytest.raises(tp.UnsupportedError, match="too large to be sampled"):
        tp.compile(zoo.gru, np.zeros((20, 3)), tolerance=1e-3)


@pytest.mark.slow
def test_repeated_calls_agree_and_equal_inputs_are_equal() -> None:
    kernel = tp.compile(remembering, np.zeros((3, 2)), tolerance=5e-2)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 2)), jnp.float32)
    first, second = kernel(x), kernel(x)
    np.testing.assert_array_equal(first.ntk, second.ntk)
    np.testing.assert_allclose(jnp.diag(kernel(x, x).ntk), kernel.diag(x).ntk, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["grouped_convolution", "locally_connected", "tied_layers", "masked_rnn", "gin", "dropout"]
)
def test_a_population_agrees_where_the_kernel_is_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of every layout: what has an exact kernel, sampled all the same."""
    found = zoo.ARCHITECTURES[name]
    x = jax.tree.map(jnp.asarray, zoo.random_inputs(found.example, 2))
    exact = tp.compile(found.net, found.example)(x)
    plain = structure._with_levels

    def carried(facts: structure.Facts, *rest: object) -> structure.Facts:
        return replace(plain(facts, *rest), carried=not facts.gaussian)

    monkeypatch.setattr(structure, "_with_levels", carried)
    kernel = tp.compile(found.net, found.example, tolerance=3e-2)
    assert kernel.sampled
    values, errors = kernel(x), kernel.standard_error(x)
    for value, error, wanted in zip(values, errors, exact, strict=True):
        assert np.all(np.abs(value - wanted) < 6 * error + 1e-3 * np.max(np.abs(wanted)))
