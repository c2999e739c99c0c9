"""Powers of the width: the table of Tensor Programs IV, finite networks of growing width, and normalised kernels."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from examples import scaling
from tensorprog import nn
from tensorprog.apps.parametrization import PARAMETRIZATIONS
from tensorprog.ir import Phi
from tensorprog.ir.phi import vector
from tensorprog.passes.powers import NEVER, growth

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)
RNG = np.random.default_rng(0)


def perceptron(depth: int):  # type: ignore[no-untyped-def]
    def net(x: jax.Array) -> jax.Array:
        for layer in range(depth):
            x = jnp.tanh(nn.dense(x, name=f"l{layer}"))
        return nn.dense(x, features=1, name="out")

    return net


def by_layer(a: list[Fraction], b: list[Fraction], c: Fraction) -> tp.Parametrization:
    names = [*(f"l{i}.weight" for i in range(len(a) - 1)), "out.weight"]
    return tp.Parametrization((0, 0), (0, 0), (0, 0), c, dict(zip(names, zip(a, b, strict=True), strict=True)))


# ------------------------------------------------------------------------------------------ the table


def table(a: list[Fraction], b: list[Fraction], c: Fraction) -> tuple[str, Fraction]:
    """The class and r of Tensor Programs IV, theorems 3.4, 3.8 and corollary 3.9."""
    last = len(a) - 1
    r = min(a[last] + b[last], 2 * a[last] + c) + c - 1 + min(2 * a[i] + (i == 0) for i in range(last))
    start = a[0] + b[0] == 0 and all(a[i] + b[i] == HALF for i in range(1, last)) and a[last] + b[last] >= HALF
    if not (start and r >= 0 and 2 * a[last] + c >= 1 and a[last] + b[last] + r >= 1):
        return "unstable", r
    if a[last] + b[last] + r != 1 and 2 * a[last] + c != 1:
        return "trivial", r
    return ("feature learning" if r == 0 else "kernel regime"), r


def drawn(depth: int) -> tuple[list[Fraction], list[Fraction], Fraction]:
    """A parametrisation that is often near the border of stability."""
    some = [Fraction(k, 4) for k in (-4, -2, -1, 0, 1, 2, 3, 4, 6)]
    pick = lambda values: values[RNG.integers(len(values))]
    a = [pick(some) for _ in range(depth + 1)]
    b = [-a[0], *(HALF - x for x in a[1:-1]), pick([Fraction(0), QUARTER, HALF, Fraction(1)]) + HALF - a[-1]]
    if RNG.random() < 0.1:
        at = RNG.integers(depth)
        b[at] += pick([-HALF, HALF])
    c = pick([1 - 2 * a[-1], 1 - 2 * a[-1], pick(some)])
    if RNG.random() < 0.7:  # bring r to zero, or beside it
        shift = table(a, b, c)[1] + pick([Fraction(0), Fraction(0), HALF, HALF, -HALF])
        a[:-1] = [x - shift / 2 for x in a[:-1]]
        b[:-1] = [x + shift / 2 for x in b[:-1]]
    return a, b, c


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_table_of_classes(depth: int) -> None:
    program = tp.compile(perceptron(depth), jnp.zeros(3)).program
    seen = set()
    for _ in range(60 if depth == 1 else 150):
        a, b, c = drawn(depth)
        kind, r = table(a, b, c)
        found = tp.scaling(program, parametrization=by_layer(a, b, c))
        assert found.kind == kind, (a, b, c, str(found))
        if kind != "unstable":
            assert found.features == -r, (a, b, c, str(found))
        seen.add(kind)
    assert seen == {"unstable", "trivial", "kernel regime", "feature learning"}


def test_the_symmetry() -> None:
    """(a + t, b - t, c - 2 t) is the same training (Tensor Programs IV, equation 5)."""
    program = tp.compile(perceptron(2), jnp.zeros(3)).program
    for one in PARAMETRIZATIONS.values():
        found = tp.scaling(program, parametrization=one)
        for t in (-HALF, QUARTER):
            moved = {
                role: (getattr(one, role)[0] + t, getattr(one, role)[1] - t) for role in ("input", "hidden", "output")
            }
            other = tp.scaling(program, parametrization=tp.Parametrization(**moved, c=one.c - 2 * t))
            assert [(r.initial, r.step, r.later) for r in found.rows] == [
                (r.initial, r.step, r.later) for r in other.rows
            ]
            assert (found.kind, found.decides, found.ntk_power) == (other.kind, other.decides, other.ntk_power)


KNOWN = {
    "standard": ("unstable", "MatMul(l1.weight, v2) changes by n^1/2", 1),
    "ntk": ("kernel regime", "MatMul(l0.weight, x0) changes by n^-1/2", 0),
    "mup": ("feature learning", "MatMul(l0.weight, x0) changes by 1", 0),
    "mean_field": ("unstable", "MatMul(l1.weight, v2) has the size n^-1/2 at initialisation", -1),
}


@pytest.mark.parametrize("name", KNOWN)
def test_named_parametrisations(name: str) -> None:
    found = tp.scaling(perceptron(2), jnp.zeros(3), name)
    kind, decides, power = KNOWN[name]
    assert (found.kind, found.ntk_power) == (kind, power)
    assert found.decides.endswith(decides)
    assert found.decides in str(found)


def test_one_hidden_layer_of_mean_field_is_maximal() -> None:
    found = tp.scaling(perceptron(1), jnp.zeros(3), "mean_field")
    assert found.kind == "feature learning" and set(found.updates.values()) == {0}


def test_other_architectures() -> None:
    """Biases, norms, residual branches, weight sharing: muP learns features in all, with every update of the size one."""

    def net(x: jax.Array) -> jax.Array:
        n = nn.width()
        h = jax.nn.relu(nn.dense(x[0], bias_var=0.1))
        w = nn.weight((n, n)) / jnp.sqrt(n)
        for t in range(1):
            h = h + jax.nn.gelu(
                nn.layer_norm(w @ h + nn.dense(x[1], name=f"in{t}"), gain=True, shift=True, name=f"norm{t}")
            )
        return nn.dense(jax.nn.relu(nn.conv(jnp.stack([h, 2 * h]), 2)).mean(0), features=1, bias_var=1.0)

    x = jnp.zeros((2, 3))
    mup, ntk = tp.scaling(net, x, "mup"), tp.scaling(net, x, "ntk")
    assert mup.kind == "feature learning" and set(mup.updates.values()) == {0}
    assert ntk.kind == "kernel regime" and ntk.features == -HALF and ntk.ntk_power == 0
    assert set(ntk.leading) == set(mup.leading) == set(mup.updates)
    standard = tp.scaling(net, x, "standard")
    assert standard.kind == "unstable" and "norm0.gain" not in standard.leading


# ------------------------------------------------------------------------------------------ averages over the width


def wavy(z: jax.Array) -> jax.Array:
    """Neither odd nor even, nor is its derivative: averages of it, and of its slopes, are not zero."""
    return jnp.sin(z) + jnp.cos(z)


def averaged(depth: int):  # type: ignore[no-untyped-def]
    def net(x: jax.Array) -> jax.Array:
        for layer in range(depth):
            x = wavy(nn.dense(x, name=f"l{layer}"))
        return jnp.mean(x)

    return net


def test_averages_over_the_width() -> None:
    """Gradients of the size 1/n: nothing moves at the rate 1, all layers by the size one at the rate n, by the mean-field limit (Mei,
    Montanari and Nguyen 2018), where the hidden weights are of the size 1/sqrt(n)."""
    x = jnp.zeros(3)
    slow = tp.scaling(averaged(2), x, "ntk")
    assert (slow.kind, slow.output.initial, slow.output.step, slow.features, slow.ntk_power) == (
        "trivial",
        0,
        -1,
        -1,
        -1,
    )
    fast = tp.scaling(averaged(2), x, replace(PARAMETRIZATIONS["ntk"], c=-1))
    assert (fast.kind, fast.features, fast.ntk_power, set(fast.updates.values())) == ("feature learning", 0, 0, {0})
    wide = tp.scaling(averaged(2), x, replace(PARAMETRIZATIONS["ntk"], hidden=(0, HALF), c=-1))
    assert wide.kind == "unstable" and wide.decides == "v5 = MatMul(l1.weight, v4) changes by n"
    assert wide.leading == ("l1.weight",) and wide.ntk_power == 1
    unit = np.array([[1.0, -0.5, 0.7], [0.4, 1.1, 0.6]])
    parts = tp.compile(averaged(2), unit[0]).by_parameter(unit)
    np.testing.assert_allclose(fast.kernel()(unit).ntk, sum(parts.values()), atol=1e-12)
    np.testing.assert_allclose(wide.kernel()(unit).ntk, parts["l1.weight"], atol=1e-12)


def test_a_readout_is_one_by_whatever_it_is_divided() -> None:
    def net(x: jax.Array, power: float) -> jax.Array:
        n = nn.width()
        return nn.weight((n,), name="out") @ jnp.tanh(nn.dense(x, name="l0")) / n**power

    for name in PARAMETRIZATIONS:
        first, *others = (tp.scaling(lambda x, p=p: net(x, p), jnp.zeros(3), name) for p in (0.5, 0.0, 1.0))
        for other in others:
            assert str(other) == str(first)
    mean_field = tp.scaling(
        lambda x: jnp.mean(nn.weight((nn.width(),)) * jnp.tanh(nn.dense(x))), jnp.zeros(3), "mean_field"
    )
    assert mean_field.kind == "feature learning" and mean_field.output.initial == -HALF


def test_functions_of_averages_and_norms() -> None:
    """Through a scale that all coordinates share gradients are sums over the width, aligned from the start."""

    def net(x: jax.Array) -> jax.Array:
        h = wavy(nn.dense(x, name="l0"))
        g = wavy(jnp.mean(h**2) * nn.dense(h, name="l1", train=False))
        return jnp.mean(nn.layer_norm(g, 0.1) ** 3) * jnp.mean(h)

    found = tp.scaling(net, jnp.zeros(3), replace(PARAMETRIZATIONS["ntk"], c=-1))
    assert found.kind == "feature learning" and found.updates["l0.weight"] == 0 and found.ntk_power == 0
    assert found.decides == "v0 = MatMul(l0.weight, x0) changes by 1"


def test_frozen_layers() -> None:
    random_features = lambda x: nn.dense(jnp.tanh(nn.dense(x, train=False)), features=1)
    found = tp.scaling(random_features, jnp.zeros(3), "mup")
    assert found.kind == "kernel regime" and found.features is None and found.leading == ("dense_1.weight",)
    nothing = tp.scaling(lambda x: nn.dense(jnp.tanh(nn.dense(x, train=False)), features=1, train=False), jnp.zeros(3))
    assert nothing.kind == "trivial" and nothing.ntk_power is None and "nothing is trained" in str(nothing)


def test_the_example_finds_the_maximal_update_parametrisation() -> None:
    program = tp.compile(scaling.net, jnp.zeros(3)).program
    assert scaling.maximal(program) == [PARAMETRIZATIONS["mup"]]


# ------------------------------------------------------------------------------------------ one weight in two roles


def tied(x: jax.Array, phi=wavy) -> jax.Array:  # type: ignore[no-untyped-def]
    """A readout that is a part of what it reads."""
    v = nn.weight((nn.width(),), name="v")
    return (v @ phi(nn.dense(x, name="in") + v))[None] / jnp.sqrt(nn.width())


def test_a_tied_readout_sums_terms_of_one_sign() -> None:
    """Against trained networks: test_scaling_measured."""
    ntk, mup = (tp.scaling(tied, jnp.zeros(3), name) for name in ("ntk", "mup"))
    assert (ntk.kind, ntk.output.initial) == ("unstable", HALF) and "has the size n^1/2" in ntk.decides
    assert (mup.kind, mup.output.initial, mup.features) == ("feature learning", 0, 0)
    with pytest.raises(tp.NetworkError, match=r"no kernel(.|\n)*1 for a readout that is tied"):
        ntk.kernel()

    def signs(x: jax.Array) -> jax.Array:
        """The terms v cos(h v^2) have the signs of v, which are random."""
        v = nn.weight((nn.width(),), name="v")
        return v @ jnp.cos(nn.dense(x) * v**2)[:, None] / jnp.sqrt(nn.width())

    random = tp.scaling(signs, jnp.zeros(3), "ntk")
    assert (random.kind, random.output.initial) == ("kernel regime", 0)


def test_a_weight_starts_with_one_law() -> None:
    with pytest.raises(
        tp.InputError, match=r"draws the weight 'v' with b = 0 in one role and 1/2 in another(.|\n)*given="
    ):
        tp.scaling(tied, jnp.zeros(3), "standard")
    given = replace(PARAMETRIZATIONS["standard"], given={"v": (0, 0)})
    assert tp.scaling(tied, jnp.zeros(3), given).output.initial == 1


# ------------------------------------------------------------------------------------------ functions


z = vector(0)
GROWTH = {
    "relu grows as it does": (Phi((z + abs(z)) / 2, 1), (HALF,), None, HALF),
    "a square twice as fast": (Phi(z**2, 1), (QUARTER,), None, HALF),
    "a cube of what vanishes": (Phi(z**3, 1), (-HALF,), None, Fraction(-3, 2)),
    "a smooth change": (Phi(z**2, 1), (Fraction(0),), (-HALF,), -HALF),
    "at a stationary point": (Phi(z**2, 1), (NEVER,), (-HALF,), Fraction(-1)),
    "a large change": (Phi(z**2, 1), (Fraction(0),), (HALF,), Fraction(1)),
    "no change": (Phi(z**2, 1), (Fraction(0),), (NEVER,), NEVER),
}


@pytest.mark.parametrize("name", GROWTH)
def test_growth_of_functions(name: str) -> None:
    phi, powers, changes, wanted = GROWTH[name]
    assert growth(phi, powers, changes) == wanted


def test_growth_of_bounded_and_exponential_functions() -> None:
    import sympy

    assert growth(Phi(sympy.tanh(z), 1), (HALF,)) == 0
    assert growth(Phi(sympy.exp(z), 1), (HALF,)) == float("inf")
    assert growth(Phi(sympy.tanh(z), 1), (Fraction(0),), (HALF,)) == 0


# ------------------------------------------------------------------------------------------ kernels


def rectified(x: jax.Array) -> jax.Array:
    h = jax.nn.relu(nn.dense(x, name="l0"))
    return nn.dense(jax.nn.relu(nn.dense(h, name="l1")), features=1, name="out")


@pytest.mark.long
def test_normalised_kernel_of_the_standard_parametrisation() -> None:
    """NTK / n keeps the weights summed over a width (Sohl-Dickstein et al. 2020, section 2); beside finite networks."""
    found = tp.scaling(rectified, jnp.zeros(3), "standard")
    assert found.leading == ("out.weight", "l1.weight") and found.ntk_power == 1
    x = np.array([[1.0, -0.5, 0.7], [0.4, 1.1, 0.6]])
    kernel, parts = found.kernel()(x), tp.compile(rectified, x[0]).by_parameter(x)
    np.testing.assert_allclose(kernel.ntk, parts["out.weight"] + parts["l1.weight"], atol=1e-12)

    def plain(
        w: list, x: jax.Array
    ) -> jax.Array:  # entries of the variance 1/n, no multipliers but the network's 1/sqrt(3)
        return (w[2] @ jax.nn.relu(w[1] @ jax.nn.relu(w[0] @ x / np.sqrt(3))))[0]

    gaps = []
    for n, draws in ((64, 200), (256, 50)):
        rng = np.random.default_rng(n)
        w = [
            jnp.asarray(rng.standard_normal((draws, *s)) / r)
            for s, r in (((n, 3), 1), ((n, n), n**0.5), ((1, n), n**0.5))
        ]
        one = lambda w: [jnp.concatenate([g.ravel() for g in jax.grad(plain)(w, y)]) for y in jnp.asarray(x)]
        gradients = jax.jit(lambda w, one=one: jax.lax.map(lambda p: jnp.stack(one(p)), w))(w)
        empirical = jnp.einsum("dip,djp->dij", gradients, gradients) / n
        error = np.std(empirical, 0) / draws**0.5
        gaps.append(np.abs(np.mean(empirical, 0) - kernel.ntk))
        assert np.all(gaps[-1] < 5 * error + 2 / n), (n, gaps[-1], error)
    assert gaps[1].max() < 0.02


def test_no_kernel_where_a_layer_vanishes() -> None:
    found = tp.scaling(perceptron(2), jnp.zeros(3), "mean_field")
    with pytest.raises(tp.NetworkError, match=r"no kernel(.|\n)*MatMul\(l1.weight, v2\) has the size n\^-1/2"):
        found.kernel()


def test_bad_parametrisations() -> None:
    net, x = perceptron(1), jnp.zeros(3)
    with pytest.raises(
        tp.InputError, match="parametrization is 'NTK', expected 'standard', 'ntk', 'mup', 'mean_field'"
    ):
        tp.scaling(net, x, "NTK")
    with pytest.raises(tp.InputError, match="hidden is 3, expected a pair"):
        tp.Parametrization((0, 0), 3, (0, 0))  # type: ignore[arg-type]
    with pytest.raises(tp.InputError, match=r"b of output is 0.123, expected a fraction"):
        tp.Parametrization((0, 0), (0, 0), (0, 0.123))
    with pytest.raises(tp.InputError, match="c is nan"):
        tp.Parametrization((0, 0), (0, 0), (0, 0), float("nan"))
    with pytest.raises(tp.InputError, match="names 'l7.weight'"):
        tp.scaling(net, x, replace(PARAMETRIZATIONS["ntk"], given={"l7.weight": (0, 0)}))
