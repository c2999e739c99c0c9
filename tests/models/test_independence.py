"""Starts whose entries hang together are refused; independent ones, of any law, are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tensorprog as tp
from tensorprog.models.independence import check_alike, check_independent

Draw = Callable[[np.random.Generator], np.ndarray]
N = 64


def orthogonal(r: np.random.Generator, size: int = N) -> np.ndarray:
    """By the law of Haar: LAPACK leaves the signs of R uneven."""
    q, upper = np.linalg.qr(r.standard_normal((size, size)))
    return q * np.sign(np.diagonal(upper))


INDEPENDENT: dict[str, Draw] = {
    "Gaussian": lambda r: r.standard_normal((N, N)),
    "uniform": lambda r: r.uniform(-1, 1, (3, 3, 2, N)),
    "heavy tails": lambda r: r.laplace(size=(784, N)),
    "mostly zeros": lambda r: r.standard_normal((N, N)) * (r.uniform(size=(N, N)) < 0.1),
    "orthogonal": orthogonal,
    "a part of an orthogonal one": lambda r: orthogonal(r, 2 * N)[:, :N].reshape(2, N, N),
    "a vector": lambda r: r.standard_normal(N),
    "of one size": lambda r: r.choice([-0.5, 0.5], (N, N)),
    "one number": lambda r: r.standard_normal(1),
}

DEPENDENT: dict[str, tuple[Draw, str]] = {
    "at one offset alone": (lambda r: np.pad(r.standard_normal((1, N, N)), ((1, 1), (0, 0), (0, 0))), "variance goes from 0 to 3"),
    "a larger row": (lambda r: r.standard_normal((5, N)) * [[2], [1], [1], [1], [1]], "along axis 0 their variance"),
    "two laws side by side": (lambda r: np.concatenate([r.standard_normal((N, N)), r.uniform(-1, 1, (N, N))], 1), "along axis 1"),
    "equal offsets": (lambda r: np.broadcast_to(r.standard_normal((N, N)), (3, N, N)), "along axis 0 they add up to 1.73"),
    "repeated channels": (lambda r: np.repeat(r.standard_normal((N, N // 4)), 4, 1), "along axis 1 they add up to 2"),
    "looks linear": (lambda r: np.kron([[1, -1], [-1, 1]], r.standard_normal((N // 2, N // 2))), "along axis 0 they add up to"),
    "centred over its inputs": (lambda r: (w := r.standard_normal((N, N))) - w.mean(0), "along axis 0 they add up to"),
    "symmetric": (lambda r: (w := r.standard_normal((N, N))) + w.T, "have the correlation"),
    "antisymmetric": (lambda r: (w := r.standard_normal((N, N))) - w.T, "have the correlation -1"),
    "a vector and minus it": (lambda r: np.kron([1, -1], r.standard_normal(N)), "along axis 0 they add up to"),
}  # fmt: skip


def drawn(draw: Draw) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.asarray(draw(rng), float) for _ in range(16)]


@pytest.mark.parametrize("name", INDEPENDENT)
def test_independent_entries_pass(name: str) -> None:
    draws = drawn(INDEPENDENT[name])
    check_alike("w", draws)
    check_alike("w", draws[:2])


@pytest.mark.parametrize("name", DEPENDENT)
def test_entries_that_hang_together_are_refused(name: str) -> None:
    draw, message = DEPENDENT[name]
    with pytest.raises(tp.NetworkError, match=message) as caught:
        check_alike("w", drawn(draw))
    assert "init={'w'" in str(caught.value)


def test_parameters_are_compared() -> None:
    rng = np.random.default_rng(1)
    model = lambda: {name: rng.standard_normal((N, size)) for name, size in (("a", N), ("b", N), ("c", 3))}
    draws = [model() for _ in range(4)]
    check_independent(draws)
    for copy in (lambda w: -w, lambda w: np.sign(w), lambda w: w[:1]):
        with pytest.raises(tp.NetworkError, match=r"'b' and 'd' start from the same random numbers"):
            check_independent([{**draw, "d": copy(draw["b"])} for draw in draws])
    small = [{"a": draw["a"].ravel()[:2], "b": -3 * draw["a"].ravel()[:2]} for draw in draws]
    with pytest.raises(tp.NetworkError, match="correlation 1"):
        check_independent(small)


# ------------------------------------------------------------------------------------------ modules


class OneKey(eqx.Module):
    """A key that is used for two layers."""

    layers: list

    def __init__(self, width: int, key: jax.Array):
        self.layers = [eqx.nn.Linear(width, width, False, key=key) for _ in range(2)]


def test_a_key_that_is_used_twice() -> None:
    with pytest.raises(tp.NetworkError, match=r"a key that is used for two layers") as caught:
        tp.from_equinox(OneKey, widths=(12, 24, 36))
    assert "'layers.0.weight' and 'layers.1.weight'" in str(caught.value)
    given = {"layers.0.weight": lambda n: tp.Gaussian(std=n**-0.5)}
    assert tp.from_equinox(OneKey, init=given, widths=(12, 24, 36)).laws["layers.1.weight"].scale == Fraction(1, 3)


@pytest.mark.long  # ten seconds of building; "at one offset alone" is the same start
def test_delta_orthogonal_kernels() -> None:
    """Of which all offsets but one start at zero: the NTK of independent entries is not theirs."""
    delta = nnx.initializers.delta_orthogonal()
    with pytest.raises(tp.NetworkError, match="along axis 0 their variance goes from 0 to 3 times"):
        tp.from_flax(
            lambda width, rngs: nnx.Conv(width, width, (3,), kernel_init=delta, rngs=rngs), widths=(12, 24, 36)
        )


class Turned(nnx.Module):
    """An orthogonal matrix, and its transpose where it is tied."""

    def __init__(self, width: int, rngs: nnx.Rngs, tied: bool):
        orthogonal = nnx.initializers.orthogonal()
        self.first, self.readout = (nnx.Linear(a, b, use_bias=False, rngs=rngs) for a, b in ((3, width), (width, 1)))
        self.turn, self.tied = nnx.Linear(width, width, use_bias=False, kernel_init=orthogonal, rngs=rngs), tied

    def __call__(self, x: jax.Array) -> jax.Array:
        turn = self.turn.kernel[...]
        return self.readout(jnp.maximum(self.first(x) @ turn, 0) @ (turn.T if self.tied else turn))


@pytest.mark.long  # ten seconds, of two compilations
def test_an_orthogonal_matrix_with_its_transpose_is_no_gaussian_one() -> None:
    """W' W h is h for an orthogonal W; independent entries add noise to it, of which a user is told."""
    given = {"first.kernel": tp.Gaussian(std=3**-0.5), "readout.kernel": lambda n: tp.Gaussian(std=n**-0.5)}
    network = lambda tied: tp.from_flax(
        lambda width, rngs: Turned(width, rngs, tied), init=given, widths=(96, 192, 288)
    )
    with pytest.warns(tp.LawWarning, match=r"in place of turn.kernel \(orthogonal\)"):
        tp.compile(network(True), jnp.zeros(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tp.compile(network(False), jnp.zeros(3))
