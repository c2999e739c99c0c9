"""Kernels that the adjoint program alone gives: readouts tied to what they read, and how the method is chosen, shown and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests.references import duals
from tests.uncompiled import uncompiled

relu = jax.nn.relu
X = np.random.default_rng(0).standard_normal((4, 3))
Q = X @ X.T / 3
D = np.diag(Q)


def close(found: object, wanted: object, rtol: float = 1e-10) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=rtol * float(np.abs(np.asarray(wanted)).max()))


def relu_kernel() -> tuple[np.ndarray, np.ndarray]:
    """E[relu relu'] and E[step step'] (Cho and Saul 2009)."""
    sides = D[:, None], D[None], Q
    return duals.relu.value(*sides), duals.relu.slope(*sides)


# ------------------------------------------------------------------------------------------ averages


def test_a_stopped_average() -> None:
    """m stop(m) moves half as fast as m^2."""

    def average(stop: Callable) -> tp.Kernel:
        return tp.compile(
            lambda x: (lambda m: m * stop(m))(jnp.mean(jax.scipy.special.erf(nn.dense(relu(nn.dense(x)))) ** 2)), X[0]
        )

    stopped, free = average(jax.lax.stop_gradient), average(lambda m: m)
    close(4 * stopped(X).ntk, free(X).ntk)
    close(stopped(X).nngp, free(X).nngp)


# ------------------------------------------------------------------------------------------ symmetric weights


@pytest.mark.parametrize("method", ["tangent", "adjoint"])
def test_a_symmetric_weight_at_a_rate_of_its_own(method: str) -> None:
    """A covariance that turns out to be zero, E[u Zhat^{W erf(W u)}], in the midst of an expectation; rates scale the weight's part."""

    def net(x: jax.Array, rate: float) -> jax.Array:
        w, h = nn.symmetric(nn.width(), tangent_std=rate, name="w") / jnp.sqrt(nn.width()), nn.dense(x)
        return nn.dense(w @ jax.scipy.special.erf(w @ h) + h, features=1)

    one, half = (tp.compile(lambda x, r=rate: net(x, r), X[0], method=method) for rate in (1.0, 0.5))
    # W e is Zhat + E[slope] h, and so h (1 + E[slope]) + Zhat; Cov(erf, erf') of a Gaussian of covariance Q
    slope = 2 / np.sqrt(np.pi * (1 + 2 * D))
    arcs = 2 / np.pi * np.arcsin(2 * Q / np.sqrt(np.outer(1 + 2 * D, 1 + 2 * D)))
    nngp, ntk = uncompiled(one, X)
    close(nngp, arcs + np.outer(1 + slope, 1 + slope) * Q)
    parts, others = one.by_parameter(X), half.by_parameter(X)
    close(others["w"], parts["w"] / 4)
    close(others["dense_0.weight"], parts["dense_0.weight"])
    close(sum(parts.values()), ntk)


# ------------------------------------------------------------------------------------------ tied readouts


def cubic(x: jax.Array) -> jax.Array:
    """v.(v^2 relu(h)) / sqrt(n)."""
    v = nn.weight((nn.width(),), name="v")
    return (v @ (v**2 * relu(nn.dense(x, name="in"))) / jnp.sqrt(nn.width()))[None]


def test_a_readout_that_is_odd_in_its_weight() -> None:
    """E v^6 = 15; the derivative in v is 3 v^2 relu, in h it is v^3 step."""
    value, step = relu_kernel()
    kernel = tp.compile(cubic, X[0])
    assert kernel.method == "adjoint" and "'v' is used in two ways" in kernel.method_reason
    found, parts = uncompiled(kernel, X), kernel.by_parameter(X)
    close(found.nngp, 15 * value)
    close(parts["v"], 9 * 3 * value)
    close(parts["in.weight"], 15 * step * Q)
    close(found.ntk, parts["v"] + parts["in.weight"])
    close(kernel.diag(X).ntk, np.diag(found.ntk))


def test_a_tied_readout_beside_a_free_one() -> None:
    """Independent parts, whose kernels add up; a bias of the output adds its variance."""

    def net(x: jax.Array) -> jax.Array:
        return cubic(x) + nn.dense(relu(nn.dense(x, name="other")), features=1, bias_var=0.3)

    value, step = relu_kernel()
    found = uncompiled(tp.compile(net, X[0]), X)
    close(found.nngp, 16 * value + 0.3)
    close(found.ntk, 28 * value + 16 * step * Q + 0.3)


@pytest.mark.slow
def test_tied_readouts_beside_others(tmp_path: Path) -> None:
    """v.(v^2 relu) and v.relu: E v^4 = 3 between them, and E[3 v^2] and E[v^3 v] in their gradients; E[v^4 cos v] = -2/sqrt(e) with
    v.(cos(v) relu); a readout of weights that nothing else is made of has no part in the tied one."""

    def net(x: jax.Array) -> dict[str, jax.Array]:
        v, u, h = nn.weight((nn.width(),), name="v"), nn.weight((nn.width(),), name="u"), relu(nn.dense(x, name="in"))
        scale = jnp.sqrt(nn.width())
        return {
            "cubic": v @ (v**2 * h) / scale, "plain": v @ h / scale, "own": nn.dense(h, features=1)[0], "mixed": u @ h / scale
            + v @ (jnp.cos(v) * h) / scale, "other": u @ (v * h) / scale, "mean": jnp.mean(v * h),
        }  # fmt: skip

    value, step = relu_kernel()
    kernel = tp.joint(net, X[0])
    k, parts = kernel(X), kernel.by_parameter(X)
    close(k.nngp["cubic"]["cubic"], 15 * value)
    close(k.nngp["cubic"]["plain"], 3 * value)
    close(k.nngp["plain"]["plain"], value)
    close(k.ntk["cubic"]["plain"], 3 * value + 3 * step * Q)
    close(parts["v"]["cubic"]["plain"], 3 * value)
    close(k.ntk["plain"]["mean"], value + step * Q)
    close(k.ntk["cubic"]["mean"], 3 * value + 3 * step * Q)
    close(k.nngp["cubic"]["mixed"], -2 * np.exp(-0.5) * value)
    close(k.nngp["mixed"]["other"], np.zeros((4, 4)))
    for name in ("cubic", "plain", "mixed"):
        for matrices in k:
            assert not np.any(matrices[name]["own"])
    close(sum(part["mixed"]["cubic"] for part in parts.values()), k.ntk["mixed"]["cubic"])
    close(
        k.ntk["mixed"]["cubic"], -np.exp(-0.5) * (6 * value + 2 * step * Q)
    )  # E[3 v^2 (cos v - v sin v)] = -6/sqrt(e)
    kernel.export(tmp_path / "tied.tpk", platforms=("cpu",))
    again = tp.load(tmp_path / "tied.tpk")(X)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(k), strict=True):
        close(a, b)


def test_readouts_that_read_each_other() -> None:
    """v.(u h) and u.(v relu(h)) share v^2 u^2: E[h relu'] between them, and three parts in their gradients, of v, u and h, each like it; the
    readouts by themselves are untied."""

    def net(x: jax.Array) -> dict[str, jax.Array]:
        v, u, h = nn.weight((nn.width(),), name="v"), nn.weight((nn.width(),), name="u"), nn.dense(x, name="in")
        return {"f": v @ (u * h) / jnp.sqrt(nn.width()), "g": u @ (v * relu(h)) / jnp.sqrt(nn.width())}

    value, step = relu_kernel()
    k = tp.joint(net, X[0])(X)
    close(k.nngp["f"]["g"], Q / 2)
    close(k.ntk["f"]["f"], 3 * Q)
    close(k.ntk["f"]["g"], 3 * Q / 2)
    close(k.ntk["g"]["g"], 2 * value + step * Q)
    whole = tp.compile(lambda x: sum(net(x).values())[None], X[0])
    assert whole.method == "adjoint"
    for found, blocks in zip(whole(X), k, strict=True):
        close(found, sum(block for row in blocks.values() for block in row.values()))


def autoencoder(x: jax.Array) -> jax.Array:
    """W' cos(W x) / sqrt(n), with outputs that depend on each other."""
    w = nn.weight((nn.width(), 3))
    return jnp.cos(w @ x) @ w / jnp.sqrt(nn.width())


def test_an_autoencoder_with_tied_weights() -> None:
    """From E e^{i w.s} = e^{-|s|^2/2}, and the Jacobian d u_k / d w_j = cos delta_kj - sin w_k x_j of one neuron."""
    x = 0.7 * X
    plus, minus = x[:, None] + x[None], x[:, None] - x[None]
    damped = lambda s: np.exp(-np.sum(s**2, -1) / 2)
    second = lambda s: (np.eye(3) - s[..., :, None] * s[..., None, :]) * damped(s)[..., None, None]  # E[w w' cos(w.s)]
    first = lambda s: s * damped(s)[..., None]  # E[w sin(w.s)]
    cosines = (damped(plus) + damped(minus)) / 2
    turned = (first(plus) - first(minus)) / 2  # E[cos(w.x) sin(w.x') w]
    swapped = (first(plus) + first(minus)) / 2  # E[sin(w.x) cos(w.x') w]
    inner = (x @ x.T)[..., None, None] * (second(minus) - second(plus)) / 2
    mixed = x[None, :, :, None] * turned[:, :, None, :] + swapped[:, :, :, None] * x[:, None, None, :]
    found = uncompiled(tp.compile(autoencoder, x[0]), x)
    close(found.nngp, (second(plus) + second(minus)) / 2)
    close(found.ntk, cosines[..., None, None] * np.eye(3) - mixed + inner)


def test_tied_readouts_without_a_limit() -> None:
    def mixed(x: jax.Array) -> jax.Array:
        v, w = nn.weight((nn.width(),)), nn.weight((nn.width(), nn.width())) / jnp.sqrt(nn.width())
        return (v @ (jnp.abs(v) * jnp.tanh(w @ (v * nn.dense(x)))) / jnp.sqrt(nn.width()))[None]

    def grows(x: jax.Array) -> jax.Array:
        v = nn.weight((nn.width(),))
        return (v @ jnp.tanh(nn.dense(x) + v) / jnp.sqrt(nn.width()))[None]

    for net in (mixed, grows):
        for method in ("auto", "adjoint"):
            with pytest.raises(tp.UnsupportedError, match=r"used in two ways(.|\n)*adjoint program would, but"):
                tp.compile(net, X[0], method=method)
    with pytest.raises(tp.UnsupportedError, match="used in two ways"):
        tp.compile(cubic, X[0], method="tangent")


# ------------------------------------------------------------------------------------------ autoencoders


def test_jointly_trained_autoencoder() -> None:
    """u = A relu(W x) / sqrt(n d): K = x.x' E[step step'] / d of the encoder and G = E[relu relu'] / d of the decoder (Nguyen, Wong
    and Hegde 2021, kernels of the weakly and the jointly trained network), for each entry of the output by itself."""

    def net(x: jax.Array) -> jax.Array:
        n, d = nn.width(), x.shape[0]
        return nn.weight((d, n), name="A") @ relu(nn.weight((n, d), name="W") @ x) / jnp.sqrt(n * d)

    norm = np.linalg.norm(X, axis=1)
    angle = np.arccos(np.clip(X @ X.T / norm[:, None] / norm, -1, 1))
    encoder = X @ X.T * (np.pi - angle) / (2 * np.pi) / 3
    decoder = norm[:, None] * norm * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi) / 3
    for method in ("tangent", "adjoint"):
        parts = tp.compile(net, X[0], method=method).by_parameter(X)
        close(parts["W"], encoder, 1e-7)  # arccos near 1 keeps half the digits, on the diagonal
        close(parts["A"], decoder, 1e-10)


# ------------------------------------------------------------------------------------------ the method


def average(x: jax.Array) -> jax.Array:
    return jnp.mean(relu(nn.dense(relu(nn.dense(x)), name="top")))


def test_names_and_reasons() -> None:
    plain = lambda x: nn.dense(relu(nn.dense(x)), features=1)
    assert tp.compile(plain, X[0]).method == "tangent"
    assert tp.compile(lambda x: jnp.mean(relu(nn.dense(x))), X[0]).method == "tangent"
    asked = tp.compile(plain, X[0], method="adjoint")
    assert asked.method_reason == "asked for" and asked.ntk_power == 0
    kernel = tp.compile(average, X[0])
    assert "'top.weight' mixes coordinates" in kernel.method_reason
    page = kernel.derivation()
    assert f"that of the adjoint program: {kernel.method_reason}" in page and "| $W^{\\text{top.weight}}$ |" in page
    assert kernel.gradients is not None and len(kernel.gradients.uses) == 2
    with pytest.raises(tp.InputError, match="method is 'backprop', expected one of 'auto', 'tangent', 'adjoint'"):
        tp.compile(plain, X[0], method="backprop")
    with pytest.raises(tp.UnsupportedError, match="mixes coordinates"):
        tp.compile(average, X[0], method="tangent")


def test_one_hidden_layer_both_ways() -> None:
    """An average whose coordinates move independently."""
    net = lambda x: nn.weight((nn.width(),)) @ jax.scipy.special.erf(nn.dense(x)) / nn.width()
    first, second = (uncompiled(tp.compile(net, X[0], method=m), X).ntk for m in ("tangent", "adjoint"))
    close(second, first, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("net", [average, cubic])
def test_export(net: Callable, tmp_path: Path) -> None:
    kernel = tp.compile(net, X[0])
    kernel.export(tmp_path / "net.tpk", platforms=("cpu",))
    loaded = tp.load(tmp_path / "net.tpk")
    again = loaded.recompile()
    assert loaded.method == again.method == "adjoint" and loaded.source == "serialised"
    for found in (loaded(X), again(X)):
        for a, b in zip(found, kernel(X), strict=True):
            close(a, b, 1e-14)


def test_gradients_of_averages_that_vanish_in_the_limit() -> None:
    """The mean of a Gaussian layer is zero, its gradient is not: dh = W' 1 is a Gaussian of variance one."""
    kernel = tp.compile(lambda x: jnp.mean(nn.dense(relu(nn.dense(x, name="in")), name="top")), X[0])
    value, step = relu_kernel()
    nngp, ntk = uncompiled(kernel, X)
    assert not np.any(nngp)
    close(ntk, value + step * Q)


def test_what_no_gradient_goes_through() -> None:
    def ranked(x: jax.Array) -> jax.Array:
        order = jnp.sort(jnp.mean(relu(nn.dense(x)), axis=-1))
        return jnp.mean(relu(nn.dense(x) * order[:, None]))

    with pytest.raises(tp.UnsupportedError, match="a gradient through sort, of averages over the width"):
        tp.compile(ranked, np.zeros((2, 3)))


def test_six_tied_readouts_of_which_three_change_their_signs() -> None:
    """f = sum over three pairs of v.(w h) + w.(v g), of the covariance 3 E[(h + g)^2]: odd in one of each pair, not in all.

    Its gradients are v (h + g) and w (h + g) in w and v, and sum v w times x in the layers of h and g.
    """

    def net(x: jax.Array) -> jax.Array:
        v, h, g = [nn.weight((nn.width(),)) for _ in range(6)], nn.dense(x), nn.dense(x)
        return sum(v[i] @ (v[i + 1] * h) + v[i + 1] @ (v[i] * g) for i in (0, 2, 4)) / jnp.sqrt(nn.width())

    kernel = tp.compile(net, X[0])
    assert kernel.method == "adjoint"
    nngp, ntk = uncompiled(kernel, X)
    close(nngp, 6 * Q)
    close(ntk, 18 * Q)
