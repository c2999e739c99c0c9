"""Models of other libraries, unmodified, as networks: Flax (NNX and Linen) and Equinox modules."""

from tensorprog.models.attention import mean_logits_attention, mean_logits_heads
from tensorprog.models.equinox_door import from_equinox
from tensorprog.models.flax_door import from_flax
from tensorprog.models.linen_door import from_linen
from tensorprog.models.network import ModelNetwork

__all__ = ["ModelNetwork", "from_equinox", "from_flax", "from_linen", "mean_logits_attention", "mean_logits_heads"]
