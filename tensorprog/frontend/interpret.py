"""Walk the two jaxprs in step and build the program: jaxpr -> Program.

One table of rules, primitive -> function, gives each equation its meaning (see `frontend.primitives`). Before it is
asked, three things are settled here once for all: what is known at both widths is simply computed, calls and loops
are entered, and what is deterministic and has no width axis is simply run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core as jex

from ntk_rules.interpreted import loop_sizes
from tensorprog.errors import NetworkError, UnsupportedError, explain
from tensorprog.frontend.build import to_var
from tensorprog.frontend.division import Redo, Settled, differing
from tensorprog.frontend.logits import logits_refusal
from tensorprog.frontend.moves import stack_steps, take_step
from tensorprog.frontend.outputs import Output, average_of, output_of
from tensorprog.frontend.own_rules import CUSTOM, named, with_own_slopes
from tensorprog.frontend.params import Constant, Gaussian
from tensorprog.frontend.primitives import RULES, elementwise
from tensorprog.frontend.refusals import Refusal, advice, check_numbers
from tensorprog.frontend.trace import Trace, from_library, same_structure, source_of
from tensorprog.frontend.values import (
    WIDTHS,
    Known,
    Param,
    Value,
    Var,
    aval,
    fit_power,
    kind_of,
    layout_of,
    width_axis,
)
from tensorprog.ir import ArrayOp, Hyper, Input, Node, Program, Source
from tensorprog.ir.positions import plain

__all__ = ["Equation", "interpret", "interpret_outputs"]


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

    @property
    def out_dtype(self) -> np.dtype:
        return np.dtype(aval(self.eqns[0].outvars[0]).dtype)


def interpret(traced: Trace, *, averages: bool = False, any_power: bool = False) -> Program:
    """The program of a traced network. averages: take an average over the width for an output too. any_power: take a readout whatever
    power of n it is divided by, as if that were sqrt(n).

    Raises `UnsupportedError`, with the user's source line, for what no rule covers, and `NetworkError` where the
    result is not a Gaussian output of finite size.
    """
    with jax.enable_x64(True):
        inputs, outputs = _results(traced)
        if averages and len(outputs) == 1 and (average := average_of(outputs[0], divided=not any_power)) is not None:
            return Program(inputs, average)
    return Program(inputs, *_output(outputs, any_power))


def interpret_outputs(traced: Trace) -> tuple[tuple[Input, ...], list[Output]]:
    """The inputs and all outputs of a traced network, of whatever kinds: what `interpret` asks of one output, it asks of none."""
    with jax.enable_x64(True):
        inputs, values = _results(traced)
        labels = [name or "output" for name in _labels(traced.out_tree)]
        return inputs, [output_of(value, label) for value, label in zip(values, labels, strict=True)]


def _labels(tree: Any) -> list[str]:
    """How each leaf of an output's tree is called: a dict's keys, or the numbers of a tuple, joined by dots."""
    paths, _ = jax.tree.flatten_with_path(jax.tree.unflatten(tree, range(tree.num_leaves)))
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]


def _results(traced: Trace) -> tuple[tuple[Input, ...], list[Value]]:
    """The inputs of a traced network, and what it returns. It is read again where uses of a parameter have to agree on its axes."""
    settled, seen = Settled(), []
    while True:
        try:
            inputs, values = _read_through(traced, settled)
            if (redo := differing(values, settled)) is None:
                return inputs, values
        except Redo as asked:
            redo = asked
        more = settled.after(redo)
        if more is None or (more.divisions, more.apart) in seen:
            raise _disagreement(redo)
        settled = more
        seen.append((settled.divisions, settled.apart))


def _disagreement(redo: Redo) -> UnsupportedError:
    names = sorted({name for name, _ in (*redo.wanted, *redo.finer)})
    return UnsupportedError(
        explain(
            f"the uses of the weights {', '.join(map(repr, names))} do not agree on how their axes are made of positions and coordinates",
            reason="one weight is one matrix for each position, and every use has to see it so",
            mend="flatten, cut and concatenate in one way everywhere, or use weights of their own",
        )
    )


def _read_through(traced: Trace, settled: Settled) -> tuple[tuple[Input, ...], list[Value]]:
    params = [
        _frozen_number(s1, s2) or _param(name, s1, s2, settled)
        for name, s1, s2 in zip(traced.names, *traced.specs, strict=True)
    ]
    hypers = [
        Var.of(Hyper(name, default, name in traced.nonnegative), ()) for name, default in sorted(traced.hypers.items())
    ]
    inputs = [Input(name, leaf.shape, leaf.dtype.name) for name, leaf in traced.inputs]
    leaves: list[Value] = [Var.of(node, tuple(() if s == 1 else (s,) for s in node.shape)) for node in inputs]
    return tuple(inputs), run(traced.jaxprs, [*params, *hypers, *leaves])


def _frozen_number(*specs: Gaussian | Constant) -> Known | None:
    """A parameter of finite size that starts at a number and stays there, as that number."""
    if specs[0].shape != specs[1].shape or any(not isinstance(s, Constant) or s.tangent_std for s in specs):
        return None
    return Known((np.full(specs[0].shape, specs[0].mean), np.full(specs[1].shape, specs[1].mean)))


def _param(name: str, spec1: Gaussian | Constant, spec2: Gaussian | Constant, settled: Settled) -> Param:
    try:
        layout = layout_of((spec1.shape, spec2.shape))
    except ValueError as error:
        raise NetworkError(
            explain(
                f"parameter {name!r} has {error}",
                reason="an axis must be of a fixed size or proportional to the width",
                mend="give each axis a fixed size or a multiple of the width",
            )
        ) from None
    widths = tuple(axis[0] if axis and isinstance(axis[0], Fraction) else None for axis in layout)
    if len([w for w in widths if w is not None]) > 2:
        raise NetworkError(
            explain(
                f"parameter {name!r} of shape {spec1.shape} has more than two width axes; a weight is a matrix",
                reason="a tensor program has vectors and matrices of the width, no larger arrays",
                mend="let a hypernetwork make scales of rows, or matrices in factors (docs/architectures.md); give axes of heads or "
                "features a fixed size",
            )
        )
    std, power = _fitted(name, "std", spec1.std, spec2.std)
    tangent, tangent_power = _fitted(
        name, "tangent_std", *(s.std if s.tangent_std is None else s.tangent_std for s in (spec1, spec2))
    )
    mean, mean_power = _fitted(name, "value", spec1.mean, spec2.mean)
    power = mean_power if mean else power
    if (std or mean) and tangent and power != tangent_power:
        raise NetworkError(
            explain(
                f"parameter {name!r} starts at the scale n^{power} and moves at the scale n^{tangent_power}",
                reason="its part of the neural tangent kernel then grows or vanishes with the width",
                mend="start it at zero, or make tangent_std proportional to its value"
                if mean
                else "use the NTK parametrisation: tangent_std proportional to std (None makes them equal)",
            )
        )
    power = power if std or mean else tangent_power
    region = tuple((Fraction(0), w if w is not None else Fraction(s)) for w, s in zip(widths, spec1.shape, strict=True))
    noise = isinstance(spec1, Gaussian) and spec1.per_input
    divisions = tuple(settled.divisions.get((name, axis)) for axis in range(len(widths)))
    return Param(
        name, mean, std, tangent, widths, region, tuple(range(len(widths))), power, per_input=noise,
        divisions=divisions, apart=name in settled.apart, uses=settled.uses,
    )  # fmt: skip


def _fitted(name: str, what: str, v1: float, v2: float) -> tuple[float, Fraction]:
    try:
        value, power = fit_power((np.asarray(v1), np.asarray(v2)))
    except ValueError:
        raise NetworkError(
            f"parameter {name!r}: {what} is {v1} at width {WIDTHS[0]} and {v2} at width {WIDTHS[1]}, expected c n^p"
        ) from None
    return float(value), power


def _output(outputs: Sequence[Value], any_power: bool) -> tuple[Node, tuple[int, ...]]:
    from tensorprog.frontend.mirrored import mirrored_axes

    if len(outputs) != 1:
        raise NetworkError(
            explain(
                f"the network returns {len(outputs)} arrays, expected one",
                reason="a kernel is the covariance of one output",
                mend="return one array, such as nn.dense(h, features=1), or take the kernels of all outputs and between them, tp.joint",
            )
        )
    out = to_var(outputs[0])
    if (out.random and out.blocks[0][1].type.width is not None) or width_axis(out.layout) is not None:
        raise NetworkError(
            explain(
                "the network has no readout: its output has a width axis",
                reason="an infinitely wide output has no kernel of finite size",
                mend="end it with a layer of finitely many features, such as nn.dense(h, features=1); for the kernels of one of its "
                "neurons use tp.joint",
            )
        )
    if out.det and logits_refusal(out) is not None:
        raise NetworkError(
            explain(
                "the network's output is an inner product of hidden vectors, divided by less than n",
                reason="a bilinear head a' W b sums the weight over the width twice, which a tensor program cannot; where the two "
                "vectors are correlated it grows",
                mend="write it in factors, nn.dense(nn.dense(a) * nn.dense(b, train=False), features=1, train=False), which has the same "
                "kernels; or end with a Gaussian readout of a * b",
            )
        )
    if out.det:
        raise NetworkError(
            explain(
                "the network's output is not random in the limit",
                reason="it is the input or a constant, or an average over the width, which concentrates on its expectation",
                mend="end it with a Gaussian readout, such as nn.dense(h, features=1); tp.compile and tp.joint take averages",
            )
        )
    if out.power and not any_power:
        grows = "grows" if out.power > 0 else "vanishes"
        raise NetworkError(
            explain(
                f"the network's output {grows} with the width n like n^{out.power}",
                where=str(out.node.source) if out.node.source else None,
                reason="its covariance has no finite, nonzero limit",
                mend="in the NTK parametrisation a layer is W x / sqrt(fan_in) with standard Gaussian W; nn.dense does that"
                + (
                    "; a readout divided by n is an average, which tp.joint takes"
                    if out.power == Fraction(-1, 2)
                    else ""
                ),
            )
        )
    return out.node, mirrored_axes(out.node)


# ------------------------------------------------------------------------------------------ walking


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
    consts = [Known((np.asarray(a), np.asarray(b))) for a, b in zip(jaxprs[0].consts, jaxprs[1].consts, strict=True)]
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


def evaluate(eqn: Equation, values: Sequence[Value]) -> list[Value]:
    """The values an equation makes."""
    if not all(isinstance(v, Known) for v in values):
        check_numbers(eqn, values)
    if (entered := _enter(eqn, values)) is not None:
        return entered
    if all(isinstance(v, Known) for v in values):
        return _compute(eqn, values)  # type: ignore[arg-type]
    try:
        if _simply_run(eqn, values):
            return _array_op(eqn, values)
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
        made = e.primitive.bind(*(jax.numpy.asarray(v.values[i]) for v in values), **e.params)
        results.append([_on_host(r) for r in (made if e.primitive.multiple_results else [made])])
    return [Known(pair) for pair in zip(*results, strict=True)]


def _on_host(array: Any) -> Any:
    """As a NumPy array; keys of random numbers, which NumPy does not have, as they are."""
    return array if jax.numpy.issubdtype(array.dtype, jax.dtypes.extended) else np.asarray(array)


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
    if eqn.primitive in _CALLS:
        results = run(_bodies(eqn, _CALLS[eqn.primitive]), values, eqn.source, eqn.wanted)
        return _with_own_slopes(eqn, values, results) if eqn.primitive in CUSTOM else results
    if eqn.primitive == "unstack" and not isinstance(values[0], Known):  # from JAX 0.12 on
        return run(_indexed(eqn), values, eqn.source, eqn.wanted)
    if eqn.primitive == "scan":
        return list(_scan(eqn, values))
    if eqn.primitive == "cond":
        return _cond(eqn, values)
    return None


def _indexed(eqn: Equation) -> tuple[jex.ClosedJaxpr, jex.ClosedJaxpr]:
    """The entries along an axis, one by one."""

    def body(one: jex.JaxprEqn) -> jex.ClosedJaxpr:
        x, axis = aval(one.invars[0]), one.params["axis"]
        entries = lambda x: [lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]
        return jax.make_jaxpr(entries)(jax.ShapeDtypeStruct(x.shape, x.dtype))

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
    return run(tuple(p["branches"][branch] for p in eqn.params), operands, eqn.source)


def _scan(eqn: Equation, values: Sequence[Value]) -> Iterator[Value]:
    """A loop of known length is unrolled: one weight used at every step."""
    params = eqn.params[0]
    bodies = _bodies(eqn, "jaxpr")
    (n_consts, n_carry), length = loop_sizes(eqn.eqns[0], bodies[0].jaxpr), params["length"]
    consts, carry, xs = values[:n_consts], list(values[n_consts : n_consts + n_carry]), values[n_consts + n_carry :]
    steps = range(length - 1, -1, -1) if params["reverse"] else range(length)
    made: dict[int, list[Value]] = {}
    try:
        for t in steps:
            results = run(bodies, [*consts, *carry, *(take_step(x, t) for x in xs)], eqn.source)
            carry, made[t] = results[:n_carry], results[n_carry:]
        yield from carry
        for i in range(len(eqn.eqns[0].outvars) - n_carry):
            yield stack_steps([made[t][i] for t in range(length)])
    except Refusal as refusal:
        raise refusal.at("scan", eqn.source) from None
