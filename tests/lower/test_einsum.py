"""Contractions in the dialect of the kernel graph, against jnp.einsum; the fingerprint."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tensorprog.lower.einsum import contract
from tensorprog.lower.fingerprint import fingerprint

SIZES = {"a": 2, "b": 3, "c": 4, "1": 1}


def array(letters: str, seed: int) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).standard_normal([SIZES[c] for c in letters]))


@pytest.mark.parametrize(
    ("spec", "plain"),
    [
        ("ab->ba", "ab->ba"), ("ab->a", "ab->a"), ("ab->", "ab->"), ("ab,b->a", "ab,b->a"), ("ab,ab->ab", "ab,ab->ab"),
        ("a,b->ab", "a,b->ab"), ("b,a->ab", "b,a->ab"), ("a1,1b->ba", "a,b->ba"), ("aab->ab", "aab->ab"), ("aa->", "aa->"),
        ("ab,bc,ca->abc", "ab,bc,ca->abc"), ("1,a->a", ",a->a"), ("a,a,ab->b", "a,a,ab->b"), ("abc->ca", "abc->ca"),
    ],
)  # fmt: skip
def test_like_einsum(spec: str, plain: str) -> None:
    left, right = spec.split("->")
    operands = [array(own, i) for i, own in enumerate(left.split(","))]
    squeezed = [o.reshape([n for n in o.shape if n > 1]) for o in operands]
    shape = tuple(SIZES[c] for c in right)
    found = contract(spec, operands, 1.5, shape, jnp.dtype("float64"))
    np.testing.assert_allclose(found, 1.5 * jnp.einsum(plain, *squeezed), rtol=1e-13, atol=1e-13)


def test_letters_of_the_result_alone() -> None:
    v = array("a", 0)
    repeated = contract("a->ab", [v], 1.0, (2, 3), jnp.dtype("float64"))
    np.testing.assert_array_equal(repeated, np.repeat(np.asarray(v)[:, None], 3, 1))
    np.testing.assert_array_equal(contract("->aa", [], 2.0, (2, 2), jnp.dtype("float64")), 2 * np.eye(2))
    np.testing.assert_array_equal(contract("a->aa", [v], 1.0, (2, 2), jnp.dtype("float64")), np.diag(v))
    np.testing.assert_array_equal(
        contract("b->aab", [array("b", 1)], 1.0, (2, 2, 3), jnp.dtype("float64")),
        np.eye(2)[:, :, None] * np.asarray(array("b", 1)),
    )


def test_fingerprints() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(50)
    print_of = lambda *leaves: tuple(np.asarray(fingerprint([jnp.asarray(leaf) for leaf in leaves])))
    assert print_of(x) == print_of(x.copy())
    assert print_of(np.zeros(3)) == print_of(-np.zeros(3))
    others = [x + np.eye(50)[i] * np.spacing(x[i]) for i in range(50)] + [x[::-1].copy(), -x]
    assert len({print_of(o) for o in [x, *others]}) == 53
    assert print_of(x, np.arange(3)) != print_of(x, np.arange(3)[::-1].copy())
    for dtype in ("float32", "float16", "int32", "bool"):
        for count in (3, 30):
            assert print_of(np.ones(count, dtype)) != print_of(np.zeros(count, dtype))
    assert print_of(x[:2], x[2]) == tuple(x[:3])  # a few numbers are their own
