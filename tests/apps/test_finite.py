"""Empirical kernels by hand and by every method, Taylor expansions, sampled kernels, and the check of a kernel."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import apps, nn
from tensorprog.apps import structured as structured_module
from tensorprog.apps.uses import Use, uses_of
from tests.apps.common import data, kernel


def outputs_of(x: Any) -> Any:
    """Two layers, outputs of shape (2, 3)."""
    h = jnp.tanh(nn.conv(x, 3, weight_var=1.4, bias_var=0.2))
    return nn.dense(h, features=3, bias_var=0.1)


def sampled(width: int = 16) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    params = tp.init(outputs_of, jnp.zeros((2, 2)), width, jax.random.key(0))
    f = lambda p, x: tp.apply(outputs_of, p, x)
    return f, params, rng.standard_normal((5, 2, 2)), rng.standard_normal((3, 2, 2))


def test_by_hand() -> None:
    """One hidden layer: v.tanh(Wx) sqrt(s/n), its gradients written out in numpy."""
    rng = np.random.default_rng(0)
    n, x = 32, rng.standard_normal((4, 3))
    w, v = rng.standard_normal((n, 3)), rng.standard_normal(n)
    f = lambda p, x: p["v"] @ jnp.tanh(p["w"] @ x) / np.sqrt(n)
    h = np.tanh(x @ w.T)
    slopes = v * (1 - h**2)
    nngp = np.outer(h @ v, h @ v) / n
    ntk = h @ h.T / n + (slopes @ slopes.T) * (x @ x.T) / n
    for method in apps.empirical.METHODS:
        found = apps.Empirical(f, {"w": w, "v": v}, method=method)(x)
        np.testing.assert_allclose(found.nngp, nngp, atol=1e-12)
        np.testing.assert_allclose(found.ntk, ntk, atol=1e-12)
    slow = apps.Empirical(f, {"w": w, "v": v}, speeds={"w": 0.0, "v": 2.0})(x, get="ntk")
    np.testing.assert_allclose(slow, 4 * h @ h.T / n, atol=1e-12)


@pytest.mark.slow
def test_methods_outputs_and_batches_agree() -> None:
    f, params, x1, x2 = sampled()
    full = apps.Empirical(f, params, output="full", method="jacobian")(x1, x2)
    assert full.ntk.shape == (5, 3, 2, 3, 2, 3) and full.nngp.shape == (5, 3, 2, 3, 2, 3)
    values = [np.stack([f(params, one) for one in x]) for x in (x1, x2)]
    np.testing.assert_allclose(full.nngp, np.einsum("ipa,jqb->ijpaqb", *values), atol=1e-12)
    diagonal = np.einsum("ijpapa->ijpa", np.asarray(full.ntk))
    expected = {"full": full.ntk, "diagonal": diagonal, "trace": diagonal.mean((2, 3))}
    for output, wanted in expected.items():
        for method in ("structured", "jacobian", "products")[output == "diagonal" :]:
            batch = 2 if output == "trace" and method != "products" else None
            made = apps.Empirical(f, params, output=output, method=method, batch=batch)
            np.testing.assert_allclose(made(x1, x2, get="ntk"), wanted, atol=1e-10)
    assert apps.Empirical(f, params)(x1[:0], x2).ntk.shape == (0, 3)


def recurrent(x: Any) -> Any:
    """A loop whose weight is used once more as it is, and transposed."""
    n = nn.width()
    w, u = nn.weight((n, n)), nn.weight((n, x.shape[1]))
    h, _ = jax.lax.scan(lambda h, one: (jnp.tanh(w @ h / np.sqrt(n) + u @ one), None), jnp.zeros(n), x)
    rows = w / jnp.linalg.norm(w, axis=1, keepdims=True)
    return nn.dense(jnp.tanh(rows @ h) + (0.5 * w).T @ h / np.sqrt(n), features=2)


def convolutional(x: Any) -> Any:
    """Strides, padding, a layer norm, positions that are kept."""
    h = jax.nn.relu(nn.layer_norm(nn.conv(x, (3, 2), strides=(2, 1), bias_var=0.2)))
    return nn.dense(jax.nn.gelu(nn.conv(h, 2, padding="CIRCULAR")), features=2)


def heads(x: Any) -> Any:
    """One weight in two shapes, so that it is not looked into, and another in a shape that is not its own."""
    n = nn.width()
    w, v = nn.weight((2 * n, 3)), nn.weight((n, 2 * n))
    a = jnp.einsum("hnk,k->hn", w.reshape(2, n, 3), x)
    return nn.dense(jnp.tanh(jnp.einsum("nhm,hm->n", v.reshape(n, 2, n), jnp.tanh(a)) + (w @ x)[:n]), features=1)


@pytest.mark.parametrize(
    ("net", "shape", "looked_into"),
    [
        pytest.param(recurrent, (4, 3), 3, marks=pytest.mark.long),
        pytest.param(convolutional, (5, 4, 2), 3, marks=pytest.mark.slow),
        (heads, (3,), 2),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_structured_derivatives_of_every_use(net: Any, shape: tuple, looked_into: int) -> None:
    """Products in loops, convolutions, transposes, reshapes and uses of other kinds: against the two methods that know nothing of them."""
    rng = np.random.default_rng(0)
    x1, x2 = rng.standard_normal((4, *shape)), rng.standard_normal((3, *shape))
    params = tp.init(net, x1[0], 8, jax.random.key(0))
    f = lambda p, x: tp.apply(net, p, x)
    uses, _, _ = uses_of(f, params, x1[0])
    assert len({use.leaf for use in uses if use.x}) == looked_into
    speeds = {name: 0.5 + k for k, name in enumerate(sorted(params))}
    methods = ("structured", "jacobian", "products")
    made = [apps.Empirical(f, params, speeds=speeds, output="full", method=m) for m in methods]
    first, *others = (np.asarray(k(x1, x2, get="ntk")) for k in made)
    for other in others:
        np.testing.assert_allclose(first, other, atol=1e-10 * np.abs(first).max())


def test_orders_of_contraction_are_counted() -> None:
    """Counted by hand: one use of an n x m weight, N inputs: factors first, 2 N^2 (n + m), or Jacobians, 2 N n m + 2 N^2 n m."""
    use = Use(0, (), ("w0",), ("w1",), (("w0", 50), ("w1", 30)))
    pair = structured_module._pair(use, use, (1, 1), (7, 7, 1), False)
    _, cost = structured_module.best(pair, 1e9)
    assert cost.operations == 2 * 49 * (50 + 30) + 2 * 49 and cost.largest == 49
    # many positions p: inner products hold N^2 p^2 entries, Jacobians N n m
    wide = Use(0, (), ("p0", "w0"), ("p0", "w1"), (("p0", 1000), ("w0", 5), ("w1", 3)))
    pair = structured_module._pair(wide, wide, (1, 1), (7, 7, 1), False)
    _, cost = structured_module.best(pair, 1e9)
    assert cost.operations == 2 * (2 * 7 * 1000 * 15) + 2 * 49 * 15 and cost.largest == 7 * 15
    assert structured_module.best(pair, 10.0)[1].largest <= 7 * 15  # nothing fits: the smallest results


def test_auto_counts_operations() -> None:
    """One wide layer: the factors of Jacobians are cheapest. A tiny one of many inputs: Jacobians. Without memory: products."""

    def chosen(width: int, count: int, positions: int = 0) -> tuple[str, dict]:
        net = lambda x: jnp.mean(nn.dense(jnp.tanh(nn.dense(x)), features=1))
        x = np.random.default_rng(0).standard_normal((count, *([positions] if positions else []), 2))
        params = tp.init(net, x[0], width, jax.random.key(0))
        made = apps.Empirical(lambda p, x: tp.apply(net, p, x), params)
        return made.chosen(x, x), made.costs(x, x)

    assert chosen(256, 20)[0] == "structured"
    method, costs = chosen(2, 20, positions=50)
    assert method == min(costs, key=lambda name: costs[name][0])
    operations = {name: found[0] for name, found in costs.items()}
    assert all(bytes_ >= 0 for _, bytes_ in costs.values()) and operations["products"] > operations["jacobian"]


def test_without_memory_products_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    f, params, x1, x2 = sampled()
    monkeypatch.setattr("tensorprog.apps.empirical.BYTES", 10)
    made = apps.Empirical(f, params)
    assert made.chosen(x1, x2) == "products"


@pytest.mark.slow
def test_flax_model() -> None:
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self, width: int, rngs: nnx.Rngs):
            self.a, self.b = nnx.Linear(3, width, rngs=rngs), nnx.Linear(width, 1, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.b(jnp.tanh(self.a(x)))

    graph, state = nnx.split(Model(20, nnx.Rngs(0)))
    f = lambda p, x: nnx.merge(graph, p)(x)
    x = np.random.default_rng(0).standard_normal((4, 3))
    both = [apps.Empirical(f, state, method=m)(x, get="ntk") for m in ("structured", "jacobian", "products")]
    gradient = lambda one: jnp.concatenate(
        [g.ravel() for g in jax.tree.leaves(jax.grad(lambda p: f(p, one)[0])(state))]
    )
    rows = np.stack([gradient(one) for one in x])
    for found in both:
        np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-5)  # Flax keeps its parameters in float32


@pytest.mark.parametrize("method", ["structured", "jacobian", "products"])
def test_equinox_model(method: str) -> None:
    import equinox as eqx

    model = eqx.nn.MLP(3, 1, 20, 2, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(
        jax.tree.map(lambda a: jnp.asarray(a, float) if eqx.is_array(a) else a, model), eqx.is_array
    )
    f = lambda p, x: eqx.combine(p, static)(x)
    x = np.random.default_rng(0).standard_normal((4, 3))
    found = apps.Empirical(f, params, method=method)(x, get="ntk")
    gradient = lambda one: jnp.concatenate(
        [g.ravel() for g in jax.tree.leaves(jax.grad(lambda p: f(p, one)[0])(params))]
    )
    rows = np.stack([gradient(one) for one in x])
    np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-10)


@pytest.mark.slow
def test_an_empirical_kernel_trains_its_linearised_network() -> None:
    """`Training` with the empirical NTK, against gradient descent on the parameters of the linearised network."""
    f, params, x, test = sampled()
    y = np.random.default_rng(1).standard_normal((5, 2, 3))
    training = apps.Training(apps.Empirical(f, params, output="full"), x, y)
    rate, line = 0.5 * training.critical_rate(), apps.linearised(f, params)
    values = lambda p, x: jax.vmap(lambda one: line(p, one))(x)
    gradient = jax.jit(jax.grad(lambda p: 0.5 * jnp.sum(jnp.square(values(p, x) - y)) / 5))
    moved = params
    for _ in range(9):
        moved = jax.tree.map(lambda a, g: a - rate * g, moved, gradient(moved))
    given = dict(f0=values(params, x), f0_test=values(params, test))
    found = training.descent(9, rate, test, **given)
    np.testing.assert_allclose(found.mean, values(moved, test), atol=1e-10)


@pytest.mark.slow
def test_taylor() -> None:
    """A cubic is its own expansion; the remainder of order k falls like the step to the k + 1."""
    cubic = lambda p, x: jnp.sum((p["a"] * x + p["b"]) ** 3)
    p, q, x = {"a": jnp.ones(3), "b": jnp.ones(3)}, {"a": jnp.arange(3.0), "b": -jnp.ones(3)}, jnp.array([1.0, 2, 3])
    np.testing.assert_allclose(apps.taylor(cubic, p, 3)(q, x), cubic(q, x), rtol=1e-12)
    f, params, inputs, _ = sampled()
    direction = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), params)
    at = lambda s: jax.tree.map(lambda a, d: a + s * d, params, direction)
    for order in (0, 1, 2, 3):
        expanded = apps.taylor(f, params, order)
        misses = [np.abs(f(at(s), inputs[0]) - expanded(at(s), inputs[0])).max() for s in (0.02, 0.01)]
        assert abs(np.log2(misses[0] / misses[1]) - (order + 1)) < 0.2
    with pytest.raises(tp.InputError, match="order is -1"):
        apps.taylor(f, params, -1)


@pytest.mark.slow
def test_monte_carlo() -> None:
    """Means within their errors of the limit, for kernels of one input set and two; errors fall like 1/sqrt(samples)."""
    x, _, test = data(3, 2)
    net = lambda x: nn.dense(jax.nn.relu(nn.dense(x, weight_var=tp.hyper("w", 1.0), bias_var=0.3)), features=1)
    limit = tp.compile(net, x[0])(x, test, w=1.5)
    found = apps.monte_carlo(net, x, 256, 400, jax.random.key(0), x2=test, w=1.5)
    for mean, error, k in zip(found.mean, found.error, limit, strict=True):
        assert mean.shape == k.shape and (error < 0.03 * np.abs(k).max()).all()
        assert (np.abs(mean - k) < 4.5 * error + 1e-6).all()  # one hidden layer: the mean has no bias
    few = apps.monte_carlo(net, x, 256, 100, jax.random.key(1), x2=test, w=1.5)
    np.testing.assert_allclose(np.median(few.error.ntk / found.error.ntk), 2.0, rtol=0.25)


@pytest.mark.slow
def test_monte_carlo_where_the_output_is_not_linear_in_its_last_layer() -> None:
    net = lambda x: jnp.tanh(nn.dense(jax.nn.relu(nn.dense(x)), features=1))[0]
    x = np.eye(3)[:2]
    found = apps.monte_carlo(net, x, 128, 4000, jax.random.key(0))
    z = np.random.default_rng(0).multivariate_normal(np.zeros(2), np.asarray(relu_nngp(x)), 400_000)
    expected = np.tanh(z).T @ np.tanh(z) / len(z)
    assert (np.abs(found.mean.nngp - expected) < 4.5 * found.error.nngp + 0.005).all()


def relu_nngp(x: np.ndarray) -> Any:
    return tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), x[0])(x).nngp


@pytest.mark.slow
def test_check_agrees_and_draws(tmp_path: Path) -> None:
    x, _, _ = data(3)
    found = kernel().check(x, widths=(32, 64, 128))
    assert found.agrees and bool(found)
    assert abs(found.exponent - 0.5) < 4.5 * found.exponent_error + 0.05
    assert str(found).startswith("Kernel and network agree: extrapolated to infinite width")
    found.plot(tmp_path / "check.png")
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_check_of_an_average() -> None:
    """Its tangent kernel is n times the inner product of gradients."""
    erf = jax.scipy.special.erf
    average = tp.compile(lambda x: jnp.mean(erf(nn.dense(erf(nn.dense(x)))) ** 2), jnp.zeros(2))
    assert average.ntk_power == 1
    assert apps.check(average, jnp.eye(2), widths=(32, 64, 128))


@pytest.mark.slow
def test_check_tells_a_wrong_kernel() -> None:
    """The kernel of another variance, by eight percent, is found out."""
    x, _, _ = data(3)
    right = kernel()
    wrong = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x, weight_var=1.62, bias_var=0.324)), features=1), x[0])
    wrong.model = right.model
    found = apps.check(wrong, x, widths=(32, 64, 128))
    assert found.agrees is False and not found and "DO NOT AGREE" in str(found)
    few = apps.check(right, x, widths=(8, 16), samples=8)
    assert few.agrees is None and not few and str(few).startswith("Too few draws")


@pytest.mark.slow
def test_check_of_outputs_at_positions_and_a_model() -> None:
    import equinox as eqx

    class Model(eqx.Module):
        a: eqx.nn.Linear
        b: eqx.nn.Linear

        def __init__(self, width: int, key: jax.Array):
            first, second = jax.random.split(key)
            self.a, self.b = eqx.nn.Linear(3, width, key=first), eqx.nn.Linear(width, 1, key=second)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.b(jax.nn.relu(self.a(x)))

    init = {name: tp.Gaussian(std=0.5) for name in ("a.weight", "a.bias")}
    net = tp.from_equinox(lambda width, key: Model(width, key), init=init)
    x, _, _ = data(3)
    assert tp.compile(net, x[0]).check(x, widths=(32, 64, 128))
    images = np.random.default_rng(0).standard_normal((2, 2, 2))
    assert tp.compile(outputs_of, images[0]).check(images, widths=(32, 64, 128))


def test_speeds_go_by_name_whatever_the_order() -> None:
    """By hand: f = (x . a) b, so the kernel is s_a^2 b^2 x . x' + s_b^2 (x . a)(x' . a)."""
    params = OrderedDict(b=jnp.asarray(2.0), a=jnp.asarray([1.0, -1.0]))
    x = jnp.asarray([[1.0, 2.0], [3.0, 0.5]])
    found = apps.Empirical(lambda p, x: (x @ p["a"]) * p["b"], params, speeds={"a": 0.5, "b": 3.0})(x, get="ntk")
    np.testing.assert_allclose(found, 0.25 * 4 * x @ x.T + 9 * np.outer(x @ params["a"], x @ params["a"]), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, p, x: apps.Empirical(f, p, output="block"), "output is 'block', expected one of trace, diagonal"),
        (lambda f, p, x: apps.Empirical(f, p, method="fast"), "method is 'fast'"),
        (lambda f, p, x: apps.Empirical(f, p, batch=0), "batch is 0"),
        (lambda f, p, x: apps.Empirical(p, p), "expected a function f(params, x)"),
        (lambda f, p, x: apps.Empirical(f, p, speeds={"w": 1.0}), "speeds has the structure"),
        (lambda f, p, x: apps.Empirical(f, p)(x, get="cntk"), "get is 'cntk'"),
        (lambda f, p, x: apps.Empirical(lambda p, x: 1j * f(p, x), p)(x), "128, expected real numbers"),
        (lambda f, p, x: apps.Empirical(lambda p, x: jnp.argmax(f(p, x)), p)(x), "expected real numbers"),
        (lambda f, p, x: apps.taylor(f, p, 1)(jax.tree.map(lambda a: a[:1], p), x[0]), "arrays of shapes"),
        (lambda f, p, x: apps.monte_carlo(outputs_of, x * np.nan, 8, 8, jax.random.key(0)), "x has NaN"),
        (lambda f, p, x: kernel().check(x, widths=64), "whole numbers that grow"),
        (lambda f, p, x: apps.monte_carlo(outputs_of, x, 8, 1, jax.random.key(0)), "one draw has no standard error"),
        (lambda f, p, x: apps.monte_carlo(outputs_of, x, 0, 8, jax.random.key(0)), "width is 0"),
        (lambda f, p, x: kernel().check(x, widths=(64, 32)), "whole numbers that grow"),
        (lambda f, p, x: kernel().check(x, samples=2), "samples is 2"),
        (lambda f, p, x: tp.compile_program(kernel().program).check(x), "is not known"),
    ],
)
def test_nonsense(call: Any, message: str) -> None:
    f, params, x, _ = sampled()
    with pytest.raises(tp.InputError) as caught:
        call(f, params, x)
    assert message in str(caught.value)


@pytest.mark.parametrize("method", ["structured", "jacobian", "products"])
def test_parameters_of_the_moment(method: str) -> None:
    """Parameters that are set anew after a call, as in a loop of training, are those of the next; by hand, f = a b x."""
    made = apps.Empirical(
        lambda p, x: p["a"] * (p["b"] @ x), {"a": np.float32(2), "b": np.ones(3, np.float32)}, method=method
    )
    x = np.eye(3, dtype=np.float32)
    for a, b in ((2.0, np.ones(3)), (3.0, np.arange(3.0)), (-1.0, np.array([0.5, 0.0, 4.0]))):
        made.params = {"a": np.float32(a), "b": b.astype(np.float32)}
        found = made(x)
        np.testing.assert_allclose(found.nngp, a**2 * np.outer(b, b), atol=1e-5)  # float32
        np.testing.assert_allclose(found.ntk, np.outer(b, b) + a**2 * np.eye(3), atol=1e-5)
