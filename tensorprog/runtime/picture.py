"""Kernel matrices as heat maps, for notebooks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["heat_maps"]

LARGEST = 2000  # rows or columns; a picture has no more pixels, and a large matrix is thinned out to them


def heat_maps(matrices: Mapping[str, Any]) -> str | None:
    """One HTML image of some matrices side by side, each with its scale; None where there is nothing to draw, or no
    matplotlib, so that a notebook shows the text."""
    if any(np.ndim(m) != 2 or 0 in np.shape(m) for m in matrices.values()):
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
