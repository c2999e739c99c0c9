"""Lowering: the kernel graph as one pure JAX function of a pair of inputs."""

from tensorprog.lower.emit import SHIFT, Lowered, lower, value

__all__ = ["SHIFT", "Lowered", "lower", "value"]
