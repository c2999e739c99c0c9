"""Running compiled kernels: gram matrices in tiles, and archives."""

from tensorprog.runtime.kernel import KernelResult
from tensorprog.runtime.loaded import LoadedKernel
from tensorprog.runtime.loaded_joint import LoadedJoint
from tensorprog.runtime.tiles import TILE_BYTES

__all__ = ["TILE_BYTES", "KernelResult", "LoadedJoint", "LoadedKernel"]
