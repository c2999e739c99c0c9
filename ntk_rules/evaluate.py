"""Closed forms as JAX functions: the heads of `heads.py` in numbers, and guarded division.

A negative power of something that may vanish (a standard deviation, a sine) is 0 where its base is 0:
that is the
symmetric value at zero variance and at correlation +-1, where the true value is infinite or undefined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import sympy as sp

from ntk_rules import faddeeva, heads, special
from ntk_rules.functions import MEANING, in_order, node_value
from ntk_rules.law import covariance_symbol, numbers_of, pair_name, pair_of, std_symbol

Entry = tuple[int, int]


def _bivariate(m1, s1, m2, s2, r, w, k, rest):
    h, j = limit(m1, s1), limit(m2, s2)
    if isinstance(k, (int, float)) and k == 0:
        return special.bivariate_cdf(h, j, r, w)
    return special.scaled_bivariate_cdf(h, j, r, w, k, rest)


def limit(mean: jax.Array, std: jax.Array) -> jax.Array:
    """mean/std; 40, which is as good as infinite, with its sign where std = 0."""
    mean, std = special.as_floats(mean, std)
    zero = std == 0
    return jnp.where(zero, jnp.sign(mean) * 40, mean / jnp.where(zero, 1, std))


HEAD_MEANING: dict[type, Callable[..., jax.Array]] = {
    heads.NormalCdf: special.normal_cdf,
    heads.CentredCdf: special.centred_cdf,
    heads.ScaledCdf: special.scaled_cdf,
    heads.Arcsine: special.signed_angle,
    heads.Turns: special.signed_turns,
    heads.BivariateCdf: _bivariate,
    heads.WaveCdf: faddeeva.wave_cdf,
    heads.Residue: special.residue,
    heads.ExpDifference: special.exp_difference,
    heads.ExpDifferences: special.exp_differences,
    heads.PairExponent: special.pair_exponent,
}
MEANING.update(HEAD_MEANING)


def entries_read(formula: sp.Expr) -> tuple[Entry, ...]:
    """The covariance entries that the symbols of a closed form stand for, sorted."""
    entries: set[Entry] = set()
    for symbol in formula.free_symbols:
        kind, _, index = symbol.name.partition("_")
        if symbol.name == f"s_{index}":
            entries.add((int(index), int(index)))
        elif (pair := pair_of(symbol.name)) is not None:
            i, j = pair
            entries |= {(i, j)} if kind == "C" else {(i, i), (i, j), (j, j)}
    return tuple(sorted(entries))


def compile_formula(
    formula: sp.Expr, parameters: Sequence[sp.Symbol], together: bool = False
) -> Callable[..., jax.Array]:  # fmt: skip
    """A function of ({(i, j): covariance}, parameters) evaluating the closed form.

    Bivariate integrals of one kind go through one loop, so that their long code is compiled once.
    together: the other costly heads too, in fewer and longer operations.
    """
    symbols = sorted(formula.free_symbols - set(parameters), key=str)
    evaluate = evaluation(formula, together)

    def value(covariances: dict[Entry, jax.Array], values: Sequence[jax.Array]) -> jax.Array:
        given = symbol_values(symbols, covariances) | dict(zip(parameters, values, strict=True))
        found = evaluate(given)[formula]
        # of nothing but numbers, a float of the precision of what it meets
        return jnp.asarray(found, jnp.result_type(*given.values(), 0.0)) if given else jnp.asarray(found * 1.0)

    return value


def evaluation(formula: sp.Expr, together: bool = False) -> Callable[[dict[Any, Any]], dict[Any, Any]]:
    """From the values of the symbols of `formula` to those of all its subexpressions."""
    groups = _alike(formula, _COSTLY if together else _LONG)
    first = in_order(sp.Tuple(*(argument for group in groups for node in group for argument in node.args)))[:-1]
    order = in_order(formula)

    def values(given: dict[Any, Any]) -> dict[Any, Any]:
        known = dict(given)
        for node in first:
            if node not in known:
                known[node] = node_value(node, known, True)
        for group in groups:
            known |= _together(group, known)
        for node in order:
            if node not in known:
                known[node] = node_value(node, known, True)
        return known

    return values


_LONG = (heads.BivariateCdf,)
_COSTLY = (*_LONG, heads.ScaledCdf, heads.NormalCdf, heads.WaveCdf)


def _alike(formula: sp.Expr, kinds: tuple[type, ...]) -> list[list[sp.Expr]]:
    """The heads of these kinds in groups of one kind, but for those with a costly one among their arguments."""
    groups: dict[tuple[type, bool], list[sp.Expr]] = {}
    for node in sorted(formula.atoms(*kinds), key=str):
        if not any(argument.has(*_COSTLY) for argument in node.args):
            groups.setdefault((node.func, _is_plain(node)), []).append(node)
    return [group for group in groups.values() if len(group) > 1]


def _is_plain(node: sp.Expr) -> bool:
    """Whether it is a bivariate integral without a scale."""
    return isinstance(node, heads.BivariateCdf) and node.args[6] == 0


def _together(group: list[sp.Expr], known: dict[Any, Any]) -> dict[Any, jax.Array]:
    """The values of heads of one kind; those of one shape are stacked, and taken one after the other where an array of all would have
    to go through memory once for every node of a quadrature.
    """
    rows: dict[tuple[int, ...], list[tuple[sp.Expr, list[jax.Array]]]] = {}
    for node in group:
        arrays = special.as_floats(*(known[argument] for argument in node.args))
        rows.setdefault(jnp.broadcast_shapes(*(a.shape for a in arrays)), []).append((node, list(arrays)))
    out: dict[Any, jax.Array] = {}
    for shape, members in rows.items():
        columns = zip(*(arrays for _, arrays in members), strict=True)
        stacked = [jnp.stack([jnp.broadcast_to(a, shape) for a in column]) for column in columns]
        meaning = HEAD_MEANING[group[0].func]
        if isinstance(group[0], _LONG):
            scale = [0.0] if _is_plain(group[0]) else []  # 0 as a number is what tells the two kinds apart
            rest = stacked[7:] if scale else stacked[6:]
            values = jax.lax.map(lambda a, scale=scale: _bivariate(*a[:6], *scale, *a[6:]), (*stacked[:6], *rest))
        else:
            values = meaning(*stacked)
        out |= {node: values[k] for k, (node, _) in enumerate(members)}
    return out


def symbol_values(symbols: Iterable[sp.Symbol], covariances: dict[Entry, jax.Array]) -> dict[sp.Expr, jax.Array]:
    """What symbols of `law.py` stand for: standard deviations, covariances, correlations and their sines; and w^2 of every sine w, which
    needs no root."""
    found: dict[sp.Expr, jax.Array] = {}
    pairs: dict[Entry, tuple[jax.Array, jax.Array]] = {}
    for symbol in symbols:
        kind, _, index = symbol.name.partition("_")
        if kind == "s":
            found[symbol] = jnp.sqrt(jnp.maximum(covariances[(int(index), int(index))], 0))
            continue
        i, j = numbers_of(symbol)
        if kind == "C":
            found[symbol] = covariances[(i, j)]
            continue
        if (i, j) not in pairs:
            pairs[i, j] = special.correlation(covariances[(i, i)], covariances[(j, j)], covariances[(i, j)])
        rho, w = pairs[i, j]
        found[symbol] = rho if kind == "rho" else w
        if kind == "w":
            found[symbol**2] = (1 - rho) * (1 + rho)
    return found


def in_covariances(formula: sp.Expr, n: int) -> sp.Expr:
    """The closed form in the covariances C_ij alone (C_ii the variances), for reading."""
    variance = lambda i: sp.Symbol(f"C_{pair_name(i, i)}", positive=True)
    known: dict[sp.Expr, sp.Expr] = {}
    for i in range(n):
        known[std_symbol(i)] = sp.sqrt(variance(i))
    for symbol in formula.free_symbols:
        kind, pair = symbol.name.partition("_")[0], pair_of(symbol.name)
        if kind in ("rho", "w") and pair is not None:
            a, b = map(variance, pair)
            c = covariance_symbol(*pair)
            known[symbol] = c / sp.sqrt(a * b) if kind == "rho" else sp.sqrt(a * b - c**2) / sp.sqrt(a * b)
    return formula.xreplace(known)
