"""One form for every network that is accepted: the specs of its parameters, and how it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from jax.typing import ArrayLike

from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.frontend.params import Network
from tensorprog.frontend.recording import AskedElsewhere, Recorder, called, run, watched_first
from tensorprog.frontend.values import WIDTHS

__all__ = ["Model", "abstract", "as_model", "collect"]


@dataclass(frozen=True)
class Model:
    """Any accepted form of a network, seen by the tracer: its parameters' specs and how it runs, at each width.

    nonnegative: hyperparameters that are variances. traced: of the example, in float64, where it is already: with its output's tree.
    """

    specs: Callable[[int], Any]
    run: Callable[[int, Any, dict[str, Any], Any], Any]
    hypers: dict[str, float]
    nonnegative: frozenset[str] = frozenset()
    traced: Callable[[int], tuple[jex.ClosedJaxpr, Any] | None] = lambda width: None


def abstract(example: Any) -> Any:
    """The example input as shapes, real numbers as float64: tracing keeps every digit of a literal."""
    return jax.tree.map(_abstract_leaf, example)


def _abstract_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
    try:
        dtype = np.dtype(leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype)
    except (TypeError, ValueError):
        raise InputError(f"example has a {type(leaf).__name__}, expected real numbers, integers or booleans") from None
    real = jnp.issubdtype(dtype, jnp.floating)
    if not real and dtype.kind not in "iub":
        raise InputError(f"example has an array of dtype {dtype}, expected real numbers, integers or booleans")
    return jax.ShapeDtypeStruct(np.shape(leaf), np.dtype("float64") if real else dtype)


def as_model(net: Any, example: Any) -> Model:
    """Read a `Network`, or a function written with `tensorprog.nn`, whose parameters are collected by name."""
    if isinstance(net, Network):
        known = net.at(example)
        return Model(known.init, lambda width, params, hypers, x: known.apply(params, x), {})
    if not callable(net):
        raise InputError(
            f"net is a {type(net).__name__}, expected a function of one example written in JAX, or a tp.Network"
        )

    def checked(width: int, params: dict[str, ArrayLike], hypers: dict[str, Any], x: Any) -> Any:
        out, recorder = run(net, width, params, hypers, x)
        _check_defaults(recorder.hyper_defaults, any_width.hyper_defaults, width)
        return out

    made = cache(lambda width: _collected_and_traced(net, example, width))
    any_width, _ = made(WIDTHS[0])

    def traced(width: int) -> tuple[jex.ClosedJaxpr, Any] | None:
        recorder, found = made(width)
        _check_defaults(recorder.hyper_defaults, any_width.hyper_defaults, width)
        return found if recorder.hyper_defaults.keys() == any_width.hyper_defaults.keys() else None

    nonnegative = frozenset(any_width.nonnegative)
    return Model(lambda width: made(width)[0].specs, checked, any_width.hyper_defaults, nonnegative, traced)


def _check_defaults(here: dict[str, float], known: dict[str, float], width: int) -> None:
    """One number for all widths."""
    for name in here.keys() & known.keys():
        if here[name] != known[name]:
            raise NetworkError(
                explain(
                    f"hyperparameter {name!r} has the default {known[name]} at width {WIDTHS[0]} and {here[name]} at width {width}",
                    reason="it is an argument of the kernel, which is of no width",
                    mend=f"multiply it by what depends on the width: tp.hyper({name!r}, 1.0) * nn.width() ** -0.5",
                )
            )


def _collected_and_traced(
    net: Callable[[Any], Any], example: Any, width: int
) -> tuple[Recorder, tuple[jex.ClosedJaxpr, Any] | None]:
    """The same as `collect`, and with it, in one run, the trace, as `Model.traced`; None where parts are traced on their own."""
    recorder = Recorder(width, None, {}, watched=True)
    given: dict[str, dict[str, Any]] = {"params": {}, "hypers": {}}
    recorder.given = given
    counts, trees = [], []

    def flat(x: Any) -> tuple[list[Any], Any]:
        leaves, tree = jax.tree.flatten(called(net, recorder, x))
        counts.append(len(leaves))
        trees.append(tree)
        return leaves, given

    try:
        with jax.enable_x64(True):
            closed = jax.make_jaxpr(flat)(abstract(example))
    except (Exception, AskedElsewhere):  # what is wrong with the network, if anything, `collect` will say
        return collect(net, example, width), None
    jaxpr, count = closed.jaxpr, counts[-1]
    arguments = jaxpr.outvars[count:]
    places = set(map(id, arguments))
    eqns = [eqn for eqn in jaxpr.eqns if places.isdisjoint(map(id, eqn.outvars))]
    if len(eqns) + len(arguments) != len(jaxpr.eqns):
        return recorder, None
    jaxpr = jaxpr.replace(
        invars=[*_in_order(given, arguments), *jaxpr.invars], outvars=jaxpr.outvars[:count], eqns=eqns
    )
    return recorder, (jex.ClosedJaxpr(jaxpr, closed.consts), trees[-1])


def _in_order(given: dict[str, dict[str, Any]], arguments: list[Any]) -> list[Any]:
    """Parameters, then hyperparameters. arguments: in the order of the leaves of `given`."""
    named = jax.tree.unflatten(jax.tree.structure(given), arguments)
    return [named[kind][name] for kind in ("params", "hypers") for name in sorted(named[kind])]


def collect(net: Callable[[Any], Any], example: Any, width: int) -> Recorder:
    """What a network written with `tensorprog.nn` makes at one width: parameters and hyperparameters."""

    def once(watched: bool) -> Recorder:
        recorder = Recorder(width, None, {}, watched)
        jax.eval_shape(lambda x: called(net, recorder, x), abstract(example))
        return recorder

    with jax.enable_x64(True):
        return watched_first(once)
