"""Writes docs/activations.md: the activations of jax.nn and of the peer, with tier, formula, error and cost.

Run `python -m benchmarks.expectations`. The engine itself fills the table: nothing in it is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from benchmarks.environment import ROOT, PeerUnavailable, ensure_peer
from ntk_rules import Expectation, expectation, functions
from ntk_rules.functions import expm1, logistic, softplus

Z = sp.Symbol("z", real=True)
U, V = sp.symbols("u v", real=True)
LAW = {(0, 0): 1.3, (0, 1): 0.4, (1, 1): 0.8}
NODES = 25  # of the plain Gauss-Hermite rule, each way
SIDE = 400  # of the block of pairs that is timed
_RELU, _CLIP = sp.Max(Z, 0), sp.Min(sp.Max(Z, 0), 6)


def _where(condition: sp.Expr, yes: sp.Expr, no: sp.Expr) -> sp.Expr:
    return sp.Piecewise((yes, condition), (no, True))


# jax.nn, in the order of its documentation; glu is the product of an identity and a sigmoid of two vectors.
JAX_NN: dict[str, sp.Expr] = {
    "relu": _RELU,
    "relu6": _CLIP,
    "sigmoid": logistic(Z),
    "softplus": softplus(Z),
    "sparse_plus": _where(Z <= -1, 0, _where(Z >= 1, Z, (Z + 1) ** 2 / 4)),
    "sparse_sigmoid": sp.Min(sp.Max((Z + 1) / 2, 0), 1),
    "soft_sign": Z / (1 + sp.Abs(Z)),
    "silu / swish": Z * logistic(Z),
    "log_sigmoid": -softplus(-Z),
    "leaky_relu": _where(Z >= 0, Z, Z / 100),
    "hard_sigmoid": sp.Min(sp.Max(Z + 3, 0), 6) / 6,
    "hard_silu / hard_swish": Z * sp.Min(sp.Max(Z + 3, 0), 6) / 6,
    "hard_tanh": sp.Max(-1, sp.Min(Z, 1)),
    "elu": _where(Z > 0, Z, expm1(Z)),
    "celu": _where(Z > 0, Z, expm1(Z)),
    "selu": sp.Float(1.0507009873554805) * _where(Z > 0, Z, sp.Float(1.6732632423543772) * expm1(Z)),
    "gelu (exact)": Z * (1 + sp.erf(Z / sp.sqrt(2))) / 2,
    "gelu (tanh)": Z * (1 + sp.tanh(sp.sqrt(2 / sp.pi) * (Z + sp.Rational("0.044715") * Z**3))) / 2,
    "squareplus": (Z + sp.sqrt(Z**2 + 4)) / 2,
    "mish": Z * sp.tanh(softplus(Z)),
    "identity": Z,
    "tanh": sp.tanh(Z),
}
PEER: dict[str, sp.Expr] = {
    "Abs": sp.Abs(Z),
    "ABRelu": _where(Z > 0, 2 * Z, -Z / 2),
    "Erf": sp.erf(Z),
    "Sigmoid_like": (sp.erf(Z / sp.Float(2.4020563531719796)) + 1) / 2,
    "Sin": sp.sin(Z),
    "Cos": sp.cos(Z),
    "Rbf": sp.sqrt(2) * sp.sin(sp.sqrt(2) * Z + sp.pi / 4),
    "Gabor": sp.exp(-(Z**2)) * sp.sin(Z),
    "Gaussian": sp.exp(-(Z**2)),
    "Exp": sp.exp(Z),
    "ExpNormalized": sp.exp(Z - sp.Rational(1, 2)),
    "Sign": sp.sign(Z),
    "Polynomial": 1 + Z - Z**2 / 2,
    "Monomial (5)": Z**5,
    "RectifiedMonomial (3)": _RELU**3,
    "Hermite (3)": (Z**3 - 3 * Z) / sp.sqrt(6),
}


def pair(f: sp.Expr) -> Expectation:
    """The dual of an activation: E[f(u) f(v)]."""
    return expectation(f.xreplace({Z: U}) * f.xreplace({Z: V}), (U, V))


def reference(f: sp.Expr) -> tuple[float, float]:
    """(E[f(u) f(v)], E[f(u)^2]^(1/2) E[f(v)^2]^(1/2)) at LAW by panels in the plane, float64."""
    edges = np.array([-13.0, -6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0, 13.0])
    x, weights = np.polynomial.legendre.leggauss(64)
    half = np.diff(edges)[:, None] / 2
    z = ((edges[1:] + edges[:-1])[:, None] / 2 + half * x).ravel()
    w = (half * weights).ravel()
    with jax.enable_x64(True):
        values = np.broadcast_to(np.asarray(functions.to_jax(f, (Z,))(jnp.asarray(z))), z.shape)
    q1, c, q2 = LAW[(0, 0)], LAW[(0, 1)], LAW[(1, 1)]
    d = q1 * q2 - c * c
    u, v = z[:, None], z[None, :]
    density = np.exp(-(q2 * u * u - 2 * c * u * v + q1 * v * v) / (2 * d)) / (2 * np.pi * np.sqrt(d))
    sizes = [w @ (values**2 * np.exp(-z * z / (2 * q)) / np.sqrt(2 * np.pi * q)) for q in (q1, q2)]
    return float((w * values) @ density @ (w * values)), float(np.sqrt(sizes[0] * sizes[1]))


def error(E: Expectation, dtype: type, exact: float, scale: float) -> float:
    """|value - exact| / scale at LAW in `dtype`."""
    with jax.enable_x64(dtype is np.float64):
        got = float(E.value([jnp.asarray(LAW[e], dtype) for e in E.needs]))
    return abs(got - exact) / scale


def nanoseconds(E: Expectation, side: int) -> float:
    """Time per pair of a (side, side) block in float32, variances per row and column."""
    q = jnp.linspace(0.5, 2, side, dtype=jnp.float32)
    known = {(0, 0): q[:, None], (0, 1): 0.7 * jnp.sqrt(q[:, None] * q), (1, 1): q[None, :]}
    arrays = [known[e] for e in E.needs]
    return _best(jax.jit(lambda *arrays: E.value(arrays)), arrays) / side**2 * 1e9


def gauss_hermite_nanoseconds(f: sp.Expr, side: int = 100) -> float:
    """The same by the plain rule of NODES x NODES nodes in the whitened plane."""
    x, w = (jnp.asarray(t, jnp.float32) for t in np.polynomial.hermite_e.hermegauss(NODES))
    weights = jnp.outer(w, w) / (2 * jnp.pi)
    function = functions.to_jax(f, (Z,))
    q = jnp.linspace(0.5, 2, side, dtype=jnp.float32)

    def value(a: jax.Array, c: jax.Array, b: jax.Array) -> jax.Array:
        root = jnp.sqrt(a)
        u, v = root * x[:, None], (c / root) * x[:, None] + jnp.sqrt(b - c * c / a) * x
        return jnp.sum(weights * function(u) * function(v))

    pairs = jax.vmap(jax.vmap(value, (None, 0, 0)), (0, 0, None))
    return _best(jax.jit(pairs), [q, 0.7 * jnp.sqrt(q[:, None] * q), q]) / side**2 * 1e9


def _best(run: Callable[..., jax.Array], arrays: list[jax.Array]) -> float:
    """Seconds of the best call of seven."""
    jax.block_until_ready(run(*arrays))
    return min(_once(run, arrays) for _ in range(7))


def _once(run: Callable[..., jax.Array], arrays: list[jax.Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*arrays))
    return time.perf_counter() - start


def peer_nanoseconds() -> dict[str, float]:
    """Those of the peer's closed forms, from its own environment; none where that cannot be had."""
    try:
        python = ensure_peer()
    except PeerUnavailable as reason:
        print(f"without the peer: {reason}")
        return {}
    command = [str(python), "-m", "benchmarks.worker_duals", str(SIDE)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


def row(name: str, f: sp.Expr, peer: dict[str, float]) -> str:
    """One line of the table."""
    E = pair(f)
    exact, scale = reference(f)
    side = 24 if "kinks" in E.tier else SIDE
    latex = E.latex() if E.formula is not None else ""
    formula = f"${latex}$" if 0 < len(latex) < 260 else ("long" if latex else "series")
    errors = [f"{error(E, dtype, exact, scale):.0e}" for dtype in (np.float64, np.float32)]
    bound = "exact" if E.bound == 0 else f"{E.bound:.0e}"
    costs = f"{nanoseconds(E, side):.0f} | {gauss_hermite_nanoseconds(f):.0f}"
    theirs = f"{peer[name]:.0f}" if name in peer else ""
    return f"| {name} | {E.tier} | {bound} | {errors[0]} | {errors[1]} | {costs} | {theirs} | {formula} |"


HEAD = """# Activations and their duals

Generated by `python -m benchmarks.expectations`. For each activation f: how E[f(u) f(v)] is found for jointly
Gaussian u, v; the bound that `ntk_rules` states; the error measured against an independent quadrature in the
plane at variances 1.3 and 0.8, covariance 0.4, relative to (E[f(u)^2] E[f(v)^2])^(1/2); nanoseconds per pair in
float32, on blocks of 400 x 400 (24 x 24 for two kinked factors), and beside it those of the plain Gauss-Hermite rule with
25 x 25 nodes (whatever its error) and of neural-tangents' closed form (its NNGP kernel of one layer, in its own
environment), {machine}. Functions of several vectors, such as glu, are products of these.
C_00 and C_11 are the variances, C_01 the covariance; `ntk_rules.explain` prints the formulas called long.

"""
COLUMNS = (
    "| activation | tier | bound | error, float64 | error, float32 | ns | ns, Gauss-Hermite | ns, neural-tangents | formula |\n"
    + "|---" * 9
    + "|\n"
)


def table(activations: dict[str, sp.Expr], peer: dict[str, float]) -> str:
    """The table of these activations."""
    lines = []
    for name, f in activations.items():
        lines.append(row(name, f, peer))
        print(lines[-1], flush=True)
    return COLUMNS + "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "activations.md")
    arguments = parser.parse_args()
    machine = f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, JAX {jax.__version__}"
    peer = peer_nanoseconds()
    text = HEAD.format(machine=machine) + "## jax.nn\n\n" + table(JAX_NN, peer)
    text += "\n## neural-tangents, what jax.nn does not have\n\n" + table(PEER, peer)
    arguments.out.write_text(text)


if __name__ == "__main__":
    main()
