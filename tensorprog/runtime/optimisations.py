"""The names of what makes kernels fast and changes no value: each can be switched off (`Kernel.without`)."""

from __future__ import annotations

from collections.abc import Iterable

from tensorprog.errors import InputError

__all__ = ["OPTIMISATIONS", "check_optimisations"]

OPTIMISATIONS = {
    "loops": "repeated layers are one loop",
    "branches": "on a CPU, costly arrays inside branches that are always taken: XLA fuses nothing into them",
    "packing": "on a CPU, the two arrays that layers hand on as one of complex numbers: a layer is one pass",
    "together": "expectations of the same Gaussians in one branch, over as few axes as they have",
    "windows": "sums over windows in one pass, over all positions as one axis",
    "rows": "tiles of a matrix so small that their arrays stay in the processor's cache",
    "sides": "what tiles compute of one input alone, once for each input: of pairs without positions",
    "threads": "as many tiles at once as there are cores",
    "reuse": "memory of results that are gone, for the next ones",
    "symmetry": "only the tiles on and above the diagonal of a gram matrix",
    "interpolation": "matrices of rotation invariant kernels by a series in norms and angle",
    "numpy": "the layers at the few points of such a series by NumPy, which needs no compilation",
}


def check_optimisations(names: Iterable[str]) -> frozenset[str]:
    """The names, checked."""
    found = frozenset(names)
    unknown = sorted(found - set(OPTIMISATIONS))
    if unknown:
        raise InputError(
            f"without: {unknown[0]!r} is no optimisation, expected some of {', '.join(map(repr, OPTIMISATIONS))}"
        )
    return found
