"""Convolutional networks: Arora et al. 2019, "On exact computation with an infinitely wide neural net".

Section 4 and their appendix on the CNTK with and without global average pooling, with
weight variance and biases as in ``fully_connected``.  A convolution with window offsets k

  h_p = sqrt(wv / (channels |window|)) sum_k W_k z_{s p + k} + sqrt(bv) b

has covariance  S_pq = wv / |window| sum_k E[z_{sp+k} z_{sq+k}] + bv,  zero where the
padding is zero.  Positions of any number of dimensions are flattened to one axis.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from tests.references.duals import Array
from tests.references.gram import Gram

Padding = str | Sequence[tuple[int, int]]


def axis_padding(size: int, window: int, stride: int, padding: str, dilation: int = 1) -> tuple[int, int]:
    """(before, after) along one axis; SAME and CIRCULAR give ceil(size / stride) outputs.

    The odd one out goes after, as in XLA and TensorFlow.
    """
    if padding == "VALID":
        return 0, 0
    reach = (window - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def patches(
    shape: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int] | None = None,
) -> tuple[tuple[int, ...], Array]:
    """Output shape, and for each offset of the window the input position read, -1 for padding.

    The index array has shape (|window|, number of outputs).
    """
    dilation = dilation or (1,) * len(shape)
    if isinstance(padding, str):
        pads = [axis_padding(n, w, s, padding, d) for n, w, s, d in zip(shape, window, strides, dilation, strict=True)]
    else:
        pads = list(padding)
    out = tuple(
        (n + lo + hi - ((w - 1) * d + 1)) // s + 1
        for n, w, s, d, (lo, hi) in zip(shape, window, strides, dilation, pads, strict=True)
    )
    rows = []
    for offset in itertools.product(*map(range, window)):
        row = []
        for site in itertools.product(*map(range, out)):
            at = [p * s + k * d - lo for p, s, k, d, (lo, _) in zip(site, strides, offset, dilation, pads, strict=True)]
            if padding == "CIRCULAR":
                at = [a % n for a, n in zip(at, shape, strict=True)]
            inside = all(0 <= a < n for a, n in zip(at, shape, strict=True))
            row.append(int(np.ravel_multi_index(at, shape)) if inside else -1)
        rows.append(row)
    return out, np.array(rows)


def conv(k: Gram, index: Array, weight_var: float = 1.0, bias_var: float = 0.0) -> Gram:
    """A convolution whose patches are ``index`` (from :func:`patches`)."""

    def patch_mean(a: Array) -> Array:
        padded = np.zeros((a.shape[0], a.shape[1] + 1, a.shape[2], a.shape[3] + 1), a.dtype)
        padded[:, :-1, :, :-1] = a  # position -1 reads the zeros
        return sum(padded[:, row][:, :, :, row] for row in index) / len(index)

    nngp = weight_var * patch_mean(k.nngp) + bias_var
    ntk = weight_var * patch_mean(k.nngp + k.ntk) + bias_var
    return Gram(nngp, ntk, np.zeros((nngp.shape[0], nngp.shape[1])))


def pool(count: int, index: Array, *, mean: bool = True, count_padding: bool = True) -> Array:
    """The matrix of average (or sum) pooling over the patches ``index``, (outputs, count).

    ``count_padding``: divide by the size of the window everywhere, or by the number of
    entries inside the image.
    """
    matrix = np.zeros((index.shape[1], count))
    for row in index:
        for out, source in enumerate(row):
            if source >= 0:
                matrix[out, source] += 1
    if not mean:
        return matrix
    return matrix / (len(index) if count_padding else matrix.sum(1, keepdims=True))
