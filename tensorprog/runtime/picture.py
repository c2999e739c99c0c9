"""Kernel matrices as heat maps, for notebooks."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["heat_maps"]

LARGEST = 2000  # rows or columns; a picture has no more pixels, and a large matrix is thinned out to them


def heat_maps(matrices: Mapping[str, Any]) -> str | None:
    """One HTML image of some matrices side by side, each with its scale; None where there is nothing to draw, or no
    matplotlib, so that a notebook shows the text.

    matrices: of shape (N1, N2, *S, *S), or of several outputs, nested twice: drawn as one matrix of all entries of all outputs.
    """
    try:
        matrices = {name: _whole(value) for name, value in matrices.items()}
    except ValueError:  # no kernels: other shapes, made by hand
        return None
    if any(0 in np.shape(m) for m in matrices.values()):
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(4 * len(matrices), 3.2), layout="constrained")
    for axes, (name, matrix) in zip(np.atleast_1d(figure.subplots(1, len(matrices))), matrices.items(), strict=True):
        rows, columns = (max(1, -(-size // LARGEST)) for size in np.shape(matrix))
        image = axes.imshow(np.asarray(matrix)[::rows, ::columns], interpolation="nearest")
        axes.set_title(f"{name} {np.shape(matrix)}")
        figure.colorbar(image, ax=axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return f'<img alt="kernel matrices" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"/>'


def _whole(blocks: Any) -> np.ndarray:
    """Blocks (N1, N2, *A, *B) of all pairs of outputs, row by row, as one matrix."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(blocks)]
    count = math.isqrt(len(leaves))
    if count == 0 or count**2 != len(leaves) or any(leaf.ndim < 2 for leaf in leaves):
        raise ValueError("no square of kernel matrices")
    axes = [leaves[k * (count + 1)].ndim - 2 for k in range(count)]  # of each output, twice
    if any(n % 2 for n in axes):
        raise ValueError("kernels of inputs with themselves")
    own = [n // 2 for n in axes]
    rows = [[_flat(leaves[i * count + j], own[i]) for j in range(count)] for i in range(count)]
    return np.block(rows)


def _flat(block: np.ndarray, left: int) -> np.ndarray:
    """(N1, N2, *A, *B) as (N1 |A|, N2 |B|), where A are `left` axes."""
    n1, n2, *axes = block.shape
    order = (0, *range(2, 2 + left), 1, *range(2 + left, block.ndim))
    return block.transpose(order).reshape(n1 * math.prod(axes[:left]), n2 * math.prod(axes[left:]))
