"""One check for every case: the compiled kernel is the one written out by hand."""

from __future__ import annotations

import numpy as np

import tensorprog as tp
from tests.cases import Case


def compiled(case: Case, features: int = 1) -> tp.Kernel:
    """The kernel of a case through the public API."""
    return tp.compile(lambda x: case.net(tp.nn, x, features), np.zeros(case.shape))


def relative(got: object, want: np.ndarray) -> float:
    """The largest difference over the largest entry."""
    got = np.asarray(got)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    return float(np.abs(got - want).max() / np.abs(want).max())


def agrees(case: Case) -> None:
    """Both kernels, as gram matrices. Between two batches the code is another, to be compiled anew: test_batches.py."""
    x = case.inputs(3)
    nngp, ntk = case.reference(x)
    gram = compiled(case)(x)
    assert relative(gram.nngp, nngp) <= case.tolerance
    assert relative(gram.ntk, ntk) <= case.tolerance
