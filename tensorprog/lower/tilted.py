"""Integrals over tilted Gaussian laws: the Laplace reduction of normalised functions (`kernel.tilted`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ntk_rules.sampling import factor
from tensorprog.kernel.graph import Given, Quantity, Tilted, quantities
from tensorprog.kernel.half_line import End, Seen, half_line, last_of
from tensorprog.lower.einsum import contract

__all__ = ["tilted"]

Emit = Callable[[Quantity, list[jax.Array]], jax.Array]


def tilted(q: Tilted, args: Sequence[jax.Array], emit: Emit, dtype: jnp.dtype) -> jax.Array:
    """The value. emit: computes one quantity of the inside from its operands."""
    whole = _assembled(q, args[: len(q.pairs)], dtype)
    lower = factor(whole)
    outer = dict(zip(q.outer, args[len(q.pairs) :], strict=True))
    size = sum(q.sizes)
    forms, axes, roots = [], [], []
    for side, norm in enumerate(q.norms):
        if norm is None:
            continue
        matrix, epsilon = jnp.asarray(norm[0].array(), dtype), norm[1]
        rows = lower[side * size : (side + 1) * size]
        form = rows.T @ matrix @ rows  # of the white noise
        forms.append(form)
        roots.append(jnp.asarray(_square_root(norm[0].array()), dtype) @ rows)
        axes.append((side, *_line(jnp.trace(form), epsilon, q.nodes, {powers[side] for powers, _ in q.parts})))
    endless = any(norm is not None and not norm[1] for norm in q.norms)
    order = list(quantities([quantity for _, quantity in q.parts]))

    grids = jnp.meshgrid(*(jnp.arange(len(s)) for _, s, _ in axes), indexing="ij")
    places = tuple(g.ravel() for g in grids)

    def one(index: tuple[jax.Array, ...]) -> jax.Array:
        at = [s[k] for (_, s, _), k in zip(axes, index, strict=True)]
        root = _precise_root(at, roots) if endless else _root(at, forms)
        half = jax.scipy.linalg.solve_triangular(root, lower.T, lower=True)
        covariance = half.T @ half
        density = 1 / jnp.abs(jnp.prod(jnp.diagonal(root)))
        values = _inside(q, order, covariance, outer, emit)
        total = jnp.zeros(q.shape, dtype)
        for powers, quantity in q.parts:
            weight = density
            for (side, _, weights), k in zip(axes, index, strict=True):
                weight = weight * weights[powers[side]][k]
            total = total + weight * values[quantity]
        return total

    ends = [End.of(i, q.nodes, dtype) for i, (side, *_) in enumerate(axes) if (norm := q.norms[side]) and not norm[1]]
    empty = jnp.zeros(q.shape, dtype)
    nothing: list[Seen] = [(empty,) * 4 for _ in ends]

    def add(
        carried: tuple[jax.Array, list[Seen]], index: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, list[Seen]], None]:
        total, seen = carried
        made = one(index)
        return (total + made, [end.seeing(s, index, made) for end, s in zip(ends, seen, strict=True)]), None

    whole_line, seen = lax.scan(add, (empty, nothing), places)[0]
    largest = jnp.max(jnp.abs(whole_line), initial=0.0)
    return sum((end.beyond(s, largest) for end, s in zip(ends, seen, strict=True)), start=whole_line)


def _root(at: Sequence[jax.Array], forms: Sequence[jax.Array]) -> jax.Array:
    """The lower factor of the precision 1 + sum_i 2 s_i F_i."""
    precision = jnp.eye(len(forms[0]), dtype=forms[0].dtype)
    for s, form in zip(at, forms, strict=True):
        precision = precision + 2 * s * form
    return jnp.linalg.cholesky(precision)


def _precise_root(at: Sequence[jax.Array], roots: Sequence[jax.Array]) -> jax.Array:
    """The same of F_i = A_i' A_i, by orthogonal transformations of the A_i, up to the signs of its columns.

    Where s is as large as 1e14, as without an epsilon, rounding makes 2 s F negative along directions that F does not see. Here it
    moves their factor of 1 by the square root of s times 1e-16, which the density outweighs.
    """
    unit = jnp.eye(roots[0].shape[1], dtype=roots[0].dtype)
    return jnp.linalg.qr(jnp.concatenate([unit, *(jnp.sqrt(2 * s) * a for s, a in zip(at, roots, strict=True))]), "r").T


def _square_root(matrix: np.ndarray) -> np.ndarray:
    """A with A' A = matrix, as many rows as its rank."""
    values, vectors = np.linalg.eigh(matrix)
    kept = values > 1e-13 * values.max()
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


def _assembled(q: Tilted, covariances: Sequence[jax.Array], dtype: jnp.dtype) -> jax.Array:
    """The covariance of all leaves, those of x' after those of x."""
    sizes = q.sizes * (2 if q.cross else 1)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    whole = jnp.zeros((starts[-1], starts[-1]), dtype)
    for (i, j), array in zip(q.pairs, covariances, strict=True):
        block = array.astype(dtype).reshape(sizes[i], sizes[j])
        rows, columns = slice(starts[i], starts[i + 1]), slice(starts[j], starts[j + 1])
        whole = whole.at[rows, columns].set(block).at[columns, rows].set(block.T)
    return whole


def _line(trace: jax.Array, epsilon: float, nodes: int, powers: set[int]) -> tuple[jax.Array, dict[int, jax.Array]]:
    """The nodes s of one integral, and for each power k the weights of int s^(k/2-1) e^(-s epsilon) .. ds / Gamma(k/2).

    A last node s = 0 stands for the power 0.
    """
    s, w = half_line(nodes, trace, epsilon, last_of(jnp.result_type(trace)))
    w = w * jnp.exp(-s * epsilon)
    weights = {k: jnp.append(w * s ** (k / 2) / math.gamma(k / 2), 0.0) for k in powers if k}
    if 0 in powers:
        weights[0] = jnp.zeros(nodes + 1, s.dtype).at[-1].set(1)
    return jnp.append(s, 0.0), weights


def _inside(
    q: Tilted, order: Sequence[Quantity], covariance: jax.Array, outer: dict[tuple[Given, int | None], jax.Array], emit: Emit
) -> dict[Quantity, jax.Array]:  # fmt: skip
    """The quantities of the inside under one tilted law; what belongs to one input, for either."""
    found: dict[tuple[Quantity, int | None], jax.Array] = {}
    for quantity in order:
        own = q.cross and not getattr(quantity, "cross", False)
        for side in (0, 1) if own else (None,):
            if isinstance(quantity, Given):
                if quantity.tilted:
                    found[quantity, side] = _read(q, quantity, covariance, side)
                else:
                    zero = jnp.zeros(quantity.shape, covariance.dtype)  # what is zero by structure is not handed in
                    found[quantity, side] = outer.get((quantity, side), zero)
                continue
            operands = getattr(quantity, "operands", ())
            args = [found[o.quantity, side if own else o.side] for o in operands]
            found[quantity, side] = emit(quantity, args)
    ends = (quantity for _, quantity in q.parts)
    return {end: found[end, 0 if q.cross and not getattr(end, "cross", False) else None] for end in ends}


def _read(q: Tilted, given: Given, covariance: jax.Array, side: int | None) -> jax.Array:
    """A covariance of two leaves, with the axes asked for."""
    asked = given.question
    starts = np.concatenate([[0], np.cumsum(q.sizes)])
    i, j = q.leaves.index(asked.u), q.leaves.index(asked.v)
    first, second = (0, 1) if given.cross else (side or 0, side or 0)
    rows = slice(first * starts[-1] + starts[i], first * starts[-1] + starts[i + 1])
    columns = slice(second * starts[-1] + starts[j], second * starts[-1] + starts[j + 1])
    block = covariance[rows, columns].reshape((*asked.u.type.shape, *asked.v.type.shape))
    return contract(f"{asked.lu + asked.lv}->{asked.out}", [block], 1.0, given.shape, covariance.dtype)
