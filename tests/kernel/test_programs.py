"""Programs of NETSOR-T+ written by hand: matrices and their transposes, symmetric ones, Moments of everything, scalars in functions.

Each against its own instructions at finite width, and, where the output is a readout, the tangent program against the adjoint program.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy

import tensorprog as tp
from tensorprog.ir import Input, LinComb, MatMul, Moment, Node, Nonlin, Phi, Program, Trsp, Weight, parse_program
from tensorprog.ir.phi import parameter, vector
from tests.everyday import everyday
from tests.finite_program import Weights, evaluate
from tests.uncompiled import uncompiled

sin, cos = sympy.sin, sympy.cos
z0, z1, z2, a0, a1, a2 = (*map(vector, range(3)), *map(parameter, range(3)))
X = Input("x", (2,), "float64")
INPUT = np.array([1.0, 0.5])


def weight(name: str, *axes: int | float, symmetric: bool = False) -> Weight:
    """Floats are widths relative to n."""
    widths = tuple(Fraction(k) if isinstance(k, float) else None for k in axes)
    shape = tuple(1 if isinstance(k, float) else k for k in axes)
    region = tuple((Fraction(0), Fraction(k)) for k in axes)
    return Weight(name, shape, widths, 1.0, 1.0, region, symmetric=symmetric)


def layer(name: str = "in") -> Node:
    return MatMul("ab,b->a", weight(name, 1.0, 2), X)


def times(matrix: Node, x: Node) -> Node:
    return MatMul("ab,b->a", matrix, x)


def nonlin(expr: sympy.Expr, *xs: Node, thetas: tuple[Node, ...] = ()) -> Node:
    return Nonlin(Phi(expr, len(xs), len(thetas)), xs, thetas)


def moment(expr: sympy.Expr, *xs: Node, thetas: tuple[Node, ...] = ()) -> Node:
    return Moment(Phi(expr, len(xs), len(thetas)), xs, thetas)


def readout(x: Node) -> Node:
    return MatMul("ab,b->a", weight("out", 1, 1.0), x)


W, S, V = weight("w", 1.0, 1.0), weight("s", 1.0, 1.0, symmetric=True), weight("v", 1.0)


def scalar_between() -> Node:
    """u = W' (theta sin(W h)), theta = E (W h)^2; E u h."""
    h = layer()
    y = times(W, h)
    return moment(z0 * z1, times(Trsp(W), nonlin(sin(z0) * a0, y, thetas=(moment(z0**2, y),))), h)


def scalar_of_transposed() -> Node:
    h = layer()
    u = times(Trsp(W), nonlin(sin(z0), times(W, h)))
    return readout(nonlin(sin(z0 + a0), h, thetas=(moment(z0 * z1, u, h),)))


def symmetric_thrice() -> Node:
    h = layer()
    y = times(S, h)
    u = times(S, y)
    v = times(S, LinComb(((1.0, u), (moment(z0 * z1, u, h), h))))
    return moment(z0 * z1, v, y)


def initial_vector() -> Node:
    """A vector of the program that goes through the matrix and is met again."""
    return moment(z0 * z1 + z1**2, times(Trsp(W), nonlin(sin(z0) * z1, times(W, V), V)), V)


def quotient() -> Node:
    h = layer()
    y = times(W, h)
    r = nonlin(a0 / (1 + a1), thetas=(moment(cos(z0), y), moment(z0**2, y)))
    return readout(LinComb(((1.0, times(Trsp(W), nonlin(z0 * a0, y, thetas=(r,)))), (r, h))))


def rectangular() -> Node:
    h, w = layer(), weight("w", 2.0, 1.0)
    y = times(w, h)
    u = times(Trsp(w), nonlin(sin(z0), y))
    return readout(nonlin(sin(z0 * a0 / 2), u, thetas=(moment(z0 * z1, times(w, u), y),)))


def commutator() -> Node:
    """d = A' B' (A B - B A) h; E d h = -E |A B' .. h|^2 and so on."""
    b, h = weight("b", 1.0, 1.0), layer()
    c = LinComb(((1.0, times(W, times(b, h))), (-1.0, times(b, times(W, h)))))
    return moment(z0 * z1, times(Trsp(W), times(Trsp(b), c)), h)


def moments_of_moments() -> Node:
    y = times(W, layer())
    m = moment(z0**2, y)
    k = moment(sin(z0) * z0 / (1 + a0), y, thetas=(m,))
    return nonlin(a0 * a1 + sin(a2), thetas=(m, k, moment(z0 * sin(a0 * z0), y, thetas=(k,))))


def moving_kink() -> Node:
    h = layer()
    u = times(Trsp(W), nonlin(sympy.Max(z0 - a0, 0), times(W, h), thetas=(moment(z0**2, h),)))
    return moment(z0 * z1, u, h)


def initial_vector_in_a_scalar() -> Node:
    y = times(W, nonlin(sin(z0), V))
    m = moment(z0 * z1, times(Trsp(W), y), V)
    return readout(nonlin(sin(z0 + a0 * z1), y, V, thetas=(m,)))


def up_and_down() -> Node:
    y = times(W, layer())
    return moment(z0 * z1, times(W, nonlin(sin(z0), times(Trsp(W), nonlin(sin(z0), y)))), y)


PROGRAMS: dict[str, Callable[[], Node]] = {
    make.__name__: make
    for make in (
        scalar_between, scalar_of_transposed, symmetric_thrice, initial_vector, quotient, rectangular, commutator, moments_of_moments,
        moving_kink, initial_vector_in_a_scalar, up_and_down,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", everyday(PROGRAMS, long=["moving_kink"]))
def test_at_finite_width(name: str) -> None:
    """The tangent kernel and, of an average, its value; draws of two widths, of which the wider strays less."""
    program = Program((X,), PROGRAMS[name]())
    assert parse_program(str(program)) == program
    average = program.output.type.kind == "scalar"
    kernel = tp.compile_program(program)
    nngp, ntk = (float(np.asarray(k).reshape(())) for k in uncompiled(kernel, INPUT[None]))
    spreads = []
    for width in (64, 512):
        start = Weights(width).sample([program])
        value = lambda arrays, w=start: evaluate(program, replace(w, arrays=arrays), [INPUT]).sum()
        slope = jax.jit(jax.value_and_grad(value))
        draws = []
        for seed in range(16):
            f, gradient = slope(Weights(width, seed=seed).sample([program]).arrays)
            square = sum(float(jnp.sum(g**2)) for g in gradient.values())
            draws.append((width * square, float(f)) if average else (square,))
        wanted = np.array([ntk, np.sign(np.mean([d[-1] for d in draws])) * np.sqrt(nngp)] if average else [ntk])
        found = np.array(draws)
        spread = found.std(0, ddof=1)
        scale = 1 + np.abs(wanted)
        assert np.all(np.abs(found.mean(0) - wanted) < 4.5 * spread / 4 + 12 * scale / width), (
            width,
            found.mean(0),
            wanted,
        )
        spreads.append(spread / scale)
    assert np.all(spreads[1] < 0.75 * spreads[0])  # by 1 / sqrt(8) but for the error of 16 draws


@pytest.mark.parametrize("name", [name for name, make in PROGRAMS.items() if make().type.kind != "scalar"])
def test_both_ways_agree(name: str) -> None:
    ways = [
        uncompiled(tp.compile_program(Program((X,), PROGRAMS[name]()), method=way), INPUT[None]).ntk
        for way in ("tangent", "adjoint")
    ]
    np.testing.assert_allclose(ways[0], ways[1], rtol=1e-12)
