"""Completing an image with a convolutional NTK: half of the pixels of a photograph are missing.

    python examples/completion.py [--out docs/images]

An infinitely wide convolutional network maps a fixed random image to an image, and is trained on the known pixels. What it
predicts for the others is kernel regression with the NTK between pixels: one input, an output at every position
(Radhakrishnan et al. 2022, Simple, fast, and flexible framework for matrix completion with infinite width neural
networks). Beside it the mean of known neighbours. The photograph comes with scikit-learn. Needs the extra `demo`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from sklearn.datasets import load_sample_image

import tensorprog as tp
from tensorprog import nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZE, KNOWN = 32, 0.5


def network(x: jax.Array) -> jax.Array:
    """Four convolutions of 3 x 3; the receptive field sets how far a known pixel reaches."""
    h = x
    for _ in range(4):
        h = jax.nn.relu(nn.conv(h, 3, padding="CIRCULAR", weight_var=2.0))
    return nn.dense(h, features=1)


def neighbours(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Missing pixels as the mean of known ones, weighted by a Gaussian of their distance."""
    rows, columns = np.indices(known.shape)
    at = np.stack([rows[known], columns[known]], 1)
    filled = image.copy()
    for i, j in np.argwhere(~known):
        weights = np.exp(-np.square(at - (i, j)).sum(1) / 1.5)
        filled[i, j] = weights @ image[known] / weights.sum()
    return filled


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    photo = load_sample_image("flower.jpg")[60:380, 180:500].astype(float) / 255
    image = photo.reshape(SIZE, 10, SIZE, 10, 3).mean((1, 3))
    known = np.random.default_rng(0).random((SIZE, SIZE)) < KNOWN
    # The input only has to tell positions apart: smooth waves, which neighbours share.
    rows, columns = np.indices((SIZE, SIZE)) * 2 * np.pi / SIZE
    waves = [f(k * axis) for f in (np.sin, np.cos) for axis in (rows, columns) for k in (1, 2, 4)]
    x = np.stack(waves, -1)
    ntk = np.asarray(tp.compile(network, jnp.zeros(x.shape))(x[None], get="ntk")[0, 0], float).reshape(SIZE**2, SIZE**2)
    mask = known.ravel()
    gram = ntk[np.ix_(mask, mask)] + 1e-3 * np.mean(np.diagonal(ntk)) * np.eye(mask.sum())
    flat, mean = image.reshape(-1, 3), image[known].mean(0)
    filled = flat.copy()
    filled[~mask] = mean + ntk[np.ix_(~mask, mask)] @ np.linalg.solve(gram, flat[mask] - mean)
    pictures = {"known pixels": image * known[..., None], "mean of neighbours": neighbours(image, known)}
    pictures |= {"convolutional NTK": filled.reshape(image.shape), "photograph": image}
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained")
    for a, (title, picture) in zip(axes, pictures.items(), strict=True):
        error = np.square(np.clip(picture, 0, 1) - image)[~known].mean()
        quality = f"\n{-10 * np.log10(error):.1f} dB on missing pixels" if error > 0 and "known" not in title else ""
        a.imshow(np.clip(picture, 0, 1))
        a.set_title(title + quality, fontsize=9)
        a.axis("off")
        print(title, quality.strip())
    figure.savefig(out / "completion.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
