"""Maps through depth against integrals by scipy, deep kernels and sampled networks; spectra; shaped activations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy.integrate import quad

import tensorprog as tp
from tensorprog import apps, nn
from tests.apps.common import data, kernel, relu_gram


@cache
def bounded(phi: Callable = jax.scipy.special.erf) -> apps.Block:
    """Of erf, whose expectations are known in closed form: its maps are quick to compile."""
    weight, bias = tp.hyper("w", 2.5), tp.hyper("b", 0.05)
    return apps.Block(lambda h: nn.dense(phi(h), weight_var=weight, bias_var=bias))


def mean(f: Callable[[float], float]) -> float:
    return quad(lambda z: f(z) * np.exp(-z * z / 2) / np.sqrt(2 * np.pi), -12, 12, epsabs=1e-13)[0]


def erf_slope(z: np.ndarray) -> np.ndarray:
    return 2 / np.sqrt(np.pi) * np.exp(-z * z)


@pytest.mark.parametrize(
    ("phi", "own", "slope_of"),
    [
        (jax.scipy.special.erf, scipy.special.erf, erf_slope),
        pytest.param(jnp.tanh, np.tanh, lambda z: 1 / np.cosh(z) ** 2, marks=pytest.mark.long),
    ],
    ids=["erf", "tanh"],
)
def test_maps_are_the_integrals(phi: Callable, own: Callable, slope_of: Callable) -> None:
    """Poole et al. 2016, equations 3 to 5; Schoenholz et al. 2017, equation 5."""
    q, c, block = 0.8, 0.3, bounded(phi)
    assert abs(block.variance(q) - (2.5 * mean(lambda z: own(np.sqrt(q) * z) ** 2) + 0.05)) < 1e-10
    assert abs(block.chi(q) - 2.5 * mean(lambda z: slope_of(np.sqrt(q) * z) ** 2)) < 1e-10
    a = np.linspace(-9, 9, 361)  # by the trapezoidal rule, which converges geometrically
    weights = np.exp(-a * a / 2) / np.sqrt(2 * np.pi) * (a[1] - a[0])
    second = own(np.sqrt(q) * (c * a[:, None] + np.sqrt(1 - c * c) * a)) @ weights
    covariance = 2.5 * np.sum(weights * own(np.sqrt(q) * a) * second) + 0.05
    assert abs(block.correlation(c, q) - covariance / block.variance(q)) < 1e-10
    step = 1e-5
    slope = (block.correlation(c + step, q) - block.correlation(c - step, q)) / (2 * step) * block.variance(q) / q
    assert abs(block.chi(q, c) - slope) < 1e-7  # differences


def test_phases_and_depth_scales() -> None:
    """Distances of inputs shrink and grow through thirty layers as the depth scales say."""
    for w, name in ((1.0, "ordered"), (2.5, "chaotic")):
        phase = bounded().phase(w=w)
        assert phase.name == name and str(phase).startswith(name)
        path = bounded().trajectory(0.3, 0.5, 30, w=w)
        gaps = np.abs(path[:, 1] - phase.c)
        assert abs(path[-1, 0] - phase.q) < 1e-6
        np.testing.assert_allclose(1 / np.log(gaps[24] / gaps[25]), phase.scale_c, rtol=0.03)  # nearly linear by then
    assert (
        abs(bounded().variance(phase.q) - phase.q) < 1e-10
        and abs(bounded().correlation(phase.c, phase.q) - phase.c) < 1e-9
    )


def test_critical_line() -> None:
    w = bounded().critical("w", (0.5, 4.0))
    q = bounded().fixed_variance(w=w)
    assert abs(w * mean(lambda z: erf_slope(np.sqrt(q) * z) ** 2) - 1) < 1e-8
    assert bounded().phase(w=w * 0.99).name == "ordered" and bounded().phase(w=w * 1.01).name == "chaotic"
    with pytest.raises(tp.InputError, match="expected one of each sign"):
        bounded().critical("w", (2.5, 4.0))
    with pytest.raises(tp.InputError, match="is no hyperparameter; the block has: b, w"):
        bounded().critical("v", (2.5, 4.0))


@pytest.mark.slow
def test_chi_is_the_gradient_of_a_sampled_network() -> None:
    """Mean squared Jacobian of one block at width 512, over its input, per coordinate."""
    n, q = 512, 0.8
    keys = jax.random.split(jax.random.key(0), 20)

    def squared(key: jax.Array) -> jax.Array:
        a, b = jax.random.split(key)
        h = np.sqrt(q) * jax.random.normal(a, (n,))
        w = np.sqrt(2.5 / n) * jax.random.normal(b, (n, n))
        return jnp.sum(jnp.square(w * 2 / np.sqrt(np.pi) * jnp.exp(-h * h))) / n

    found = np.asarray(jax.lax.map(squared, keys))
    assert abs(found.mean() - bounded().chi(q)) < 4.5 * found.std() / np.sqrt(20) + 1e-4


def test_relu_and_residual_blocks() -> None:
    """He initialisation is critical for ReLU; a residual block adds one to chi and doubles the variance."""
    w = tp.hyper("w", 2.0)
    relu = apps.Block(lambda h: nn.dense(jax.nn.relu(h), weight_var=w))
    assert relu.phase().name == "critical" and relu.phase(w=2.2).name == "divergent"
    assert abs(relu.chi(1.7, w=1.9) - 0.95) < 1e-10
    residual = apps.Block(lambda h: h + nn.dense(jax.nn.relu(h), weight_var=w))
    assert abs(residual.chi(0.7) - 2) < 1e-10 and abs(residual.variance(0.7) - 1.4) < 1e-10


def test_blocks_that_are_no_map() -> None:
    with pytest.raises(tp.InputError, match="applied twice"):
        apps.Block(jax.nn.relu)
    with pytest.raises(tp.InputError, match="applied twice"):  # what tells is switched off by default
        apps.Block(lambda h: h + tp.hyper("bend", 0.0) * (h**2 - h))
    with pytest.raises(tp.InputError, match="expected a JAX function"):
        apps.Block(3)
    for call, message in (
        (lambda: bounded().variance(-1.0), "q is -1.0"),
        (lambda: bounded().correlation(1.5, 1.0), "between -1 and 1"),
    ):
        with pytest.raises(tp.InputError, match=message):
            call()


def test_learnability() -> None:
    x, y, _ = data(20)
    found = apps.learnability(kernel(), x, y)
    ntk = relu_gram(x, x)[1]
    values, vectors = np.linalg.eigh(ntk)
    np.testing.assert_allclose(found.eigenvalues, values[::-1], atol=1e-6)  # arccos near 1 in the formula
    np.testing.assert_allclose(found.times, 20 / values[::-1], rtol=1e-4)
    np.testing.assert_allclose(found.shares, ((vectors.T @ y) ** 2 / (y @ y))[::-1], atol=1e-5)
    level = 1e-3 * np.trace(ntk) / 20
    expected = np.trace(ntk @ np.linalg.inv(ntk + level * np.eye(20)))
    np.testing.assert_allclose(found.effective_dimension, expected, rtol=1e-5)
    # by its own count of steps, training at half the critical rate leaves 1/e of a component
    training = apps.Training(kernel(), x, found.vectors[:, 6])
    after = training.descent(round(found.steps[6]), 0.5 * training.critical_rate()).mean @ found.vectors[:, 6]
    assert abs((1 - after) - np.exp(-1)) < 0.05
    assert found.learned(np.inf) == pytest.approx(1.0)


def test_spectra_along_a_hyperparameter_and_over_depth(tmp_path: Path) -> None:
    """By numpy, and as Xiao et al. 2020 have it: with depth a ReLU network's kernel goes to one of ones, of condition number like depth."""
    x, _, _ = data(8)
    found = apps.spectra(kernel(), x, w=[0.5, 2.0], b=0.1)
    for k, w in enumerate((0.5, 2.0)):
        values = np.linalg.eigvalsh(np.asarray(kernel()(x, w=w, b=0.1).ntk))
        np.testing.assert_allclose((found.smallest[k], found.largest[k]), (values[0], values[-1]), rtol=1e-9)
        np.testing.assert_allclose(found.condition[k], values[-1] / values[0], rtol=1e-9)
        level = 1e-3 * values.mean()
        np.testing.assert_allclose(found.effective_dimension[k], np.sum(values / (values + level)), rtol=1e-9)
    assert found.name == "w" and found.values == (0.5, 2.0) and str(found).count("\n") == 2

    def deep(depth: int) -> Callable:
        def net(x: jax.Array) -> jax.Array:
            for _ in range(depth):
                x = jax.nn.relu(nn.dense(x, weight_var=2.0))
            return nn.dense(x, features=1)

        return tp.compile(net, jnp.zeros(3))

    over = apps.spectra(
        {depth: deep(depth) for depth in (2, 8, 24)}, x / np.linalg.norm(x, axis=1, keepdims=True), get="nngp"
    )
    assert (
        over.values == (2, 8, 24)
        and (np.diff(over.condition) > 0).all()
        and (np.diff(over.effective_dimension) < 0).all()
    )
    over.plot(tmp_path / "spectra.png")
    assert (tmp_path / "spectra.png").read_bytes().startswith(b"\x89PNG")


def test_warnings_in_words() -> None:
    x, y, _ = data()
    twice = np.concatenate([x, x[:1]])
    said = apps.learnability(kernel(), twice, np.append(y, y[0] + 2)).warnings()
    assert "component 13 of your labels cannot be learned" in said[0] and "the matrix is singular" in said[-1]
    near = np.concatenate([x, x[:1] + 1e-5])
    slow = apps.learnability(kernel(), near, np.append(y, y[0] + 2))
    assert slow.warnings()[0].startswith(f"component 13 of your labels needs {slow.steps[12]:.0e} steps")
    assert apps.learnability(kernel(), x, y).warnings() == []
    with pytest.raises(tp.InputError, match="y has nan"):
        apps.learnability(kernel(), x, np.full(12, np.nan))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phi", "slope", "origin"), [(jnp.tanh, 1.1, 0.0), (jax.nn.softplus, 1.02, 0.0), (jnp.tanh, 1.0, 0.3)]
)
def test_shaped_activations(phi: Callable, slope: float, origin: float) -> None:
    """By scipy's integrals, and by the maps of the compiled kernel of a block with the shaped activation."""
    made = apps.shape_activation(phi, slope=slope, origin=origin)
    f = made.activation(phi)
    at = lambda z: float(f(jnp.asarray(z)))
    assert abs(mean(lambda z: at(z) ** 2) - 1) < 1e-8 and abs(mean(at) ** 2 - origin) < 1e-8
    block = apps.Block(lambda h: nn.dense(f(h)))
    step = 1e-4
    assert abs(block.variance(1.0) - 1) < 1e-9 and abs(block.correlation(0.0, 1.0) - origin) < 1e-9
    assert abs((block.variance(1 + step) - block.variance(1 - step)) / (2 * step) - 1) < 1e-6  # differences
    assert abs(block.chi(1.0) - slope) < 1e-9


@pytest.mark.parametrize(
    ("phi", "slope_of", "kinks"),
    [
        pytest.param(jax.nn.elu, lambda v: np.exp(min(v, 0.0)), (0,), marks=pytest.mark.long),
        (jax.nn.hard_swish, lambda v: (2 * v + 3) / 6 if abs(v) < 3 else float(v > 3), (-3, 3)),
    ],
)
def test_shaped_activations_with_kinks(phi: Callable, slope_of: Callable, kinks: tuple[float, ...]) -> None:
    """By scipy's integrals from kink to kink, with slopes by hand."""
    made = apps.shape_activation(phi, slope=1.1, origin=0.2)
    ends = [-9.0, *((k - made.beta) / made.alpha for k in kinks), 9.0]
    slope = lambda u: made.gamma * made.alpha * slope_of(made.alpha * u + made.beta)
    density = lambda u: np.exp(-u * u / 2) / np.sqrt(2 * np.pi)
    over = lambda g: sum(quad(lambda u: g(u) * density(u), a, b)[0] for a, b in itertools.pairwise(ends))
    assert abs(over(lambda u: slope(u) ** 2) - 1.1) < 1e-8
    f = lambda u: np.interp(u, grid, values)
    grid = np.linspace(-9, 9, 20001)
    values = np.asarray(made.activation(phi)(jnp.asarray(grid)), float)
    assert abs(over(lambda u: f(u) * slope(u) * u) - 1) < 1e-5  # float32, interpolated


def test_shapes_that_cannot_be() -> None:
    with pytest.raises(tp.InputError, match="convex"):
        apps.shape_activation(jnp.tanh, slope=0.9)
    with pytest.raises(tp.InputError, match="no constants were found"):
        apps.shape_activation(lambda u: 2 * u, slope=1.1)
    with pytest.raises(tp.InputError, match="phi fails for a real number"):
        apps.shape_activation(np.tanh, slope=1.1)
    with pytest.raises(tp.InputError, match="expected one real number"):
        apps.shape_activation(lambda u: jnp.stack([u, u]), slope=1.1)
