"""Emit quantities of the kernel graph as JAX code: one row for each kind in `EMIT`. Nothing here knows a batch axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ntk_rules.functions import to_jax
from tensorprog.ir import ArrayOp, Const, Hyper, Input, LinComb, Moment, Node, Nonlin, PositionMap
from tensorprog.kernel.graph import (
    Apply,
    Average,
    Combine,
    Contract,
    Data,
    Drawn,
    Expect,
    Factored,
    Normals,
    Quantity,
    Ran,
    Recorded,
    Sampled,
    Shifts,
    Tilted,
    Zero,
)
from tensorprog.lower.coinciding import as_one, meetings
from tensorprog.lower.einsum import contract
from tensorprog.lower.population import AllNormals, average, drawn, factored, recorded
from tensorprog.lower.run import run
from tensorprog.lower.sampled import sampled
from tensorprog.lower.samples import of_samples
from tensorprog.lower.schedule import operands_of, schedule, signature
from tensorprog.lower.tilted import tilted
from tensorprog.lower.windows import at_once, axis_by_axis

__all__ = ["SHIFT", "Context", "emit", "emit_open", "emit_together", "is_cross", "real_dtype", "value"]

Hypers = dict[str, jax.Array]
LEAST_VARIANCE = (
    1e-6  # of the largest, below which that of a direction is rounding; b is sampled, to three digits or so
)
SHIFT = "random shift"  # the hyperparameter, no name that a user can give, that has sampling take the points of one shift alone


def value(quantity: Quantity, inputs: tuple[Input, ...]) -> Callable[[Sequence[jax.Array], Hypers], jax.Array]:
    """A deterministic quantity of one input, as a function of its leaves and the hyperparameters."""
    steps = schedule([quantity], False)

    def of_input(leaves: Sequence[jax.Array], hypers: Hypers) -> jax.Array:
        dtype = real_dtype(leaves)
        context = Context(dict(zip(inputs, leaves, strict=True)), hypers, dtype, None, AllNormals((), dtype, None))
        return run(steps, lambda found, args: emit_together(found, args, context), [quantity])[quantity]

    return of_input


def real_dtype(leaves: Sequence[jax.Array]) -> jnp.dtype:
    """The dtype of a kernel of these leaves."""
    real = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(*real) if real else jnp.result_type(float)


def emit(q: Quantity, args: list[jax.Array], context: Context) -> jax.Array:
    """One quantity."""
    return emit_together([q], args, context)[0]


def emit_open(found: Sequence[Quantity], args: list[jax.Array], context: Context) -> list[jax.Array]:
    """Quantities that read the same, open to fusion with their readers."""
    return _shaped(found, _bare(found, args, context))


def _bare(found: Sequence[Quantity], args: list[jax.Array], context: Context) -> list[jax.Array]:
    """Their values, expectations and sums over windows with as few axes as they were computed with. A branch that ended in a reshape would
    have XLA's loops run along the last axis of its result."""
    return [EMIT[type(q)](q, args, context) for q in found]


def _shaped(found: Sequence[Quantity], values: Sequence[jax.Array]) -> list[jax.Array]:
    """The values of `_bare` with all their axes."""
    return [v.reshape(q.shape) if isinstance(q, (Expect, Shifts)) else v for q, v in zip(found, values, strict=True)]


def emit_together(found: Sequence[Quantity], args: list[jax.Array], context: Context) -> list[jax.Array]:
    """Quantities that read the same. What is costly is shielded from fusion, or XLA would compute it again for each of its readers: by a
    branch that is always taken, where it is given what tells so while it runs (on a CPU barriers are gone before XLA fuses), else by a
    barrier. In one branch they share what they compute."""
    q = found[0]
    if not isinstance(q, SHIELDED):
        return emit_open(found, args, context)
    made = _code(found, context)
    args = args if context.same is None else [*args, context.same]
    if context.live is None or not q.shape or isinstance(q, Normals):  # normals are drawn once, for many readers
        return _shaped(found, lax.optimization_barrier(made(args)))
    like = jax.eval_shape(made, args)
    values = lax.cond(context.live, made, lambda given: [_never_read(a, given) for a in like], args)
    return _shaped(found, values)


def _code(found: Sequence[Quantity], context: Context) -> Callable[[list[jax.Array]], list[jax.Array]]:
    """What computes them. Layers are alike: what depends on its arguments alone is one function of them for all that compute the same, which
    JAX traces, batches and lowers once; XLA puts it in its places."""
    if not all(isinstance(q, (Expect, Shifts)) for q in found):
        return lambda given: _bare(found, given if context.same is None else given[:-1], context)
    numbers: dict[Quantity, int] = {}  # which arguments are one, or one of either input, as `meetings` asks
    reads = tuple((numbers.setdefault(o.quantity, len(numbers)), o.side) for o in operands_of(found[0]))
    key = (*map(signature, found), reads, context.dtype, context.same is None, context.differentiated)
    if key not in context.codes:
        normals, differentiated = AllNormals((), context.dtype, None), context.differentiated
        alone = Context({}, {}, context.dtype, None, normals, off=context.off, differentiated=differentiated)
        of_one = lambda given: _bare(found, given, alone)
        of_two = lambda given: _bare(found, given[:-1], replace(alone, same=given[-1]))
        context.codes[key] = jax.jit(of_one if context.same is None else of_two)
    return context.codes[key]


def _never_read(like: jax.ShapeDtypeStruct, given: list[jax.Array]) -> jax.Array:
    """An array of that shape and dtype: one of those given where it can be, for which XLA has nothing to compile."""
    fitting = [a for a in given if (a.shape, a.dtype) == (like.shape, like.dtype)]
    return fitting[0] if fitting else jnp.zeros(like.shape, like.dtype)


def is_cross(quantity: Quantity) -> bool:
    """Does it belong to a pair of inputs?"""
    return getattr(quantity, "cross", False)


@dataclass(frozen=True)
class Context:
    """What the rows of `EMIT` read besides their operands: an input's leaves, hyperparameters, and the points of sampling. live: true, but
    XLA does not know that; None where barriers do. same: are the two inputs of the pair one? off: optimisations that are switched off.
    codes: of quantities, by what they compute. differentiated: are derivatives taken of what is emitted?"""

    leaves: dict[Node, jax.Array]
    hypers: dict[str, jax.Array]
    dtype: jnp.dtype
    shift: jax.Array | None
    normals: AllNormals
    live: jax.Array | None = None
    same: jax.Array | None = None
    off: Collection[str] = ()
    codes: dict[Any, Callable[..., Any]] = field(default_factory=dict)
    differentiated: bool = True


# ------------------------------------------------------------------------------------------ quantities


def _zero(q: Zero, args: list[jax.Array], context: Context) -> jax.Array:
    return jnp.zeros(q.shape, context.dtype)


def _contract(q: Contract, args: list[jax.Array], context: Context) -> jax.Array:
    args = [a.astype(context.dtype) for a in args]
    return contract(q.spec, args, q.scale, q.shape, context.dtype)


def _combine(q: Combine, args: list[jax.Array], context: Context) -> jax.Array:
    total = None
    for c, a in zip(q.coefficients, args, strict=True):
        term = a if c == 1.0 else a * jnp.asarray(c, context.dtype)
        total = term if total is None else total + term
    assert total is not None
    return total


def _apply(q: Apply, args: list[jax.Array], context: Context) -> jax.Array:
    """The position map over its axes, every other axis riding along."""
    covariance, *aux = args
    rest = [i for i in range(covariance.ndim) if i not in q.places]
    own = [i for i in q.places if i is not None]
    moved = jnp.transpose(covariance, (*rest, *own))
    extra = tuple(covariance.shape[i] for i in rest)
    full = tuple(1 if i is None else covariance.shape[i] for i in q.places)
    flat = moved.reshape((-1, *full))
    mapped = jax.vmap(lambda one: q.op(one, *aux))(flat)
    trailing = tuple(n for n in mapped.shape[1:] if n > 1)
    mapped = mapped.reshape((*extra, *trailing))
    return jnp.moveaxis(mapped, range(len(extra)), range(len(trailing), len(trailing) + len(extra)))


def _shifts(q: Shifts, args: list[jax.Array], context: Context) -> jax.Array:
    found = None if "windows" in context.off else at_once(q, args[0])
    return axis_by_axis(q, args[0]) if found is None else found


def _expect(q: Expect, args: list[jax.Array], context: Context) -> jax.Array:
    aligned = []
    for own, arg in zip(q.letters, args, strict=True):
        ones = tuple(i for i, c in enumerate(own) if c == "1")
        arg = jnp.squeeze(arg, ones) if ones else arg
        own = own.replace("1", "")
        if arg.ndim == 0:
            own = ""
        missing = tuple(i for i, c in enumerate(q.out) if c not in own)
        order = [own.index(c) for c in q.out if c in own]
        arg = arg if order == sorted(order) else jnp.transpose(arg, order)
        aligned.append((jnp.expand_dims(arg, missing) if arg.ndim and missing else arg).astype(context.dtype))
    if not q.cross or context.same is not None:
        aligned = _met(q, aligned, context.same)
    shape = q.shape
    if "together" not in context.off:
        aligned, shape = _fewer_axes(aligned, shape)
    covariances, parameters = aligned[: q.n_covariances], aligned[q.n_covariances :]
    value = q.expectation.value(covariances, parameters, differentiated=context.differentiated)
    return jnp.broadcast_to(value, shape).astype(context.dtype)


def _fewer_axes(arrays: list[jax.Array], shape: tuple[int, ...]) -> tuple[list[jax.Array], tuple[int, ...]]:
    """The arrays, which broadcast to `shape`, with neighbouring axes as one where all of them have both or neither; and that shape.

    The loops that XLA makes run along the last axis, which may be a few positions, or all of an input.
    """
    has = [tuple(a.shape[i] == n for a in arrays if a.ndim) for i, n in enumerate(shape)]
    groups: list[list[int]] = []
    for i, own in enumerate(has):
        if groups and own == has[groups[-1][-1]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    merged = lambda sizes: tuple(math.prod(sizes[i] for i in group) for group in groups)
    return [a.reshape(merged(a.shape)) if a.ndim else a for a in arrays], merged(shape)


def _met(q: Expect, aligned: list[jax.Array], same: jax.Array | None) -> list[jax.Array]:
    """The covariances of one input, with K[s, s] in the diagonal of K[s, t]; of two that may be the `same`, as `as_one` has them.

    They come by different sums, and what those round differently would look like an angle between a position and itself.
    """
    made = list(aligned)
    for k, first, _, parted in filter(None, meetings(q)):
        here = np.array(True)
        for a, b in parted:
            at = {c: np.arange(q.shape[q.out.index(c)]) for c in (a, b)}
            grid = {c: at[c].reshape([-1 if d == c else 1 for d in q.out]) for c in (a, b)}
            here = here & (grid[a] == grid[b])
        if q.cross:
            made[k] = as_one(same & here, aligned[first], aligned[k])
        else:
            made[k] = jnp.where(here, aligned[first], aligned[k])
    return made


# ------------------------------------------------------------------------------------------ deterministic arrays


def _data(q: Data, args: list[jax.Array], context: Context) -> jax.Array:
    match q.node:
        case Input():
            leaf = context.leaves[q.node]
            return leaf.astype(context.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        case Const(value=value):
            array = value.array()
            return jnp.asarray(array, context.dtype if array.dtype.kind == "f" else None)
        case Hyper(name=name):
            return jnp.asarray(context.hypers[name], context.dtype)
        case Moment():
            return args[0].reshape(q.shape)
        case LinComb(terms=terms):
            return _sum_of(terms, args, context)
        case Nonlin(phi=phi):
            return jnp.broadcast_to(_function(phi)(*(a.astype(context.dtype) for a in args)), q.shape)
        case PositionMap(op=op):
            return op(*args)
        case ArrayOp():
            return _run(q.node, args, context)
    raise AssertionError(f"{type(q.node).__name__} is not deterministic")


def _function(phi: Any) -> Callable[..., jax.Array]:
    return to_jax(phi.expr, phi.parameters)


def _sum_of(terms: Sequence[tuple[float | Node, Node]], args: list[jax.Array], context: Context) -> jax.Array:
    rest, total = iter(args), None
    for a, _ in terms:
        factor = next(rest) if isinstance(a, Node) else jnp.asarray(a, context.dtype)
        term = factor * next(rest)
        total = term if total is None else total + term
    assert total is not None
    return total


def _run(node: ArrayOp, args: list[jax.Array], context: Context) -> jax.Array:
    """An operation that is simply run: one of ours by name, else the JAX primitive of that name."""
    match node.primitive:
        case "to_real":
            return args[0].astype(context.dtype)
        case "to_integer":
            known = dict(node.params)
            wide = f"{'int' if known['signed'] else 'uint'}{known['bits']}" if known else "int64"
            return args[0].astype(jax.dtypes.canonicalize_dtype(wide))
        case "to_complex":
            return args[0].astype(complex)
        case "to_boolean":
            return args[0].astype(bool)
        case "stein":
            return _solved(args, **dict(node.params))
    whole = [a.dtype for a in args if jnp.issubdtype(a.dtype, jnp.integer)]
    if whole:  # whole numbers of the input and of constants may differ in size
        kind = jnp.result_type(*whole)
        args = [a.astype(kind) if jnp.issubdtype(a.dtype, jnp.integer) else a for a in args]
    primitive = getattr(lax, f"{node.primitive}_p")
    params = dict(node.params)
    if "new_dtype" in params and np.issubdtype(params["new_dtype"], np.floating):
        params["new_dtype"] = context.dtype
    if "index_dtype" in params:
        params["index_dtype"] = jax.dtypes.canonicalize_dtype(params["index_dtype"])
    result = primitive.bind(*args, **params)
    return result[0] if primitive.multiple_results else result


def _solved(args: list[jax.Array], sizes: tuple[int, ...], which: int) -> jax.Array:
    """The part of C^+ b of one of the families of variables, of `sizes` (`passes.jumps`): b the first arguments, (size, positions..), the rest
    the blocks on and above the diagonal of C, (size, size, positions..)."""
    last = lambda a, front: jnp.moveaxis(a, range(front), range(-front, 0))
    b = jnp.concatenate([last(a, 1) for a in args[: len(sizes)]], -1)
    rest = iter(args[len(sizes) :])
    above = {(i, j): last(next(rest), 2) for i in range(len(sizes)) for j in range(i, len(sizes))}
    block = lambda i, j: above[i, j] if i <= j else jnp.swapaxes(above[j, i], -1, -2)
    c = jnp.concatenate([jnp.concatenate([block(i, j) for j in range(len(sizes))], -1) for i in range(len(sizes))], -2)
    inverse = jnp.linalg.pinv(c, rtol=LEAST_VARIANCE, hermitian=True)
    start = sum(sizes[:which])
    found = jnp.einsum("...ij,...j->...i", inverse[..., start : start + sizes[which], :], b)
    return jnp.moveaxis(found, -1, 0)


def _ran(q: Ran, args: list[jax.Array], context: Context) -> jax.Array:
    """An instruction on the values of a population."""
    match q.node:
        case LinComb(terms=terms):
            return _sum_of(terms, args, context)
        case Nonlin():
            return jnp.broadcast_to(of_samples(q.node)(*args), (args[0].shape[0], *q.shape[1:]))
        case PositionMap(op=op):
            return jax.vmap(lambda value: op(value, *args[1:]))(args[0])
    raise AssertionError(f"a {type(q.node).__name__} is not run on a population")


SHIELDED = (Expect, Factored, Normals, Sampled, Shifts, Tilted)
EMIT: dict[type, Callable[..., jax.Array]] = {
    Zero: _zero,
    Data: _data,
    Contract: _contract,
    Combine: _combine,
    Apply: _apply,
    Shifts: _shifts,
    Expect: _expect,
    Tilted: lambda q, args, context: tilted(q, args, lambda r, given: emit_open([r], given, context)[0], context.dtype),
    Normals: lambda q, args, context: context.normals[q],
    Ran: _ran,
    Recorded: lambda q, args, context: recorded(q, args, context.shift),
    Factored: lambda q, args, context: factored(q, args),
    Drawn: lambda q, args, context: drawn(q, args),
    Average: lambda q, args, context: average(q, args, context.dtype),
    Sampled: lambda q, args, context: sampled(q, args, context.dtype, context.shift),
}
