"""Transposes: what the pass makes of them, against numbers and formulas that owe nothing to it.

Jumps have tests/kernel/test_transposed_jumps.py, sampled networks tests/finite_width/test_transposes.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss

import tensorprog as tp
from tensorprog import nn
from tensorprog.ir import parse_program
from tests.everyday import everyday
from tests.kernel.common import ONE, X, close, gaussian_mean, kernels, pairs, square, times, times_rows
from tests.references import duals
from tests.test_finite_width import check as check_stages
from tests.uncompiled import uncompiled

erf, relu = jax.scipy.special.erf, jax.nn.relu


# ------------------------------------------------------------------------------------ where gradient independence fails


def overlap(made: Callable[[jax.Array], jax.Array]) -> Callable:
    """A readout of one vector times the mean of the product of two others."""
    return lambda x: nn.dense(nn.dense(x), features=1) * jnp.mean(made(x))


def there_and_back(x: jax.Array) -> jax.Array:
    w, v = square(), nn.dense(x)
    return v * times(w.T, times(w, v))


def relu_and_back(x: jax.Array) -> jax.Array:
    w, v = square(), nn.dense(x)
    return v * times(w.T, relu(times(w, v)))


def gradient_of_mean_square(x: jax.Array) -> jax.Array:
    """h = W 1, y = 1'h^2 / n: n dy/d1 = 2 W'W 1."""
    w = square()
    return 2 * times(w.T, times(w, jnp.ones(nn.width())))


def symmetrised(x: jax.Array) -> jax.Array:
    w, h = square(), nn.dense(x)
    for _ in range(4):
        h = (times(w, h) + times(w.T, h)) / jnp.sqrt(2.0)
    return h


TABLE = {  # (network, the second moment of its output): the counterexamples to gradient independence of Tensor Programs II and III
    "A'A v, second moment": (lambda x: nn.dense(times(w := square(), times(w.T, nn.dense(x))), features=1), 2),
    "A'A v, overlap with v": (overlap(there_and_back), 1**2),
    "2 W'W 1, second moment": (lambda x: nn.dense(gradient_of_mean_square(x) * x[0], features=1), 8),
    "2 W'W 1, mean": (overlap(gradient_of_mean_square), 2**2),
    "W' relu(W x), second moment": (
        lambda x: nn.dense(times((w := square()).T, relu(times(w, nn.dense(x)))), features=1),
        Fraction(3, 4),
    ),
    "W' relu(W x), overlap with x": (overlap(relu_and_back), Fraction(1, 2) ** 2),
    "((W + W')/sqrt 2)^4 x": (lambda x: nn.dense(symmetrised(x), features=1), 14),
}


@pytest.mark.parametrize("name", TABLE)
def test_where_gradient_independence_fails(name: str) -> None:
    net, wanted = TABLE[name]
    close(kernels(net)[0], [[float(wanted)]], 1e-14)


def test_without_dependence_nothing_is_added() -> None:
    """A backward pass whose weights of the readout are independent and of zero mean: the simple GIA check."""

    def backward(x: jax.Array) -> jax.Array:
        w, v = square(), nn.weight((nn.width(),), train=False)
        return nn.dense(times(w.T, v * erf(times(w, nn.dense(x, train=False)))), features=1)

    kernel = tp.compile(backward, ONE[0])
    assert "Here all of them vanish" in kernel.derivation()
    close(kernel(ONE).nngp, duals.erf.value(*pairs(np.ones((1, 1)))))


# ------------------------------------------------------------------------------------ moments of random matrices


def catalan(k: int) -> int:
    return math.comb(2 * k, k) // (k + 1)


def semicircle(order: int) -> int:
    return 0 if order % 2 else catalan(order // 2)


def marchenko_pastur(order: int, ratio: float) -> float:
    """E tr (A'A)^k / n for A of (ratio n, n) with entries of variance 1/n: Narayana's numbers in the ratio."""
    return sum(math.comb(order, j) * math.comb(order, j - 1) // order * ratio**j for j in range(1, order + 1))


@pytest.mark.parametrize("order", everyday(range(1, 11), [*"56789"]))
def test_semicircle_moments(order: int) -> None:
    """The moments of a symmetric matrix, v'W^k v / n, and the second moments of W^k v, which are those of order 2k."""

    def net(x: jax.Array) -> jax.Array:
        w, v = nn.symmetric(nn.width()), nn.dense(x, train=False)
        h = v
        for _ in range(order):
            h = times(w, h)
        return nn.dense(h, features=1) + nn.dense(v, features=1, train=False) * jnp.mean(v * h)

    nngp, ntk = kernels(net)
    close(nngp, semicircle(2 * order) + semicircle(order) ** 2, 1e-14)
    m = semicircle
    paths = sum(m(i + j) * m(2 * order - 2 - i - j) for i in range(order) for j in range(order))
    close(ntk, m(2 * order) + paths, 1e-14)  # the readout, and each pair of uses of the matrix


@pytest.mark.parametrize(
    ("order", "ratio"),
    [(1, 2.0), (2, 1.0), (3, 1.5), (6, 0.5), *(pytest.param(10, r, marks=pytest.mark.slow) for r in (0.5, 2.0))],
)
def test_marchenko_pastur_moments(order: int, ratio: float) -> None:
    def net(x: jax.Array) -> jax.Array:
        w, v = nn.weight((nn.width(ratio), nn.width()), train=False), nn.dense(x, train=False)
        h = v
        for _ in range(order):
            h = times(w.T, times(w, h))
        overlap = nn.dense(v, features=1, train=False) * jnp.mean(v * h)
        return overlap + nn.dense(h, features=1, train=False)

    wanted = marchenko_pastur(order, ratio) ** 2 + marchenko_pastur(2 * order, ratio)
    close(kernels(net)[0], [[wanted]], 1e-14)


# ------------------------------------------------------------------------------------ tied autoencoders


def autoencoder(encode: Callable, decode: Callable, ratio: float = 1.0) -> Callable:
    """x -> decode(W' encode(W U x)) (Nguyen and Li 2019), with hidden width `ratio` n, before a readout."""

    def net(x: jax.Array) -> jax.Array:
        w = nn.weight((nn.width(ratio), nn.width()))
        h = encode(w @ nn.dense(x) / jnp.sqrt(nn.width()))
        return nn.dense(decode(w.T @ h / jnp.sqrt(nn.width(ratio))), features=1)

    return net


DUALS = {"linear": duals.abrelu(1.0, 1.0), "relu": duals.relu, "erf": duals.erf}
FUNCTIONS = {"linear": lambda h: h, "relu": relu, "erf": erf}


def mean_slope(name: str, q: np.ndarray) -> np.ndarray:
    """E phi'(u) at variance q."""
    return {"linear": 1.0 + 0 * q, "relu": 0.5 + 0 * q, "erf": 2 / np.sqrt(np.pi * (1 + 2 * q))}[name]


@pytest.mark.parametrize(
    ("encode", "decode", "ratio"),
    [
        ("linear", "linear", 1.0),
        ("linear", "linear", 2.0),
        ("relu", "linear", 0.5),
        ("relu", "relu", 1.0),
        ("erf", "relu", 2.0),
    ],
)
def test_tied_autoencoder(encode: str, decode: str, ratio: float) -> None:
    """W' phi(W h) = a Gaussian of covariance E[phi phi] plus sqrt(ratio) E[phi'] h; its tangent likewise."""
    phi, psi = DUALS[encode], DUALS[decode]
    k = np.asarray(X @ X.T) / 2
    slope = np.sqrt(ratio) * mean_slope(encode, np.diag(k))
    both = slope[:, None] * slope
    inner = phi.value(*pairs(k)) + both * k
    moved = phi.value(*pairs(k)) + both * k + phi.slope(*pairs(k)) * 2 * k
    nngp = psi.value(*pairs(inner))
    found = kernels(autoencoder(FUNCTIONS[encode], FUNCTIONS[decode], ratio), X)
    close(found[0], nngp)
    close(found[1], nngp + psi.slope(*pairs(inner)) * moved)


@pytest.mark.slow
def test_a_step_of_training_written_out() -> None:
    """W1 = W - (c/n) e z', e = v phi'(W z), z of another input: W1' tanh(W1 y) against networks with that very matrix."""
    rate, other = 0.7, jnp.array([0.3, -0.8])

    def net(x: jax.Array, matrix: bool) -> jax.Array:
        n = nn.width()
        w, v, a = nn.weight((n, n), name="W"), nn.weight((n,), name="v"), nn.weight((n, 2), name="in")
        z, y = jnp.tanh(a @ other), jnp.tanh(a @ x)
        e = v * (1 - jnp.tanh(times(w, z)) ** 2)
        if matrix:
            moved = w / jnp.sqrt(n) - rate / n * jnp.outer(e, z)
            last = moved.T @ jnp.tanh(moved @ y)
        else:
            up = jnp.tanh(times(w, y) - rate * e * jnp.mean(z * y))
            last = times(w.T, up) - rate * z * jnp.mean(e * up)
        return nn.dense(last, features=1, name="out")

    x = X[:2]
    kernel = tp.compile(lambda x: net(x, False), x[0], tolerance=1e-2)
    found, error = kernel(x).nngp, kernel.standard_error(x).nngp
    width, draws = 512, 40

    def sampled(key: jax.Array) -> jax.Array:
        p = tp.init(lambda x: net(x, True), x[0], width, key)
        hidden = jax.vmap(lambda y: jax.grad(lambda p: tp.apply(lambda x: net(x, True), p, y)[0])(p)["out.weight"][0])(
            x
        )
        return hidden @ hidden.T

    values = np.asarray(jax.lax.map(jax.jit(sampled), jax.random.split(jax.random.key(0), draws)))
    noise = values.std(0) / np.sqrt(draws)
    # one draw strays by 1/sqrt(n), the mean of many by 1/n besides
    assert np.all(np.abs(values.mean(0) - found) < 4 * noise + 5 * np.asarray(error) + 5 / width * np.abs(found).max())
    assert np.all(noise < 0.02 * np.abs(found).max())


# ------------------------------------------------------------------------------------ recurrences


def recurrent(phi: Callable, steps: int, train: bool = False) -> Callable:
    """h_t = phi(W h_{t-1} + U x_t) with a symmetric W."""

    def net(x: jax.Array) -> jax.Array:
        w, u = nn.symmetric(nn.width(), train=train), nn.dense(x, train=train)
        h = phi(u[0])
        for t in range(1, steps):
            h = phi(0.8 * times(w, h) + u[t])
        return nn.dense(h, features=1, train=train)

    return net


def test_linear_recurrence_with_symmetric_weights() -> None:
    """sum_t W^{T-1-t} u_t: moments of the semicircle."""
    xs = jax.random.normal(jax.random.key(0), (3, 5, 2))
    m = np.array([[0.8 ** (s + t) * semicircle(s + t) for s in range(5)] for t in range(5)])[::-1, ::-1]
    drive = np.einsum("asc,btc->abst", xs, xs) / 2
    close(kernels(recurrent(lambda h: h, 5), xs)[0], np.einsum("st,abst->ab", m, drive))


@pytest.mark.long
def test_recurrence_with_symmetric_weights() -> None:
    """Three steps: h_3 = tanh(G + E[tanh'(g_2)] tanh(u_1) + u_3), G a Gaussian of variance E h_2^2, by quadrature. Sampled:
    three hidden states meet in one function, so the tolerance is that of sampling."""
    x = jnp.array([[[1.0, 0.2], [-0.5, 0.7], [0.3, -1.0]]])
    drive = np.einsum("sc,tc->st", x[0], x[0]) / 2
    z, weight = hermegauss(60)
    weight = weight / weight.sum()
    first = weight @ np.tanh(np.sqrt(drive[0, 0]) * z) ** 2
    g2 = np.sqrt(0.64 * first + drive[1, 1]) * z  # u_1 enters h_1 alone, of which only the second moment matters
    slope, second = weight @ (1 - np.tanh(g2) ** 2), weight @ np.tanh(g2) ** 2
    u1 = np.sqrt(drive[0, 0]) * z[:, None]
    rest = np.sqrt(drive[2, 2] - drive[0, 2] ** 2 / drive[0, 0] + 0.64 * second) * z
    h3 = np.tanh(rest + drive[0, 2] / drive[0, 0] * u1 + 0.64 * slope * np.tanh(u1))
    wanted = weight @ h3**2 @ weight
    kernel = tp.compile(recurrent(jnp.tanh, 3), x[0], tolerance=2e-3)
    close(uncompiled(kernel, x).nngp, [[wanted]], 2e-3)


# ------------------------------------------------------------------------------------ arrays over positions


MIX = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.4, -0.2, 0.8]])


def tokens(x: jax.Array) -> jax.Array:
    """W' M relu(W h) for every token: the coefficients are a matrix over positions, M[s, t] E relu' = M[s, t] / 2."""
    w = square()
    h = nn.dense(x)
    return nn.dense(MIX @ relu(times_rows(h, w)) @ w.T / jnp.sqrt(nn.width()), features=1)[:, 0]


def test_positions_that_mix() -> None:
    xs = jax.random.normal(jax.random.key(1), (2, 3, 2))
    k = np.einsum("asc,btc->asbt", xs, xs).reshape(6, 6) / 2
    mix = np.kron(np.eye(2), MIX)
    wanted = mix @ (duals.relu.value(*pairs(k)) + k / 4) @ mix.T
    moved = mix @ (duals.relu.value(*pairs(k)) + k / 4 + duals.relu.slope(*pairs(k)) * 2 * k) @ mix.T
    nngp, ntk = kernels(tokens, xs)
    turned = lambda a: a.reshape(2, 3, 2, 3).transpose(0, 2, 1, 3)
    close(nngp, turned(wanted))
    close(ntk, turned(wanted + moved))


def tied_convolution(x: jax.Array) -> jax.Array:
    """A circular convolution, relu, and its transpose: h_s -> sum_k W_k' relu(sum_j W_j h_{s-k+j})."""
    places, n = np.arange(4), nn.width()
    w, h = nn.weight((3, n, n)), nn.dense(x)
    windows = h[(places[:, None] + np.arange(-1, 2)) % 4]
    hidden = relu(jnp.einsum("kio,ski->so", w, windows) / jnp.sqrt(3 * n))
    back = hidden[(places[:, None] - np.arange(-1, 2)) % 4]
    return nn.dense(jnp.einsum("kio,sko->si", w, back) / jnp.sqrt(3 * n), features=1)[:, 0]


def test_a_convolution_and_its_transpose() -> None:
    """The coefficient of h_s in the transposed convolution is the mean slope at s: each of three offsets gives a third."""
    xs = jax.random.normal(jax.random.key(2), (2, 4, 2))
    k = np.einsum("asc,btc->asbt", xs, xs) / 2
    shifted = lambda a: sum(np.roll(a, (j, j), (1, 3)) for j in (-1, 0, 1)) / 3
    hidden = duals.relu.value(*pairs(shifted(k).reshape(8, 8))).reshape(k.shape)
    found = uncompiled(tp.compile(tied_convolution, xs[0]), xs).nngp
    close(found, (shifted(hidden) + k / 4).transpose(0, 2, 1, 3))


def test_a_stack_of_matrices_that_mix() -> None:
    """W_h' sum_g M[h, g] W_g v: only W_h meets its own transpose, with the coefficient M[h, h]."""

    def net(x: jax.Array) -> jax.Array:
        w, v = nn.weight((3, nn.width(), nn.width()), train=False), nn.dense(x, train=False)
        mixed = MIX @ jnp.einsum("hij,j->hi", w, v) / jnp.sqrt(nn.width())
        back = jnp.einsum("hij,hi->hj", w, mixed) / jnp.sqrt(nn.width())
        return nn.dense(back, features=1, train=False)[:, 0]

    diagonal = np.diag(MIX)
    close(kernels(net)[0][0, 0], np.diag((MIX**2).sum(1)) + np.outer(diagonal, diagonal))


def test_hyperparameters() -> None:
    """A coefficient may depend on a hyperparameter, and has its derivative."""

    def net(x: jax.Array) -> jax.Array:
        w = square() * tp.hyper("gain", 1.3)
        return nn.dense(times(w.T, relu(times(w, nn.dense(x)))), features=1)

    kernel = tp.compile(net, ONE[0])
    value = lambda gain: kernel(ONE, gain=gain).nngp[0, 0]
    close(value(2.0), 2.0**4 * 0.75)
    close(jax.grad(value)(2.0), 4 * 2.0**3 * 0.75)


# ------------------------------------------------------------------------------------ programs, text, finite width


PROGRAM = """tensorprog 1
x0 = Input("x", (2,), "float64")
W0 = Weight("u", (n, 2), std=1.0, tangent_std=1.0)
W1 = Weight("w", (n(2), n), std=1.0, tangent_std=1.0)
W2 = Weight("v", (1, n), std=1.0, tangent_std=1.0)
v0 = MatMul("ab,b->a", W0, x0)
v1 = MatMul("ab,b->a", W1, v0)
v2 = Nonlin("tanh(z0)", [v1], [])
{back}
v4 = MatMul("ab,b->a", W2, v3)
return_(v4)
"""


def test_the_instruction_trsp() -> None:
    """A transposed matrix in a program's text, and a product whose letters are swapped, are one."""
    written = PROGRAM.format(back='M0 = Trsp(W1)\nv3 = MatMul("ab,b->a", M0, v2)')
    swapped = PROGRAM.format(back='v3 = MatMul("ab,a->b", W1, v2)')
    assert parse_program(str(parse_program(written))) == parse_program(written)
    first, second = (tp.compile_program(text) for text in (written, swapped))
    assert first.program == second.program  # and so the kernel
    q = np.asarray(jnp.sum(X**2, -1))
    second = gaussian_mean(lambda z: np.tanh(np.sqrt(q)[:, None] * z) ** 2)
    close(first.diag(X).nngp, 2 * second + (2 * (1 - second)) ** 2 * q)


@pytest.mark.parametrize(
    "net", [pytest.param(recurrent(jnp.tanh, 3, True), marks=pytest.mark.long), tokens, tied_convolution], ids="rtc"
)
def test_every_stage_at_finite_width(net: Callable) -> None:
    """Before the Zdots are written out a program with transposes is the network, digit by digit."""
    shape = {tokens: (3, 2), tied_convolution: (4, 2)}.get(net, (3, 2) if net.__qualname__.startswith("rec") else (2,))
    check_stages(net, np.random.default_rng(0).normal(size=shape))


@pytest.mark.long
def test_export_and_load(tmp_path) -> None:
    kernel = tp.compile(autoencoder(relu, relu), X[0])
    kernel.export(tmp_path / "tied.tpk", platforms=("cpu",))
    close(tp.load(tmp_path / "tied.tpk")(X).ntk, kernel(X).ntk, 1e-14)
    again = tp.compile_program(str(kernel.program))
    close(again(X).ntk, kernel(X).ntk, 1e-14)
