"""Lowering: the kernel graph as one pure JAX function of a pair of inputs."""

from tensorprog.lower.emit import Lowered, lower

__all__ = ["Lowered", "lower"]
