"""Lowering: the kernel graph as one pure JAX function of a pair of inputs."""

from tensorprog.lower.emit import SHIFT, value
from tensorprog.lower.pairs import Lowered, lower, lower_blocks

__all__ = ["SHIFT", "Lowered", "lower", "lower_blocks", "value"]
