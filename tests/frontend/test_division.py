"""One weight that meets flattened positions, parts beside each other and whole vectors: as a network with a weight for each of them.

The entries of a weight are independent, so that its parts may as well be weights of their own: both networks are one at every width, and
have one kernel. The second never divides an axis. Sampled networks stand in tests/finite_width/test_transposes.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.ir import Weight
from tests.everyday import everyday
from tests.uncompiled import uncompiled

relu, erf = jax.nn.relu, jax.scipy.special.erf


def times(w: jax.Array, h: jax.Array) -> jax.Array:
    return w @ h / jnp.sqrt(nn.width())


def weights(rows: int, columns: int) -> list[list[jax.Array]]:
    n = nn.width()
    return [[nn.weight((n, n)) for _ in range(columns)] for _ in range(rows)]


def one(rows: int, columns: int) -> jax.Array:
    return nn.weight((rows * nn.width(), columns * nn.width()))


def rows_of(x: jax.Array) -> jax.Array:
    return relu(nn.dense(x))


def out(*parts: jax.Array) -> jax.Array:
    return nn.dense(jnp.concatenate(parts), features=1)


# (one weight, weights of their own), each a network of an input (2, 3)
Pair = tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]


def autoencoder() -> Pair:
    def tied(x: jax.Array) -> jax.Array:
        w, h = one(1, 2), rows_of(x)
        code = relu(times(w, h.reshape(-1)))
        back = times(w.T, code).reshape(2, -1)
        return out(back[0], back[1])

    def apart(x: jax.Array) -> jax.Array:
        ((a, b),), h = weights(1, 2), rows_of(x)
        code = relu(times(a, h[0]) + times(b, h[1]))
        return out(times(a.T, code), times(b.T, code))

    return tied, apart


def autoencoder_whole() -> Pair:
    def tied(x: jax.Array) -> jax.Array:
        w, h = one(1, 2), rows_of(x).reshape(-1)
        return nn.dense(h + times(w.T, erf(times(w, h))), features=1)  # never cut again

    def apart(x: jax.Array) -> jax.Array:
        ((a, b),), h = weights(1, 2), rows_of(x)
        code = erf(times(a, h[0]) + times(b, h[1]))
        return out(h[0] + times(a.T, code), h[1] + times(b.T, code))

    return tied, apart


def channels_first() -> Pair:
    def tied(x: jax.Array) -> jax.Array:
        w, h = one(1, 2), rows_of(x)
        code = relu(times(w, h.T.reshape(-1)))
        back = times(w.T, code).reshape(-1, 2).T
        return out(back[0], 2 * back[1])

    def apart(x: jax.Array) -> jax.Array:
        ((a, b),), h = weights(1, 2), rows_of(x)
        code = relu(times(a, h[0]) + times(b, h[1]))
        return out(times(a.T, code), 2 * times(b.T, code))

    return tied, apart


def recurrent() -> Pair:
    def tied(x: jax.Array) -> jax.Array:
        w, h = one(2, 2), rows_of(x).reshape(-1)
        for _ in range(2):
            h = relu(times(w, h))
        return nn.dense(h, features=1)

    def apart(x: jax.Array) -> jax.Array:
        w, h = weights(2, 2), list(rows_of(x))
        for _ in range(2):
            h = [relu(times(a, h[0]) + times(b, h[1])) for a, b in w]
        return out(*h)

    return tied, apart


def biased() -> Pair:
    def tied(x: jax.Array) -> jax.Array:
        w, h, b = one(2, 2), rows_of(x).reshape(-1), nn.bias((2 * nn.width(),))
        return nn.dense(relu(times(w, h) + b) + h, features=1)

    def apart(x: jax.Array) -> jax.Array:
        w, h, p, q = weights(2, 2), rows_of(x), nn.bias((nn.width(),)), nn.bias((nn.width(),))
        y = [relu(times(a, h[0]) + times(b, h[1]) + c) for (a, b), c in zip(w, (p, q), strict=True)]
        return out(y[0] + h[0], y[1] + h[1])

    return tied, apart


def concatenated() -> Pair:
    def tied(x: jax.Array) -> jax.Array:
        w, h, g = one(1, 2), relu(nn.dense(x[0])), erf(nn.dense(x[1]))
        code = relu(times(w, jnp.concatenate([h, g]))) + times(w, nn.weight((2 * nn.width(),)))
        return nn.dense(times(w.T, code), features=1)

    def apart(x: jax.Array) -> jax.Array:
        ((a, b),), h, g = weights(1, 2), relu(nn.dense(x[0])), erf(nn.dense(x[1]))
        u, v = nn.weight((nn.width(),)), nn.weight((nn.width(),))
        code = relu(times(a, h) + times(b, g)) + (times(a, u) + times(b, v))
        return out(times(a.T, code), times(b.T, code))

    return tied, apart


def beside_and_flattened() -> Pair:
    def tied(x: jax.Array) -> jax.Array:
        w, h = one(1, 2), rows_of(x)
        return out(relu(times(w, h.reshape(-1))), relu(times(w, jnp.concatenate([h[1], h[0]]))))

    def apart(x: jax.Array) -> jax.Array:
        ((a, b),), h = weights(1, 2), rows_of(x)
        return out(relu(times(a, h[0]) + times(b, h[1])), relu(times(a, h[1]) + times(b, h[0])))

    return tied, apart


def heads() -> Pair:
    def tied(x: jax.Array) -> jax.Array:
        w, h = one(2, 1), relu(nn.dense(x[0]))
        q = times(w, h).reshape(2, -1)
        return out(q[0] * q[1], times(w.T, erf(times(w, h))))

    def apart(x: jax.Array) -> jax.Array:
        ((a,), (b,)), h = weights(2, 1), relu(nn.dense(x[0]))
        p, q = times(a, h), times(b, h)
        return out(p * q, times(a.T, erf(p)) + times(b.T, erf(q)))

    return tied, apart


def symmetric(beside: bool) -> Callable[[], Pair]:
    def made() -> Pair:
        def tied(x: jax.Array) -> jax.Array:
            w = nn.symmetric(2 * nn.width())
            h = jnp.concatenate([relu(nn.dense(x[0])), erf(nn.dense(x[1]))]) if beside else rows_of(x).reshape(-1)
            return nn.dense(times(w, relu(times(w, h))), features=1)

        def apart(x: jax.Array) -> jax.Array:
            a, d, b = nn.symmetric(nn.width()), nn.symmetric(nn.width()), nn.weight((nn.width(), nn.width()))
            h = [relu(nn.dense(x[0])), erf(nn.dense(x[1]))] if beside else list(rows_of(x))
            code = [relu(times(a, h[0]) + times(b, h[1])), relu(times(b.T, h[0]) + times(d, h[1]))]
            return out(times(a, code[0]) + times(b, code[1]), times(b.T, code[0]) + times(d, code[1]))

        return tied, apart

    return made


def symmetric_and_plain() -> Pair:
    def tied(x: jax.Array) -> jax.Array:
        w, h = one(1, 1), relu(nn.dense(x[0]))
        return nn.dense(times(w, relu(times(w + w.T, h))), features=1)

    def apart(x: jax.Array) -> jax.Array:
        w, h = one(1, 1), relu(nn.dense(x[0]))
        return nn.dense(times(w, relu(times(w, h) + times(w.T, h))), features=1)

    return tied, apart


def part_beside_whole() -> Pair:
    """Of few positions, which are weights of their own."""

    def tied(x: jax.Array) -> jax.Array:
        n, w, h = nn.width(), one(2, 2), rows_of(x).reshape(-1)
        h = relu(times(w, h))
        g = relu(times(w[:n, n:], h[:n]))
        return out(h, times(w[:n].T, g)[:n], times(w[n:, :n].T, g))

    def apart(x: jax.Array) -> jax.Array:
        w, h = weights(2, 2), list(rows_of(x))
        h = [relu(times(a, h[0]) + times(b, h[1])) for a, b in w]
        g = relu(times(w[0][1], h[0]))
        return out(*h, times(w[0][0].T, g), times(w[1][0].T, g))

    return tied, apart


def half_positions() -> Pair:
    """A part that is cut inside positions, of many."""

    def tied(x: jax.Array) -> jax.Array:
        n, w, h = nn.width(), one(1, 5), rows_of(jnp.repeat(x, 3, 0)[:5])
        code = relu(times(w, h.reshape(-1)))
        return out(code, erf(times(w[:, n // 2 : 3 * n // 2], h[1])), times(w, jnp.ones(5 * n) * x[0, 0]))

    def apart(x: jax.Array) -> jax.Array:
        n, h = nn.width(), rows_of(jnp.repeat(x, 3, 0)[:5]).reshape(10, -1)
        w = [nn.weight((n, n // 2)) for _ in range(10)]
        code = relu(sum(times(a, b) for a, b in zip(w, h, strict=True)))
        ones = sum(times(a, jnp.ones(n // 2) * x[0, 0]) for a in w)
        return out(code, erf(times(w[1], h[2]) + times(w[2], h[3])), ones)

    return tied, apart


def flattened_and_of_other_widths() -> Pair:
    def tied(x: jax.Array) -> jax.Array:
        w, h = one(1, 2), rows_of(x)
        g = jnp.concatenate([nn.dense(x[0], width=0.5), nn.dense(x[1], width=1.5)])
        return out(relu(times(w, h.reshape(-1))), times(w.T, relu(times(w, g))))

    def apart(x: jax.Array) -> jax.Array:
        n = nn.width()
        w, h = [nn.weight((n, n // 2)) for _ in range(4)], rows_of(x).reshape(4, -1)
        g = [nn.dense(x[0], width=0.5), *(nn.dense(x[1], width=0.5) for _ in range(3))]
        both = lambda v: relu(sum(times(a, b) for a, b in zip(w, v, strict=True)))
        return out(both(h), jnp.concatenate([times(a.T, both(g)) for a in w]))

    return tied, apart


def symmetric_part() -> Pair:
    """Rows of a symmetric weight: a symmetric block and a plain one, whose transpose stands in the columns."""

    def tied(x: jax.Array) -> jax.Array:
        n, s, h = nn.width(), nn.symmetric(2 * nn.width()), rows_of(x).reshape(-1)
        code = relu(times(s[:n], h))
        return out(times(s[:, n:], code), relu(times(s[n:, :n], h[:n])), times(s[:n], jnp.ones(2 * n) * x[0, 0]))

    def apart(x: jax.Array) -> jax.Array:
        n, h = nn.width(), rows_of(x)
        a, d, b = nn.symmetric(n), nn.symmetric(n), nn.weight((n, n))
        code, ones = relu(times(a, h[0]) + times(b, h[1])), jnp.ones(n) * x[0, 0]
        return out(times(b, code), times(d, code), relu(times(b.T, h[0])), times(a, ones) + times(b, ones))

    return tied, apart


PAIRS: dict[str, Callable[[], Pair]] = {
    "autoencoder": autoencoder,
    "autoencoder, never cut again": autoencoder_whole,
    "channels before positions": channels_first,
    "recurrent": recurrent,
    "biased, with the field itself added": biased,
    "concatenated": concatenated,
    "beside and flattened": beside_and_flattened,
    "heads": heads,
    "symmetric, flattened": symmetric(beside=False),
    "symmetric, concatenated": symmetric(beside=True),
    "symmetric and plain": symmetric_and_plain,
    "a part beside the whole": part_beside_whole,
    "a part cut inside positions": half_positions,
    "flattened, and of other widths beside each other": flattened_and_of_other_widths,
    "a part of a symmetric one that holds some of its diagonal": symmetric_part,
}


LONG = ["symmetric, flattened", "a part cut inside positions", "flattened, and of other widths beside each other"]


@pytest.mark.parametrize("name", everyday(PAIRS, long=LONG))
def test_one_weight_is_as_good_as_one_for_each_part(name: str, tolerance: Callable[[Any], float]) -> None:
    x = jax.random.normal(jax.random.key(1), (2, 2, 3))
    found, wanted = (uncompiled(tp.compile(net, x[0]), x) for net in PAIRS[name]())
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance(a.dtype) * float(jnp.abs(b).max()))


@pytest.mark.parametrize("name", ["autoencoder", "a part cut inside positions"])
def test_the_adjoint_program_of_a_divided_weight(name: str) -> None:
    x = jax.random.normal(jax.random.key(2), (2, 2, 3))
    net, _ = PAIRS[name]()
    tangent, adjoint = (uncompiled(tp.compile(net, x[0], method=method), x).ntk for method in ("tangent", "adjoint"))
    np.testing.assert_allclose(adjoint, tangent, rtol=0, atol=1e-12 * float(jnp.abs(tangent).max()))


def test_a_convolutional_autoencoder_has_one_matrix_for_each_position() -> None:
    def net(x: jax.Array) -> jax.Array:
        h = relu(nn.conv(x, 3))
        w = nn.weight((nn.width(), 9 * nn.width()), name="dense")
        back = times(w.T, relu(times(w, nn.flatten(h)))).reshape(h.shape)
        return nn.dense(nn.global_avg_pool(nn.conv(back, 3)), features=1)

    kernel = tp.compile(net, jnp.zeros((3, 3, 1)))
    (weight,) = (node for node in kernel.program.nodes if isinstance(node, Weight) and node.name == "dense")
    assert weight.shape == (1, 9) and weight.widths == (1, 1)


def test_orders_of_flattening_are_told_apart() -> None:
    """(positions, n) and (n, positions) pair an entry of the weight with unlike coordinates."""

    def net(x: jax.Array) -> jax.Array:
        w, h = one(1, 2), rows_of(x)
        return nn.dense(times(w, h.reshape(-1)) + times(w, h.T.reshape(-1)), features=1)

    with pytest.raises(tp.UnsupportedError, match=r"'weight_0' multiplies vectors .* in different orders"):
        tp.compile(net, jnp.zeros((2, 3)))


@pytest.mark.parametrize("rows", [None, 1])
def test_shuffled_channels_are_told_apart(rows: int | None) -> None:
    """h and a shuffle of its two halves, (2, n/2) as (n/2, 2), pair an entry of the weight with unlike coordinates."""

    def net(x: jax.Array) -> jax.Array:
        h, n = relu(nn.dense(x)), nn.width()
        w = nn.weight((rows or n, n)) / jnp.sqrt(n)
        made = w @ h + w @ h.reshape(2, -1).T.reshape(-1)
        return made if rows else nn.dense(relu(made), features=1)

    with pytest.raises(tp.UnsupportedError, match=r"'weight_0' multiplies vectors .* in different orders"):
        tp.compile(net, jnp.zeros(3))


def test_a_part_of_a_weight_that_has_positions_behind_its_coordinates_is_refused() -> None:
    def net(x: jax.Array) -> jax.Array:
        n, w, h = nn.width(), one(1, 2), rows_of(x)
        code = relu(times(w, h.T.reshape(-1)))
        return nn.dense(times(w[:, :n], code), features=1)

    with pytest.raises(tp.UnsupportedError, match=r"'weight_0' is cut or laid out in two ways that overlap"):
        tp.compile(net, jnp.zeros((2, 3)))


def test_numbers_for_groups_of_coordinates_meet_their_groups() -> None:
    """Averages over groups, repeated along the width, as in group norms of libraries: every group read those of all, which ended in an
    error from within. Flattened in the other order they are refused."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 2))
    groups = lambda h: h.reshape(2, -1)
    squares = lambda h: jnp.mean(groups(h) ** 2, axis=1)
    repeated = lambda h: h - jnp.repeat(squares(h), h.size // 2)
    grouped = lambda h: (groups(h) - squares(h)[:, None]).reshape(-1)
    net = lambda change: lambda x: nn.dense(jax.nn.relu(change(nn.dense(x.reshape(-1)))), features=1)
    wanted = uncompiled(tp.compile(net(grouped), x[0]), x)
    for method in ("tangent", "adjoint"):
        found = uncompiled(tp.compile(net(repeated), x[0], method=method), x)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * float(jnp.abs(b).max()))
    flat = lambda order: lambda x: nn.dense(jax.nn.relu(nn.dense(x).reshape(-1) + order(x[:, 0])), features=1)
    kept = uncompiled(tp.compile(flat(lambda a: jnp.repeat(a, nn.width())), x[0]), x)
    other = uncompiled(
        tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x) + x[:, :1]).reshape(-1), features=1), x[0]), x
    )
    np.testing.assert_allclose(kept.ntk, other.ntk, rtol=1e-12)
    with pytest.raises(tp.UnsupportedError, match="built differently along one axis"):
        tp.compile(flat(lambda a: jnp.tile(a, nn.width())), x[0])
