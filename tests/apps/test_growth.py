"""Blocks found in programs: networks of few layers, of shared weights, of averages and of whole fields, against kernels of other depths; and
networks whose layers look alike and are not."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf

import tensorprog as tp
from tensorprog import apps, nn
from tensorprog.apps import layers as found_layers
from tensorprog.apps.maps import Runs
from tests.apps.test_layers import inputs, read_again, short, two_streams
from tests.everyday import everyday

Net = Callable[[jax.Array, int], jax.Array]


def in_turn(x: jax.Array, depth: int) -> jax.Array:
    """Every other layer is of another kind."""
    h = nn.dense(x)
    for i in range(2 * depth):
        h = nn.dense((erf, jax.nn.relu)[i % 2](h), weight_var=1.3)
    return nn.dense(h, features=1)


def weights_in_turn(x: jax.Array, depth: int) -> jax.Array:
    """Two weights take turns: a map over one layer would draw a third."""
    n = nn.width()
    ws, h = [nn.weight((n, n)) for _ in range(2)], nn.dense(x)
    for i in range(2 * depth):
        h = h + ws[i % 2] @ erf(h) / n**0.5
    return nn.dense(h, features=1)


def one_weight(x: jax.Array, depth: int) -> jax.Array:
    """Every block adds what the same weight makes, so that its kernels depend on all blocks before."""
    n = nn.width()
    w, h = nn.weight((n, n)), nn.dense(x)
    for _ in range(depth):
        h = h + w @ erf(h) / n**0.5
    return nn.dense(h, features=1)


def transposed(x: jax.Array, depth: int) -> jax.Array:
    n, h = nn.width(), nn.dense(x)
    for _ in range(depth):
        w = nn.weight((n, n))
        h = w.T @ erf(w @ h / n**0.5) / n**0.5
    return nn.dense(h, features=1)


def all_before(x: jax.Array, depth: int) -> jax.Array:
    """Each layer reads all layers before."""
    layers = [nn.dense(x)]
    for _ in range(depth):
        layers.append(sum(nn.dense(erf(h)) for h in layers))
    return nn.dense(layers[-1], features=1)


def average(x: jax.Array, depth: int) -> jax.Array:
    h = nn.dense(x)
    for _ in range(depth):
        h = nn.dense(erf(h), weight_var=tp.hyper("w", 1.2))
    return jnp.mean(h**2)


def tied(x: jax.Array, depth: int) -> jax.Array:
    """A readout that is odd in its weight, so that the adjoint program alone holds."""
    n = nn.width()
    v, h = nn.weight((n,)), nn.dense(x)
    for _ in range(depth):
        h = nn.dense(erf(h))
    return (v @ (v**2 * erf(h)) / n**0.5)[None]


def batch_normed(x: jax.Array, depth: int) -> jax.Array:
    h = nn.dense(x)
    for _ in range(depth):
        centred = h - jnp.mean(h, axis=0, keepdims=True)
        h = nn.dense(jax.nn.relu(centred / jnp.sqrt(jnp.mean(centred**2, axis=0, keepdims=True) + 1e-3)))
    return nn.dense(nn.global_avg_pool(h), features=1)


def gathered(x: jax.Array, depth: int) -> jax.Array:
    """A nonlinearity of a hidden layer that was pooled, which is sampled."""
    h = nn.dense(x)
    for _ in range(depth):
        g = jnp.tanh(jnp.mean(jax.nn.relu(h), axis=0))
        h = nn.dense(jnp.broadcast_to(g, h.shape) + jax.nn.relu(h))
    return nn.dense(nn.global_avg_pool(h), features=1)


slow = pytest.mark.slow
CASES = {
    "two layers": (short, 2, (3,), None), "inputs read again": (read_again, 2, (3,), None), "in turn": (in_turn, 2, (3,), None),
    "all before": (all_before, 5, (3,), None), "transposed": (transposed, 2, (3,), None), "average": (average, 2, (3,), None),
    "tied": (tied, 2, (3,), None), "one weight": (one_weight, 2, (3,), None), "two streams": (two_streams, 4, (3,), None),
    "weights in turn": (weights_in_turn, 2, (3,), None),
    "batch": (batch_normed, 2, (3, 2), None), "gathered": (gathered, 2, (2, 2), 2e-2),
}  # fmt: skip
SLOW = (
    "in turn",
    "transposed",
    "tied",
    "two streams",
    "weights in turn",
    "batch",
    "gathered",
    "one weight",
    "all before",
)


@pytest.mark.parametrize("name", everyday(CASES, SLOW, ["two layers", "average", "inputs read again"]))
def test_kernels_of_other_depths(name: str) -> None:
    """From few blocks, the kernels of one block less and of one more, as the networks of these depths have them."""
    net, depth, shape, tolerance = CASES[name]
    x = inputs(shape)
    found = apps.Layers(lambda x: net(x, depth), jnp.zeros(shape), tolerance=tolerance)
    both = (x,) if name == "gathered" else (x, x[1:])  # every network that is sampled takes minutes to compile
    paths = [found.trajectory(*those, blocks=found.blocks + 1) for those in both]
    for more in (1,) if name in ("batch", "gathered") else (-1, 1):
        if found.blocks + more < 1:
            continue
        with jax.enable_x64(True):
            deep = tp.compile(lambda x, d=depth + more: net(x, d), jnp.zeros(shape), tolerance=tolerance)(x)
        k = found.blocks + more - 1
        for path, at in zip(paths, ((0, 1), (1, 1)), strict=False):
            np.testing.assert_allclose(path.nngp[k], deep.nngp[at], rtol=1e-10)
            np.testing.assert_allclose(path.ntk[k], deep.ntk[at], rtol=1e-10)


@pytest.mark.long
def test_averages_have_the_phases_of_their_layers() -> None:
    """The tangent program does not hold for an average, but for a readout of what its layers hand on: E erf'(h)^2 w, Williams 1997."""
    found, x = apps.Layers(lambda x: average(x, 3), jnp.zeros(3)), inputs((3,))
    w, q = 2.0, 1.0
    for _ in range(300):
        q = w * 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q))
    phase = found.phase(*x, w=w)
    assert phase.name == "chaotic" and abs(phase.q - q) < 1e-9
    assert abs(phase.chi - w * 4 / np.pi / np.sqrt((1 + 2 * q) ** 2 - 4 * q * q)) < 1e-8
    # at pi/4 the variance goes to zero like 1 over the depth: after 3,000 blocks chi is that of what is left of it
    assert abs(found.critical("w", (0.5, 2.0), x[0]) - np.pi / 4) < 2e-3


@pytest.mark.long
def test_one_weight_in_all_blocks() -> None:
    """No state of fixed size; its kernels of more blocks are followed, and sampled networks have them."""
    found, x = apps.Layers(lambda x: one_weight(x, 2), jnp.zeros(3)), inputs((3,))
    assert repr(found) == "<Layers: 2 blocks, followed one by one>"
    n, rng, drawn = 800, np.random.default_rng(0), []
    for _ in range(24):
        w, h = rng.standard_normal((n, n)), rng.standard_normal((n, 3)) @ x.T / np.sqrt(3)
        for _ in range(3):
            h = h + w @ np.asarray(erf(h)) / np.sqrt(n)
        drawn.append(h[:, 0] @ h[:, 1] / n)
    expected = float(found.trajectory(*x, blocks=3).nngp[-1])
    assert abs(np.mean(drawn) - expected) < 4 * np.std(drawn) / np.sqrt(24) + 4 / n * abs(expected)


@slow
def test_chi_of_normalised_batches() -> None:
    """The growth of a small change of the first layer, at width 1,000, through 24 layers of batch norm: Yang et al. 2019."""
    found, x = apps.Layers(lambda x: batch_normed(x, 2), jnp.zeros((4, 2))), inputs((4, 2))[0]
    n, depth, growths = 1000, 24, []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        h, v, sizes = (x @ rng.standard_normal((2, n)) / np.sqrt(2)), rng.standard_normal((4, n)), []
        for _ in range(depth):
            normal = lambda h: (c := h - h.mean(0)) / np.sqrt((c**2).mean(0) + 1e-3)
            centred = h - h.mean(0)
            deviation = np.sqrt((centred**2).mean(0) + 1e-3)
            moved = v - v.mean(0)
            slope = (moved - centred * (centred * moved).mean(0) / deviation**2) / deviation
            weight = rng.standard_normal((n, n)) / np.sqrt(n)
            h, v = np.maximum(normal(h), 0) @ weight, ((normal(h) > 0) * slope) @ weight
            sizes.append(np.log((v**2).sum()))
        growths.append(np.exp((sizes[-1] - sizes[7]) / (depth - 8)))
    assert abs(found.chi(x) - np.mean(growths)) < 4 * np.std(growths) / 2 + 5e-3


# ------------------------------------------------------------------------------------------ false recursions


def layered(layer: Callable[..., jax.Array], depth: int = 4) -> Callable[[jax.Array], jax.Array]:
    def net(x: jax.Array) -> jax.Array:
        h = nn.dense(x)
        for k in range(depth):
            h = layer(h, k, x)
        return nn.dense(h, features=1)

    return net


def moved_faster(h: jax.Array, k: int, x: jax.Array) -> jax.Array:
    return nn.weight((nn.width(), nn.width()), tangent_std=1.0 + k) @ erf(h) / nn.width() ** 0.5


def masked(h: jax.Array, k: int, x: jax.Array) -> jax.Array:
    return nn.dense(erf(h)) + nn.dense(jnp.where(jnp.arange(3) == k % 3, 0.0, x))


SCALES = jnp.asarray([1.0, 0.7, 0.5, 0.3])
FALSE = {
    "variances": layered(lambda h, k, x: nn.dense(erf(h), weight_var=1.0 + k)),
    "hyperparameters": layered(lambda h, k, x: nn.dense(erf(h), weight_var=tp.hyper(f"w{k}", 1.0))),
    "rates of training": layered(moved_faster),
    "rates of dropout": layered(lambda h, k, x: nn.dense(nn.dropout(erf(h), 0.1 + 0.1 * k)), depth=2),
    "scales": layered(lambda h, k, x: h + nn.dense(erf(h)) / (k + 1) ** 0.5),
    "scales in an array": layered(lambda h, k, x: h + SCALES[k] * nn.dense(erf(h))),
    "biases": layered(lambda h, k, x: nn.dense(erf(h), bias_var=0.1 * k)),
    "functions": layered(lambda h, k, x: nn.dense((erf, jax.nn.relu, jnp.sin, jnp.cos)[k](h))),
    "epsilons": layered(lambda h, k, x: nn.dense(erf(nn.layer_norm(h, epsilon=10.0 ** -(k + 1))))),
    "inputs of other sizes": layered(lambda h, k, x: nn.dense(erf(h)) + 0.3 * (k + 1) * nn.dense(x)),
    "inputs of other variances": layered(
        lambda h, k, x: nn.dense(erf(h)) + nn.dense(x, weight_var=tp.hyper(f"u{k}", 0.2))
    ),
    "inputs behind masks": layered(masked),
    "slopes": layered(lambda h, k, x: nn.dense(jnp.where(h > 0, h, 0.1 * (k + 1) * h))),
}


@pytest.mark.parametrize("name", everyday(FALSE, long=["rates of dropout"]))
def test_layers_that_look_alike(name: str) -> None:
    """No next layer is known, and none is made up."""
    with pytest.raises(tp.InputError, match="numbers \\(a variance, a rate"):
        apps.Layers(FALSE[name], jnp.zeros(3))


def test_what_two_blocks_cannot_tell() -> None:
    """An output that adds up both layers: these two, or all of them? With a third it is known."""

    def net(x: jax.Array, depth: int) -> jax.Array:
        h, out = nn.dense(x), jnp.zeros(())
        for _ in range(depth):
            h = nn.dense(erf(h))
            out = out + nn.dense(h, features=1)
        return out

    with pytest.raises(tp.InputError, match="no block of this network repeats"):
        apps.Layers(lambda x: net(x, 2), jnp.zeros(3))
    assert apps.Layers(lambda x: net(x, 3), jnp.zeros(3)).blocks == 2


@pytest.mark.long
def test_programs_by_themselves() -> None:
    """Without its network, as it is when it comes from a file, a program is looked at as it stands."""
    kernel = tp.compile(lambda x: read_again(x, 2), jnp.zeros(3))
    x = inputs((3,))
    again, own = (apps.Layers(k).trajectory(*x, blocks=4) for k in (tp.compile_program(str(kernel.program)), kernel))
    np.testing.assert_allclose((again.nngp, again.ntk), (own.nngp, own.ntk), rtol=1e-12)


def test_two_equal_kernels_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no block is found in the program, two steps of the kernels may be alike by chance, and no third can be made to compare with."""

    def net(x: jax.Array) -> jax.Array:
        h = nn.dense(erf(nn.dense(erf(nn.dense(x)))))
        return nn.dense(nn.dense(-erf(h)), features=1)

    kernel = tp.compile(net, jnp.zeros(3))
    assert Runs(kernel).blocks == 2 and apps.Layers(kernel).blocks == 2
    monkeypatch.setattr(found_layers, "growth", lambda program: None)
    with pytest.raises(tp.InputError, match="(?s)two layers of this network have equal kernels.*one layer more"):
        apps.Layers(kernel)
