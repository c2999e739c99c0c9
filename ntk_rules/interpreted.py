"""JAX functions run by NumPy, operation by operation, where they are to run once or on few numbers.

XLA compiles an operation called by itself, or a loop of a function, for longer than NumPy takes to compute it, where arrays are short or the
function is not called again. An operation that NumPy has no row for (`primitives.py`), and a
part with more arithmetic than a compilation is worth, are left to JAX.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from ntk_rules.primitives import RULES

__all__ = ["by_numpy", "called", "interpreted", "loop_sizes", "operations"]

_WHILE = 16  # rounds of a loop whose number of rounds is not known
_MUCH = 5e8  # operations of a part that XLA, which fuses them, computes in less time, its compilation included
_SHORT = 2**16  # bytes of constants that are compared
_BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")

Run = Callable[..., list[Any]]
Step = tuple[Run, list[int], list[int]]  # what is run, the slots that it reads, and those that it fills


def by_numpy(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of trees of arrays, traced at each call and run by NumPy.

    >>> bool(by_numpy(lambda x: jnp.sum(jnp.tanh(x)))(np.zeros(3)) == 0)
    True
    """

    def call(*arguments: Any) -> Any:
        double = jax.config.jax_enable_x64  # type: ignore[attr-defined]

        def trace() -> Any:
            with jax.enable_x64(double), jax.numpy_rank_promotion("allow"):
                return jax.make_jaxpr(function, return_shape=True)(*arguments)

        # In a thread of its own, where `jax.ensure_compile_time_eval` does not hold: JAX would compute, one by one, what is made of
        # constants alone.
        with ThreadPoolExecutor(1) as thread:
            traced, shapes = thread.submit(trace).result()
        return jax.tree.unflatten(jax.tree.structure(shapes), interpreted(traced)(*jax.tree.leaves(arguments)))

    return call


def interpreted(closed: Any) -> Run:
    """A traced function of its leaves as one that NumPy runs; under `jax.enable_x64` where it was traced so. Results are to be read only:
    they may be arguments, or constants that are kept."""
    whole, kinds = _compiled(closed.jaxpr, closed.consts), [v.aval.dtype for v in closed.jaxpr.invars]

    def run(*arguments: Any) -> list[np.ndarray]:
        with np.errstate(all="ignore"):
            return whole(*(np.asarray(a, kind) for a, kind in zip(arguments, kinds, strict=True)))

    return run


def _compiled(jaxpr: Any, consts: Sequence[Any]) -> Run:
    """The steps of a function: those that read constants alone, which are run once, and the others."""
    program = _Program(len(jaxpr.invars))
    ends = program.add(jaxpr, list(range(len(jaxpr.invars))), consts)
    fixed, steps = program.fixed, program.steps
    freed = _freed(steps, ends)

    @functools.cache
    def beginning() -> list[Any]:
        values = [*program.known]
        for function, read, filled in fixed:
            for slot, value in zip(filled, function(*[values[k] for k in read]), strict=True):
                values[slot] = value
        return values

    def run(*arguments: Any) -> list[Any]:
        values = [*beginning()]
        values[: len(arguments)] = arguments
        for (function, read, filled), dead in zip(steps, freed, strict=True):
            for slot, value in zip(filled, function(*[values[k] for k in read]), strict=True):
                values[slot] = value
            for slot in dead:
                values[slot] = None
        return [values[k] for k in ends]

    return run


class _Program:
    """Operations on numbered slots, the first of them the arguments; calls are taken apart. known: what is in a slot from the beginning.
    fixed: steps on constants alone, each once. steps: the others."""

    def __init__(self, arguments: int):
        self.known: list[Any] = [None] * arguments
        self.fixed: list[Step] = []
        self.steps: list[Step] = []
        self._constant: set[int] = set()
        self._numbers: dict[Any, int] = {}
        self._made: dict[Any, list[int]] = {}

    def add(self, jaxpr: Any, arguments: Sequence[int], consts: Sequence[Any]) -> list[int]:
        """The steps of a function; returns the slots of its results."""
        slots = dict(zip(jaxpr.invars, arguments, strict=True))
        slots.update(zip(jaxpr.constvars, map(self._number, consts), strict=True))

        def slot(atom: Any) -> int:
            if not isinstance(atom, jex.Literal):
                return slots[atom]
            kind: Any = atom.aval
            return self._number(np.asarray(atom.val, kind.dtype))

        for eqn in jaxpr.eqns:
            read = [slot(v) for v in eqn.invars]
            body = called(eqn)
            filled = self._step(eqn, read) if body is None else self.add(body[0], read, body[1])
            slots.update(zip(eqn.outvars, filled, strict=True))
        return [slot(v) for v in jaxpr.outvars]

    def _step(self, eqn: Any, read: list[int]) -> list[int]:
        constant, key = self._constant.issuperset(read), (id(eqn), *read)
        if constant and key in self._made:  # such as the table of Hermite polynomials, which every layer asks for
            return self._made[key]
        filled = [self._new(None) for _ in eqn.outvars]
        (self.fixed if constant else self.steps).append((_rule(eqn), read, filled))
        if constant:
            self._constant.update(filled)
            self._made[key] = filled
        return filled

    def _new(self, value: Any) -> int:
        self.known.append(value)
        return len(self.known) - 1

    def _number(self, value: Any) -> int:
        array = _as_numpy(value)
        short = isinstance(array, np.ndarray) and array.nbytes < _SHORT
        key = (array.shape, array.dtype, array.tobytes() if short else id(value))
        if key not in self._numbers:
            self._numbers[key] = self._new(array)
            self._constant.add(self._numbers[key])
        return self._numbers[key]


def _freed(steps: Sequence[Step], ends: Sequence[int]) -> list[list[int]]:
    """After each step the slots that nothing reads any more."""
    last: dict[int, int] = {}
    for k, (_, read, filled) in enumerate(steps):
        last.update(dict.fromkeys((*read, *filled), k))
    found: list[list[int]] = [[] for _ in steps]
    for slot, k in last.items():
        if slot not in ends:
            found[k].append(slot)
    return found


def called(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """The body of a call and its constants; None of other equations."""
    if eqn.primitive.name in ("scan", "while", "cond", "reduce"):
        return None
    bodies = [eqn.params[key] for key in _BODIES if key in eqn.params]
    if len(bodies) != 1 or len(list(inner_jaxprs(eqn))) != 1:
        return None
    body = bodies[0]
    return (body.jaxpr, body.consts) if hasattr(body, "consts") else (body, ())


def _rule(eqn: Any) -> Run:
    """What an equation computes."""
    name, by_jax = eqn.primitive.name, _left_to_jax(eqn)
    if name in ("scan", "while") and _times(eqn) * sum(map(operations, inner_jaxprs(eqn))) > _MUCH:
        return by_jax
    match name:
        case "scan":
            return _scan(eqn, _closed(eqn.params["jaxpr"]))
        case "while":
            return _while(eqn.params)
        case "cond":
            branches = [_closed(branch) for branch in eqn.params["branches"]]
            return lambda index, *values: branches[min(max(int(index), 0), len(branches) - 1)](*values)
        case "optimization_barrier":
            return lambda *values: list(values)
        case "reduce" if {e.primitive.name for e in eqn.params["jaxpr"].eqns} == {"add"}:  # of several arrays at once
            axes, count = eqn.params["dimensions"], len(eqn.outvars)
            kinds = [v.aval.dtype for v in eqn.outvars]
            return lambda *values: [
                np.asarray(np.sum(a, axes, kind) + start, kind)
                for a, start, kind in zip(values[:count], values[count:], kinds, strict=True)
            ]
    function = RULES[name](eqn.params) if name in RULES else None
    if function is None:
        return by_jax
    kind: Any = eqn.outvars[0].aval.dtype

    def one(*values: Any) -> list[Any]:
        found = function(*values)
        if found is None:
            return by_jax(*values)
        return [found if getattr(found, "dtype", None) == kind else np.asarray(found, kind)]

    return one


def _left_to_jax(eqn: Any) -> Run:
    """The equation by itself, compiled when it is first run; the operation alone, without a body of its own, once for all its equations."""

    @functools.cache
    def made() -> Callable[..., Any]:
        params = tuple(sorted(eqn.params.items()))
        try:
            return (_jitted.__wrapped__ if list(inner_jaxprs(eqn)) else _jitted)(eqn.primitive, params)
        except TypeError:  # a parameter that cannot be compared
            return _jitted.__wrapped__(eqn.primitive, params)

    def run(*values: Any) -> list[Any]:
        found = made()(*values)
        return [_as_numpy(v) for v in (found if eqn.primitive.multiple_results else [found])]

    return run


@functools.lru_cache(maxsize=256)
def _jitted(primitive: Any, params: tuple[tuple[str, Any], ...]) -> Callable[..., Any]:
    """A primitive as a function, which JAX compiles once for all arrays of one shape."""
    return jax.jit(lambda *given: primitive.bind(*given, **dict(params)))


def _as_numpy(value: Any) -> Any:
    """The same in NumPy, but for keys of random numbers, which only JAX knows."""
    return value if jnp.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


def _closed(body: Any) -> Run:
    return _compiled(body.jaxpr, body.consts) if hasattr(body, "consts") else _compiled(body, ())


def _scan(eqn: Any, body: Run) -> Run:
    params = eqn.params
    (n_consts, n_carry), length = loop_sizes(eqn, params["jaxpr"].jaxpr), params["length"]
    order = range(length - 1, -1, -1) if params["reverse"] else range(length)

    def run(*values: Any) -> list[Any]:
        consts, carry, xs = values[:n_consts], list(values[n_consts : n_consts + n_carry]), values[n_consts + n_carry :]
        stacks = [np.empty(v.aval.shape, v.aval.dtype) for v in eqn.outvars[n_carry:]]
        for t in order:
            found = body(*consts, *carry, *(x[t] for x in xs))
            carry = found[:n_carry]
            for stack, value in zip(stacks, found[n_carry:], strict=True):
                stack[t] = value
        return [*carry, *stacks]

    return run


def _while(params: dict[str, Any]) -> Run:
    more, step = _closed(params["cond_jaxpr"]), _closed(params["body_jaxpr"])
    n_more, n_step = params["cond_nconsts"], params["body_nconsts"]

    def run(*values: Any) -> list[Any]:
        of_more, of_step, state = values[:n_more], values[n_more : n_more + n_step], list(values[n_more + n_step :])
        while bool(more(*of_more, *state)[0]):
            state = step(*of_step, *state)
        return state

    return run


def loop_sizes(eqn: Any, body: Any) -> tuple[int, int]:
    """How many constants and carried values a scan has, by the shapes of what its body takes and gives: what goes through it step by step
    has one axis less there. (How its parameters say so depends on JAX's version.)"""
    same = lambda outside, inside: [a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True)]
    carried = sum(same(eqn.outvars, body.outvars))
    return sum(same(eqn.invars, body.invars)) - carried, carried


def operations(jaxpr: Any) -> float:
    """How many elementwise operations a traced function has, entries counted; the bodies of loops as often as they run."""
    return sum(_times(eqn) * sum(map(operations, inner_jaxprs(eqn))) or _entries(eqn) for eqn in jaxpr.eqns)


def _entries(eqn: Any) -> float:
    return sum(math.prod(v.aval.shape) for v in eqn.outvars)


def _times(eqn: Any) -> float:
    match eqn.primitive.name:
        case "scan":
            return eqn.params["length"]
        case "while":
            return _WHILE
    return 1


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """The bodies of a call, a loop, or branches."""
    for value in eqn.params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(one, "jaxpr"):
                yield one.jaxpr
            elif hasattr(one, "eqns"):
                yield one
