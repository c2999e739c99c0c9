"""The master theorem: a program's covariances as a graph of Gaussian expectations and array operations."""

from tensorprog.kernel.derive import KernelGraph, derive

__all__ = ["KernelGraph", "derive"]
