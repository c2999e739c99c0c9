"""Modules in configurations that are rarer: grouped convolutions, tables under vmap, checkpointed and typed loops, laws of one size."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tensorprog as tp
from tests.uncompiled import uncompiled

OVER_WIDTH = lambda width: tp.Gaussian(std=width**-0.5)


def kernels(net: tp.ModelNetwork, xs: Any) -> Any:
    return uncompiled(tp.compile(net, xs[0]), xs)


# ------------------------------------------------------------------------------------------ layers of Equinox


class Convolved(eqx.Module):
    conv: eqx.nn.Conv
    readout: eqx.nn.Linear

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.readout(jax.nn.relu(self.conv(x)).mean(1))


@pytest.mark.parametrize("layer", [eqx.nn.Conv1d, eqx.nn.ConvTranspose1d])
def test_groups_of_input_channels(layer: type) -> None:
    """Two groups of one channel each: half of the hidden layer reads the one, half the other, so that kernels are the mean of both.
    They ended in an AssertionError."""
    laws = {"conv.weight": tp.Gaussian(std=0.5), "readout.weight": OVER_WIDTH}

    def build(groups: int) -> Callable[[int, jax.Array], Convolved]:
        def made(width: int, key: jax.Array) -> Convolved:
            conv = layer(groups, width, 3, groups=groups, use_bias=False, key=key)
            return Convolved(conv, eqx.nn.Linear(width, 1, use_bias=False, key=key))

        return made

    xs = np.random.default_rng(0).standard_normal((3, 2, 5))
    both = kernels(tp.from_equinox(build(2), init=laws), xs)
    single = tp.from_equinox(build(1), init=laws)
    first, second = (kernels(single, xs[:, c : c + 1]) for c in (0, 1))
    np.testing.assert_allclose(both.nngp, (first.nngp + second.nngp) / 2, rtol=1e-10)
    np.testing.assert_allclose(both.ntk, (first.ntk + second.ntk) / 2, rtol=1e-10)


class Words(eqx.Module):
    table: eqx.nn.Embedding
    readout: eqx.nn.Linear

    def __call__(self, words: jax.Array) -> jax.Array:
        return self.readout(jax.nn.relu(jax.vmap(self.table)(words)).mean(0))


def test_a_table_under_vmap() -> None:
    """E[relu(e) relu(e')] is 1/2 for a word with itself and 1/(2 pi) for two words; of the NTK, slopes meet where words agree, 1/2 again.
    It was refused: as if the width were indexed."""
    build = lambda width, key: Words(
        eqx.nn.Embedding(7, width, key=key), eqx.nn.Linear(width, 1, use_bias=False, key=key)
    )
    net = tp.from_equinox(build, init={"readout.weight": OVER_WIDTH, "table.weight": tp.Gaussian(std=1.0)})
    words = np.array([[1, 2, 1], [0, 6, 1]])
    equal = (words[:, None, :, None] == words[None, :, None, :]).mean((2, 3))
    nngp = equal / 2 + (1 - equal) / (2 * np.pi)
    found = kernels(net, words)
    np.testing.assert_allclose(found.nngp, nngp, rtol=1e-10)
    np.testing.assert_allclose(found.ntk, nngp + equal / 2, rtol=1e-10)


class Stated(eqx.Module):
    """A batch norm by the statistics that it carries, zero and one at the start; or what that is, by hand."""

    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    readout: eqx.nn.Linear

    def __init__(self, width: int, key: jax.Array):
        self.hidden = eqx.nn.Linear(3, width, use_bias=False, key=key)
        self.norm = eqx.nn.BatchNorm(width, axis_name="batch", mode="batch", inference=True)
        self.readout = eqx.nn.Linear(width, 1, use_bias=False, key=key)

    def __call__(self, x: jax.Array, state: eqx.nn.State | None) -> jax.Array:
        h = self.hidden(x)
        if state is None:
            assert self.norm.weight is not None
            assert self.norm.bias is not None
            h = h / jnp.sqrt(1 + self.norm.eps) * self.norm.weight + self.norm.bias
        else:
            h, _ = self.norm(h, state)
        return self.readout(jax.nn.relu(h))


def test_a_state_is_not_trained() -> None:
    """Its arrays counted as parameters, each moving by one."""
    laws = {"0.hidden.weight": tp.Gaussian(std=0.5), "0.readout.weight": OVER_WIDTH}
    xs = np.random.default_rng(0).standard_normal((3, 3))
    build = lambda width, key: eqx.nn.make_with_state(Stated)(width, key)
    stated = tp.from_equinox(build, init=laws, call=lambda pair, x: pair[0](x, pair[1]))
    by_hand = tp.from_equinox(build, init=laws, call=lambda pair, x: pair[0](x, None))
    assert list(stated.laws) == ["0.hidden.weight", "0.norm.bias", "0.norm.weight", "0.readout.weight"]
    found, wanted = kernels(stated, xs), kernels(by_hand, xs)
    np.testing.assert_allclose(found.nngp, wanted.nngp, rtol=1e-6)  # the statistics and their eps are float32
    np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-6)


# ------------------------------------------------------------------------------------------ loops of Flax


class Deep(nnx.Module):
    """Three layers by one loop, checkpointed or not."""

    def __init__(self, width: int, rngs: nnx.Rngs, remat: bool):
        self.embed = nnx.Linear(3, width, rngs=rngs)

        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked(rngs: nnx.Rngs) -> nnx.Linear:
            return nnx.Linear(width, width, rngs=rngs)

        self.layers = stacked(rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)
        self.remat = remat

    def __call__(self, x: jax.Array) -> jax.Array:
        step = lambda layer, h: nnx.relu(layer(h))
        loop = nnx.scan(nnx.remat(step) if self.remat else step, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return self.readout(loop(self.layers, self.embed(x)))


@pytest.mark.long
def test_checkpointed_layers_in_a_loop() -> None:
    """nnx.remat hands the weights through the loop, which nobody reads: it was refused as another use of them."""
    laws = {"embed.kernel": tp.Gaussian(std=0.5), "layers.kernel": OVER_WIDTH, "readout.kernel": OVER_WIDTH}
    xs = np.random.default_rng(0).standard_normal((2, 3))
    found, wanted = (
        kernels(tp.from_flax(lambda width, rngs, r=r: Deep(width, rngs, r), init=laws), xs) for r in (True, False)
    )
    np.testing.assert_array_equal(found.nngp, wanted.nngp)
    np.testing.assert_array_equal(found.ntk, wanted.ntk)


class Minimal(nnx.RNNCellBase):
    """h' = relu(W h + U x), computed in the precision of its parameters."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.state, self.given = (nnx.Linear(n, width, use_bias=False, rngs=rngs) for n in (width, 3))

    def __call__(self, carry: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = nnx.relu(self.state(carry) + self.given(x))
        return h, h

    def initialize_carry(self, input_shape: Any, rngs: Any = None) -> jax.Array:
        raise NotImplementedError

    @property
    def num_feature_axes(self) -> int:
        return 1


class Read(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.rnn = nnx.RNN(Minimal(width, rngs))
        self.readout = nnx.Linear(width, 1, use_bias=False, rngs=rngs)
        self.width = width

    def __call__(self, x: jax.Array, dtype: Any) -> jax.Array:
        return self.readout(self.rnn(x, initial_carry=jnp.zeros(self.width, dtype))[-1])


def test_a_state_of_a_type_by_name() -> None:
    """jnp.zeros(n, jnp.float32), as the cells of Flax make their states and as a message of ours says, ended in JAX's TypeError."""
    laws = {
        "rnn.cell.state.kernel": OVER_WIDTH,
        "rnn.cell.given.kernel": tp.Gaussian(std=0.5),
        "readout.kernel": OVER_WIDTH,
    }
    xs = np.random.default_rng(0).standard_normal((2, 3, 3))
    named, free = (
        kernels(tp.from_flax(Read, init=laws, call=lambda model, x, d=d: model(x, d)), xs) for d in (jnp.float32, None)
    )
    np.testing.assert_array_equal(named.nngp, free.nngp)
    np.testing.assert_array_equal(named.ntk, free.ntk)


class Gates(flax.linen.Module):
    """One step of a GRU, whose state Linen makes in float32."""

    width: int

    @flax.linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = flax.linen.RNN(flax.linen.GRUCell(self.width))(x)[-1]
        return flax.linen.Dense(1, use_bias=False)(h)


@pytest.mark.slow
def test_gates_of_linen() -> None:
    """From zero, the state is sigmoid(-u) tanh(v) of two independent layers: the product of two expectations, by numbers."""
    given = {"in": 0.5, "iz": 0.4, "ir": 0.3}
    laws = {f"GRUCell_0.{k}.kernel": tp.Gaussian(std=s) for k, s in given.items()} | {"Dense_0.kernel": OVER_WIDTH}
    x = np.random.default_rng(0).standard_normal((2, 1, 3))
    with jax.enable_x64(False):  # with float64 as JAX's default Linen cannot run this cell itself
        net = tp.from_linen(Gates, x[0], init=laws)
    found = kernels(net, x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    gram = x[:, 0] @ x[:, 0].T

    def dual(f: Callable[[np.ndarray], np.ndarray], variance: float) -> float:
        root = np.linalg.cholesky(variance * gram)
        a = root[0, 0] * nodes[:, None] + 0 * nodes
        b = root[1, 0] * nodes[:, None] + root[1, 1] * nodes
        return float(weights @ (f(a) * f(b)) @ weights)

    wanted = dual(lambda u: 1 / (1 + np.exp(u)), 0.16) * dual(np.tanh, 0.25)
    np.testing.assert_allclose(found.nngp[0, 1], wanted, rtol=1e-9)  # float32 has the digits of no constant here


# ------------------------------------------------------------------------------------------ laws


def signs(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> jax.Array:
    return jax.random.rademacher(key, shape).astype(dtype) / shape[0] ** 0.5


def test_entries_of_one_size() -> None:
    """Signs over a fan-in of three are taken as Gaussian, and said to be: they passed for orthogonal, or ended in a ValueError."""

    def build(width: int, rngs: nnx.Rngs) -> nnx.Module:
        layers = (nnx.Linear(a, b, kernel_init=signs, rngs=rngs) for a, b in ((3, width), (width, width)))
        return nnx.Sequential(*layers, nnx.relu, nnx.Linear(width, 1, rngs=rngs))

    net = tp.from_flax(build)
    assert [(law.kind, law.variance()) for name, law in net.laws.items() if name.endswith("kernel")] == [
        ("Rademacher", "1/3"), ("Rademacher", "1/n"), ("truncated normal", "1/n")
    ]  # fmt: skip
    with pytest.warns(tp.LawWarning, match=r"layers.0.kernel \(Rademacher\)\n"):
        tp.compile(net, jnp.zeros(3))


def test_xavier_readouts() -> None:
    """2/(n + 10) tends to 2/n: it was read at the largest width, as 1.946/n ± 0.002%."""
    xavier = nnx.initializers.xavier_uniform()
    build = lambda width, rngs: nnx.Linear(width, 10, kernel_init=xavier, rngs=rngs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tp.from_flax(build).laws["kernel"].variance() == "2/n"


class Branch(nnx.Module):
    """A residual block whose branch starts at zero."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.embed = nnx.Linear(3, width, use_bias=False, rngs=rngs)
        self.branch = nnx.Linear(width, width, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.readout = nnx.Linear(width, 1, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.embed(x))
        return self.readout(h + self.branch(h))


BRANCH = {"embed.kernel": tp.Gaussian(std=0.5), "readout.kernel": OVER_WIDTH}


def relu_layer(xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[relu relu'] and E[step step'] of the first layer (Cho and Saul 2009)."""
    gram = xs @ xs.T / 4
    norms = np.sqrt(np.diag(gram)[:, None] * np.diag(gram))
    angle = np.arccos(np.clip(gram / norms, -1, 1))
    return norms * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi), (np.pi - angle) / (2 * np.pi)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        # of readout, branch and first layer, the last beside x x'
        ({"parametrization": "standard"}, (1, 1, 0)),
        ({"parametrization": "standard", "at_width": 50}, (50, 50, 1)),
        ({"parametrization": "mup"}, (1, 1, 1)),
        ({"init": {**BRANCH, "branch.kernel": lambda n: tp.Constant(value=0.0, tangent_std=n**-0.5)}}, (1, 1, 0.25)),
    ],
)
def test_layers_that_start_at_zero(options: dict[str, Any], rates: tuple[float, float, float]) -> None:
    """h + W h with W = 0: the gradients of W are c_i h_j, whose squares sum to |c|^2 |h|^2 = n E[h h']. Refused, with no way round in
    the standard parametrisation."""
    xs = np.random.default_rng(0).standard_normal((3, 3))
    found = kernels(tp.from_flax(Branch, **{"init": BRANCH, **options}), xs)
    value, slope = relu_layer(xs)
    np.testing.assert_allclose(found.nngp, value, rtol=1e-7)  # an arc cosine near 0 on the diagonal
    np.testing.assert_allclose(
        found.ntk, rates[0] * value + rates[1] * value + rates[2] * (xs @ xs.T) * slope, rtol=1e-7
    )


# ------------------------------------------------------------------------------------------ what is said


class Zero(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(3, width, rngs=rngs)
        self.readout = nnx.Linear(width, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.readout(nnx.relu(self.hidden(x)))


def spectral(width: int, rngs: nnx.Rngs) -> nnx.Module:
    return nnx.SpectralNorm(nnx.Linear(width, 1, rngs=rngs), rngs=rngs)


class Normed(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.hidden, self.readout = nnx.Linear(3, width, rngs=rngs), spectral(width, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.readout(self.hidden(x), update_stats=False)


def averaging(width: int) -> flax.linen.Module:
    constant = flax.linen.initializers.constant(0.3)
    layers = flax.linen.Dense(width), flax.linen.Dense(width, kernel_init=constant), flax.linen.Dense(1)
    return flax.linen.Sequential(layers)


REFUSED: dict[str, tuple[Any, str]] = {
    "a zero that moves by one": (
        lambda: tp.compile(tp.from_flax(Branch, init=BRANCH), jnp.zeros(3)), "'branch.kernel' starts at zero and moves by numbers of order one"
    ),
    "a readout that starts at zero": (
        lambda: tp.compile(tp.from_flax(Zero, init={"hidden.kernel": tp.Gaussian(std=0.5)}), jnp.zeros(3)), "tangent kernel grows with the"
    ),
    "spectral norm": (lambda: tp.compile(tp.from_flax(Normed), jnp.zeros(3)), "as spectral norm does"),
    "a layer of a library alone": (
        lambda: tp.compile(tp.from_linen(averaging, jnp.zeros(3)), jnp.zeros(3)), "at Sequential/layers_1, "
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    ask, message = REFUSED[name]
    with pytest.raises(tp.UserError) as caught:
        ask()
    assert message in str(caught.value)
