"""Draws docs/images/convergence.png: quadrature split at the kinks beside plain Gauss-Hermite, error over nodes.

Run `python -m benchmarks.convergence` (needs matplotlib, of the demo's extra). Both compute E[f(u) f(v)] with n nodes for
each Gaussian and panel; the exact value is an independent quadrature in the plane.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp

from benchmarks.expectations import LAW, Z, reference
from ntk_rules import functions
from ntk_rules.panels import PLANE64, Piecewise, mean_two
from ntk_rules.pieces import cut

FUNCTIONS = {
    "softsign $z/(1+|z|)$": Z / (1 + sp.Abs(Z)),
    "relu(tanh z)": sp.Max(sp.tanh(Z), 0),
    "elu(z) tanh(z)": sp.Piecewise((Z, Z > 0), (sp.exp(Z) - 1, True)) * sp.tanh(Z),
}
THINNED = (32, 16, 8, 4, 2, 1)


def split(f: sp.Expr, thin: int) -> float:
    """E[f(u) f(v)] by panels between the kinks, `PLANE64.nodes // thin` nodes on each."""
    pieces = Piecewise(cut(f, Z), Z, ())
    q1, c, q2 = LAW[(0, 0)], LAW[(0, 1)], LAW[(1, 1)]
    rho = c / np.sqrt(q1 * q2)
    arguments = (np.sqrt(q1), np.sqrt(q2), rho, np.sqrt(1 - rho * rho))
    return float(mean_two(pieces, pieces, thin)(*(jnp.full(1, a) for a in arguments))[0])


def plain(f: Callable[..., jax.Array], n: int) -> float:
    """The same by the n x n Gauss-Hermite rule."""
    x, w = np.polynomial.hermite_e.hermegauss(n)
    root = np.linalg.cholesky([[LAW[(0, 0)], LAW[(0, 1)]], [LAW[(0, 1)], LAW[(1, 1)]]])
    u, v = root[0, 0] * x[:, None] + 0 * x, root[1, 0] * x[:, None] + root[1, 1] * x
    return float(w @ np.asarray(f(jnp.asarray(u)) * f(jnp.asarray(v))) @ w / (2 * np.pi))


def main() -> None:
    """Draw the figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent.parent / "docs" / "images" / "convergence.png"
    )
    out = parser.parse_args().out
    nodes = [PLANE64.nodes // thin for thin in THINNED]
    figure, axes = pyplot.subplots(figsize=(6.4, 4))
    with jax.enable_x64(True):
        for k, (name, f) in enumerate(FUNCTIONS.items()):
            exact, scale = reference(f)
            ours = [abs(split(f, thin) - exact) / scale for thin in THINNED]
            theirs = [abs(plain(functions.to_jax(f, (Z,)), n) - exact) / scale for n in nodes]
            print(f"{name}: split {ours[-1]:.0e}, plain {theirs[-1]:.0e} with {nodes[-1]} nodes")
            axes.semilogy(nodes, np.maximum(ours, 1e-17), "o-", color=f"C{k}", label=f"{name}, split")
            axes.semilogy(nodes, theirs, "x--", color=f"C{k}", label=f"{name}, Gauss-Hermite")
    axes.set_xlabel("nodes for each Gaussian (and panel)")
    axes.set_ylabel("error relative to the scale of the answer")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
