"""The phase diagram of a tanh network: chi, the critical line, and the depth scale, over weight and bias variance.

    python examples/phases.py [--out docs/images]

Left of the critical line (chi = 1) inputs become alike with depth and gradients vanish; right of it they part and gradients
explode. Poole et al. 2016, figure 1; Schoenholz et al. 2017, figure 5. Needs the extra `plot`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import tensorprog as tp
from tensorprog import apps, nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    """Draw the diagram."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    weight, bias = tp.hyper("weight_var", 1.5), tp.hyper("bias_var", 0.1)

    def net(x: jax.Array) -> jax.Array:
        for _ in range(10):
            x = jnp.tanh(nn.dense(x, weight_var=weight, bias_var=bias))
        return nn.dense(x, features=1)

    block = apps.Block(tp.compile(net, jnp.zeros(3)))  # the layer that repeats is found in the network
    weights, biases = np.linspace(0.5, 4, 15), np.linspace(0.01, 0.3, 7)
    chi = np.empty((len(biases), len(weights)))
    for i, b in enumerate(biases):
        for j, w in enumerate(weights):
            given = {"weight_var": float(w), "bias_var": float(b)}
            chi[i, j] = block.chi(block.fixed_variance(**given), **given)
    line = [block.critical("weight_var", (0.5, 4.0), bias_var=float(b)) for b in biases]
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    images = (
        (chi, "chi", dict(cmap="RdBu_r", vmin=0, vmax=2)),
        (np.minimum(1 / np.abs(np.log(chi)), 30), "depth scale of the gradient, layers (to 30)", {}),
    )
    for a, (image, title, options) in zip(axes, images, strict=True):
        shown = a.pcolormesh(weights, biases, image, shading="nearest", **options)
        figure.colorbar(shown, ax=a)
        a.plot(line, biases, "k-", lw=2, label="critical line, chi = 1")
        a.set(xlabel="weight variance", ylabel="bias variance", title=title)
        a.legend(loc="upper left", fontsize=8)
    axes[0].text(0.7, 0.15, "ordered")
    axes[0].text(3.2, 0.15, "chaotic")
    figure.savefig(out / "phases.png", dpi=110)
    print(f"wrote {out / 'phases.png'}; at bias variance {biases[0]:.2f} the critical weight variance is {line[0]:.4f}")


if __name__ == "__main__":
    main()
