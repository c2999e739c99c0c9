"""A lowered kernel as functions of batches of inputs: of states, of blocks of pairs, of inputs with themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from sympy import count_ops

from ntk_rules.pieces import has_kinks
from tensorprog.errors import InputError
from tensorprog.kernel import KernelGraph
from tensorprog.kernel.fields import chunk_entries
from tensorprog.kernel.graph import Average, Expect, Normals, Operand, Quantity, Sampled, Tilted
from tensorprog.runtime.one_sided import Parted, Some, stretch
from tensorprog.runtime.picture import heat_maps
from tensorprog.runtime.tiles import CACHED, pairs_in_memory

__all__ = [
    "GET",
    "Functions",
    "KernelResult",
    "check_get",
    "float_dtype",
    "functions",
    "kinked",
    "norms_members",
    "pair_entries",
    "pair_operations",
    "part",
]

GET = ("nngp", "ntk")
_OPERATIONS = 4  # for one of a closed form: arcs and error functions are polynomials
Leaves = list[jax.Array]
Hypers = dict[str, jax.Array]


class KernelResult(NamedTuple):
    """The two kernels of one call, each of shape (N1, N2), followed by the output's own axes twice if it has any."""

    nngp: Any
    ntk: Any

    def _repr_html_(self) -> str | None:
        """For Jupyter: heat maps, where matplotlib is there to draw them."""
        return heat_maps(self._asdict())


def pair_entries(nodes: Iterable[Quantity]) -> int:
    """How many entries the largest array has that one pair of inputs needs."""
    sizes = [
        chunk_entries(q) if isinstance(q, Sampled) else math.prod(getattr(q, "shape", ()))
        for q in nodes
        if getattr(q, "cross", False)
    ]
    return max(sizes, default=1)


def pair_operations(nodes: Iterable[Quantity]) -> float:
    """About how many operations a pair of inputs costs: infinitely many where an expectation has no closed form."""
    cross = [q for q in nodes if getattr(q, "cross", False)]
    formulas = [q.expectation.formula for q in cross if isinstance(q, Expect)]
    if any(formula is None for formula in formulas):
        return math.inf
    return len(cross) + _OPERATIONS * sum(count_ops(formula) for formula in formulas)


def draws(nodes: Iterable[Quantity]) -> bool:
    """Are random points drawn for every block of pairs?"""
    return any(isinstance(q, (Average, Normals, Sampled)) for q in nodes)


def float_dtype(x: Iterable[jax.Array]) -> Any:
    """The dtype of a kernel of these inputs: that of the real ones, JAX's default if there are none."""
    kinds = [leaf.dtype for leaf in x if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(*kinds) if kinds else jnp.result_type(float)


def part(tree: Any, start: Any, count: int) -> Any:
    """Some of the inputs, of arrays with a batch axis; start is not negative."""
    return jax.tree.map(lambda a: stretch(a, start, count), tree)


class OfVariances(Protocol):
    """How sharp functions are at the variances that states keep (`tensorprog.lower.sharpness`)."""

    def variances(self, states: Any) -> list[jax.Array]: ...
    def of_each(self, states: Any) -> jax.Array: ...
    def largest(self, variances: Sequence[Any]) -> float: ...


@dataclass(frozen=True)
class Steps:
    """states: (x, hypers) -> what belongs to each input, a tree of arrays with a batch axis. kept: (x, hypers) -> (what pairs read of
    the inputs, the states). pairs: (kept, kept) -> the blocks of every pair. own: states -> the blocks of every input with itself.
    strained: (states, own, loose) -> is the precision enough? InputError where variances are beyond what quadrature follows; own: of inputs
    met with themselves alone; loose: to float32's tolerance. sharp: how sharp functions are at the variances of the states. part:
    (kept, start, count) -> what pairs read of some inputs."""

    states: Callable[[Leaves, Hypers], Any]
    kept: Callable[[Leaves, Hypers], tuple[Any, Any]]
    pairs: Callable[[Any, Any], Sequence[jax.Array]]
    own: Callable[[Any], tuple[jax.Array, ...]]
    strained: Callable[..., bool] | None = None
    sharp: OfVariances | None = None
    part: Callable[[Any, Any, int], Any] = part


@dataclass(frozen=True)
class Functions:
    """The functions that whole matrices are made of, with a batch axis on every array: lowered here, or read from a file.

    block: (x1, x2, hypers) -> (nngp, ntk) of every pair. diagonal: (x, hypers) -> (nngp, ntk) of every input with
    itself.
    x1, x2, x are lists of the input's leaves. shape: the output's own axes. pair_entries: entries of the largest
    array of a pair.
    steps: the block in two steps, where it falls into them.
    rows: (x1, x2, hypers) -> (nngp, ntk) of the i-th with the i-th input, where there is such a function. kinks: are there
    functions with kinks? draws: are random points drawn for every block, so that blocks should be large? directions: of
    `sees_directions`. norms: of `norms_members`. sharp: (x, hypers) -> how sharp functions are at the variances of every input, where any
    is smooth (`tensorprog.lower.sharpness`). noise: is anything drawn anew for every input?
    """

    block: Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, jax.Array]]
    diagonal: Callable[[Leaves, Hypers], tuple[jax.Array, jax.Array]]
    shape: tuple[int, ...]
    pair_entries: int
    steps: Steps | None = None
    rows: Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, jax.Array]] | None = None
    kinks: bool = False
    draws: bool = False
    directions: bool = True
    norms: bool = False
    sharp: Callable[[Leaves, Hypers], jax.Array] | None = None
    noise: bool = False


class OfPairs(Protocol):
    """What lowering makes: the kernel without batch axes (`tensorprog.lower.Lowered`)."""

    @property
    def state(self) -> Callable[..., Any]: ...
    @property
    def pair(self) -> Callable[..., Any]: ...
    @property
    def diagonal(self) -> Callable[..., Any]: ...
    @property
    def strained(self) -> Callable[..., bool] | None: ...
    @property
    def sharp(self) -> OfVariances | None: ...
    @property
    def guarded(self) -> OfPairs: ...


def by_rows(pairs: Callable[[Any, Any], Any], first: Any, second: Any, entries: int) -> Any:
    """`pairs(first, second)`, some rows at a time where that keeps its arrays, of `entries` for each pair, in the cache.

    The layers of a kernel are many passes over the matrix: out of the cache, memory would set their speed.
    """
    n1, n2 = (jax.tree.leaves(x)[0].shape[0] for x in (first, second))
    sizes_known = isinstance(n1, int) and isinstance(n2, int)  # not while a function for any sizes is exported
    if not sizes_known or n1 * n2 * entries <= 2 * CACHED or n2 * entries > CACHED:
        return pairs(first, second)
    chunks = math.ceil(n1 / (CACHED // (n2 * entries)))
    rows = math.ceil(n1 / chunks)
    at = np.minimum(np.arange(math.ceil(n1 / rows) * rows), n1 - 1)  # the last row again, to fill the last chunk
    stacked = jax.tree.map(lambda a: (a if len(at) == n1 else a[at]).reshape(-1, rows, *a.shape[1:]), first)
    found = lax.map(lambda part: pairs(part, second), stacked)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n1], found)


def by_inputs(one: Callable[[Leaves], Any], x: Leaves, entries: int) -> Any:
    """`one` of every input, as many at a time as a tile's memory is good for, where each has arrays of `entries`."""
    count = x[0].shape[0]
    at_once = pairs_in_memory(entries * np.dtype(float_dtype(x)).itemsize)
    if not isinstance(count, int) or count <= at_once:  # unknown while a function for any sizes is exported
        return jax.vmap(one)(x)
    return lax.map(one, x, batch_size=at_once)


def without_branches(off: Collection[str]) -> bool:
    """Are barriers enough to shield costly quantities from fusion, or is that not wanted?"""
    return "branches" in off or jax.default_backend() != "cpu"


def live_flag(x: Leaves, off: Collection[str] = ()) -> jax.Array | None:
    """True, but only when it runs: what shields costly quantities from fusion on a CPU (`tensorprog.lower.emit`)."""
    filled = [leaf for leaf in x if leaf.size]
    if without_branches(off) or not filled:
        return None
    some = lax.stop_gradient(filled[0]).ravel()[0].astype(jnp.float32)
    return some == some


def steps(lowered: OfPairs, entries: int, off: Collection[str] = (), differentiated: bool = True) -> Steps:
    """A lowered kernel in its two steps, `jax.vmap` over the inputs of both. entries: of the largest array of an input or pair.
    differentiated: are derivatives taken of them?"""

    def states(x: Leaves, hypers: Hypers) -> Any:
        live = live_flag(x, off)
        return by_inputs(lambda leaves: lowered.state(leaves, hypers, live, differentiated), x, entries)

    def pairs(first: Any, second: Any) -> tuple[jax.Array, ...]:
        live = live_flag(jax.tree.leaves(first), off)
        pair = lambda a, b: lowered.pair(a, b, live, differentiated)
        return jax.vmap(jax.vmap(pair, (None, 0)), (0, None))(first, second)

    return Steps(states, _twice(states), pairs, jax.vmap(lowered.diagonal), lowered.strained, lowered.sharp)


def _twice(states: Callable[[Leaves, Hypers], Any]) -> Callable[[Leaves, Hypers], tuple[Any, Any]]:
    """Of states that are all that pairs read."""
    return lambda x, hypers: (states(x, hypers),) * 2


def parted(lowered: OfPairs, entries: int, off: Collection[str] = ()) -> Steps:
    """The steps of `steps` for tiles, which are not differentiated: what pairs compute of one input alone is computed with its state.
    Where pairs have positions, that would be more to read than it saves."""
    plain = steps(lowered, entries, off, differentiated=False)
    if entries > 1 or "sides" in off:
        return plain
    flag = [] if without_branches(off) else [jax.ShapeDtypeStruct((), bool)]
    known: dict[Any, Parted] = {}  # for every precision

    def kept(x: Leaves, hypers: Hypers) -> tuple[Any, Any]:
        live, made = live_flag(x, off), None

        def both(leaves: Leaves) -> Any:
            nonlocal made
            state = lowered.state(leaves, hypers, live, False)
            kinds = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
            made = Parted(lambda a, b, live=None: lowered.pair(a, b, live, False), kinds, flag)
            return [jax.tree.leaves(state)[0], *made.one(state)], state  # the first, for what tells that code is live

        found, states = by_inputs(both, x, entries)
        assert made is not None
        found = [jnp.moveaxis(a, 0, axis) for a, axis in zip(found, (0, *made.axes), strict=True)]
        known[_kinds(found)] = made
        return found, states

    def pairs(first: Some, second: Some) -> list[jax.Array]:
        made, live = known[_kinds(first.arrays)], live_flag(list(first.arrays), off)
        sides = [replace(some, arrays=some.arrays[1:]) for some in (first, second)]
        return made.pairs(*sides, *([] if live is None else [live]))

    return replace(plain, kept=kept, pairs=pairs, part=Some)


def _kinds(arrays: Sequence[Any]) -> Any:
    return tuple((a.dtype, a.ndim) for a in arrays)


class InOne(Protocol):
    """Functions of blocks that do not fall into steps."""

    @property
    def block(self) -> Callable[..., tuple[jax.Array, ...]]: ...
    @property
    def diagonal(self) -> Callable[..., tuple[jax.Array, ...]]: ...
    @property
    def sharp(self) -> Callable[[Leaves, Hypers], jax.Array] | None: ...


class _OfInputs:
    """How sharp functions are, where states are the inputs themselves."""

    def __init__(self, of_each: Callable[[Any], jax.Array]):
        self.of_each = of_each

    def variances(self, states: Any) -> list[jax.Array]:
        return [self.of_each(states)]

    def largest(self, variances: Sequence[Any]) -> float:
        return float(np.max(np.asarray(variances[0]), initial=0))


def whole(made: InOne) -> Steps:
    """Functions that do not fall into steps: pairs read all of the inputs, and the hyperparameters."""

    def states(x: Leaves, hypers: Hypers) -> Any:
        return x, {name: jnp.broadcast_to(value, (len(x[0]),)) for name, value in hypers.items()}

    one = lambda values: {name: value[0] for name, value in values.items()}
    pairs = lambda a, b: made.block(a[0], b[0], one(a[1]))
    of_states = lambda function: lambda a: function(a[0], one(a[1]))
    sharp = None if made.sharp is None else _OfInputs(of_states(made.sharp))
    return Steps(states, _twice(states), pairs, of_states(made.diagonal), sharp=sharp)


def sharpness(
    lowered: OfPairs, states: Callable[[Leaves, Hypers], Any]
) -> Callable[[Leaves, Hypers], jax.Array] | None:
    """How sharp functions are at the variances of every input, where any is smooth."""
    sharp = lowered.sharp
    return None if sharp is None else lambda x, hypers: sharp.of_each(states(x, hypers))


def functions(lowered: OfPairs, graph: KernelGraph, off: Collection[str] = ()) -> Functions:
    """Pairs into blocks. off: optimisations that are switched off."""
    entries, guarded = pair_entries(graph.nodes), lowered.guarded
    two, marked = parted(lowered, entries, off), steps(guarded, entries, off)

    def both(
        x1: Leaves, x2: Leaves, hypers: Hypers, live: jax.Array | None, differentiated: bool = True
    ) -> tuple[Any, Any]:
        """The states of two sets of inputs: one graph, not two."""
        of_one = jax.vmap(lambda leaves: lowered.state(leaves, hypers, live, differentiated))
        joined = of_one([jnp.concatenate(pair) for pair in zip(x1, x2, strict=True)])
        n1 = x1[0].shape[0]
        return jax.tree.map(lambda a: a[:n1], joined), jax.tree.map(lambda a: a[n1:], joined)

    def block(x1: Leaves, x2: Leaves, hypers: Hypers) -> Any:
        first, second = both(x1, x2, hypers, live_flag(x1, off))
        return marked.pairs(first, second) if "rows" in off else by_rows(marked.pairs, first, second, entries)

    def diagonal(x: Leaves, hypers: Hypers) -> Any:
        live = live_flag(x, off)
        return by_inputs(lambda leaves: guarded.diagonal(lowered.state(leaves, hypers, live)), x, entries)

    def rows(x1: Leaves, x2: Leaves, hypers: Hypers) -> Any:
        live = live_flag(x1, off)
        return jax.vmap(lambda a, b: guarded.pair(a, b, live, False))(*both(x1, x2, hypers, live, False))

    kinks, directions = kinked(graph.nodes), sees_directions(graph.nodes)
    norms, sharp = norms_members(graph.nodes), sharpness(lowered, marked.states)
    return Functions(
        block,
        diagonal,
        graph.shape,
        entries,
        two,
        rows,
        kinks,
        draws(graph.nodes),
        directions,
        norms,
        sharp,
        graph.noise,
    )


def kinked(nodes: Iterable[Quantity]) -> bool:
    """Are there functions with kinks?"""
    return any(isinstance(q, Expect) and has_kinks(q.function) for q in nodes)


def norms_members(nodes: Iterable[Quantity]) -> bool:
    """Are there norms of a batch or of positions? Under their laws covariances are nearly singular where epsilon is small, and float32 keeps
    too few digits: such kernels are computed in float64."""
    return any(isinstance(q, Tilted) for q in nodes)


def sees_directions(nodes: Iterable[Quantity]) -> bool:
    """Does a function with kinks see no bias, but only the directions of two inputs, which biases above may part further?

    Then inputs of one direction are near there, whatever the output says. So are opposite ones, where no bias follows: to ReLU these
    have nothing in common.
    """
    made_of: dict[Quantity, str] = {}  # of a pair: of data alone, of a constant alone, or of more than that
    bare = False
    for q in nodes:
        if not getattr(q, "cross", False):
            continue
        operands: tuple[Operand, ...] = getattr(q, "operands", ())
        read = [o.quantity for o in operands if o.side is None and getattr(o.quantity, "cross", False)]
        sided = any(o.side is not None for o in operands)
        kinds = {made_of[r] for r in read}
        if isinstance(q, (Expect, Sampled, Tilted)):
            kinked_here = not isinstance(q, Expect) or has_kinks(q.function)
            bare, made_of[q] = bare or (kinked_here and kinds == {"data"}), "more"
        elif not read:
            made_of[q] = "data" if sided else "constant"
        else:
            made_of[q] = kinds.pop() if len(kinds) == 1 else "more"
    return bare


def check_get(get: str | Sequence[str] | None, what: str = "kernel") -> tuple[str, ...]:
    """The names asked for, checked. what: is called."""
    names = (
        GET if get is None else (get,) if isinstance(get, str) else tuple(get) if isinstance(get, (tuple, list)) else ()
    )
    if not names or any(name not in GET for name in names) or len(set(names)) < len(names):
        raise InputError(f"{what}: get is {get!r}, expected 'nngp', 'ntk', or a tuple of them, each once")
    return names
