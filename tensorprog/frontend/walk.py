"""Walk the two jaxprs of a network in step: each equation becomes instructions.

One table of rules, primitive -> function, gives each equation its meaning (see `frontend.primitives`). Before it is
asked, three things are settled here once for all: what is known at both widths is simply computed, calls and loops
are entered, and what is deterministic and has no width axis is simply run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import sympy
from jax import lax
from jax.extend import core as jex

from ntk_rules.interpreted import loop_sizes
from tensorprog.errors import NetworkError, UnsupportedError, explain
from tensorprog.frontend.build import to_var
from tensorprog.frontend.clipping import folded
from tensorprog.frontend.complexes import in_pairs
from tensorprog.frontend.cutting import take_step
from tensorprog.frontend.divided import averages_among
from tensorprog.frontend.joining import stack_steps
from tensorprog.frontend.matrices import narrowed
from tensorprog.frontend.matrix_rules import matrix_rule, step_of
from tensorprog.frontend.own_places import places_of_their_own, read_by_each
from tensorprog.frontend.own_rules import CUSTOM, named, with_own_slopes
from tensorprog.frontend.primitives import RULES, elementwise
from tensorprog.frontend.recording import is_single
from tensorprog.frontend.refusals import Refusal, advice, check_numbers
from tensorprog.frontend.trace import from_library, same_structure, source_of
from tensorprog.frontend.values import Known, Matrices, Value, Var, aval, kind_of, width_axis
from tensorprog.frontend.written_out import bodies, by_name
from tensorprog.ir import ArrayOp, Source
from tensorprog.ir.positions import plain

__all__ = ["Equation", "run"]


@dataclass(frozen=True)
class Equation:
    """One equation of the trace at both widths. wanted: which of its results are read."""

    primitive: str
    eqns: tuple[jex.JaxprEqn, jex.JaxprEqn]
    source: Source | None
    wanted: tuple[bool, ...] = ()

    @property
    def params(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.eqns[0].params, self.eqns[1].params

    def out_shapes(self, i: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return aval(self.eqns[0].outvars[i]).shape, aval(self.eqns[1].outvars[i]).shape

    def pairs(self, key: str) -> list[tuple[int, int]]:
        """A parameter that is a list of numbers, each at both widths."""
        return list(zip(self.params[0][key], self.params[1][key], strict=True))

    @property
    def out_dtype(self) -> np.dtype:
        return np.dtype(aval(self.eqns[0].outvars[0]).dtype)


def run(
    jaxprs: tuple[jex.ClosedJaxpr, jex.ClosedJaxpr],
    args: Sequence[Value],
    caller: Source | None = None,
    wanted: Sequence[bool] = (),
) -> list[Value]:
    """Interpret both jaxprs on the same arguments. caller: the user's line that calls them.

    What no result needs (the running statistics of a batch norm, say) is left out. wanted: which results are read, all by
    default; nothing sensible stands in the place of the others.
    """
    same_structure(*jaxprs)
    first, second = jaxprs[0].jaxpr, jaxprs[1].jaxpr
    consts = [Known((_on_host(a), _on_host(b))) for a, b in zip(jaxprs[0].consts, jaxprs[1].consts, strict=True)]
    env: dict[Any, Value] = dict(zip(first.constvars, consts, strict=True))
    env.update(zip(first.invars, args, strict=True))
    foreign = caller is not None and from_library(jaxprs[0])
    wanted = wanted or (True,) * len(first.outvars)
    needed = _needed(first, wanted)
    for eqns in zip(first.eqns, second.eqns, strict=True):
        read = tuple(var in needed for var in eqns[0].outvars)
        if not any(read):
            continue
        source = caller if foreign else source_of(eqns[0]) or caller
        eqn = Equation(eqns[0].primitive.name, eqns, source, read)
        values = [_read(env, *atoms) for atoms in zip(eqns[0].invars, eqns[1].invars, strict=True)]
        results = evaluate(eqn, values)
        for var, result in zip(eqns[0].outvars, results, strict=True):
            env[var] = _sourced(result, eqn.source)
    ends = zip(first.outvars, second.outvars, wanted, strict=True)
    return [_read(env, *atoms) if used else _UNREAD for *atoms, used in ends]


LARGE = 2**20  # entries
_UNREAD = Known((np.zeros(()), np.zeros(())))


def _needed(jaxpr: jex.Jaxpr, wanted: Sequence[bool]) -> set[Any]:
    """The variables that the wanted results are made of; of an equation that is needed all operands are."""
    needed = {v for v, used in zip(jaxpr.outvars, wanted, strict=True) if used and not isinstance(v, jex.Literal)}
    for eqn in reversed(jaxpr.eqns):
        if any(var in needed for var in eqn.outvars):
            joined = (
                eqn.primitive.name == "concatenate"
            )  # jnp.pad joins parts of no size, which may be cut from the width
            needed.update(v for v in eqn.invars if not isinstance(v, jex.Literal) and not (joined and not aval(v).size))
    return needed


def _read(env: dict[Any, Value], atom1: Any, atom2: Any) -> Value:
    if isinstance(atom1, jex.Literal):
        return Known((np.asarray(atom1.val, aval(atom1).dtype), np.asarray(atom2.val, aval(atom2).dtype)))
    if atom1 not in env and not aval(atom1).size:
        return Known((np.zeros(aval(atom1).shape), np.zeros(aval(atom2).shape)))
    return env[atom1]


def _sourced(value: Value, source: Source | None) -> Value:
    if isinstance(value, Var):
        for _, node in value.blocks:
            if node.source is None and source is not None:
                object.__setattr__(node, "source", source)
    return value


_AS_THEY_ARE = {
    "name",
    "optimization_barrier",
    "sharding_constraint",
}  # what is said of values to checkpoints and to XLA


def evaluate(eqn: Equation, values: Sequence[Value]) -> list[Value]:
    """The values an equation makes."""
    if eqn.primitive in _AS_THEY_ARE:
        return list(values)
    if not all(isinstance(v, Known) for v in values):
        check_numbers(eqn, values)
    values = _with_averages(eqn, values)
    if (entered := _enter(eqn, values)) is not None:
        return entered
    if all(isinstance(v, Known) for v in values):
        return _compute(eqn, values)  # type: ignore[arg-type]
    try:
        if (written := in_pairs(eqn, values)) is not None:
            return written.joined(run(written.jaxprs, written.values, eqn.source))
        if (numbered := places_of_their_own(eqn, values)) is not None:
            return [numbered]
        if (read := read_by_each(eqn, values)) is not None:
            return run(*read, eqn.source)
        if _simply_run(eqn, values):
            return _array_op(eqn, values)
        if (made := matrix_rule(eqn, values)) is not None:
            return [made]
        values = list(map(narrowed, values))
        if (code := bodies(eqn, values)) is not None:
            return run(code, values, eqn.source, eqn.wanted)
        rule = RULES.get(eqn.primitive)
        if _complex(eqn):
            raise Refusal(
                "it takes complex numbers of hidden values, or together with them",
                "write real and imaginary parts as two real arrays; of the input alone any complex function may be taken",
            )
        if rule is None:
            raise Refusal(*advice(eqn.primitive))
        result = rule(eqn, *values)
        return result if isinstance(result, list) else [result]
    except Refusal as refusal:
        raise refusal.at(eqn.primitive, eqn.source) from None


def _with_averages(eqn: Equation, values: Sequence[Value]) -> Sequence[Value]:
    """The operands, readouts divided by n as averages where that is what counts; calls and loops say so inside."""
    if eqn.primitive in ("scan", "cond") or (eqn.primitive in _CALLS and eqn.primitive not in CUSTOM):
        return values
    try:
        return averages_among(eqn, values)
    except Refusal as refusal:
        raise refusal.at(eqn.primitive, eqn.source) from None


def _compute(eqn: Equation, values: Sequence[Known]) -> list[Value]:
    """Run an equation of known values at both widths."""
    results = []
    for i, e in enumerate(eqn.eqns):
        if e.primitive.name == "broadcast_in_dim" and len(values) == 1:
            shaped = np.expand_dims(
                values[0].values[i],
                [d for d in range(len(e.params["shape"])) if d not in e.params["broadcast_dimensions"]],
            )
            results.append([np.broadcast_to(shaped, e.params["shape"])])
            continue
        if (wide := _large(e, values, i)) is not None:
            results.append([wide])
            continue
        made = e.primitive.bind(*(jax.numpy.asarray(v.values[i]) for v in values), **e.params)
        results.append([_on_host(r) for r in (made if e.primitive.multiple_results else [made])])
    found = [Known(pair) for pair in zip(*results, strict=True)]
    if eqn.primitive in _GROWING and is_single():
        _check_overflow(eqn, values, found[0])
    return [*found]


_GROWING = {
    "add",
    "sub",
    "mul",
    "integer_pow",
    "pow",
    "shift_left",
    "neg",
    "dot_general",
    "reduce_sum",
    "cumsum",
    "reduce_prod",
    "cumprod",
}


def _check_overflow(eqn: Equation, values: Sequence[Known], found: Known) -> None:
    """Refuse integers that the network, run in single precision, would have in 32 bits, where they wrap around."""
    if eqn.out_dtype == np.int64 and _fits(*values) and not _fits(found) and np.array_equal(*found.values):
        raise NetworkError(
            explain(
                "integers of the network are more than 32 bits hold",
                where=str(eqn.source or ""),
                reason="in this process they have 32 bits and wrap around, and kernels are derived with 64: the kernel would be that of a "
                "network with other constants",
                mend="keep them smaller, or give them their type, as jnp.arange(3, dtype=jnp.int32), or set jax_enable_x64",
            )
        )


def _fits(*found: Known) -> bool:
    """Do integers have 32 bits at most?"""
    bound = np.iinfo(np.int32)
    whole = [v.values[0] for v in found if v.values[0].dtype.kind in "iu" and v.values[0].size]
    return all(bound.min <= v.min() and v.max() <= bound.max for v in whole)


_BY_NUMPY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip


def _large(eqn: jex.JaxprEqn, values: Sequence[Known], i: int) -> np.ndarray | None:
    """An equation of `jnp.eye(n)` and its like by NumPy, whose copies along an axis take no memory; None for any other."""
    out, name = aval(eqn.outvars[0]), eqn.primitive.name
    if math.prod(out.shape) < LARGE or not all(isinstance(v.values[i], np.ndarray) for v in values):
        return None
    if name == "iota":
        axis = eqn.params["dimension"]
        along = np.arange(out.shape[axis], dtype=out.dtype).reshape(
            [-1 if k == axis else 1 for k in range(len(out.shape))]
        )
        return np.broadcast_to(along, out.shape)
    if name in _BY_NUMPY:
        made = _BY_NUMPY[name](*(_thin(v.values[i]) for v in values))
        return np.broadcast_to(made.astype(out.dtype, copy=False), out.shape)
    return (
        values[0].values[i].astype(out.dtype)
        if name == "convert_element_type" and kind_of(eqn.invars[0]) == "b"
        else None
    )


def _thin(array: np.ndarray) -> np.ndarray:
    """Without the copies along axes where there are nothing else."""
    return array[tuple(slice(0, 1) if step == 0 else slice(None) for step in array.strides)]


def _on_host(array: Any) -> Any:
    """As a NumPy array; keys of random numbers, which NumPy does not have, as they are."""
    kind = getattr(array, "dtype", None)
    return array if kind is not None and jax.numpy.issubdtype(kind, jax.dtypes.extended) else np.asarray(array)


_MOVES = {
    "reshape",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
    "transpose",
    "slice",
    "rev",
    "gather",
    "split",
    "copy",
}
_OPAQUE = {
    "conv_general_dilated",
    "dynamic_slice",
    "dynamic_update_slice",
    "scatter",
    "reduce_max",
    "reduce_min",
    "reduce_window_max",
}  # run as they are where everything is deterministic


def _simply_run(eqn: Equation, values: Sequence[Value]) -> bool:
    """Is everything in this equation deterministic, without width axes and powers of the width?"""
    if (
        eqn.primitive in RULES
        and (kind_of(eqn.eqns[0].outvars[0]) == "f" or eqn.primitive in _MOVES)
        and eqn.primitive not in _OPAQUE
        and not _complex(eqn)
    ):
        return False
    for i, _ in enumerate(eqn.eqns[0].outvars):
        if len(set(eqn.out_shapes(i))) > 1:
            return False
    return all(
        (isinstance(v, Var) and v.det and not v.power and width_axis(v.layout) is None)
        or (isinstance(v, Known) and np.array_equal(*v.values, equal_nan=v.values[0].dtype.kind == "f"))
        for v in values
    )


def _complex(eqn: Equation) -> bool:
    """Does it read complex numbers? The rules are those of real ones."""
    return any(kind_of(atom) == "c" for atom in eqn.eqns[0].invars)


def _array_op(eqn: Equation, values: Sequence[Value]) -> list[Value]:
    """An operation on deterministic arrays becomes an instruction that runs it."""
    if eqn.primitive == "convert_element_type":
        return [elementwise(eqn, *values)]
    if (eqn.eqns[0].primitive.multiple_results and len(eqn.eqns[0].outvars) > 1) or _has_code(eqn):
        raise Refusal(
            f"the deterministic operation {eqn.primitive!r} cannot be written into a program",
            "compute this part outside the network and give its result as an input",
        )
    nodes = tuple(to_var(v).node for v in values)
    params = tuple(sorted((k, plain(v)) for k, v in eqn.params[0].items()))
    shape = tuple(eqn.out_shapes()[0])
    node = ArrayOp(eqn.primitive, params, nodes, shape)
    return [Var.of(node, tuple(() if s == 1 else (s,) for s in shape))]


def _has_code(eqn: Equation) -> bool:
    return any(
        isinstance(v, (jex.Jaxpr, jex.ClosedJaxpr)) or (callable(v) and not isinstance(v, type))
        for v in eqn.params[0].values()
    )


# ------------------------------------------------------------------------------------------ entering


_CALLS = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat": "jaxpr",
    "checkpoint": "jaxpr", "remat2": "jaxpr", **CUSTOM,
}  # fmt: skip


def _enter(eqn: Equation, values: Sequence[Value]) -> list[Value] | None:
    """Calls and loops are walked into; None for any other equation."""
    if (name := named(eqn.eqns[0])) is not None and not all(isinstance(v, Known) for v in values):
        return [elementwise(replace(eqn, primitive=name), *values)]
    if (written := by_name(eqn, values)) is not None:
        return run(written, values, eqn.source, eqn.wanted)
    if (above := _relu_of_modulus(eqn, values)) is not None:
        return [above]
    if eqn.primitive in _CALLS:
        results = run(_bodies(eqn, _CALLS[eqn.primitive]), values, eqn.source, eqn.wanted)
        return _with_own_slopes(eqn, values, results) if eqn.primitive in CUSTOM else results
    if eqn.primitive == "unstack" and not isinstance(values[0], Known):  # from JAX 0.12 on
        return run(_indexed(eqn), values, eqn.source, eqn.wanted)
    if eqn.primitive == "call_hi_primitive" and (expanded := _expanded(eqn)) is not None:  # from JAX 0.12 on
        return run(expanded, values, eqn.source, eqn.wanted)
    if eqn.primitive == "scan":
        return list(_scan(eqn, values))
    if eqn.primitive == "cond":
        return _cond(eqn, values)
    return None


def _relu_of_modulus(eqn: Equation, values: Sequence[Value]) -> Value | None:
    """jax.nn.relu(|h| - s) for a number s that is not known: its own rule for the slope is of one function of |h| - s."""
    if eqn.primitive != "custom_jvp_call" or len(values) != 1 or not isinstance(values[0], Var) or values[0].det:
        return None
    body = _bodies(eqn, CUSTOM[eqn.primitive])[0]
    is_relu = from_library(body) and str(body.jaxpr.debug_info.func_src_info).startswith("relu at")
    return folded("max", [values[0], to_var(Known((np.zeros(()), np.zeros(()))))], sympy.S.Zero) if is_relu else None


def _indexed(eqn: Equation) -> tuple[jex.ClosedJaxpr, jex.ClosedJaxpr]:
    """The entries along an axis, one by one."""

    def body(one: jex.JaxprEqn) -> jex.ClosedJaxpr:
        x, axis = aval(one.invars[0]), one.params["axis"]
        entries = lambda x: [lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]
        return jax.make_jaxpr(entries)(jax.ShapeDtypeStruct(x.shape, x.dtype))

    return body(eqn.eqns[0]), body(eqn.eqns[1])


def _expanded(eqn: Equation) -> tuple[jex.ClosedJaxpr, jex.ClosedJaxpr] | None:
    """A function of JAX's that is a primitive to it, as it is written; None for other people's, whose slopes may be of their own."""

    def body(one: jex.JaxprEqn) -> jex.ClosedJaxpr:
        made = one.params["_prim"]
        function = lambda *args: jax.tree.leaves(made.expand(*made.in_tree.unflatten(args)))
        return jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(aval(v).shape, aval(v).dtype) for v in one.invars))

    if not type(eqn.params[0]["_prim"]).__module__.startswith("jax."):
        return None
    return body(eqn.eqns[0]), body(eqn.eqns[1])


def _with_own_slopes(eqn: Equation, values: Sequence[Value], results: list[Value]) -> list[Value]:
    try:
        return with_own_slopes(eqn, values, results)
    except Refusal as refusal:
        raise refusal.at(eqn.primitive, eqn.source) from None


def _bodies(eqn: Equation, key: str) -> tuple[jex.ClosedJaxpr, jex.ClosedJaxpr]:
    bodies = [p[key] for p in eqn.params]
    return tuple(b if isinstance(b, jex.ClosedJaxpr) else jex.ClosedJaxpr(b, ()) for b in bodies)  # type: ignore[return-value]


def _cond(eqn: Equation, values: Sequence[Value]) -> list[Value]:
    index, *operands = values
    if not isinstance(index, Known) or index.values[0] != index.values[1]:
        raise UnsupportedError(
            explain(
                "the network branches on a value of its input (lax.cond or lax.switch)",
                where=str(eqn.source or ""),
                reason="the program of a network is one and the same for every input",
                mend="use jnp.where on the results of both branches",
            )
        )
    branch = int(index.values[0])
    return run(tuple(p["branches"][branch] for p in eqn.params), operands, eqn.source, eqn.wanted)


def _scan(eqn: Equation, values: Sequence[Value]) -> Iterator[Value]:
    """A loop of known length is unrolled: one weight used at every step. What it stacks and nobody reads, such as the parameters that
    flax.nnx.remat hands through, is left out."""
    params = eqn.params[0]
    bodies = _bodies(eqn, "jaxpr")
    (n_consts, n_carry), length = loop_sizes(eqn.eqns[0], bodies[0].jaxpr), params["length"]
    consts, carry, xs = values[:n_consts], list(values[n_consts : n_consts + n_carry]), values[n_consts + n_carry :]
    steps = range(length - 1, -1, -1) if params["reverse"] else range(length)
    made: dict[int, list[Value]] = {}
    stacked = eqn.wanted[n_carry:]
    try:
        for t in steps:
            results = run(
                bodies,
                [*consts, *carry, *(step_of(x, t) if isinstance(x, Matrices) else take_step(x, t) for x in xs)],
                eqn.source,
                (True,) * n_carry + stacked,
            )
            carry, made[t] = results[:n_carry], results[n_carry:]
        yield from carry
        for i, read in enumerate(stacked):
            kind = np.dtype(aval(eqn.eqns[0].outvars[n_carry + i]).dtype)
            yield stack_steps([made[t][i] for t in range(length)], dtype=kind) if read else _UNREAD
    except Refusal as refusal:
        raise refusal.at("scan", eqn.source) from None
