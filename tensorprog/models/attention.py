"""Attention whose logits are means over the coordinates of a head, q.k/d in place of q.k/sqrt(d), for modules of others.

With a fixed number of heads the dimension d of a head grows with the width. Logits q.k/sqrt(d) then stay random in
the limit, and the output is a mixture of Gaussians rather than one; logits q.k/d concentrate on their expectation
(Yang 2020, Tensor Programs II, section on attention), and the network has a kernel. With independent queries and
keys that expectation is zero at initialisation, so that a head attends to all positions alike.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.errors import NetworkError, explain

__all__ = ["mean_logits_attention", "mean_logits_heads"]


def mean_logits_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None, mask: jax.Array | None = None,
    *, dropout_rate: float = 0.0, deterministic: bool = False, is_causal: bool = False, **_: Any,
) -> jax.Array:  # fmt: skip
    """Dot-product attention with logits q.k/d: the `attention_fn` of `flax.nnx.MultiHeadAttention`.

    query: (.., queries, heads, d). key, value: (.., keys, heads, d). bias, mask: broadcast to (.., heads, queries, keys).
    Returns (.., queries, heads, d). Raises NetworkError where dropout is on.

    Example:
        >>> import jax.numpy as jnp, tensorprog as tp
        >>> x = jnp.ones((3, 2, 4))
        >>> tp.mean_logits_attention(x, x, x).shape
        (3, 2, 4)
    """
    if dropout_rate > 0 and not deterministic:
        raise NetworkError(
            explain(
                "mean_logits_attention was called with dropout",
                reason="a kernel belongs to one function of the input, and a random mask makes another at every call",
                mend="call the module with deterministic=True, or model.eval()",
            )
        )
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key) / query.shape[-1]
    if bias is not None:
        logits = logits + bias
    if is_causal:
        causal = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        mask = causal if mask is None else jnp.logical_and(mask, causal)
    if mask is not None:
        logits = jnp.where(mask, logits, -1e30)
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(logits), value)


def mean_logits_heads(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries (time, heads, d) divided by sqrt(d), so that logits become q.k/d: the `process_heads` of
    `equinox.nn.MultiheadAttention`."""
    return query / query.shape[-1] ** 0.5, key, value
