"""From a traced network to its program: what its parameters and inputs are, and what is returned.

The jaxprs are walked in `frontend.walk`. A network whose uses of a weight do not agree on its axes is walked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from tensorprog.errors import NetworkError, UnsupportedError, explain
from tensorprog.frontend.build import to_var
from tensorprog.frontend.division import Redo, Settled, differing
from tensorprog.frontend.logits import logits_refusal
from tensorprog.frontend.matrices import narrowed
from tensorprog.frontend.outputs import Output, average_of, output_of
from tensorprog.frontend.params import Constant, Gaussian
from tensorprog.frontend.recording import deriving
from tensorprog.frontend.refusals import moves_from_zero
from tensorprog.frontend.trace import Trace
from tensorprog.frontend.values import WIDTHS, Complex, Known, Param, Value, Var, fit_power, layout_of, width_axis
from tensorprog.frontend.walk import run
from tensorprog.ir import Hyper, Input, Node, Program

__all__ = ["interpret", "interpret_outputs"]


@deriving()
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


@deriving()
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
            if any(isinstance(v, Complex) for v in values):
                raise _complex_output()
            if (redo := differing(values, settled)) is None:
                return inputs, values
        except Redo as asked:
            redo = asked
        more = settled.after(redo)
        if more is None or (more.divisions, more.apart) in seen:
            raise _disagreement(redo)
        settled = more
        seen.append((settled.divisions, settled.apart))


def _complex_output() -> NetworkError:
    return NetworkError(
        explain(
            "the network returns complex numbers",
            reason="a kernel is the covariance of real outputs",
            mend="return their real and imaginary parts, jnp.stack([z.real, z.imag])",
        )
    )


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
    return tuple(inputs), list(map(narrowed, run(traced.jaxprs, [*params, *hypers, *leaves])))


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
    if out.power > 0 and not any_power and (words := moves_from_zero(node for _, node in out.blocks)) is not None:
        raise NetworkError(
            explain(
                f"the network's tangent kernel grows with the width n like n^{2 * out.power}",
                where=str(out.node.source) if out.node.source else None,
                reason=words[0],
                mend=words[1],
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
