"""The adjoint program at finite width is backpropagation, digit by digit; and the tangent kernels that it gives.

Over the table of architectures: tests/architectures/test_adjoint.py. Sampled networks: tests/finite_width/test_adjoint.py.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import replace

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from ntk_rules.interpreted import by_numpy
from tensorprog import nn
from tensorprog.frontend.interpret import interpret
from tensorprog.frontend.model import as_model
from tensorprog.frontend.trace import trace
from tensorprog.ir import PositionMap, Program, verify
from tensorprog.ir.positions import POSITIONS
from tensorprog.passes.adjoint import Adjoint, Use, adjoint
from tensorprog.passes.methods import prepared
from tensorprog.passes.transposed import behind, transposed
from tests.finite_program import Weights, at_once, evaluate, hidden, network_program
from tests.finite_width.test_random_programs import programs, run
from tests.networks import ELEMENTS, NETWORKS
from tests.uncompiled import uncompiled

erf, relu = jax.scipy.special.erf, jax.nn.relu
WIDTH = 6


def times(w: jax.Array, h: jax.Array) -> jax.Array:
    return w @ h / jnp.sqrt(nn.width())


# ------------------------------------------------------------------------------------------ networks


def residual(x: jax.Array) -> jax.Array:
    h = nn.dense(x, bias_var=0.3)
    for _ in range(2):
        h = h + nn.dense(erf(h), weight_var=1.3)
    return nn.dense(h, features=3, bias_var=0.2)


def convolutional(x: jax.Array) -> jax.Array:
    h = erf(nn.conv(x, 3, padding="SAME"))
    return nn.dense(jnp.tanh(nn.conv(nn.avg_pool(h, (2,)), 2)).mean(0), features=2)


def recurrent(x: jax.Array) -> jax.Array:
    w, u = nn.weight((nn.width(), nn.width())), nn.dense(x)
    h = jnp.tanh(u[0])
    for step in u[1:]:
        h = jnp.tanh(times(w, h) + step)
    return nn.dense(h, features=1)


def of_positions(x: jax.Array) -> jax.Array:
    """An output with an axis of its own."""
    h = erf(nn.dense(x))
    return nn.dense(h + h[::-1], features=2)


def both_ways(x: jax.Array) -> jax.Array:
    w, h = nn.weight((nn.width(), nn.width())), nn.dense(x)
    return nn.dense(times(w.T, erf(times(w, h))) * h, features=1)


def joined(x: jax.Array) -> jax.Array:
    a, b = erf(nn.dense(x)), jnp.tanh(nn.dense(x))
    return nn.dense(nn.dense(jnp.concatenate([a, b])) * a, features=1)


def of_other_widths(x: jax.Array) -> jax.Array:
    """Layers of the widths n, 2 n and 3 n, one of them with a bias and a mean over the width."""
    h = erf(nn.weight((nn.width(2), 3)) @ x)
    w = nn.weight((nn.width(3), nn.width(2)))
    a = jnp.tanh(w @ h / jnp.sqrt(nn.width(2)) + nn.bias((nn.width(3),), std=0.5))
    return nn.dense(w.T @ a / jnp.sqrt(nn.width(3)), features=2)


def stopped_in_a_use(x: jax.Array) -> jax.Array:
    """Weights that some uses see behind lax.stop_gradient."""
    stop = jax.lax.stop_gradient
    w, v = nn.weight((nn.width(), nn.width())), nn.weight((nn.width(),))
    h, g = erf(nn.dense(x) + v), jnp.tanh(nn.dense(x))
    y = erf(times(w, h) + times(stop(w), g) * stop(v))
    return nn.dense(times(stop(w).T, y) * times(w.T, g), features=1)


READOUTS = {
    "stopped in a use": (stopped_in_a_use, (3,)),
    "other widths": (of_other_widths, (3,)),
    "residual": (residual, (3,)),
    "convolutional": (convolutional, (8, 2)),
    "recurrent": (recurrent, (3, 2)),
    "an output of positions": (of_positions, (4, 2)),
    "both ways": (both_ways, (3,)),
    "joined": (joined, (3,)),
}


def deep_average(x: jax.Array) -> jax.Array:
    h = erf(nn.dense(jnp.tanh(nn.dense(x)), bias_var=0.2))
    return 2 * jnp.mean(h * erf(nn.dense(h)))


def normed_average(x: jax.Array) -> jax.Array:
    """Averages below others: a layer norm, a scale, a function of two averages."""
    h = nn.layer_norm(erf(nn.dense(x)), 0.1)
    scale = jnp.mean(jnp.tanh(h) ** 2)
    return jnp.sin(jnp.mean(scale * nn.dense(h) ** 2)) + scale**2


def tied_average(x: jax.Array) -> jax.Array:
    """A decoder tied to a deep encoder's last weight, and an average of what a bias was used in before."""
    w, h, b = nn.weight((nn.width(), nn.width())), jnp.tanh(nn.dense(x)), nn.bias((nn.width(),), std=1.0)
    return jnp.mean(times(w.T, erf(times(w, h) + b)) ** 2) + jnp.mean(jnp.sin(b) * h)


def averages_of_positions(x: jax.Array) -> jax.Array:
    h = erf(nn.dense(x))
    return jnp.mean(jnp.tanh(nn.dense(h + h[::-1])), -1)


def average_of_other_widths(x: jax.Array) -> jax.Array:
    h = erf(nn.weight((nn.width(2), 3)) @ x)
    scale = jnp.mean(h**2)
    w = nn.weight((nn.width(3), nn.width(2)))
    a = jnp.tanh(scale * (w @ h) / jnp.sqrt(nn.width(2)) + nn.bias((nn.width(3),), std=0.5))
    return jnp.mean(a**2) + jnp.mean((w.T @ a) ** 2) / nn.width(3)


def average_above_average(x: jax.Array) -> jax.Array:
    """Jumps at an average have no gradient, kinks have one."""
    h = jnp.tanh(nn.dense(x))
    m = jnp.mean(h**2)
    return jnp.mean(jnp.where(h > m, h, jnp.abs(h - m))) + jnp.maximum(m, 0.1) * jnp.mean(relu(m - h))


def attention(x: jax.Array) -> jax.Array:
    """The weights of the average over positions are averages over the width themselves, of queries and keys that are the same."""
    h = nn.dense(x)
    return jnp.mean(jnp.tanh(jax.nn.softmax(h @ h.T / nn.width()) @ nn.dense(h)) ** 2, -1)


def largest_average(x: jax.Array) -> jax.Array:
    h = nn.dense(x)
    gates = jnp.max(h @ h.T / nn.width(), 1)
    return jnp.mean(relu(h) * gates[:, None], -1).sum()


AVERAGES = {
    "attention": (attention, (3, 2)),
    "largest average": (largest_average, (3, 2)),
    "average above an average": (average_above_average, (3,)),
    "average of other widths": (average_of_other_widths, (3,)),
    "deep average": (deep_average, (3,)),
    "normed average": (normed_average, (3,)),
    "tied average": (tied_average, (3,)),
    "averages of positions": (averages_of_positions, (4, 2)),
}


# ------------------------------------------------------------------------------------------ at finite width


def traced(net: Callable, shape: tuple[int, ...]) -> Program:
    example = jnp.zeros(shape)
    return prepared(interpret(trace(as_model(net, example), example), averages=True))


def gradient(use: Use, of: Adjoint, program: Program, weights: Weights, x: np.ndarray, unit: float) -> jax.Array:
    """dW of one use: lead axes, the weight's axes at unit width, and its coordinates. unit: what gradients in wide layers are
    multiplied with."""
    n = weights.width
    value = lambda node: evaluate(replace(program, output=node), weights, [x])
    w, z, y = use.letters
    coordinates = iter("ΑΒ")
    names = {c: next(coordinates) for c, width in zip(w, use.weight.widths, strict=True) if width is not None}
    lead = "".join(c for c in string.ascii_letters if c not in w + z + y)[: len(of.lead)]
    own = [
        (node, lead * is_dy + letters, "".join(names[c] for c in letters if c in names))
        for node, letters, is_dy in ((use.dy, y, 1), (use.z, z, 0))
        if node is not None
    ]
    arrays, specs, scale = [], [], use.weight.std
    for node, letters, capitals in own:
        array = value(node)
        if capitals and not hidden(node):  # the same for all coordinates
            size = int(use.weight.widths[w.index(next(c for c in letters if c in names))] * n)
            array = jnp.broadcast_to(array[..., None], (*array.shape, size))
        arrays.append(array)
        specs.append(letters + capitals)
    out = lead + w + "".join(names.values())
    made = jnp.einsum(f"{','.join(specs)}->{out}", *arrays)
    finite = not any(c in names for c in y)
    summed = any(c not in y for c in names)
    return made * scale / (1 if finite else unit) / (np.sqrt(n) if summed else 1)


def check_gradients(net: Callable, shape: tuple[int, ...], average: bool) -> None:
    program = traced(net, shape)
    found = adjoint(program)
    for node in found.nodes:
        verify(replace(program, output=node))
    weights = Weights(WIDTH).sample([program])
    for name, primed in tuple(weights.arrays):
        weights.arrays[name, True] = weights.arrays[name, primed]  # the fresh copy of a readout is the readout
    x = np.random.default_rng(0).standard_normal(shape)

    def output(arrays: dict) -> jax.Array:
        moved = replace(weights, arrays={**{(k, False): v for k, v in arrays.items()}})
        made = evaluate(program, moved, [x], fixed_moments=not average)
        first = tuple(0 if i in program.mirrored else slice(None) for i in range(made.ndim))
        return made[first].reshape(found.lead)

    own = {name: array for (name, primed), array in weights.arrays.items() if not primed}
    wanted = jax.jit(jax.jacobian(output))(own)
    unit = WIDTH if average else np.sqrt(WIDTH)
    parts = at_once(lambda frozen: [gradient(use, found, program, frozen, x, unit) for use in found.uses], weights)
    total: dict[str, jax.Array] = {}
    for use, part in zip(found.uses, parts, strict=True):
        whole = _placed(part, use, len(found.lead), own[use.weight.name].shape)
        total[use.weight.name] = total.get(use.weight.name, 0.0) + whole
    assert set(total) == set(own)
    for name, made in total.items():
        scale = max(1.0, float(np.abs(wanted[name]).max()))
        np.testing.assert_allclose(made, wanted[name], rtol=0, atol=1e-12 * scale, err_msg=name)


DERIVED = {"behind"}  # made of the others


def _placed(part: jax.Array, use: Use, lead: int, shape: tuple[int, ...]) -> np.ndarray:
    """The gradient of a part of a parameter in the place that it has there."""
    weight, rank = use.weight, len(use.weight.shape)
    order, place = list(range(lead)), lead + rank
    at: list[slice] = [slice(None)] * lead
    sizes = []
    for i, ((start, stop), width) in enumerate(zip(weight.region, weight.widths, strict=True)):
        order.append(lead + i)
        if width is not None:
            order.append(place)
            place += 1
        units = 1 if width is None else WIDTH
        at.append(slice(int(start * units), int(stop * units)))
        sizes.append(int((stop - start) * units))
    whole = np.zeros((*part.shape[:lead], *shape))
    whole[tuple(at)] = np.asarray(part).transpose(order).reshape((*part.shape[:lead], *sizes))
    return whole


@pytest.mark.parametrize("name", READOUTS)
def test_backpropagation_of_readouts(name: str) -> None:
    check_gradients(*READOUTS[name], average=False)


@pytest.mark.parametrize("name", AVERAGES)
def test_backpropagation_of_averages(name: str) -> None:
    """Through averages as well, whose derivatives count here."""
    check_gradients(*AVERAGES[name], average=True)


@pytest.mark.long
def test_transposes_of_position_maps() -> None:
    """<L x, y> = <x, L' y> for every map that the networks of the tests have; what axes L' carries along; and L behind more axes."""
    rng, seen = np.random.default_rng(0), set()
    for name, (net, shape) in NETWORKS.items():
        if name in ELEMENTS or name.endswith("of hidden") or not set(POSITIONS) - {op.name for op, _ in seen} - DERIVED:
            continue
        for node in network_program(net, jnp.zeros(shape)):
            count = sum(isinstance(node, PositionMap) and op.name == node.op.name for op, _ in seen)
            if not isinstance(node, PositionMap) or count > 1:
                continue
            seen.add((node.op, node.args[0].type.shape))
            sizes = node.args[0].type.shape
            x = rng.standard_normal(sizes)
            aux = [_random(a, rng, node) for a in node.args[1:]]
            made = np.asarray(by_numpy(node.op)(x, *aux))
            for lead in ((), (2,)):
                y = rng.standard_normal((*lead, *made.shape))
                op = transposed(node.op, sizes, lead)
                back = np.asarray(by_numpy(op)(y, *aux))
                stacked = rng.standard_normal((*lead, *sizes))
                after = by_numpy(behind(node.op, sizes, lead))(stacked, *aux)
                for i in np.ndindex(*lead):
                    np.testing.assert_allclose(after[i], by_numpy(node.op)(stacked[i], *aux), rtol=1e-12, atol=1e-12)
                assert back.shape == (*lead, *sizes) == op.shape(y.shape, *(a.shape for a in aux))
                for i in np.ndindex(*lead):
                    np.testing.assert_allclose(np.sum(made * y[i]), np.sum(x * back[i]), rtol=1e-10, atol=1e-12)
                for j, i in enumerate(op.same_axis(y.shape)):
                    if i is not None:
                        order = rng.permutation(y.shape[i])
                        moved = by_numpy(op)(np.take(y, order, i), *aux)
                        np.testing.assert_allclose(moved, np.take(back, order, j), atol=1e-12, err_msg=str(op))
    assert {op.name for op, _ in seen} == set(POSITIONS) - DERIVED


def _random(node: object, rng: np.random.Generator, of: PositionMap) -> jax.Array:
    from tensorprog.ir import Const

    if isinstance(node, Const):
        return jnp.asarray(node.value.array())
    shape = node.type.shape  # type: ignore[attr-defined]
    return jnp.zeros(shape, int) if of.op.name == "gather" else jnp.asarray(rng.standard_normal(shape))


# ------------------------------------------------------------------------------------------ kernels


def agree(net: Callable, shape: tuple[int, ...], tolerance: float = 1e-12) -> None:
    x = np.random.default_rng(1).standard_normal((2, *shape))
    first, second = (tp.compile(net, x[0], method=method) for method in ("tangent", "adjoint"))
    assert (first.method, second.method) == ("tangent", "adjoint")
    assert second.tangent_program is None and first.gradients is None
    wanted = uncompiled(first, x)
    for a, b in zip(wanted, uncompiled(second, x), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * np.abs(a).max())
    parts, others = first.by_parameter(x), second.by_parameter(x)
    assert set(parts) == set(others)
    for name, part in parts.items():
        np.testing.assert_allclose(others[name], part, rtol=0, atol=tolerance * np.abs(wanted.ntk).max())


@pytest.mark.parametrize(
    "name",
    [
        "both ways",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("other widths", "an output of positions", "residual")),
    ],
)
def test_tangent_is_adjoint(name: str) -> None:
    agree(*READOUTS[name])


def check_random(steps: list[tuple], tolerance: float | None) -> None:
    net = lambda x: run(steps)(tp.nn, x)
    try:
        tangent = tp.compile(net, jnp.zeros(4), method="tangent", tolerance=tolerance)
        hypothesis.assume(tolerance is None or tangent.sampled)
        x = np.random.default_rng(0).standard_normal((3, 4))
        wanted = tangent(x).ntk
    except (tp.UnsupportedError, tp.InputError):  # no rule for a function, or none at its variance
        hypothesis.reject()
    found = tp.compile(net, jnp.zeros(4), method="adjoint", tolerance=tolerance)(x).ntk
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


@pytest.mark.slow
@hypothesis.given(programs())
@hypothesis.settings(max_examples=15)
def test_tangent_is_adjoint_for_random_programs(steps: list[tuple]) -> None:
    check_random(steps, None)


@pytest.mark.slow
@hypothesis.given(programs())
@hypothesis.settings(max_examples=6, suppress_health_check=[hypothesis.HealthCheck.filter_too_much])
def test_tangent_is_adjoint_for_random_programs_that_are_sampled(steps: list[tuple]) -> None:
    """Programs of vectors: both ways sample the same functions at the same points."""
    check_random(steps, 2e-2)
