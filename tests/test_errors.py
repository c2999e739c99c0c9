"""Bad input: each gets one clear error, of the right class, whose text says what was wrong and what to do."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn

relu = jax.nn.relu


def two_orders(x: jax.Array) -> jax.Array:
    w = nn.weight((nn.width(), 2 * nn.width())) / jnp.sqrt(nn.width())
    h = jnp.stack([nn.dense(x), nn.dense(x)])
    h = w @ h.reshape(-1) + w @ h.T.reshape(-1)  # here
    return nn.dense(h, features=1)


def hidden_jump(x: jax.Array) -> jax.Array:
    n = nn.width()
    w, h = nn.weight((n, n)) / jnp.sqrt(n), nn.dense(x)
    a = jnp.sign(jnp.tanh(w @ h) + jnp.tanh(h))  # here
    return nn.dense(w.T @ a, features=1)


def readout_reused(x: jax.Array) -> jax.Array:
    v = nn.weight((nn.width(),)) / jnp.sqrt(nn.width())
    return (v @ relu(nn.dense(x) + v * jnp.sqrt(nn.width())))[None]  # here


def softmax_over_width(x: jax.Array) -> jax.Array:
    return nn.dense(jax.nn.softmax(nn.dense(x)), features=1)  # here


def a_table_that_ends(x: Any) -> Any:
    return nn.dense(jnp.take(jnp.arange(3.0), jnp.floor(nn.dense(x)).astype(int)), features=1)  # here


def place_of_a_count(x: Any) -> Any:
    h = jnp.stack([nn.dense(x), nn.dense(x)])
    return nn.dense(jnp.argmax(jnp.floor(h).astype(int), 0).astype(float), features=1)  # here


def sort_over_width(x: jax.Array) -> jax.Array:
    return nn.dense(jnp.sort(nn.dense(x)), features=1)  # here


def argmax_over_width(x: jax.Array) -> jax.Array:
    return nn.dense(relu(nn.dense(x)) * jnp.argmax(nn.dense(x)), features=1)  # here


def cumsum_over_width(x: jax.Array) -> jax.Array:
    return nn.dense(jnp.cumsum(nn.dense(x)), features=1)  # here


def reversed_width(x: jax.Array) -> jax.Array:
    return nn.dense(nn.dense(x)[::-1], features=1)  # here


def one_coordinate(x: jax.Array) -> jax.Array:
    return nn.dense(nn.dense(x), features=1) * nn.dense(x)[0]  # here


def a_fixed_cut(x: jax.Array) -> jax.Array:
    return nn.dense(relu(nn.dense(x)[:100]), features=1)  # here


def varying_constant(x: jax.Array) -> jax.Array:
    return nn.dense(nn.dense(x) * jnp.arange(nn.width()), features=1)  # here


def outer_product(x: jax.Array) -> jax.Array:
    h = nn.dense(x)
    return nn.dense(jnp.tanh(h[:, None] * h[None, :]).mean(0), features=1)  # here


def bottleneck(x: jax.Array) -> jax.Array:
    return nn.dense(nn.dense(nn.dense(x), features=3), features=1)


def function_of_readout(x: jax.Array) -> jax.Array:
    return jnp.tanh(nn.dense(nn.dense(x), features=1))  # here


def product_of_weights(x: jax.Array) -> jax.Array:
    n = nn.width()
    w, u = nn.weight((n, n)), nn.weight((n, n))
    return nn.dense((w * u / n) @ nn.dense(x), features=1)  # here


def grouped(x: jax.Array) -> jax.Array:
    h = nn.dense(x)[None]
    kernel = nn.weight((3, 1, 2 * nn.width()))
    args = dict(dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=h.shape[-1])
    h = jax.lax.conv_general_dilated(h[None], kernel, (1,), "SAME", **args)[0, 0]  # here
    return nn.dense(h, features=1)


def branches_on_input(x: jax.Array) -> jax.Array:
    h = nn.dense(x)
    h = jax.lax.cond(x[0] > 0, lambda: h, lambda: 2 * h)  # here
    return nn.dense(h, features=1)


def sum_of_two_orders(x: jax.Array) -> jax.Array:
    w = nn.weight((nn.width(), nn.width()))
    h = relu(nn.dense(x))
    return nn.dense(h + w @ h, features=1)  # here


def forgot_root_in_function(x: jax.Array) -> jax.Array:
    w = nn.weight((nn.width(), nn.width()))
    return nn.dense(jnp.tanh(w @ relu(nn.dense(x))), features=1)  # here


def bits(x: jax.Array) -> jax.Array:
    return nn.dense(jax.lax.reduce_precision(nn.dense(x), 4, 3), features=1)  # here


def narrow(x: jax.Array) -> jax.Array:
    return nn.dense((3 * nn.dense(x)).astype(jnp.int8) * 1.0, features=1)  # here


def bits_of_whole_numbers(x: jax.Array) -> jax.Array:
    return nn.dense((nn.dense(x).astype(int) & 1) * 1.0, features=1)  # here


def triangle(x: jax.Array) -> jax.Array:
    h = nn.dense(x)
    return nn.dense(jnp.abs(h - jnp.round(h)), features=1)  # here


def angle(x: jax.Array) -> jax.Array:
    return nn.dense(jnp.arctan2(nn.dense(x), nn.dense(x)), features=1)  # here


def two_hidden_parameters(x: jax.Array) -> jax.Array:
    return nn.dense(jax.lax.igamma(1 + nn.dense(x) ** 2, 1.0), features=1)  # here


def poles(x: jax.Array) -> jax.Array:
    return nn.dense(jax.lax.lgamma(nn.dense(x)), features=1)  # here


def deeper_if_wider(x: jax.Array) -> jax.Array:
    w = nn.weight((nn.width(), nn.width())) / nn.width() ** 0.5
    step = lambda _, h: relu(w @ h)
    return nn.dense(jax.lax.fori_loop(0, nn.width() // 1260, step, nn.dense(x)), features=1)  # here


def power_by_width(x: jax.Array) -> jax.Array:
    return nn.dense(nn.dense(x) ** (nn.width() // 1260), features=1)  # here


def place_by_width(x: jax.Array) -> jax.Array:
    start = nn.width() // 2520
    return nn.dense(nn.dense(x[:, None])[start : start + 1], features=1)  # here


def index_by_width(x: jax.Array) -> jax.Array:
    return nn.dense(nn.dense(x[:, None]).at[jnp.array([nn.width() // 2520])].set(0.0), features=1)  # here


def unknown_primitive(x: jax.Array) -> jax.Array:
    return nn.dense(jax.lax.zeta(2 + nn.dense(x) ** 2, 1.0), features=1)  # here


REFUSED: list[tuple[Callable, type[Exception], str, str]] = [
    (two_orders, tp.UnsupportedError, r"'weight_0' multiplies vectors .* in different orders", "flatten all of them in one"),
    (bits, tp.UnsupportedError, r"works on the bits", "jnp.round"),
    (narrow, tp.UnsupportedError, r"int8 of hidden values, which end or wrap around", "jnp.int32"),
    (bits_of_whole_numbers, tp.UnsupportedError, r"the bits of whole numbers", "arithmetic"),
    pytest.param(triangle, tp.UnsupportedError, r"no line of one slope", "a looser tolerance", marks=pytest.mark.long),
    pytest.param(angle, tp.UnsupportedError, r"angle|atan2", "tolerance", marks=pytest.mark.long),
    (two_hidden_parameters, tp.UnsupportedError, r"only the last argument of igamma", "as numbers"),
    pytest.param(
        poles, tp.UnsupportedError, r"no rule for the Gaussian expectation of polygamma", "slower growth", marks=pytest.mark.long
    ),
    (hidden_jump, tp.UnsupportedError, r"no rule for the Gaussian expectation of sign", "a looser tolerance"),
    (readout_reused, tp.UnsupportedError, r"'weight_0' is used in two ways", "two independent weights"),
    (softmax_over_width, tp.UnsupportedError, r"softmax over the width", "over positions, heads or classes"),
    (a_table_that_ends, tp.UnsupportedError, r"may lie outside", "clip"),
    (place_of_a_count, tp.UnsupportedError, r"whole numbers that are made of hidden values", r"jnp\.select"),
    (sort_over_width, tp.UnsupportedError, r"sorts over the width", "positions, heads or classes"),
    (argmax_over_width, tp.UnsupportedError, r"an argmax over the width", "positions, heads or classes"),
    (cumsum_over_width, tp.UnsupportedError, r"running sum over the width", "over positions only"),
    (reversed_width, tp.UnsupportedError, r"reverses the order of the hidden coordinates", "it has none"),
    (one_coordinate, tp.UnsupportedError, r"cuts the width at|indexes the width", "return the whole layer to tp.joint"),
    (a_fixed_cut, tp.UnsupportedError, r"cuts the width at 100 of", "cut the width into parts that grow with it"),
    (varying_constant, tp.UnsupportedError, r"entries vary along the width", "exchangeable"),
    (outer_product, tp.UnsupportedError, r"function of the entries of a matrix", "end in the product with a vector"),
    (function_of_readout, tp.UnsupportedError, r"nonlinear function of an output", "end the network with the readout"),
    (product_of_weights, tp.UnsupportedError, r"matrices with each other entry by entry", "one weight after the other"),
    (grouped, tp.UnsupportedError, r"2520 groups of channels", "one channel in and out per group"),
    (branches_on_input, tp.UnsupportedError, r"branches on a value of its input", "jnp.where"),
    (sum_of_two_orders, tp.UnsupportedError, r"different powers of the width: n\^0, n\^1/2", "1/sqrt"),
    (forgot_root_in_function, tp.UnsupportedError, r"scales like n\^1/2", "1/sqrt"),
    (deeper_if_wider, tp.UnsupportedError, r"length of a loop depends on the width: 2 at width 2520 and 4", "only the sizes of layers"),
    (power_by_width, tp.UnsupportedError, r"an exponent depends on the width: 2 at width 2520 and 4", "only the sizes of layers"),
    (place_by_width, tp.UnsupportedError, r"position that it takes depends on the width: 1 at width 2520 and 2", "only the sizes of layers"),
    (index_by_width, tp.UnsupportedError, r"the positions that it moves depend on the width", "only the sizes of layers"),
    (unknown_primitive, tp.UnsupportedError, r"'zeta'.*\n.*\n.*no derivative of it", "elementwise functions"),
]  # fmt: skip


@pytest.mark.parametrize(("net", "error", "what", "mend"), REFUSED, ids=lambda v: getattr(v, "__name__", ""))
def test_refused_with_the_line(net: Callable, error: type[Exception], what: str, mend: str) -> None:
    with pytest.raises(error) as caught:
        tp.compile(net, jnp.zeros(3))
    text = str(caught.value)
    lines, start = inspect.getsourcelines(net)
    at = start + next(i for i, line in enumerate(lines) if "# here" in line)
    assert re.search(what, text), text
    assert re.search(mend, text) and "to mend:" in text, text
    assert f"test_errors.py:{at}" in text, text


def dense_twice(x: jax.Array) -> jax.Array:
    return nn.dense(nn.dense(x, name="a"), features=1, name="a")


def two_defaults(x: jax.Array) -> jax.Array:
    h = nn.dense(x, weight_var=tp.hyper("s", 1.0), bias_var=tp.hyper("s", 2.0))
    return nn.dense(h, features=1)


def default_by_width(x: jax.Array) -> jax.Array:
    return nn.dense(nn.dense(x) * tp.hyper("s", nn.width() ** 0.5), features=1) / nn.width() ** 0.5


def value_by_width(x: jax.Array) -> jax.Array:
    return nn.dense(nn.constant((nn.width(),), nn.width() ** -0.5) * nn.dense(x), features=1)


def by_width_inside(x: jax.Array) -> jax.Array:
    choose = jax.jit(lambda h: jnp.sin(h) if h.size < 3000 else jnp.cos(h))
    return nn.dense(choose(nn.dense(x)), features=1)


def by_width(x: jax.Array) -> jax.Array:
    h = nn.dense(x)
    return nn.dense(h if nn.width() < 3000 else jnp.tanh(h), features=1)


def bilinear(x: jax.Array) -> jax.Array:
    a, b, n = relu(nn.dense(x)), relu(nn.dense(x)), nn.width()
    return a @ (nn.weight((n, n)) @ b)[:, None] / n


def masked_by_infinity(x: jax.Array) -> jax.Array:
    h = jnp.where(np.tri(3, dtype=bool)[..., None], nn.dense(jnp.ones((3, 3, 1)) * x[:, None, None]), -jnp.inf)
    return nn.dense(jax.nn.softmax(h, axis=1).sum((0, 1)), features=1)


def squared_entries(x: jax.Array) -> jax.Array:
    return nn.dense(nn.weight((nn.width(), nn.width())) ** 2 @ nn.dense(x), features=1)


def first_axis_norm(x: jax.Array) -> jax.Array:
    w = nn.weight((3, nn.width(), nn.width()))
    return nn.dense(jnp.einsum("kij,j->i", w / jnp.linalg.norm(w, axis=0), nn.dense(x)), features=1)


NETWORKS: list[tuple[Callable, type[Exception], str]] = [
    (lambda x: relu(nn.dense(x)), tp.NetworkError, r"no readout.*features=1"),
    (lambda x: x.sum(), tp.NetworkError, r"not random in the limit"),
    (lambda x: nn.weight((1, nn.width())) @ relu(nn.dense(x)), tp.NetworkError, r"grows with the width n like n\^1/2"),
    (lambda x: nn.dense(nn.dense(x), features=1) / nn.width(), tp.NetworkError, r"vanishes with the width n like n\^-1"),
    (lambda x: (nn.dense(x, features=1), nn.dense(x, features=1)), tp.NetworkError, r"returns 2 arrays, expected one"),
    (bilinear, tp.NetworkError, r"inner product of hidden vectors.*write it in factors"),
    (masked_by_infinity, tp.UnsupportedError, r"masks a hidden vector with an infinite number.*-1e30"),
    (lambda x: nn.many_heads(x), tp.InputError, r"many_heads: x has shape \(3,\)"),
    (squared_entries, tp.UnsupportedError, r"its entries are squared.*sum the squares"),
    (first_axis_norm, tp.UnsupportedError, r"over an axis that does not grow"),
    (bottleneck, tp.UnsupportedError, r"finite bottleneck stays random"),
    (dense_twice, tp.NetworkError, r"two parameters are named 'a.weight'.*different names"),
    (two_defaults, tp.NetworkError, r"'s' has two defaults, 1.0 and 2.0"),
    (by_width, tp.NetworkError, r"different things at different widths"),
    (by_width_inside, tp.NetworkError, r"different things at different widths"),
    (lambda x: nn.dense(x, features=1, weight_var=-1.0), tp.InputError, r"weight_var is -1.0, expected a finite number >= 0"),
    (lambda x: nn.dense(x, features=1, bias_var=float("nan")), tp.InputError, r"bias_var is nan, expected a finite number"),
    (lambda x: nn.dense(x, features=0), tp.InputError, r"features is 0, expected a positive whole number"),
    (lambda x: nn.dense(nn.dense(x, width=0.0001), features=1), tp.InputError, r"relative is 0.0001"),
    (lambda x: nn.conv(x, 3), tp.InputError, r"nn.conv: window is 3 and x has shape \(3,\)"),
    (lambda x: nn.conv(x[:, None], 2, padding="REFLECT"), tp.InputError, r"padding is 'REFLECT', expected 'SAME'"),
    (lambda x: nn.conv(x[:, None], 4, padding="VALID"), tp.InputError, r"no window of \(4,\) fits into x of shape \(3, 1\)"),
    (lambda x: nn.conv(x[:0, None], 2), tp.InputError, "no window of"),
    (lambda x: nn.dense(x[:0]), tp.InputError, r"nn.dense: x has shape \(0,\), expected a last axis of one channel"),
    (lambda x: nn.dense(x[0]), tp.InputError, r"nn.dense: x has shape \(\), expected a last axis of one channel"),
    (lambda x: nn.dense(nn.dense(x[None][:0]).reshape(0).sum()[None], features=1), tp.UnsupportedError, "it has no entries"),
    (lambda x: nn.dense(nn.sum_pool(x[:, None], 4), features=1), tp.NetworkError, r"an array without entries, of shape \(0, 1\)"),
    (lambda x: nn.conv(x[:, None], 2, strides=0), tp.InputError, r"strides is 0, expected a positive"),
    (lambda x: nn.layer_norm(nn.dense(x), epsilon=-1.0), tp.InputError, r"epsilon is -1.0"),
    (lambda x: nn.layer_norm(nn.dense(x[:, None]), axes=(0,)), tp.InputError, r"expected to include the last axis"),
    (lambda x: nn.global_avg_pool(x), tp.InputError, r"global_avg_pool: x has shape \(3,\)"),
    (lambda x: nn.dense(x, features=1, weight_var=tp.hyper("w", -1.0)), tp.InputError, r"weight_var is -1.0"),
    (lambda x: nn.dense(x * tp.hyper("get", 1.0), features=1), tp.InputError, r"hyper: name is 'get'"),
    (lambda x: nn.dense(x * tp.hyper("a", float("inf")), features=1), tp.InputError, r"default of 'a' is inf"),
    (tp.Network(lambda n: {"w": 3.0}, lambda p, x: x), tp.InputError, r"init\(width\) has a float at"),
    (tp.Network(lambda n: {"w": tp.Gaussian((n + 1, 3))}, lambda p, x: p["w"] @ x), tp.NetworkError, r"parameter 'w' has an axis"),
    (tp.Network(lambda n: {"w": tp.Gaussian((n, n, n))}, lambda p, x: x), tp.NetworkError, r"more than two width axes"),
    (tp.Network(lambda n: {"w": tp.Gaussian((n, 3), 1.0, n)}, lambda p, x: x), tp.NetworkError, r"starts at the scale n\^0 and moves at"),
    (tp.Network(lambda n: {"w": tp.Gaussian((3,), 1 + 1 / n)}, lambda p, x: x), tp.NetworkError, r"expected c n\^p"),
    (default_by_width, tp.NetworkError, r"'s' has the default 50.* at width 2520 and 70.* at width 5040"),
    (value_by_width, tp.NetworkError, r"'constant_0' starts at the scale n\^-1/2 and moves at the scale n\^0"),
    (3, tp.InputError, r"net is a int, expected a function"),
]  # fmt: skip


@pytest.mark.parametrize(("net", "error", "what"), NETWORKS, ids=[n[2][:40] for n in NETWORKS])
def test_not_a_network(net: Any, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=f"(?s){what}"):
        tp.compile(net, jnp.zeros(3))


def test_layers_outside_a_network() -> None:
    with pytest.raises(tp.NetworkError, match=r"nn\.dense was called outside a network"):
        nn.dense(jnp.ones(3))


@pytest.mark.parametrize("made", [lambda: tp.Gaussian((3,), -1.0), lambda: tp.Gaussian((3,), 1.0, float("nan"))])
def test_bad_standard_deviations(made: Callable) -> None:
    with pytest.raises(tp.InputError, match="expected a finite number >= 0"):
        made()


@pytest.mark.parametrize("example", [jnp.zeros(3, complex), "text", object()])
def test_bad_examples(example: Any) -> None:
    with pytest.raises(tp.InputError, match="expected real numbers, integers or booleans"):
        tp.compile(lambda x: nn.dense(jnp.ones(3), features=1), example)


@pytest.fixture(scope="module")
def kernel() -> tp.Kernel:
    net = lambda x: nn.dense(relu(nn.dense(x, weight_var=tp.hyper("w2", 1.5))), features=1)
    return tp.compile(net, jnp.zeros(3))


CALLS: list[tuple[Callable[[tp.Kernel], Any], str]] = [
    (lambda k: k(np.ones((2, 4))), r"x1 has shape \(2, 4\), expected \(N, 3\)"),
    (lambda k: k(np.ones(3)), r"add the batch axis, x1\[None\]"),
    (lambda k: k(np.ones((2, 3)), np.ones((2, 5))), r"x2 has shape \(2, 5\)"),
    (lambda k: k(np.array([[1.0, np.nan, 0.0]])), r"nan at \(0, 1\), expected finite numbers"),
    (lambda k: k(np.array([[1.0, np.inf, 0.0]])), r"inf at \(0, 1\), expected finite numbers"),
    (lambda k: k(np.ones((2, 3), complex)), r"dtype complex128, expected real numbers"),
    (lambda k: k(np.array([["a", "b", "c"]])), r"dtype <U1, expected real numbers"),
    (lambda k: k([np.ones((2, 3))]), r"x1 has the structure"),
    (lambda k: k([[1.0, 2.0, 3.0]]), r"a list of numbers is no array here, give np.asarray\(x1\)"),
    (lambda k: k(((1.0, 2.0, 3.0),)), r"a tuple of numbers is no array here, give np.asarray\(x1\)"),
    (lambda k: k((np.ones(3), np.zeros(3))), r"a tuple of examples is no array here, give np.stack\(x1\)"),
    (
        lambda k: k(np.ones((2, 3), np.float32) * np.array([[1e300], [1.0]])),
        r"x1 has 1e\+300 at \(0, 0\), more than float32 holds",
    ),
    (lambda k: k(np.ones((2, 3)), w3=1.0), r"unknown argument 'w3'; this kernel's hyperparameters are: w2"),
    (lambda k: k(np.ones((2, 3)), w2=-1.0), r"hyperparameter 'w2' is -1.0"),
    (lambda k: k(np.ones((2, 3)), w2=np.nan), r"hyperparameter 'w2' is nan"),
    (lambda k: k(np.ones((2, 3)), w2="wide"), r"hyperparameter 'w2' is 'wide', expected a finite number"),
    (lambda k: k(np.ones((2, 3)), w2="1.5"), r"hyperparameter 'w2' is '1.5', expected a finite number"),
    (lambda k: k(np.ones((2, 3)), w2=True), r"hyperparameter 'w2' is True, expected a finite number"),
    (lambda k: k(np.ones((2, 3)), w2=None), r"hyperparameter 'w2' is None"),
    (lambda k: k(np.ma.masked_less(np.eye(3), 0.5)), r"x1 is a masked array with 6 masked entries"),
    (lambda k: k(jax.random.key(0)), r"x1 has dtype key<fry>, expected real numbers"),
    (lambda k: k(np.ones((2, 3)), get="cov"), r"get is 'cov', expected 'nngp', 'ntk'"),
    (
        lambda k: k(np.ones((2, 3)), get=("ntk", "ntk")),
        r"get is \('ntk', 'ntk'\), expected .* a tuple of them, each once",
    ),
    (lambda k: k.diag(np.ones((2, 3)), get=3), r"get is 3, expected 'nngp', 'ntk'"),
]


@pytest.mark.parametrize(("call", "what"), CALLS, ids=[c[1][:40] for c in CALLS])
def test_bad_calls(kernel: tp.Kernel, call: Callable, what: str) -> None:
    with pytest.raises(tp.InputError, match=what), jax.enable_x64("float32" not in what):
        call(kernel)


def test_an_empty_batch_is_no_error(kernel: tp.Kernel) -> None:
    assert kernel(np.ones((0, 3))).ntk.shape == (0, 0)
    assert kernel(np.ones((0, 3)), np.ones((2, 3))).nngp.shape == (0, 2)
    assert kernel.diag(np.ones((0, 3))).nngp.shape == (0,)
    for dtype in (np.float32, np.float64):  # in float32 near pairs are looked for
        none, two = np.ones((0, 3), dtype), np.ones((2, 3), dtype)
        shapes = [{k.shape for k in kernel.by_parameter(*x).values()} for x in ((none,), (none, two), (two, none))]
        assert shapes == [{(0, 0)}, {(0, 2)}, {(2, 0)}]


def test_bad_finite_networks() -> None:
    net = lambda x: nn.dense(nn.dense(x), features=1)
    with pytest.raises(tp.InputError, match="width is 0, expected a positive whole number"):
        tp.init(net, jnp.zeros(3), 0, jax.random.key(0))
    params = tp.init(net, jnp.zeros(3), 4, jax.random.key(0))
    with pytest.raises(tp.InputError, match="params is a plain dict"):
        tp.apply(net, dict(params), jnp.ones(3))
    with pytest.raises(tp.InputError, match="params has no entry 'dense_0.weight'"):
        tp.apply(net, {}, jnp.ones(3), width=4)
    with pytest.raises(tp.InputError, match=r"has shape \(4, 3\), expected \(5, 3\) at width 5"):
        tp.apply(net, dict(params), jnp.ones(3), width=5)


def test_users_mistakes_are_not_our_bugs() -> None:
    for error in (tp.InputError, tp.NetworkError, tp.ProgramError, tp.ArchiveError, tp.UnsupportedError):
        assert issubclass(error, tp.UserError) and not issubclass(error, tp.InternalError)


def test_refusals_go_to_other_processes() -> None:
    """A message that is made when it is read arrives as text."""
    error = tp.UnsupportedError(lambda: "no rule")
    for sent in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert str(sent) == "no rule"
        assert repr(sent) == "UnsupportedError('no rule')"
