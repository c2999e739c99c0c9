"""Recursions found in kernel graphs: kernels of other depths, phases against the maps of one vector, by hand, and against sampled networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erf

import tensorprog as tp
from tensorprog import apps, nn
from tests.apps.test_repeated import changing, perceptron, residual
from tests.everyday import everyday

W = tp.hyper("w", 1.2)


def padded(x: jax.Array, depth: int) -> jax.Array:
    for _ in range(depth):
        x = erf(nn.conv(x, 3, weight_var=W))
    return nn.dense(nn.flatten(x), features=1)


def pooled(x: jax.Array, depth: int) -> jax.Array:
    for _ in range(depth):
        x = jax.nn.relu(nn.conv(x, 3, weight_var=1.9))
    return nn.dense(nn.global_avg_pool(x), features=1)


def read_again(x: jax.Array, depth: int) -> jax.Array:
    h = nn.dense(x)
    for _ in range(depth):
        h = nn.dense(erf(h), weight_var=W) + nn.dense(x, weight_var=0.3)
    return nn.dense(h, features=1)


def recurrent(x: jax.Array, depth: int) -> jax.Array:
    n = nn.width()
    w, u, h = nn.weight((n, n)), nn.dense(x), jnp.zeros(n)
    for _ in range(depth):
        h = erf(w @ h / n**0.5 + u)
    return nn.dense(h, features=1)


def two_streams(x: jax.Array, depth: int) -> jax.Array:
    h, g = nn.dense(x), nn.dense(x)
    for _ in range(depth):
        h, g = nn.dense(erf(g)) + 0.5 * h, nn.dense(erf(h), weight_var=0.5) + nn.dense(g, weight_var=0.3)
    return nn.dense(h, features=1) + nn.dense(g, features=1)


def short(x: jax.Array, depth: int) -> jax.Array:
    h = nn.dense(x)
    for _ in range(depth):
        h = 0.9 * h + nn.dense(erf(h), weight_var=0.5)
    return nn.dense(h, features=1)


def normed(x: jax.Array, depth: int) -> jax.Array:
    h = nn.dense(x)
    for _ in range(depth):
        h = h + nn.dense(jax.nn.relu(nn.dense(nn.layer_norm(h))))
    return nn.dense(nn.global_avg_pool(h), features=1)


def every_layer_read(x: jax.Array, depth: int) -> jax.Array:
    h, out = nn.dense(x), jnp.zeros(())
    for _ in range(depth):
        h = nn.dense(erf(h), weight_var=W)
        out = out + nn.dense(h, features=1)
    return out


NETS = {
    "perceptron": (perceptron, (3,)), "padded": (padded, (4, 2)), "pooled": (pooled, (4, 2)), "read again": (read_again, (3,)),
    "recurrent": (recurrent, (3,)), "two streams": (two_streams, (3,)), "short": (short, (3,)), "normed": (normed, (4, 2)),
    "every layer read": (every_layer_read, (3,)),
}  # fmt: skip


def inputs(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, *shape))


DEPTHS = dict.fromkeys(NETS, 4) | {"two streams": 6}  # which differ in the first of their layers


@cache
def layers(name: str, depth: int = 4) -> apps.Layers:
    net, shape = NETS[name]
    return apps.Layers(lambda x: net(x, depth), jnp.zeros(shape))


SLOW = ("perceptron", "read again", "two streams", "pooled", "recurrent", "normed", "short")


@pytest.mark.parametrize("name", everyday(NETS, SLOW, ["every layer read", "padded"]))
def test_kernels_of_other_depths(name: str) -> None:
    """Of four blocks, those of three, four, and seven; a network compiled at that depth has the same kernels."""
    net, shape = NETS[name]
    depth = DEPTHS[name]
    x, found = inputs(shape), layers(name, depth)
    pair = found.trajectory(*x, blocks=found.blocks + 3)
    own = found.trajectory(x[1], blocks=found.blocks + 3)
    for more in (-1, 0, 3):
        with jax.enable_x64(True):
            deep = tp.compile(lambda x, d=depth + more: net(x, d), jnp.zeros(shape))(x)
        k = found.blocks + more - 1
        for path, at in ((pair, (0, 1)), (own, (1, 1))):
            np.testing.assert_allclose(path.nngp[k], deep.nngp[at], rtol=1e-10)
            np.testing.assert_allclose(path.ntk[k], deep.ntk[at], rtol=1e-10)


def test_short_residual_networks() -> None:
    assert layers("short", 3).blocks == 3  # of the program: of the kernels of so few, the first is unlike the others
    x = inputs((3,))
    with jax.enable_x64(True):
        deep = tp.compile(lambda x: short(x, 6), jnp.zeros(3))(x)
    np.testing.assert_allclose(layers("short", 3).trajectory(*x, blocks=6).nngp[-1], deep.nngp[0, 1], rtol=1e-10)


@pytest.mark.parametrize("w", [1.0, pytest.param(2.5, marks=pytest.mark.slow)])
def test_phases_are_those_of_one_vector(w: float) -> None:
    """The perceptron's readout is one more layer of it, so that variances and correlations are those of its layers."""
    whole = apps.Block(perceptron, jnp.zeros(3))
    found, block = layers("perceptron").phase(*inputs((3,)), w=w), whole.phase(w=w)
    assert found.name == block.name
    for field in ("q", "c", "chi", "scale_q", "scale_c", "scale_gradient"):
        np.testing.assert_allclose(getattr(found, field), getattr(block, field), rtol=1e-6)
    critical = layers("perceptron").critical("w", (0.5, 4.0), inputs((3,))[0])
    assert abs(critical - whole.critical("w", (0.5, 4.0))) < 1e-7  # both by bisection of a chi


def test_inputs_read_again_by_hand() -> None:
    """h' = W erf(h) + U x: the fixed point of q = w 2/pi asin(2q/(1+2q)) + 0.3 |x|^2/3, and of its covariance; Williams 1997."""
    x, w = inputs((3,)), 1.2
    gram = 0.3 * x @ x.T / 3
    k = gram.copy()
    for _ in range(400):
        d = np.sqrt(1 + 2 * np.diag(k))
        k = w * 2 / np.pi * np.arcsin(2 * k / np.outer(d, d)) + gram
    found = layers("read again").phase(*x)
    assert abs(found.q - k[0, 0]) < 1e-10 and abs(found.c - k[0, 1] / np.sqrt(k[0, 0] * k[1, 1])) < 1e-10
    slope = lambda a, b, c: w * 4 / np.pi / np.sqrt((1 + 2 * a) * (1 + 2 * b) - 4 * c * c)
    assert abs(found.chi - slope(k[0, 0], k[0, 0], k[0, 0])) < 1e-9
    assert abs(found.scale_c + 1 / np.log(slope(k[0, 0], k[1, 1], k[0, 1]))) < 1e-6
    critical = layers("read again").critical("w", (1.0, 5.0), x[0])
    assert abs(layers("read again").chi(x[0], w=critical) - 1) < 1e-8


@pytest.mark.long
def test_padding_by_hand() -> None:
    """Zeros around the positions: ReLU halves variances and slopes alike, so that chi is the largest eigenvalue of the windows' sum."""
    windows = np.eye(4) + np.eye(4, k=1) + np.eye(4, k=-1)
    expected = 1.9 / 2 * np.linalg.eigvalsh(windows / 3).max()
    found = layers("pooled").phase(*inputs((4, 2)))
    assert abs(found.chi - expected) < 1e-9 and found.name == "ordered"
    np.testing.assert_allclose(found.scale_q, -1 / np.log(expected), rtol=1e-5)


@pytest.mark.long
def test_growing_and_frozen_networks() -> None:
    assert apps.Layers(residual, jnp.zeros(3)).phase(*inputs((3,))).name == "divergent"

    def frozen(x: jax.Array) -> jax.Array:
        h = nn.dense(x, train=False)
        for _ in range(4):
            h = nn.dense(erf(h), weight_var=W, train=False) + nn.dense(x, weight_var=0.3, train=False)
        return nn.dense(h, features=1, train=False)

    found = apps.Layers(frozen, jnp.zeros(3))
    assert abs(found.chi(inputs((3,))[0]) - layers("read again").chi(inputs((3,))[0])) < 1e-12
    assert not found.trajectory(*inputs((3,))).ntk.any()


@pytest.mark.long
def test_outputs_with_axes_and_dropout() -> None:
    """Noise enters variances, not covariances: the map of one vector has its formulas tested (Schoenholz et al. 2017, section 5)."""

    def pixels(x: jax.Array) -> jax.Array:
        for _ in range(3):
            x = erf(nn.conv(x, 3, weight_var=2.0))
        return nn.dense(x, features=1)

    found = apps.Layers(pixels, jnp.zeros((4, 2))).phase(*inputs((4, 2)))
    assert found.q.shape == found.c.shape == (4,) and str(found).startswith("chaotic: variance [")
    np.testing.assert_allclose(found.q, found.q[::-1], rtol=1e-9)  # the fixed point has the symmetry of the padding

    def dropped(x: jax.Array) -> jax.Array:
        h = nn.dense(x)
        for _ in range(4):
            h = nn.dense(nn.dropout(erf(h), 0.2), weight_var=W, bias_var=0.05)
        return nn.dense(h, features=1)

    found, block = apps.Layers(dropped, jnp.zeros(3)).phase(*inputs((3,))), apps.Block(dropped, jnp.zeros(3)).phase()
    for field in ("q", "c", "chi", "scale_q", "scale_c", "scale_gradient"):
        np.testing.assert_allclose(getattr(found, field), getattr(block, field), rtol=1e-6)


def test_critical_networks_settle_like_a_power() -> None:
    """erf, of slope 1 with these weights, and no bias: the variance falls like 1 over the depth, and chi goes to 1."""

    def critical(x: jax.Array) -> jax.Array:
        for _ in range(4):
            x = erf(nn.dense(x, weight_var=np.pi / 4))
        return nn.dense(x, features=1)

    assert apps.Layers(critical, jnp.zeros(3)).phase(*inputs((3,))).name == "critical"


def carried(x: jax.Array, depth: int) -> jax.Array:
    """Nonlinear after the sum: the next state takes the whole law of this one."""
    h = nn.dense(x)
    for _ in range(depth):
        h = jnp.tanh(0.5 * h + nn.dense(h, weight_var=3.0))
    return nn.dense(h, features=1)


@pytest.mark.slow
def test_states_that_are_populations() -> None:
    """Kernels of seven blocks from a network of four."""
    x, tolerance = inputs((3,)), 2e-2
    found = apps.Layers(lambda x: carried(x, 4), jnp.zeros(3), tolerance=tolerance)
    deep = tp.compile(lambda x: carried(x, 7), jnp.zeros(3), tolerance=tolerance)(x)
    path = found.trajectory(*x, blocks=found.blocks + 3)
    np.testing.assert_allclose((path.nngp[-1], path.ntk[-1]), (deep.nngp[0, 1], deep.ntk[0, 1]), rtol=0.1, atol=0.02)


@pytest.mark.slow
def test_phases_of_populations() -> None:
    """q and chi of the stationary law against networks of width 1,000."""
    x, tolerance = inputs((3,)), 2e-2
    phase = apps.Layers(lambda x: carried(x, 4), jnp.zeros(3), tolerance=tolerance).phase(*x)
    variances, growths = zip(*(sampled(seed) for seed in range(4)), strict=True)
    assert abs(phase.q - np.mean(variances)) < 3 * np.std(variances) + tolerance * phase.q
    assert abs(phase.chi - np.mean(growths)) < 3 * np.std(growths) + tolerance
    assert phase.name == "chaotic"


def sampled(seed: int, n: int = 1000, depth: int = 40) -> tuple[float, float]:
    """The variance, and the growth of a squared tangent per layer over the later half, of one network."""
    rng = np.random.default_rng(seed)
    h, v, sizes = rng.standard_normal(n), rng.standard_normal(n), []
    for _ in range(depth):
        weight = rng.standard_normal((n, n)) * np.sqrt(3.0 / n)
        h, moved = np.tanh(0.5 * h + weight @ h), 0.5 * v + weight @ v
        v = (1 - h * h) * moved
        sizes.append(np.log(v @ v))
    return float(h @ h / n), float(np.exp((sizes[-1] - sizes[depth // 2]) / (depth - 1 - depth // 2)))


@pytest.mark.slow
def test_chi_of_sampled_networks_that_read_again() -> None:
    """Squared lengths of gradients through layers at the fixed point, at width 1,000, with zero padding and with inputs read again."""
    n, depth, x = 1000, 30, inputs((3,))[0]
    growths = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        h, v, sizes = rng.standard_normal((n, 3)) @ x / np.sqrt(3), rng.standard_normal(n), []
        for _ in range(depth):
            weight = rng.standard_normal((n, n)) * np.sqrt(1.2 / n)
            v = weight @ (2 / np.sqrt(np.pi) * np.exp(-h * h) * v)
            h = weight @ np.asarray(erf(h)) + np.sqrt(0.3 / 3) * rng.standard_normal((n, 3)) @ x
            sizes.append(np.log(v @ v))
        growths.append(np.exp((sizes[-1] - sizes[9]) / (depth - 10)))
    assert abs(layers("read again").chi(x) - np.mean(growths)) < 4 * np.std(growths) / np.sqrt(6) + 2e-3


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (changing, "no two layers in a row are the same instructions"),
        (lambda x: perceptron(x, 1), "no two layers in a row"),
    ],
)
def test_networks_without_a_recursion(net: Callable, message: str) -> None:
    with pytest.raises(tp.InputError, match=message):
        apps.Layers(net, jnp.zeros(3))


def test_nonsense() -> None:
    with pytest.raises(tp.InputError, match="net is a function, expected the kernel"):
        apps.Layers(perceptron)
    with pytest.raises(tp.InputError, match="blocks is 0, expected a whole number >= 1"):
        layers("read again").trajectory(*inputs((3,)), blocks=0)
    with pytest.raises(tp.InputError, match="'v' is no hyperparameter; the network has: w"):
        layers("read again").critical("v", (1.0, 2.0), inputs((3,))[0])
    with pytest.raises(tp.InputError, match="expected one of each sign"):
        layers("read again").critical("w", (1.0, 1.1), inputs((3,))[0])
    with pytest.raises(tp.UserError, match="x1"):
        layers("read again").phase(np.zeros(4), np.zeros(4))
