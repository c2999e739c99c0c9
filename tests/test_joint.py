"""Several outputs of every kind: kernels by hand, and sampled networks of growing width."""

from __future__ import annotations

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


def close(found: object, wanted: object) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10 * max(1e-3, float(np.abs(wanted).max())))


def relu_kernel(k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[relu relu'] and E[step step'] (Cho and Saul 2009)."""
    q = np.diag(k)
    return duals.relu.value(q[:, None], q[None], k), duals.relu.slope(q[:, None], q[None], k)


def readout(features: int | None = None) -> jax.Array:
    """A readout over sqrt(n): one vector, or several in rows."""
    n = nn.width()
    return nn.weight((n,) if features is None else (features, n)) / jnp.sqrt(n)


# ------------------------------------------------------------------------------------------ readouts


def test_one_readout_at_two_depths() -> None:
    def net(x: jax.Array) -> dict[str, jax.Array]:
        w, h = readout(), relu(nn.dense(x))
        return {"first": w @ h, "second": w @ relu(nn.dense(h)), "other": nn.dense(h, features=2)}

    k = tp.joint(net, X[0])(X)
    first, step1 = relu_kernel(Q)
    second, step2 = relu_kernel(first)
    close(k.nngp["first"]["first"], first)
    close(k.nngp["second"]["second"], second)
    # functions of two layers' Gaussians, which are independent: E[relu] = sqrt(q / 2 pi)
    means = np.sqrt(D / 2 / np.pi)[:, None] * np.sqrt(np.diag(first) / 2 / np.pi)
    for kernels in k:  # of the tangents only that of the shared readout meets another
        close(kernels["first"]["second"], means)
        close(kernels["second"]["first"], means.T)
        assert not np.any(kernels["first"]["other"]) and not np.any(kernels["other"]["second"])
    theta = first + step1 * Q
    close(k.ntk["first"]["first"], theta)
    close(k.ntk["second"]["second"], second + step2 * theta)
    close(k.ntk["other"]["other"], theta)


def test_two_networks_that_share_weights() -> None:
    """sin and cos of one layer: E[sin u cos u'] = 0 and E[sin u sin u'] = exp(-(q + q') / 2) sinh c; with the rates 4 and 0."""
    net = tp.Network(
        init=lambda n: {"W": tp.Gaussian((n, 3), tangent_std=2.0), "v": tp.Gaussian((n,), tangent_std=0.0)},
        apply=lambda p, x: (
            p["v"] @ jnp.sin(p["W"] @ x[0]),
            p["v"] @ jnp.sin(2 * (p["W"] @ x[1])),
            p["v"] @ jnp.cos(p["W"] @ x[0]),
        ),
    )
    scaled = tp.Network(net.init, lambda p, x: jax.tree.map(lambda f: f / jnp.sqrt(p["v"].size), net.apply(p, x)))
    kernel = tp.joint(scaled, (X[0], X[0]))
    k = uncompiled(kernel, (X, X[::-1]))
    c, q, r = 2 * X @ X[::-1].T, np.sum(X**2, 1), 4 * np.sum(X[::-1] ** 2, 1)
    decay = np.exp(-(q[:, None] + r[None]) / 2)
    close(k.nngp[0][1], decay * np.sinh(c))
    close(k.nngp[1][0], (decay * np.sinh(c)).T)
    close(k.nngp[0][2], np.zeros((4, 4)))
    close(k.ntk[0][1], 4 * c * decay * np.cosh(c))
    assert list(kernel.by_parameter((X, X))) == ["W"]


def test_features_that_are_copies_are_given_once() -> None:
    def net(x: jax.Array) -> dict[str, jax.Array]:
        w, h = readout(5), relu(nn.dense(x))
        both = {"a": w @ h, "b": w @ relu(nn.dense(h)), "c": nn.dense(h, features=2)}
        return both | {"d": jnp.stack([both["c"], nn.dense(h, features=2)])}

    kernel = tp.joint(net, X[0])
    assert [part.shape for part in kernel.outputs] == [(), (), (), (2,)]
    assert uncompiled(kernel, X, X[:2]).nngp["a"]["d"].shape == (4, 2, 2)
    first, _ = relu_kernel(Q)
    close(uncompiled(kernel, X).nngp["c"]["d"], first[..., None] * np.array([1.0, 0.0]))


def test_features_in_another_order_are_not_copies() -> None:
    def net(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        w, h = readout(3), relu(nn.dense(x))
        return w @ h, (w @ h)[::-1], (w @ h).sum()

    first, _ = relu_kernel(Q)
    k = uncompiled(tp.joint(net, X[0]), X)
    close(k.nngp[0][0], np.einsum("ij,ab->ijab", first, np.eye(3)))
    close(k.nngp[0][1], np.einsum("ij,ab->ijab", first, np.eye(3)[::-1]))
    close(k.nngp[0][2], np.einsum("ij,a->ija", first, np.ones(3)))
    close(k.nngp[2][1], np.einsum("ij,a->ija", first, np.ones(3)))
    close(k.ntk[2][2], 3 * uncompiled(tp.compile(lambda x: net(x)[0][:1], X[0]), X).ntk)


# ------------------------------------------------------------------------------------------ hidden layers


def test_hidden_layers() -> None:
    def net(x: jax.Array) -> dict[str, jax.Array]:
        u = nn.dense(x)
        h = relu(u)
        return {"u": u, "h": h, "g": h + nn.dense(h, weight_var=2.0), "f": nn.dense(h, features=1)}

    kernel = tp.joint(net, X[0])
    k = uncompiled(kernel, X)
    first, step = relu_kernel(Q)
    half = Q / 2  # E[u relu(u')] = q / 2 by Stein's lemma
    close(k.nngp["u"]["u"], Q)
    close(k.nngp["u"]["h"], half)
    close(k.nngp["h"]["g"], first)
    close(k.nngp["g"]["g"], 3 * first)
    close(k.ntk["u"]["u"], Q)
    close(k.ntk["u"]["h"], Q * 0.5)  # E[step] Theta
    close(k.ntk["h"]["g"], step * Q)
    close(k.ntk["g"]["g"], step * Q + 2 * (first + step * Q))
    assert not np.any(k.nngp["f"]["h"]) and not np.any(k.ntk["f"]["h"])
    means = kernel.mean(X)
    close(means["h"], np.sqrt(D / 2 / np.pi))
    close(means["g"], np.sqrt(D / 2 / np.pi))
    assert not np.any(means["u"]) and not np.any(means["f"])


def tower(x: jax.Array) -> list[jax.Array]:
    """Two positions, a weight and its transpose, a layer of another width."""
    n = nn.width()
    w = nn.weight((n, n)) / jnp.sqrt(n)
    h = nn.dense(x.reshape(2, -1), bias_var=0.3)
    back = relu(h @ w) @ w.T + h
    return [back, relu(nn.dense(back, width=2))]


def test_both_programs_of_hidden_layers() -> None:
    x = np.random.default_rng(3).standard_normal((2, 4))
    one, other = (tp.joint(tower, x[0], method=method) for method in ("tangent", "adjoint"))
    assert [p.method for p in other.outputs] == ["adjoint"] * 2 and "asked for" in other.outputs[0].method_reason
    for a, b in zip(uncompiled(one, x).ntk, uncompiled(other, x).ntk, strict=True):
        for u, v in zip(a, b, strict=True):
            np.testing.assert_allclose(u, v, rtol=0, atol=1e-12)
    assert "readout of a neuron" in other.derivation()


def test_positions_of_a_hidden_layer() -> None:
    kernel = tp.joint(lambda x: nn.dense(x), np.zeros((5, 3)))
    x = np.random.default_rng(1).standard_normal((2, 5, 3))
    close(kernel(x).nngp, np.einsum("isa,jta->ijst", x, x) / 3)
    close(kernel.diag(x).ntk, np.einsum("isa,ita->ist", x, x) / 3)


# ------------------------------------------------------------------------------------------ averages


def mean_field(x: jax.Array) -> jax.Array:
    return nn.weight((nn.width(),)) @ relu(nn.dense(x)) / nn.width()


def test_mean_field_network() -> None:
    """(1/n) a.relu(Wx) converges to zero; n times its NTK is that of the same network over sqrt(n)."""
    kernel = tp.joint(mean_field, X[0])
    first, step = relu_kernel(Q)
    assert kernel.outputs[0].kind == "average" and kernel.outputs[0].ntk_power == 1
    close(uncompiled(kernel, X).ntk, first + step * Q)
    assert not np.any(kernel.mean(X)) and not np.any(uncompiled(kernel, X).nngp)


def test_averages() -> None:
    def net(x: jax.Array) -> dict[str, jax.Array]:
        u = nn.dense(x)
        h = relu(nn.dense(relu(u), train=False))
        return {
            "u": jnp.mean(u),
            "relu": 2 * jnp.mean(relu(u)) + 1,
            "square": jnp.mean(relu(u)) ** 2,
            "deep": jnp.mean(h),
        }

    kernel = tp.joint(net, X[0])
    first, step = relu_kernel(Q)
    mean = 2 * np.sqrt(D / 2 / np.pi) + 1
    deep = np.sqrt(np.diag(first) / 2 / np.pi)
    found = kernel.mean(X)
    close(found["relu"], mean)
    close(found["deep"], deep)
    nngp, ntk = uncompiled(kernel, X)
    close(nngp["relu"]["deep"], mean[:, None] * deep)
    assert [part.method for part in kernel.outputs] == [
        "adjoint",
        "tangent",
        "tangent",
        "tangent",
    ]  # deep, relu, square, u
    with pytest.raises(tp.UnsupportedError, match=r"average 'output'.*\n.*'dense_1.weight' mixes.*\n.*'adjoint'"):
        tp.joint(net, X[0], method="tangent")
    # d deep / du = step(u) (g + c relu(u)), with the gradient of the layer above, whose mean slope delta(h) is c
    second = relu_kernel(first)[1]
    c = 1 / np.sqrt(2 * np.pi * np.diag(first))
    close(ntk["deep"]["deep"], (second * step + c[:, None] * c * first) * Q)
    close(ntk["deep"]["u"], c[:, None] * Q * np.sqrt(D / 2 / np.pi)[:, None])
    close(ntk["u"]["u"], Q)
    close(ntk["relu"]["relu"], 4 * step * Q)
    close(ntk["relu"]["u"], Q)  # 2 E[step] = 1
    half = (mean - 1) / 2
    close(ntk["square"]["square"], 4 * half[:, None] * half * step * Q)  # 2 m dm
    close(found["square"], half**2)


def test_a_readout_and_averages_that_read_its_weight() -> None:
    """sqrt(n) times the product of gradients: of v.relu / sqrt(n) with itself over sqrt(n), with (1/n) v.u and (1/n) v^2 u: E v^2 = 1,
    E v^3 = 0; a frozen readout leaves the part of the layer below; a weight that the average does not read leaves nothing."""

    def net(x: jax.Array, train: bool = True) -> dict[str, jax.Array]:
        n = nn.width()
        v, u, w = nn.weight((n,), train=train, name="v"), nn.dense(x), nn.weight((n,))
        return {
            "f": v @ relu(u) / jnp.sqrt(n), "g": v @ relu(u) / n, "line": jnp.mean(v * u), "even": jnp.mean(v**2 * u),
            "other": w @ relu(u) / n,
        }  # fmt: skip

    kernel = tp.joint(net, X[0])
    k, parts = uncompiled(kernel, X), kernel.by_parameter(X)
    first, step = relu_kernel(Q)
    close(k.ntk["f"]["g"], first + step * Q)
    close(k.ntk["g"]["f"], k.ntk["f"]["f"])
    close(k.ntk["f"]["line"], Q / 2 + Q / 2)  # E[relu(u) u'] by Stein's lemma, and E[v^2] E[step] x.x'
    close(parts["v"]["f"]["line"], Q / 2)
    close(k.ntk["line"]["f"], k.ntk["f"]["line"].T)
    assert not np.any(k.nngp["f"]["line"]) and not np.any(k.ntk["f"]["other"])
    np.testing.assert_allclose(k.ntk["f"]["even"], 0, atol=1e-15)
    frozen = uncompiled(tp.joint(lambda x: net(x, train=False), X[0]), X)
    close(frozen.ntk["f"]["line"], Q / 2)
    page = kernel.derivation()
    assert "The tangent kernel of f beside an average is a sum over parameters" in page and "= ?" not in page


def test_average_of_random_features() -> None:
    """Below the trained layer all is frozen: the coordinates move apart."""

    def net(x: jax.Array) -> jax.Array:
        h = relu(nn.dense(x, train=False))
        return jnp.mean(relu(nn.dense(h)))

    first, _ = relu_kernel(Q)
    close(uncompiled(tp.joint(net, X[0]), X).ntk, first * relu_kernel(first)[1])


def test_readout_tied_to_what_it_reads() -> None:
    """(1/n) u.relu(u x) -> x E[u^2; u x > 0] = x / 2 for a number x; d/du is 2 relu(u x), of second moment 2 x x' for one sign."""

    def net(x: jax.Array) -> jax.Array:
        u = nn.weight((nn.width(),))
        return u @ relu(u * x[0]) / nn.width()

    x = np.array([[0.3], [2.0], [-1.5]])
    kernel = tp.joint(net, x[0])
    close(kernel.mean(x), x[:, 0] / 2)
    same_sign = (x * x.T) > 0
    close(uncompiled(kernel, x).ntk, 2 * x * x.T * same_sign)


def test_tied_embedding() -> None:
    """A readout by the first layer's weight, with a wide weight between, has the kernels of an untied one."""

    def net(x: jax.Array, tied: bool) -> jax.Array:
        n = nn.width()
        u = nn.weight((n, 3))
        v = u if tied else nn.weight((n, 3))
        return relu(nn.dense(relu(u @ x), weight_var=2.0)) @ v / jnp.sqrt(n)

    first, step = relu_kernel(3 * Q)
    second, step2 = relu_kernel(2 * first)
    kernel = tp.compile(lambda x: net(x, True), X[0])
    k = uncompiled(kernel, X)
    close(k.nngp, second)
    close(k.ntk, second + step2 * (2 * first + 2 * step * 3 * Q))
    close(k.ntk, uncompiled(tp.compile(lambda x: net(x, False), X[0]), X).ntk)
    parts = kernel.by_parameter(X)
    close(parts["weight_0"], second + step2 * 2 * step * 3 * Q)


# ------------------------------------------------------------------------------------------ parameters


def test_by_parameter() -> None:
    def net(x: jax.Array) -> jax.Array:
        h = relu(nn.dense(x, bias_var=0.25, name="one"))
        return nn.dense(relu(nn.dense(h, train=False, name="two")), features=2, name="three")

    kernel = tp.compile(net, X[0])
    first, step = relu_kernel(Q + 0.25)
    second, step2 = relu_kernel(first)
    parts = kernel.by_parameter(X, X[:3])
    assert set(parts) == {"one.weight", "one.bias", "three.weight"}
    close(parts["three.weight"], second[:, :3])
    close(parts["one.weight"], (step2 * step * Q)[:, :3])
    close(parts["one.bias"], (step2 * step * 0.25)[:, :3])
    close(sum(parts.values()), kernel(X, X[:3]).ntk)


def test_rates_of_parameters() -> None:
    def net(x: jax.Array) -> jax.Array:
        n = nn.width()
        h = relu(
            nn.weight((n, 3), tangent_std=2.0, name="a") @ x / np.sqrt(3)
            + nn.bias((n,), std=0.5, tangent_std=3.0, name="b")
        )
        return nn.weight((1, n), train=False, name="c") @ h / jnp.sqrt(n)

    _, step = relu_kernel(Q + 0.25)
    parts = tp.compile(net, X[0]).by_parameter(X)
    assert set(parts) == {"a", "b"}
    close(parts["a"], 4 * step * Q)
    close(parts["b"], 9 * step)


def scaled_and_dropped(x: jax.Array) -> jax.Array:
    h = nn.dropout(relu(nn.dense(x, weight_var=tp.hyper("w", 2.0))), 0.3)
    return nn.dense(h, features=1)


def test_by_parameter_takes_hyperparameters_and_dropout() -> None:
    kernel = tp.compile(scaled_and_dropped, X[0])
    close(sum(kernel.by_parameter(X, w=1.5).values()), kernel(X, w=1.5).ntk)


@pytest.mark.long
def test_by_parameter_between_inputs_and_its_slopes() -> None:
    kernel = tp.compile(scaled_and_dropped, X[0])
    close(sum(kernel.by_parameter(X, X, w=1.5).values()), kernel(X, X, w=1.5).ntk)
    gradient = jax.grad(lambda w: kernel.by_parameter(X, w=w)["dense_0.weight"].sum())(1.5)
    close(gradient, (kernel.by_parameter(X, w=1.0)["dense_0.weight"]).sum())  # relu: linear in the variance


# ------------------------------------------------------------------------------------------ calling


def test_derivation() -> None:
    """Every output by name, every kernel, the Zdot of a transpose, gradients of averages beside tangents of readouts."""

    def net(x: jax.Array) -> dict[str, jax.Array]:
        w, h = nn.weight((nn.width(), nn.width())) / jnp.sqrt(nn.width()), nn.dense(x)
        back = w.T @ jnp.tanh(w @ h)
        return {"back": nn.dense(back, features=1), "deep": jnp.mean(relu(nn.dense(relu(h)))), "layer": relu(h)}

    kernel = tp.joint(net, X[0])
    page = kernel.derivation()
    assert page == kernel._repr_markdown_()
    for line in (
        "| back | gaussian | `()` | $h_{",
        "| deep | average | `()` | $s_{",
        "of the adjoint program: the tangent program does not hold",
        "The tangent kernel of deep is a sum over parameters",
        "$d$ gradients in them, times $n$, $t$ their tangents",
        "## Transposes",
        "_{\\text{back},\\text{layer}}(x,x') = 0$$",
    ):
        assert line in page, line
    assert page.count("\\mathrm{NNGP}_{") == page.count("\\mathrm{NTK}_{") == 6
    assert "= ?" not in page and "\\,?" not in page and "(?" not in page
    assert len(kernel.graph.blocks) == 18


def test_refusals() -> None:
    with pytest.raises(tp.NetworkError, match=r"output 'b' grows with the width n like n\^1/2"):
        tp.joint(lambda x: {"b": nn.weight((nn.width(),)) @ relu(nn.dense(x))}, X[0])
    with pytest.raises(tp.NetworkError, match=r"output 'c' is the input or a constant"):
        tp.joint(lambda x: {"a": nn.dense(x), "c": 2 * x}, X[0])
    with pytest.raises(tp.InputError, match="tolerance is 2"):
        tp.joint(lambda x: nn.dense(x), X[0], tolerance=2)
    with pytest.raises(tp.InputError, match="returns no array"):
        tp.joint(lambda x: {}, X[0])

    normed = tp.joint(lambda x: jnp.mean(relu(nn.layer_norm(nn.dense(x)))), X[0])
    close(normed.mean(X), np.full(4, np.sqrt(1 / 2 / np.pi)) * np.sqrt(D / (D + 1e-6)))


def test_average_of_normed_coordinates() -> None:
    """Back through a layer norm of scale s: du = (e - E e - v E[e v]) / s with v = u / s and e = step(u)."""
    kernel = tp.joint(lambda x: jnp.mean(relu(nn.layer_norm(nn.dense(x)))), X[0])
    _, step = relu_kernel(Q)
    s = np.sqrt(D + 1e-6)
    slope = np.sqrt(D / 2 / np.pi) / s  # E[e v]
    mixed = Q / np.sqrt(2 * np.pi * D)[:, None] / s * slope  # E[e v'] E[e' v']
    both = (step - 1 / 4 - mixed - mixed.T + slope[:, None] * slope * Q / s[:, None] / s) / s[:, None] / s
    close(uncompiled(kernel, X).ntk, both * Q)
    assert "another average over the width" in kernel.outputs[0].method_reason


def test_transposes() -> None:
    """The parts of one readout add up; of several, the kernel of their sum is the sum of all blocks."""
    from examples.transposes import autoencoder

    kernel, x = tp.compile(autoencoder, jnp.zeros(3)), jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)))
    parts = kernel.by_parameter(x)
    np.testing.assert_allclose(sum(parts.values()), uncompiled(kernel, x).ntk, rtol=1e-12)

    def several(a: jax.Array) -> dict[str, jax.Array]:
        n = nn.width()
        w, v = nn.weight((n, n)) / jnp.sqrt(n), nn.weight((1, n)) / jnp.sqrt(n)
        h = nn.dense(a)
        code = relu(w @ h)
        return {"code": v @ (w @ code), "back": v @ (w.T @ code), "own": nn.dense(w.T @ relu(w @ code), features=1)}

    both = uncompiled(tp.joint(several, jnp.zeros(3)), x)
    whole = uncompiled(tp.compile(lambda a: sum(several(a).values()), jnp.zeros(3)), x)
    for found, wanted in zip(both, whole, strict=True):
        close(sum(block for row in found.values() for block in row.values()), wanted)


def test_both_methods() -> None:
    """Between readouts that share a weight, of several entries, and averages that move coordinate by coordinate."""

    def net(x: jax.Array) -> dict[str, jax.Array]:
        w, h = readout(2), nn.dense(x)
        places = nn.dense(jnp.stack([relu(h), h]), features=1, name="out")[:, 0]
        return {"a": w @ relu(h), "b": w @ h, "p": places, "m": jnp.mean(relu(h)), "s": jnp.mean(relu(h)) ** 2}

    tangent, adjoint = (tp.joint(net, X[0], method=method) for method in ("tangent", "adjoint"))
    assert {part.method for part in adjoint.outputs} == {"adjoint"}
    first, second = uncompiled(tangent, X).ntk, uncompiled(adjoint, X).ntk
    for a in first:
        for b in first:
            close(second[a][b], first[a][b])


def test_a_tied_readout_beside_a_transpose_is_refused() -> None:
    """A transpose brings the readout's weight into what it is multiplied with."""

    def net(x: jax.Array) -> jax.Array:
        e, w = nn.weight((nn.width(), 3)), nn.weight((nn.width(), nn.width())) / jnp.sqrt(nn.width())
        return e.T @ (w.T @ jnp.tanh(w @ (e @ x))) / jnp.sqrt(nn.width())

    with pytest.raises(tp.UnsupportedError, match="used in two ways"):
        tp.compile(net, jnp.zeros(3))
