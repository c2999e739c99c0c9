"""What the doors make of a module: names, laws, kernels equal to those of tensorprog.nn, and their refusals."""

from __future__ import annotations

import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tensorprog as tp
from examples.flax_models import CNN, MLP, BatchNormCNN, Encoder
from tensorprog import nn
from tensorprog.frontend.recording import current
from tensorprog.models.laws import Law
from tests.everyday import everyday
from tests.models.zoo import CASES
from tests.references import duals
from tests.uncompiled import uncompiled

OVER_WIDTH = lambda width: tp.Gaussian(std=width**-0.5)


class Small(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(3, width, rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.readout(nnx.relu(self.hidden(x)))


SMALL = {"hidden.kernel": tp.Gaussian(std=0.5), "readout.kernel": OVER_WIDTH}


@cache
def small(**options: Any) -> tp.ModelNetwork:
    return tp.from_flax(Small, init=SMALL, **options)


def same(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found.nngp, wanted.nngp, rtol=1e-10)
    np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-10)


# ------------------------------------------------------------------------------------------ the second witness


def shifted(y: jax.Array) -> jax.Array:
    """A bias that starts at zero and is trained."""
    recorder = current()
    assert recorder is not None
    return y + recorder.parameter(recorder.layer_name("zero", None), tp.Constant(y.shape[-1:], 0.0))


def plain_dense(x: jax.Array, features: int | None = None, **options: Any) -> jax.Array:
    return shifted(nn.dense(x, features, **options))


@pytest.mark.slow
def test_flax_mlp() -> None:
    """Layer norm, GELU and dropout, against the same network by tensorprog.nn."""
    case = CASES["flax: perceptron"]
    net = case.network(init={"layers.0.kernel": tp.Gaussian(std=5**-0.5)})

    def plain(x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = jax.nn.gelu(nn.layer_norm(plain_dense(x), gain=True, shift=True), approximate=False)
        return plain_dense(x, 1)

    xs = case.inputs()
    same(uncompiled(tp.compile(net, xs[0]), xs), uncompiled(tp.compile(plain, xs[0]), xs))
    assert {n: (law.kind, str(law.scale), law.power) for n, law in net.laws.items() if n.endswith("kernel")} == {
        "layers.0.kernel": ("Gaussian", "1/5", 0),
        "layers.1.kernel": ("truncated normal", "1", -1),
        "readout.kernel": ("truncated normal", "1", -1),
    }


@pytest.mark.slow
def test_flax_cnn() -> None:
    laws = {"conv1.kernel": tp.Gaussian(std=0.4), "conv2.kernel": lambda n: tp.Gaussian(std=(9 * n) ** -0.5)}
    net = tp.from_flax(CNN, batch_axis=0, init={**laws, "readout.kernel": OVER_WIDTH})

    def plain(x: jax.Array) -> jax.Array:
        conv = lambda x, **options: shifted(nn.conv(x, 3, **options))
        x = nn.avg_pool(jax.nn.relu(conv(x, weight_var=0.16 * 18)), 2, strides=1)  # as Flax does without strides
        return plain_dense(jax.nn.relu(conv(x, strides=2)).mean((0, 1)), 1)

    xs = CASES["flax: convolutions"].inputs()
    same(uncompiled(tp.compile(net, xs[0]), xs), uncompiled(tp.compile(plain, xs[0]), xs))


@pytest.mark.long
def test_equinox_mlp() -> None:
    """Biases of variance 1/(3 n) have no part in the limit; that of the first layer has."""
    case = CASES["equinox: perceptron"]
    exact = tp.Gaussian(std=15**-0.5)
    net = case.network(init={"layers.0.weight": exact, "layers.0.bias": exact})

    def plain(x: jax.Array) -> jax.Array:
        h = jax.nn.relu(nn.dense(x, weight_var=1 / 3, bias_var=1 / 15))
        return nn.dense(jax.nn.relu(nn.dense(h, weight_var=1 / 3)), 1, weight_var=1 / 3)

    xs = case.inputs()
    same(uncompiled(tp.compile(net, xs[0]), xs), uncompiled(tp.compile(plain, xs[0]), xs))
    assert [str(law) for law in map(Law.variance, net.laws.values())] == [
        "1/15", "1/15", "1/(3 n)", "1/(3 n)", "1/(3 n)", "1/(3 n)"
    ]  # fmt: skip


def attention_laws(names: tuple[str, ...], first: str) -> dict[str, Any]:
    return {first: tp.Gaussian(std=0.5)} | dict.fromkeys(names, OVER_WIDTH)


EQUINOX_ATTENTION = attention_laws(
    (*(f"attention.{p}_proj.weight" for p in ("query", "key", "value", "output")), "readout.weight"), "embed.weight"
) | {"embed.bias": tp.Gaussian(std=0.1)}
BLOCK = attention_laws(
    (*(f"attention.{p}.kernel" for p in ("query", "key", "value", "out")), "up.kernel", "readout.kernel"), "embed.kernel"
) | {"down.kernel": lambda n: tp.Gaussian(std=(2 * n) ** -0.5)}  # fmt: skip


def mixed(h: jax.Array, biased: bool) -> jax.Array:
    """Attention that attends to all positions alike, which independent queries and keys do in the limit."""
    dense = plain_dense if biased else nn.dense
    return dense(jnp.broadcast_to(dense(h).mean(0), h.shape))


@pytest.mark.slow
def test_equinox_attention() -> None:
    case = CASES["equinox: attention"]
    net = tp.from_equinox(case.build, call=case.call, init=EQUINOX_ATTENTION)

    def plain(x: jax.Array) -> jax.Array:
        h = nn.dense(x, weight_var=0.75, bias_var=0.01)
        y = nn.layer_norm(h, 1e-5, gain=True, shift=True)
        return nn.dense(jax.nn.relu(h + mixed(y, False)).mean(0), 1)

    xs = case.inputs()
    same(uncompiled(tp.compile(net, xs[0]), xs), uncompiled(tp.compile(plain, xs[0]), xs))


@pytest.mark.slow
def test_flax_transformer() -> None:
    case = CASES["flax: transformer"]
    net = tp.from_flax(case.build, init=BLOCK)

    def plain(x: jax.Array) -> jax.Array:
        h = plain_dense(x, weight_var=0.75)
        h = h + mixed(nn.layer_norm(h, gain=True, shift=True), True)
        up = plain_dense(nn.layer_norm(h, gain=True, shift=True), width=2)
        return plain_dense((h + plain_dense(jax.nn.relu(up))).mean(0), 1)

    xs = case.inputs()
    same(uncompiled(tp.compile(net, xs[0]), xs), uncompiled(tp.compile(plain, xs[0]), xs))


# ------------------------------------------------------------------------------------------ running and training


@pytest.mark.long
def test_the_module_itself_runs() -> None:
    """draw gives the module's own parameters, and apply is the module."""
    x, key = jnp.ones(3), jax.random.key(1)
    net = small()
    np.testing.assert_array_equal(tp.apply(net, net.draw(8, key), x), Small(8, nnx.Rngs(key))(x))
    params = tp.init(net, x, 8, key)
    assert params["hidden.kernel"].shape == (3, 8)
    assert jax.jit(lambda p: tp.apply(net, p, x))(params).shape == (1,)
    with pytest.raises(tp.InputError, match=r"draw\(width, key\)"):
        tp.apply(net, dict(params), x)


def test_parametrizations() -> None:
    """Frozen by a direction of zero, and what plain gradient descent leaves of the layers: those of variance c/n."""
    x = jnp.eye(3)
    frozen = {"hidden.bias": tp.Constant(tangent_std=0.0), "readout.bias": tp.Constant(tangent_std=0.0)}
    net = tp.from_flax(Small, init={**SMALL, **frozen, "hidden.kernel": tp.Gaussian(std=0.5, tangent_std=0.0)})
    last = uncompiled(tp.compile(net, x[0]), x)
    np.testing.assert_allclose(last.ntk, last.nngp)
    standard = uncompiled(tp.compile(small(parametrization="standard"), x[0]), x)
    np.testing.assert_allclose(standard.ntk, last.nngp)
    np.testing.assert_allclose(standard.nngp, last.nngp)


def relu_layer(x: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x x', and E[relu relu'], E[step step'] of a first layer with entries of this variance."""
    k = x @ x.T
    q = variance * np.diag(k)
    return k, *(f(q[:, None], q[None], variance * k) for f in (duals.relu.value, duals.relu.slope))


def test_maximal_update() -> None:
    """Rates n, 1 and 1/n (Tensor Programs V, table 3): the bias and the weight of the first layer move by one, not by how they
    start; the bias of the output too."""
    x = np.random.default_rng(1).standard_normal((3, 3))
    k, value, slope = relu_layer(x, 0.25)
    found = uncompiled(tp.compile(small(parametrization="mup"), x[0]), x)
    same(found, SimpleNamespace(nngp=value, ntk=value + (k + 1) * slope + 1))


def test_standard_at_a_width() -> None:
    """N E[h h'] + 1 of the readout, and x x' + 1 through the first layer (Sohl-Dickstein et al. 2020, section 3)."""
    x = np.random.default_rng(1).standard_normal((3, 3))
    k, value, slope = relu_layer(x, 0.25)
    found = uncompiled(tp.compile(small(parametrization="standard", at_width=50), x[0]), x)
    same(found, SimpleNamespace(nngp=value, ntk=50 * value + (k + 1) * slope + 1))


@pytest.mark.long
def test_small_biases_move_by_one() -> None:
    """The biases of Equinox start with 1/(3 n) and have no part in the forward limit, but plain gradients move them by one."""
    x = np.random.default_rng(1).standard_normal((3, 5))
    first = {"layers.0.weight": tp.Gaussian(std=0.5), "layers.0.bias": tp.Constant(value=0.0)}
    build = lambda width, key: eqx.nn.MLP(5, 1, width, depth=2, key=key)
    net = tp.from_equinox(build, init=first, parametrization="standard", at_width=50)
    k, value, slope = relu_layer(x, 0.25)
    q = np.diag(value) / 3
    last, step = (f(q[:, None], q[None], value / 3) for f in (duals.relu.value, duals.relu.slope))
    inner = 50 * value + 1 + slope * (k + 1) / 3
    same(uncompiled(tp.compile(net, x[0]), x), SimpleNamespace(nngp=last / 3, ntk=50 * last + 1 + step * inner / 3))
    assert "by its use" in str(net)
    lines = {line.split()[0]: line.split() for line in net.table(x[0]).splitlines() if line}
    assert lines["layers.1.bias"][2:6] == ["uniform", "1/(3", "n)", "1"]


def test_shared_layers_are_one_parameter() -> None:
    class Shared(nnx.Module):
        def __init__(self, width: int, rngs: nnx.Rngs):
            self.hidden = nnx.Linear(3, width, use_bias=False, rngs=rngs)
            self.again = self.hidden
            self.readout = nnx.Linear(width, 1, use_bias=False, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.readout(nnx.relu(self.hidden(x)) + nnx.relu(self.again(x)))

    net = tp.from_flax(Shared, init=dict(zip(("again.kernel", "readout.kernel"), SMALL.values(), strict=True)))
    assert list(net.laws) == ["again.kernel", "readout.kernel"]
    one = uncompiled(tp.compile(small(), jnp.zeros(3)), jnp.eye(3)).nngp
    np.testing.assert_allclose(uncompiled(tp.compile(net, jnp.zeros(3)), jnp.eye(3)).nngp, 4 * one)


def test_a_builder_with_its_own_random_numbers() -> None:
    net = tp.from_flax(lambda width: Small(width, nnx.Rngs(0)), widths=(120, 1200, 4800))
    assert net.laws["readout.kernel"].power == -1
    assert abs(float(net.laws["hidden.kernel"].scale) * 3 - 1) < 0.05


def test_other_variables_are_constants() -> None:
    class Scaled(eqx.Module):
        layers: list
        steps: jax.Array

        def __init__(self, width: int, key: jax.Array):
            self.layers = [eqx.nn.Linear(3, width, False, key=key), eqx.nn.Linear(width, 1, False, key=key)]
            self.steps = jnp.arange(3)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.layers[1](jax.nn.relu(self.layers[0](x * self.steps)))

    laws = dict(zip(("layers.0.weight", "layers.1.weight"), SMALL.values(), strict=True))
    net = tp.from_equinox(Scaled, init=laws)
    k = uncompiled(tp.compile(net, jnp.zeros(3)), jnp.eye(3)).nngp
    np.testing.assert_allclose(np.diag(k), 0.125 * np.arange(3) ** 2)


# ------------------------------------------------------------------------------------------ what is said


def test_a_law_that_matters_is_named() -> None:
    laws = {"readout.kernel": OVER_WIDTH}
    net = tp.from_flax(Small, init=laws)
    with pytest.warns(tp.LawWarning, match=r"hidden.kernel \(truncated normal\)") as caught:
        tp.compile(net, jnp.zeros(3))
    assert caught[0].filename == __file__
    assert "tp.Gaussian(std=0.57735)" in str(caught[0].message)
    lines = {line.split()[0]: line for line in net.table(jnp.zeros(3)).splitlines() if line}
    assert lines["hidden.kernel"].split("  ")[-1].strip() == "TAKEN AS GAUSSIAN"
    assert "given" in lines["readout.kernel"]
    assert "law matters?" in str(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tp.compile(small(), jnp.zeros(3))


def dropping(width: int, rngs: nnx.Rngs) -> nnx.Module:
    return MLP(width, rngs)


DROPPING = {"layers.0.kernel": tp.Gaussian(std=0.5), "layers.1.kernel": OVER_WIDTH, "readout.kernel": OVER_WIDTH}
RUNNING = {"conv1.kernel": tp.Gaussian(std=0.5), "conv2.kernel": OVER_WIDTH, "readout.kernel": OVER_WIDTH}


def running(width: int, rngs: nnx.Rngs) -> nnx.Module:
    model = BatchNormCNN(width, rngs)
    model.eval()
    return model


def recurrent(width: int, rngs: nnx.Rngs) -> nnx.Module:
    return nnx.RNN(nnx.SimpleCell(3, width, rngs=rngs))


RECURRENT = {
    "cell.dense_i.kernel": tp.Gaussian(std=0.5), "cell.dense_i.bias": tp.Constant(), "cell.dense_h.kernel": OVER_WIDTH
}  # fmt: skip


class Both(eqx.Module):
    layers: list

    def __init__(self, width: int, key: jax.Array):
        self.layers = [eqx.nn.Linear(width, width, key=key)] * 2


REFUSED: dict[str, tuple[Any, str]] = {
    "dropout": (lambda: tp.compile(tp.from_flax(dropping, init=DROPPING), jnp.zeros(5)), "draws random numbers when it is called"),
    "the state of an RNN": (
        lambda: tp.compile(tp.from_flax(recurrent, init=RECURRENT), jnp.zeros((2, 3))), "initial_carry=jnp.zeros(size, jnp.float32)"
    ),
    "running statistics": (lambda: tp.compile(tp.from_flax(running, init=RUNNING), jnp.zeros((3, 4, 4, 2))), "running statistics"),
    "parametrization": (lambda: small(parametrization="ntp"), "expected 'ntk', 'standard' or 'mup'"),
    "a width of mup": (lambda: small(parametrization="mup", at_width=9), "only the kernel of 'standard'"),
    "no width": (lambda: small(parametrization="standard", at_width=0), "expected a positive whole number"),
    "a readout of mup": (
        lambda: tp.compile(
            tp.from_flax(Small, parametrization="mup", init={**SMALL, "readout.kernel": lambda n: tp.Gaussian(std=1 / n)}), jnp.zeros(3)
        ),
        "for which parametrization='mup' has no limit",
    ),
    "a model": (lambda: tp.from_flax(Small(8, nnx.Rngs(0))), "expected a function that makes the model"),
    "a model of equinox": (lambda: tp.from_equinox(Both(8, jax.random.key(0))), "expected a function that makes the model"),
    "linen": (lambda: tp.from_flax(lambda width, rngs: flax.linen.Dense(width)), "tp.from_linen"),
    "batch axis": (lambda: small(batch_axis=1), "expected 0 or None"),
    "no such parameter": (lambda: tp.from_flax(Small, init={"hidden.weight": tp.Gaussian()}), "no parameter of the model"),
    "no law": (lambda: tp.from_flax(Small, init={"hidden.kernel": 0.5}), "is a float, expected tp.Gaussian"),
    "a shape": (lambda: tp.from_flax(Small, init={"hidden.kernel": tp.Gaussian((2, 2))}), "leave the shape out"),
    "fixed size": (lambda: tp.from_flax(lambda width, rngs: Small(width + 1, rngs)), "proportional to the width"),
    "cannot build": (lambda: tp.from_flax(lambda width, rngs: nnx.Linear(0.5, width, rngs=rngs)), "cannot be built at width"),
    "one array twice": (lambda: tp.from_equinox(Both), "one array in two places"),
    "too small": (
        lambda: tp.from_flax(Small, parametrization="standard", init={**SMALL, "readout.kernel": lambda n: tp.Gaussian(std=1 / n)}),
        "for which parametrization='standard' has no limit",
    ),
    "1/sqrt(n) logits of flax": (lambda: tp.compile(tp.from_flax(Encoder, init=BLOCK), jnp.zeros((3, 3))), "attention_fn="),
    "1/sqrt(n) logits of equinox": (
        lambda: tp.compile(tp.from_equinox(CASES["equinox: attention"].build, init=EQUINOX_ATTENTION), jnp.zeros((3, 3))),
        "process_heads=",
    ),
    "attention with dropout": (
        lambda: tp.mean_logits_attention(*(jnp.ones((3, 1, 2)),) * 3, dropout_rate=0.1), "deterministic=True"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", everyday(REFUSED, long=["running statistics", "1/sqrt(n) logits of flax"]))
def test_refusals(name: str) -> None:
    ask, message = REFUSED[name]
    with pytest.raises(tp.UserError) as caught:
        ask()
    assert message in str(caught.value)


# ------------------------------------------------------------------------------------------ Linen


class LinenNet(flax.linen.Module):
    """Batch norm or layer norm, and dropout."""

    width: int
    train: bool = False
    batch_norm: bool = False
    running: bool = False

    @flax.linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = flax.linen.Dense(self.width)(x)
        norm = flax.linen.BatchNorm(use_running_average=self.running) if self.batch_norm else flax.linen.LayerNorm()
        h = flax.linen.Dropout(0.1, deterministic=not self.train)(flax.linen.relu(norm(h)))
        return flax.linen.Dense(1)(h)


LINEN = {"Dense_0.kernel": tp.Gaussian(std=0.5), "Dense_1.kernel": OVER_WIDTH}


@pytest.mark.slow
def test_linen() -> None:
    """The same kernels as tensorprog.nn, with a batch axis or without."""
    x = np.random.default_rng(0).standard_normal((3, 4))

    def plain(x: jax.Array) -> jax.Array:
        return plain_dense(jax.nn.relu(nn.layer_norm(plain_dense(x, weight_var=1.0), gain=True, shift=True)), 1)

    wanted = uncompiled(tp.compile(plain, x[0]), x)
    for batch_axis in (None, 0):
        net = tp.from_linen(LinenNet, x[0], init=LINEN, batch_axis=batch_axis)
        same(uncompiled(tp.compile(net, x[0]), x), wanted)
    params = net.draw(8, jax.random.key(0))
    variables = LinenNet(8).init(jax.random.key(0), jnp.zeros(4))
    np.testing.assert_array_equal(params["Dense_1.kernel"], variables["params"]["Dense_1"]["kernel"])
    np.testing.assert_allclose(tp.apply(net, params, x[0]), LinenNet(8).apply(variables, x[0]), rtol=1e-5)


@pytest.mark.slow
def test_linen_batch_norm() -> None:
    x = np.random.default_rng(0).standard_normal((9, 4))
    net = tp.from_linen(lambda width: LinenNet(width, batch_norm=True), x, init=LINEN)

    def plain(x: jax.Array) -> jax.Array:
        h = plain_dense(x, weight_var=1.0)
        recorder = current()
        assert recorder is not None
        scale = recorder.parameter("gain", tp.Constant((nn.width(),), 1.0))
        h = shifted((h - h.mean(0)) * jax.lax.rsqrt(h.var(0) + 1e-5) * scale)
        return plain_dense(jax.nn.relu(h), 1)

    np.testing.assert_allclose(
        *(uncompiled(tp.compile(f, x), x[None]).ntk for f in (net, plain)), rtol=1e-9
    )  # two integrals of 1e-12


LINEN_REFUSED: dict[str, tuple[Any, str]] = {
    "dropout": (
        lambda: tp.compile(
            tp.from_linen(lambda width: LinenNet(width, train=True), jnp.zeros(4), init=LINEN), jnp.zeros(4)
        ),
        "draws random numbers",
    ),
    "running statistics": (
        lambda: tp.compile(
            tp.from_linen(lambda width: LinenNet(width, batch_norm=True, running=True), jnp.zeros((9, 4)), init=LINEN),
            jnp.zeros((9, 4)),
        ),
        "running statistics",
    ),
    "a model": (lambda: tp.from_linen(LinenNet(8), jnp.zeros(4)), "expected a function that makes the model"),
    "no module": (lambda: tp.from_linen(lambda width: nnx.relu, jnp.zeros(4)), "expected a flax.linen.Module"),
    "batch axis": (lambda: tp.from_linen(LinenNet, jnp.zeros(4), batch_axis=1), "expected 0 or None"),
}


@pytest.mark.parametrize("name", everyday(LINEN_REFUSED, long=["dropout"]))
def test_refusals_of_linen(name: str) -> None:
    ask, message = LINEN_REFUSED[name]
    with pytest.raises(tp.UserError) as caught:
        ask()
    assert message in str(caught.value)


@pytest.mark.long
@pytest.mark.parametrize("causal", [pytest.param(False, marks=pytest.mark.slow), True])
def test_mean_logits_are_those_of_the_library_but_for_their_scale(causal: bool) -> None:
    q, k, v = jax.random.normal(jax.random.key(0), (3, 4, 2, 9))
    mask = jnp.arange(4) != 1
    found = tp.mean_logits_attention(q, k, v, mask=mask, is_causal=causal)
    wanted = nnx.dot_product_attention(q / 3, k, v, mask=jnp.broadcast_to(mask, (2, 4, 4)), is_causal=causal)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tp.mean_logits_heads(q, k, v)[0], q / 3)
