"""Several outputs of every kind against sampled networks of growing width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tests import sampling
from tests.test_joint import X, close, readout, relu

pytestmark = pytest.mark.slow


class Sampled:
    """Finite networks with several readouts: the joint matrices over outputs and inputs."""

    def __init__(self, net, inputs: np.ndarray):  # type: ignore[no-untyped-def]
        self.net, self.x = net, jnp.asarray(inputs, jnp.float32)

    def init(self, width: int, key: jax.Array) -> tp.Network:
        return tp.init(self.net, self.x[0], width, key)

    def kernels(self, width: int, params: dict) -> tuple[jax.Array, jax.Array]:
        values = lambda p: jnp.stack(
            [jnp.stack(self.net_values(p, x)) for x in self.x], 1
        )  # (outputs, inputs, features)
        f = values(params)
        f = f.reshape(-1, f.shape[-1])
        jacobian = jax.jacrev(lambda p: values(p)[..., 0].reshape(-1))(params)
        flat = [g.reshape(len(f), -1) for g in jax.tree.leaves(jacobian)]
        return f @ f.T / f.shape[-1], sum(g @ g.T for g in flat)

    def net_values(self, params: dict, x: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(tp.apply(self.net, params, x))


def joint_matrix(tree: dict) -> np.ndarray:
    return np.block([[np.asarray(k) for k in row.values()] for row in tree.values()])


def two_depths(x: jax.Array) -> dict[str, jax.Array]:
    n = nn.width()
    w = nn.weight((n, n)) / jnp.sqrt(n)
    h = nn.dense(x, weight_var=2.0)
    g = h + nn.dense(relu(h))
    return {"first": w @ relu(h), "second": w @ jnp.tanh(g), "third": w @ relu(g)}


def two_depths_limit(x: jax.Array) -> dict[str, jax.Array]:
    """The same with one feature: at finite width there are n, for the sake of the mean over them."""
    w = readout()
    h = nn.dense(x, weight_var=2.0)
    g = h + nn.dense(relu(h))
    return {"first": w @ relu(h), "second": w @ jnp.tanh(g), "third": w @ relu(g)}


def test_sampled_readouts() -> None:
    x = X[:2].astype(np.float32)
    k = tp.joint(two_depths_limit, x[0])(x.astype(float))
    limit = joint_matrix(k.nngp), joint_matrix(k.ntk)
    sampling.check(Sampled(two_depths, x), limit, (24, 48, 96), (6000, 4000, 2000), resolution=0.03)  # type: ignore[arg-type]


class SampledTied(Sampled):
    """A tied embedding: one draw has three outputs only."""

    def kernels(self, width: int, params: dict) -> tuple[jax.Array, jax.Array]:
        f = jnp.stack([tp.apply(self.net, params, x) for x in self.x])
        jacobian = jax.jacrev(lambda p: jnp.stack([tp.apply(self.net, p, x)[0] for x in self.x]))(params)
        flat = [g.reshape(len(f), -1) for g in jax.tree.leaves(jacobian)]
        ntk = sum(g @ g.T for g in flat)
        return ntk, ntk


def tied_embedding(x: jax.Array) -> jax.Array:
    n = nn.width()
    u = nn.weight((n, 3))
    return relu(nn.dense(relu(u @ x), weight_var=2.0)) @ u / jnp.sqrt(n)


def test_sampled_tied_embedding() -> None:
    x = X[:2].astype(np.float32)
    k = tp.compile(tied_embedding, x[0])(x.astype(float))
    limit = np.asarray(k.ntk), np.asarray(k.ntk)
    sampling.check(SampledTied(tied_embedding, x), limit, (32, 64, 128), (8000, 4000, 2000), resolution=0.03)  # type: ignore[arg-type]


class SampledAverages(Sampled):
    """Averages over the width: products of values, and n times the products of gradients."""

    def kernels(self, width: int, params: dict) -> tuple[jax.Array, jax.Array]:
        values = lambda p: jnp.stack([jnp.stack(self.net_values(p, x)) for x in self.x], 1).reshape(-1)
        f = values(params)
        flat = [g.reshape(len(f), -1) for g in jax.tree.leaves(jax.jacrev(values)(params))]
        return jnp.outer(f, f), width * sum(g @ g.T for g in flat)


def averages(x: jax.Array) -> dict[str, jax.Array]:
    u = nn.dense(x)
    return {"a": nn.weight((nn.width(),)) @ jnp.tanh(u) / nn.width(), "b": jnp.mean(relu(u)), "c": jnp.mean(u)}


def test_sampled_averages() -> None:
    x = X[:2].astype(np.float32)
    k = tp.joint(averages, x[0])(x.astype(float))
    limit = joint_matrix(k.nngp), joint_matrix(k.ntk)
    sampling.check(SampledAverages(averages, x), limit, (32, 64, 128), (3000, 2000, 1000), resolution=0.03)  # type: ignore[arg-type]


class SampledBoth(Sampled):
    """A readout and averages: products of gradients, times sqrt(n) for each average."""

    def kernels(self, width: int, params: dict) -> tuple[jax.Array, jax.Array]:
        names = sorted(tp.apply(self.net, params, self.x[0]))
        scale = jnp.repeat(jnp.asarray([1.0 if name == "f" else width**0.5 for name in names]), len(self.x))
        values = lambda p: jnp.stack([jnp.stack(self.net_values(p, x)) for x in self.x], 1).reshape(-1)
        flat = [g.reshape(len(scale), -1) for g in jax.tree.leaves(jax.jacrev(values)(params))]
        ntk = scale[:, None] * scale * sum(g @ g.T for g in flat)
        return ntk, ntk


def readout_and_averages(x: jax.Array) -> dict[str, jax.Array]:
    """The readout's weight meets the transpose of a matrix, beside a deep readout: Zdots on the way back."""
    n = nn.width()
    v, w = nn.weight((n,)), nn.weight((n, n)) / jnp.sqrt(n)
    u = nn.dense(x)
    h = relu(w @ u)
    return {"f": v @ h / jnp.sqrt(n), "m": jnp.mean((w.T @ (v * h)) * u), "s": v @ jnp.abs(u) / n}


def test_sampled_readout_and_averages() -> None:
    x = X[:2].astype(np.float32)
    k = tp.joint(readout_and_averages, x[0])(x.astype(float)).ntk
    limit = joint_matrix(k)
    assert np.all(np.abs(limit[:2, 2:]) > 0.01)
    draws = SampledBoth(readout_and_averages, x)
    sampling.check(draws, (limit, limit), (32, 64, 128), (8000, 4000, 2000), resolution=0.03)  # type: ignore[arg-type]


class SampledTiedOutputs(Sampled):
    """Readouts of which one draw has one value each: tangent kernels alone."""

    def kernels(self, width: int, params: dict) -> tuple[jax.Array, jax.Array]:
        values = lambda p: jnp.stack([jnp.stack(self.net_values(p, x)) for x in self.x], 1).reshape(-1)
        f = values(params)
        flat = [g.reshape(len(f), -1) for g in jax.tree.leaves(jax.jacrev(values)(params))]
        ntk = sum(g @ g.T for g in flat)
        return ntk, ntk


def tied_readouts(x: jax.Array) -> dict[str, jax.Array]:
    """A weight read by two readouts, of which one is tied to it; below both, two layers that they share."""
    n = nn.width()
    v, u, h = nn.weight((n,)), nn.weight((n,)), nn.dense(x)
    g = jnp.cos(nn.dense(h))
    mixed = v @ (jnp.cos(v) * h) + u @ relu(h)
    return {
        k: f / jnp.sqrt(n) for k, f in {"a": mixed, "b": v @ g, "c": v @ (jnp.exp(-(v**2) / 2) * h), "d": u @ g}.items()
    }


def test_sampled_tied_readouts() -> None:
    x = X[:2].astype(np.float32)
    ntk = joint_matrix(tp.joint(tied_readouts, x[0])(x.astype(float)).ntk)
    draws = SampledTiedOutputs(tied_readouts, x)
    sampling.check(draws, (ntk, ntk), (32, 64, 128), (8000, 4000, 2000), resolution=0.03)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ slow to compile


def test_standard_errors_of_sampled_expectations() -> None:
    def net(x: jax.Array) -> dict[str, jax.Array]:
        h = jnp.tanh(jnp.mean(relu(nn.dense(x)), axis=0))
        return {"f": nn.dense(h, features=1), "h": h}

    x = np.random.default_rng(4).standard_normal((2, 5, 3))
    kernel = tp.joint(net, x[0], tolerance=1e-2)
    one = tp.compile(lambda x: net(x)["f"], x[0], tolerance=1e-2)
    close(kernel(x, get="nngp")["f"]["f"], one(x).nngp)
    found = kernel.standard_error(x, get="nngp")
    close(found["f"]["f"], one.standard_error(x).nngp)
    assert np.all(found["f"]["h"] == 0) and np.all(found["h"]["h"] > 0)


def test_by_parameter_of_a_weight_used_at_every_step() -> None:
    def net(x: jax.Array) -> jax.Array:
        n = nn.width()
        w, u = nn.weight((n, n)) / jnp.sqrt(n), nn.weight((n, 3))
        h = relu(u @ x[0])
        for t in range(1, 3):
            h = relu(w @ h + u @ x[t])
        return nn.dense(h, features=1)

    x = np.random.default_rng(2).standard_normal((3, 3, 3))
    kernel = tp.compile(net, x[0])
    close(sum(kernel.by_parameter(x).values()), kernel(x).ntk)


def many_averages(x: jax.Array) -> dict[str, jax.Array]:
    """Averages over positions too, nonlinear functions of averages, several features, a flattened layer, a width of 2 n."""
    n, h = nn.width(), relu(nn.dense(x, width=2.0, bias_var=0.3))
    return {
        "all": jnp.mean(h),
        "positions": jnp.mean(h**2, axis=1),
        "nonlinear": jnp.mean(h * h) ** 2 + jnp.exp(jnp.mean(h)),
        "features": jnp.einsum("oi,pi->po", nn.weight((2, h.shape[1])), h) / n,
        "flattened": nn.weight((h.size,)) @ h.reshape(-1) / n,
        "readout": 3 * nn.weight((h.shape[1],)) @ h[0] / h.shape[1],
    }


def test_averages_of_every_form() -> None:
    x = np.random.default_rng(5).standard_normal((2, 4, 3))
    kernel, width, draws = tp.joint(many_averages, x[0]), 500, 30
    values = lambda p: jnp.concatenate(
        [leaf.ravel() for y in x for leaf in jax.tree.leaves(tp.apply(many_averages, p, y))]
    )

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        p = tp.init(many_averages, x[0], width, key)
        flat = [g.reshape(g.shape[0], -1) for g in jax.tree.leaves(jax.jacrev(values)(p))]
        return values(p), width * sum(g @ g.T for g in flat)

    mean, ntk = (jnp.mean(k, 0) for k in jax.lax.map(jax.jit(one), jax.random.split(jax.random.key(0), draws)))
    flat = jax.tree.map(lambda m: m.reshape(2, -1), kernel.mean(x))
    np.testing.assert_allclose(mean, jnp.concatenate(jax.tree.leaves(flat), 1).ravel(), atol=6 / np.sqrt(width * draws))
    found, sizes = kernel(x).ntk, {name: leaf.shape[1] for name, leaf in flat.items()}
    rows = [[found[a][b].reshape(2, 2, sizes[a], sizes[b]) for b in sizes] for a in sizes]
    whole = jnp.concatenate([jnp.concatenate(row, 3) for row in rows], 2).transpose(0, 2, 1, 3).reshape(mean.size, -1)
    scale = jnp.sqrt(jnp.diag(whole))
    np.testing.assert_allclose(
        ntk / jnp.outer(scale, scale), whole / jnp.outer(scale, scale), atol=6 / np.sqrt(width * draws)
    )
