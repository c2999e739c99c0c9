"""Architectures as ordinary JAX functions: how each is written, and its kernels.

Every network here is a few lines over `tensorprog.nn`; nothing in the compiler knows any of them by name. A tolerance
marks those whose Gaussian expectations have no closed form in the end and are sampled.
Run `python examples/architectures.py`, or with names: `python examples/architectures.py lstm batch_norm`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import gelu, relu, sigmoid, softmax, swish

import tensorprog as tp
from tensorprog import nn


def readout(h: jax.Array, train: bool = True) -> jax.Array:
    """One Gaussian output."""
    return nn.dense(h, features=1, train=train)


def matrix(outputs: int, inputs: int) -> jax.Array:
    """A weight scaled by its fan-in, to be used at every step."""
    return nn.weight((outputs, inputs)) / np.sqrt(inputs)


# ------------------------------------------------------------------------------------------ recurrent


def bidirectional(x: jax.Array) -> jax.Array:
    """Two simple recurrent nets, one from either end; the mean of their states."""

    def states(x: jax.Array) -> jax.Array:
        w, u = matrix(nn.width(), nn.width()), matrix(nn.width(), x.shape[1])
        h, all_states = jnp.zeros(nn.width()), []
        for step in x:
            h = jnp.tanh(w @ h + u @ step)
            all_states.append(h)
        return jnp.stack(all_states)

    return readout(states(x).mean(0)) + readout(states(x[::-1]).mean(0))


def masked_rnn(inputs: dict[str, jax.Array]) -> jax.Array:
    """Sequences of different lengths: beyond its end a sequence keeps its state."""
    x, mask = inputs["x"], inputs["mask"]
    w, u = matrix(nn.width(), nn.width()), matrix(nn.width(), x.shape[1])
    h = jnp.zeros(nn.width())
    for step, inside in zip(x, mask, strict=True):
        h = jnp.where(inside, jnp.tanh(w @ h + u @ step), h)
    return readout(h)


def gru(x: jax.Array) -> jax.Array:
    """A gated recurrent unit (Cho et al. 2014)."""
    n, d = nn.width(), x.shape[1]
    (wz, uz), (wr, ur), (wh, uh) = ((matrix(n, n), matrix(n, d)) for _ in range(3))
    h = jnp.zeros(n)
    for step in x:
        z, r = sigmoid(wz @ h + uz @ step), sigmoid(wr @ h + ur @ step)
        h = z * h + (1 - z) * jnp.tanh(wh @ (r * h) + uh @ step)
    return readout(h)


def lstm(x: jax.Array) -> jax.Array:
    """A long short-term memory (Hochreiter and Schmidhuber 1997)."""
    n, d = nn.width(), x.shape[1]
    gates = [(matrix(n, n), matrix(n, d)) for _ in range(4)]
    h = c = jnp.zeros(n)
    for step in x:
        i, f, g, o = (w @ h + u @ step for w, u in gates)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
    return readout(h)


# ------------------------------------------------------------------------------------------ attention


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: Any = True) -> jax.Array:
    """softmax(q k' / n) v."""
    return softmax(jnp.where(mask, q @ k.T / q.shape[-1], -jnp.inf)) @ v


def causal_attention(x: jax.Array) -> jax.Array:
    """A token attends to itself and to those before it; keys are queries."""
    k = nn.dense(x)
    mixed = attend(k, k, nn.dense(x), np.tril(np.ones((len(x), len(x)), bool)))
    return readout(relu(nn.dense(mixed)).mean(0))


def transformer_block(x: jax.Array) -> jax.Array:
    """Two heads with 1/n logits, positional embeddings, layer norms, a hidden layer, residuals."""
    h = nn.dense(x) + nn.weight((len(x), nn.width()))
    length, n, heads = len(x), h.shape[-1], 2
    k, v = (nn.dense(h).reshape(length, heads, n // heads) for _ in range(2))
    weights = softmax(jnp.einsum("thc,shc->hts", k, k) / (n // heads))
    h = nn.layer_norm(h + nn.dense(jnp.einsum("hts,shc->thc", weights, v).reshape(length, n)))
    h = nn.layer_norm(h + nn.dense(relu(nn.dense(h))))
    return readout(h.mean(0))


def many_small_heads(x: jax.Array) -> jax.Array:
    """As many heads as the layer is wide, of two coordinates each, with logits q.k/sqrt(2)."""
    q, k = ([nn.dense(x) for _ in range(2)] for _ in range(2))
    logits = sum(a[:, None] * b[None] for a, b in zip(q, k, strict=True)) / np.sqrt(2)
    return readout(nn.dense((softmax(logits, 1) * nn.dense(x)[None]).sum(1)).mean(0))


def many_large_heads(x: jax.Array) -> jax.Array:
    """Logits q.k/sqrt(d) in infinitely many heads of growing dimension d (Hron et al. 2020): along the heads the logits are Gaussian,
    with the covariance of queries times that of keys."""
    return readout(nn.dense(nn.many_heads(x)).mean(0))


# ------------------------------------------------------------------------------------------ normalised


def batch_norm(x: jax.Array) -> jax.Array:
    """A batch (members, features) as one input: statistics over its members; the output has one entry for each."""
    h = nn.dense(x)
    h = (h - h.mean(0)) * lax.rsqrt(h.var(0) + 1e-3)
    return readout(relu(h))


def instance_norm(x: jax.Array) -> jax.Array:
    """Statistics over the positions of one channel."""
    h = nn.conv(x, 3)
    h = (h - h.mean(0)) * lax.rsqrt(h.var(0) + 1e-3)
    return readout(relu(h).reshape(-1))


def group_norm(x: jax.Array) -> jax.Array:
    """Statistics over the positions of half of the channels."""
    h = nn.conv(x, 3)
    groups = h.reshape(len(x), 2, -1)
    mean, var = (f((0, 2), keepdims=True) for f in (groups.mean, groups.var))
    return readout(relu((groups - mean) * lax.rsqrt(var + 1e-3)).reshape(h.shape).mean(0))


def rms_norm(x: jax.Array) -> jax.Array:
    """Division by the root mean square over the width."""
    h = relu(nn.dense(x))
    return readout(relu(nn.dense(h * lax.rsqrt(jnp.square(h).mean() + 1e-6))))


def weight_norm(x: jax.Array) -> jax.Array:
    """Weights divided by the norm of their rows (Salimans and Kingma 2016, without gains)."""
    v = nn.weight((nn.width(), nn.width()))
    return readout(relu((v / jnp.linalg.norm(v, axis=1, keepdims=True)) @ relu(nn.dense(x))))


# ------------------------------------------------------------------------------------------ dropped


def dropout(x: jax.Array) -> jax.Array:
    """A third of the coordinates dropped in training, anew for every input (Srivastava et al. 2014)."""
    return readout(nn.dropout(relu(nn.dense(nn.dropout(relu(nn.dense(x)), 1 / 3))), 1 / 3))


def stochastic_depth(inputs: dict[str, jax.Array]) -> jax.Array:
    """A residual net whose layers are kept or skipped, as the input says (Huang et al. 2016); `averaged_depth` is the mean over
    that."""
    h = nn.dense(inputs["x"])
    for keep in inputs["mask"]:
        h = h + jnp.where(keep, nn.dense(relu(h)), 0.0)
    return readout(h)


def averaged_depth(kernel: tp.Kernel, x: np.ndarray, kept: float) -> tuple[np.ndarray, np.ndarray]:
    """Kernels (N, N) of `stochastic_depth`, averaged over which layers are kept, each with this probability: independently for two
    inputs, together for one input and itself."""
    masks = np.array(list(itertools.product([False, True], repeat=2)))
    chance = np.prod(np.where(masks, kept, 1 - kept), axis=1)
    every = {"x": np.repeat(x, len(masks), axis=0), "mask": np.tile(masks, (len(x), 1))}
    found = []
    for k in kernel(every):
        k = np.asarray(k).reshape(len(x), len(masks), len(x), len(masks))
        mean = np.einsum("iajb,a,b->ij", k, chance, chance)
        own = np.einsum("iaia,a->i", k, chance)
        found.append(np.where(np.eye(len(x), dtype=bool), own, mean))
    return found[0], found[1]


# ------------------------------------------------------------------------------------------ pooled


def maxout(x: jax.Array) -> jax.Array:
    """The larger of two linear layers (Goodfellow et al. 2013)."""
    return readout(nn.dense(jnp.maximum(nn.dense(x), nn.dense(x))))


def max_pool_of_two(x: jax.Array) -> jax.Array:
    """Max pooling over pairs of positions."""
    pairs = lax.reduce_window(nn.conv(x, 3), -jnp.inf, lax.max, (2, 1), (2, 1), "VALID")
    return readout(nn.conv(pairs, 3).mean(0))


def max_over_time(x: jax.Array) -> jax.Array:
    """The maximum over all positions (Kim 2014)."""
    return readout(nn.dense(jnp.tanh(nn.conv(x, 3)).max(0)))


def squeeze_and_excitation(x: jax.Array) -> jax.Array:
    """Channels gated by a small network of their averages (Hu et al. 2018)."""
    h = relu(nn.conv(x, 3))
    gate = sigmoid(nn.dense(relu(nn.dense(h.mean((0, 1))))))
    return readout((h * gate).mean((0, 1)))


# ------------------------------------------------------------------------------------------ gated, skipped


def glu(x: jax.Array) -> jax.Array:
    """Gated linear unit (Dauphin et al. 2017)."""
    h = nn.dense(x)
    return readout(nn.dense(h) * sigmoid(nn.dense(h)))


def geglu(x: jax.Array) -> jax.Array:
    """The same with a GELU (Shazeer 2020)."""
    h = nn.dense(x)
    return readout(nn.dense(h) * gelu(nn.dense(h), approximate=False))


def swiglu(x: jax.Array) -> jax.Array:
    """The same with a swish."""
    h = nn.dense(x)
    return readout(nn.dense(h) * swish(nn.dense(h)))


def highway(x: jax.Array) -> jax.Array:
    """A learnt mixture of a layer and its input (Srivastava et al. 2015)."""
    h = relu(nn.dense(x))
    t = sigmoid(nn.dense(h) - 1.0)
    return readout(t * relu(nn.dense(h)) + (1 - t) * h)


def residual_after(x: jax.Array) -> jax.Array:
    """A residual net with the nonlinearity after the sum (He et al. 2016, first form)."""
    h = relu(nn.conv(x, 3))
    for _ in range(2):
        h = relu(h + nn.conv(relu(nn.conv(h, 3)), 3))
    return readout(h.mean(0))


def dense_net(x: jax.Array) -> jax.Array:
    """Every layer reads all layers before it (Huang et al. 2017)."""
    h = relu(nn.dense(x))
    for _ in range(2):
        h = jnp.concatenate([h, relu(nn.dense(h))], -1)
    return readout(h)


def u_net(x: jax.Array) -> jax.Array:
    """Down by pooling, up by a transposed convolution and by resizing, with skips (Ronneberger et al. 2015)."""
    fine = relu(nn.conv(x, 3))
    coarse = relu(nn.conv(nn.avg_pool(fine, 2), 3))
    n = coarse.shape[-1]
    up = lax.conv_transpose(coarse[None], nn.weight((2, 2, n, n)) / np.sqrt(n), (2, 2), "SAME")[0]
    resized = jax.image.resize(coarse, fine.shape, "bilinear")
    return readout(relu(nn.conv(jnp.concatenate([fine, up, resized], -1), 3)).mean((0, 1)))


def bilinear(pair: dict[str, jax.Array]) -> jax.Array:
    """A bilinear head a' W b in factors, v.(A a * B b), of which A alone is trained (Kim et al. 2017); its kernels are those of W."""
    a, b = (relu(nn.dense(pair[name])) for name in ("a", "b"))
    return readout(nn.dense(a) * nn.dense(b, train=False), train=False)


def hypernetwork(pair: dict[str, jax.Array]) -> jax.Array:
    """A network that makes the scales of the rows of another's weights (Ha et al. 2017, section 3.2)."""
    scales = nn.dense(relu(nn.dense(pair["b"])))
    return readout(relu(scales * nn.dense(relu(nn.dense(pair["a"])))))


def mixture_of_branches(x: jax.Array) -> jax.Array:
    """Two branches, weighted by a function of the input."""
    weights = softmax(x[:2])
    return readout(weights[0] * relu(nn.dense(x)) + weights[1] * jnp.tanh(nn.dense(x)))


# ------------------------------------------------------------------------------------------ convolutions


def convolution(h: jax.Array, window: int, fan_in: int, groups: int) -> jax.Array:
    """A 1-D convolution in groups of channels."""
    w = nn.weight((window, fan_in, h.shape[-1])) / np.sqrt(window * fan_in)
    numbers = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(h[None], w, (1,), "SAME", dimension_numbers=numbers, feature_group_count=groups)[0]


def grouped_convolution(x: jax.Array) -> jax.Array:
    """Two groups of channels that do not see each other."""
    h = relu(nn.dense(x))
    return readout(relu(convolution(h, 3, h.shape[-1] // 2, 2)).mean(0))


def separable_convolution(x: jax.Array) -> jax.Array:
    """One filter per channel (depthwise), then a layer over channels."""
    h = relu(nn.dense(x))
    return readout(relu(nn.dense(convolution(h, 3, 1, h.shape[-1]))).mean(0))


def locally_connected(x: jax.Array) -> jax.Array:
    """A convolution with other weights at every position."""
    h = relu(nn.dense(x))
    n, places = h.shape[-1], len(x) - 2
    windows = jnp.stack([h[i : i + 3] for i in range(places)])
    w = nn.weight((places, 3, n, n)) / np.sqrt(3 * n)
    return readout(relu(jnp.einsum("pkc,pkco->po", windows, w)).mean(0))


# ------------------------------------------------------------------------------------------ graphs, sets


def gcn(graph: dict[str, jax.Array]) -> jax.Array:
    """Graph convolutions with the symmetrically scaled adjacency matrix (Kipf and Welling 2017)."""
    a, h = graph["adjacency"] + np.eye(graph["adjacency"].shape[0]), graph["nodes"]
    scale = lax.rsqrt(a.sum(1))
    for _ in range(2):
        h = relu((scale[:, None] * a * scale) @ nn.dense(h, weight_var=2.0))
    return readout(h.mean(0))


def gin(graph: dict[str, jax.Array]) -> jax.Array:
    """Sums over neighbours, then two layers, twice; the readout sees every block (Du et al. 2019, with jumping knowledge)."""
    a, h = graph["adjacency"] + np.eye(graph["adjacency"].shape[0]), graph["nodes"]
    total = 0.0
    for _ in range(2):
        h = a @ h
        for _ in range(2):
            h = relu(nn.dense(h, weight_var=2.0))
        total = total + readout(h.sum(0))
    return total


def graph_attention(graph: dict[str, jax.Array]) -> jax.Array:
    """A node attends to its neighbours, with 1/n logits (Velickovic et al. 2018 use 1/sqrt(n))."""
    a = graph["adjacency"] + np.eye(graph["adjacency"].shape[0])
    k = nn.dense(graph["nodes"])
    return readout(relu(attend(k, k, nn.dense(graph["nodes"]), a > 0)).mean(0))


def deep_set(x: jax.Array) -> jax.Array:
    """A function of a set: the sum over its members (Zaheer et al. 2017)."""
    return readout(relu(nn.dense(relu(nn.dense(x)).sum(0))))


def token_embedding(tokens: jax.Array) -> jax.Array:
    """Token ids and their places, each an embedding that is learnt."""
    h = nn.weight((50, nn.width()))[tokens] + nn.weight((*tokens.shape, nn.width()))
    return readout(relu(nn.dense(h)).mean(0))


# ------------------------------------------------------------------------------------------ tied


def siamese(pair: dict[str, jax.Array]) -> jax.Array:
    """One network for two inputs, compared coordinate by coordinate."""
    w, v = matrix(nn.width(), pair["a"].shape[0]), matrix(nn.width(), nn.width())
    embed = lambda x: jnp.tanh(v @ relu(w @ x))
    return readout(embed(pair["a"]) * embed(pair["b"]))


def tied_layers(x: jax.Array) -> jax.Array:
    """The same weight in two layers."""
    w = matrix(nn.width(), nn.width())
    return readout(relu(w @ relu(w @ relu(nn.dense(x)))))


# ------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Architecture:
    """A network, an input for it, and the tolerance that it needs where it is sampled."""

    net: Callable[[Any], jax.Array]
    example: Any
    tolerance: float | None = None


_VECTOR, _SEQUENCE, _IMAGE = np.zeros(5), np.zeros((4, 3)), np.zeros((4, 4, 2))
_GRAPH = {"adjacency": np.zeros((5, 5)), "nodes": np.zeros((5, 3))}
_SAMPLED = 1e-2

ARCHITECTURES: dict[str, Architecture] = {
    net.__name__: Architecture(net, example, tolerance)
    for net, example, tolerance in (
        (bidirectional, _SEQUENCE, None),
        (masked_rnn, {"x": _SEQUENCE, "mask": np.ones(4, bool)}, None),
        (gru, _SEQUENCE, _SAMPLED),
        (lstm, _SEQUENCE, _SAMPLED),
        (causal_attention, _SEQUENCE, None),
        (transformer_block, _SEQUENCE, None),
        (many_small_heads, np.zeros((2, 3)), _SAMPLED),
        (many_large_heads, np.zeros((2, 3)), _SAMPLED),
        (batch_norm, np.zeros((9, 12)), None),
        (instance_norm, np.zeros((9, 3)), None),
        (group_norm, np.zeros((6, 3)), None),
        (rms_norm, _VECTOR, None),
        (weight_norm, _VECTOR, None),
        (dropout, _VECTOR, None),
        (stochastic_depth, {"x": _VECTOR, "mask": np.ones(2, bool)}, None),
        (maxout, _VECTOR, None),
        (max_pool_of_two, _SEQUENCE, None),
        (max_over_time, _SEQUENCE, _SAMPLED),
        (squeeze_and_excitation, _IMAGE, None),
        (glu, _VECTOR, None),
        (geglu, _VECTOR, None),
        (swiglu, _VECTOR, None),
        (highway, _VECTOR, None),
        (residual_after, _SEQUENCE, _SAMPLED),
        (dense_net, _VECTOR, None),
        (u_net, _IMAGE, None),
        (bilinear, {"a": _VECTOR, "b": _VECTOR}, None),
        (hypernetwork, {"a": _VECTOR, "b": _VECTOR}, None),
        (mixture_of_branches, _VECTOR, None),
        (grouped_convolution, _SEQUENCE, None),
        (separable_convolution, _SEQUENCE, None),
        (locally_connected, np.zeros((5, 3)), None),
        (gcn, _GRAPH, None),
        (gin, _GRAPH, None),
        (graph_attention, _GRAPH, None),
        (deep_set, _SEQUENCE, None),
        (token_embedding, np.zeros(4, int), None),
        (siamese, {"a": _VECTOR, "b": _VECTOR}, _SAMPLED),
        (tied_layers, _VECTOR, None),
    )
}


def random_inputs(example: Any, count: int, seed: int = 0) -> Any:
    """`count` inputs like the example: Gaussian numbers, random tokens, masks with an end, symmetric graphs."""
    rng = np.random.default_rng(seed)

    def leaf(name: str, array: np.ndarray) -> np.ndarray:
        shape = (count, *array.shape)
        if array.dtype == bool:
            return np.arange(array.shape[-1]) < rng.integers(2, array.shape[-1] + 1, count)[:, None]
        if array.dtype.kind == "i":
            return rng.integers(0, 50, shape)
        if name == "adjacency":
            upper = np.triu(rng.random(shape) < 0.5, 1)
            return (upper | np.swapaxes(upper, 1, 2)).astype(float)
        return rng.standard_normal(shape)

    return jax.tree_util.tree_map_with_path(lambda path, a: leaf(path[-1].key if path else "x", a), example)


def compiled(name: str) -> tp.Kernel:
    """The kernels of one of `ARCHITECTURES`."""
    found = ARCHITECTURES[name]
    return tp.compile(found.net, found.example, tolerance=found.tolerance)


def main(names: list[str]) -> None:
    """Print the kernels between three random inputs of each architecture named, or of all."""
    for name in names or list(ARCHITECTURES):
        kernel = compiled(name)
        nngp, ntk = kernel(random_inputs(ARCHITECTURES[name].example, 3))
        first = (slice(None), slice(None), *(0,) * (nngp.ndim - 2))
        print(f"{name}: {'sampled' if kernel.sampled else 'not sampled'}\n{np.round(np.asarray(ntk[first]), 4)}")


if __name__ == "__main__":
    main(sys.argv[1:])
