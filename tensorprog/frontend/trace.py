"""Trace a network at two widths.

The two jaxprs have the same equations; an axis whose size differs is a width axis, a literal that differs is a power
of the width. Tracing is abstract, in float64, so that literals carry all their digits and no array of the width's
size is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from ntk_rules.interpreted import inner_jaxprs
from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.frontend.model import Model, abstract
from tensorprog.frontend.params import Constant, Gaussian
from tensorprog.frontend.recording import deriving, is_single
from tensorprog.frontend.values import WIDTHS
from tensorprog.ir import Source

__all__ = ["Trace", "from_library", "same_structure", "source_of", "trace"]

_OURS = Path(__file__).resolve().parents[1]
_LIBRARIES = tuple(str(Path(module.__file__).resolve().parent) for module in (jax, np) if module.__file__)
_MODULES = tuple(str(Path(_LIBRARIES[0]).parent / name) for name in ("flax", "equinox"))  # layers that others wrote
_DOORS = str(_OURS / "models")
_SAME_TYPES = "must have equal types"  # what JAX says of a loop whose state changes its type


@dataclass(frozen=True)
class Trace:
    """One network at two widths: jaxprs and specs in step, leaves of parameters and inputs in order."""

    jaxprs: tuple[jex.ClosedJaxpr, jex.ClosedJaxpr]
    specs: tuple[list[Gaussian | Constant], list[Gaussian | Constant]]
    names: list[str]
    inputs: list[tuple[str, jax.ShapeDtypeStruct]]
    hypers: dict[str, float]
    nonnegative: frozenset[str]
    out_tree: Any


def source_of(eqn: jex.JaxprEqn) -> Source | None:
    """The user's own line that made an equation: the innermost frame outside JAX, its friends and tensorprog.

    In a model made wholly of a library's layers it is the library's line, after the name of the layer where the library gives it.
    """
    traceback = eqn.source_info.traceback
    if traceback is None:
        return None
    skipped = (*_LIBRARIES, *_MODULES, str(_OURS), "<frozen")
    for frame in traceback.frames:
        if not frame.file_name.startswith(skipped):
            return Source(_shorten(frame.file_name), frame.line_num, eqn.primitive.name)
        if frame.file_name.startswith(_DOORS):
            break
    layers = [frame for frame in traceback.frames if frame.file_name.startswith(_MODULES)]
    if not layers:
        return None
    layer = str(eqn.source_info.name_stack)
    file = f"{layer}, {_shorten(layers[0].file_name)}" if layer else _shorten(layers[0].file_name)
    return Source(file, layers[0].line_num, eqn.primitive.name)


def from_library(jaxpr: jex.ClosedJaxpr | jex.Jaxpr) -> bool:
    """Is it the body of a function of JAX or of ours, such as jnp.where?

    Such a function is traced once, so that its equations remember the line of the first call ever; the caller's line
    is right.
    """
    info = getattr(jaxpr, "jaxpr", jaxpr).debug_info
    return any(folder in (info.func_src_info or "") for folder in (*_LIBRARIES, str(_OURS)))


def _shorten(file: str) -> str:
    path = Path(file)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return path.name


@deriving()
def trace(model: Model, example: Any) -> Trace:
    """Trace `model` on an example input (arrays, ShapeDtypeStructs or Python numbers) at both widths."""
    with jax.enable_x64(True):
        struct = abstract(example)
        try:
            made = [_trace_at(width, model, struct) for width in WIDTHS]
        except TypeError as error:
            if _SAME_TYPES not in str(error):
                raise
            made = _in_single_precision(model, struct, error)
    (jaxpr1, specs1, out1), (jaxpr2, specs2, out2) = made
    paths1, leaves1 = _leaves(specs1)
    paths2, leaves2 = _leaves(specs2)
    if paths1 != paths2:
        raise NetworkError(
            explain(
                "the network has different parameters at different widths",
                reason=f"at width {WIDTHS[0]} {paths1}, at width {WIDTHS[1]} {paths2}",
                mend="make the same parameters at every width; only their sizes may depend on it",
            )
        )
    same_structure(jaxpr1, jaxpr2)
    if is_single():
        _check_draws(jaxpr1.jaxpr)
    if out1 != out2:
        raise NetworkError(f"the network's output has different structures at different widths: {out1} and {out2}")
    if empty := [aval.shape for aval in jaxpr1.out_avals if 0 in aval.shape]:
        raise NetworkError(
            explain(
                f"the network returns an array without entries, of shape {empty[0]}",
                reason="no window or slice of its input leaves a position",
                mend="give a larger example input, or take smaller windows",
            )
        )
    flat, _ = jax.tree.flatten_with_path(struct)
    inputs = [(jax.tree_util.keystr(path, simple=True, separator=".") or "x", leaf) for path, leaf in flat]
    return Trace((jaxpr1, jaxpr2), (leaves1, leaves2), paths1, inputs, model.hypers, model.nonnegative, out1)


def _check_draws(jaxpr: jex.Jaxpr, caller: Source | None = None) -> None:
    """Refuse random numbers of double precision, where a network is run in single precision: of one key JAX draws others there."""
    foreign = caller is not None and from_library(jaxpr)
    for eqn in jaxpr.eqns:
        source = caller if foreign else source_of(eqn) or caller
        if eqn.primitive.name == "random_bits" and eqn.params["bit_width"] == 64:
            raise NetworkError(
                explain(
                    "the network draws random numbers of JAX's default type, which is not the same here and there",
                    where=str(source or ""),
                    reason="kernels are derived in double precision, and of one key JAX draws other numbers there than in single precision, "
                    "in which this process computes: the kernel would be that of a network with other constants",
                    mend="give the draw its type, as jax.random.normal(key, shape, jnp.float32), or draw outside of the network, or "
                    "set jax_enable_x64",
                )
            )
        for body in inner_jaxprs(eqn):
            _check_draws(body, source)


def _in_single_precision(model: Model, struct: Any, error: TypeError) -> list[tuple[jex.ClosedJaxpr, Any, Any]]:
    """The same in float32, for loops whose state is made of that type by name, as the cells of Flax make theirs: JAX does not let
    it become float64 on its way. Constants then have the digits that float32 has."""
    with jax.enable_x64(False):
        single = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)), struct)
        try:
            return [_trace_at(width, model, single, jnp.float32) for width in WIDTHS]
        except TypeError:
            raise error from None


def _trace_at(width: int, model: Model, struct: Any, real: Any = jnp.float64) -> tuple[jex.ClosedJaxpr, Any, Any]:
    specs = model.specs(width)
    _leaves(specs)
    if real is jnp.float64 and (known := model.traced(width)) is not None:
        jaxpr, tree = known
        return jaxpr, specs, tree
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, real), specs, is_leaf=_is_spec)
    hypers = {name: jax.ShapeDtypeStruct((), real) for name in model.hypers}
    out_tree: list[Any] = []

    def run(params: Any, hypers: dict[str, Any], x: Any) -> Any:
        leaves, tree = jax.tree.flatten(model.run(width, params, hypers, x))
        out_tree.append(tree)
        return leaves

    jaxpr = jax.make_jaxpr(run)(shapes, hypers, struct)
    return jaxpr, specs, out_tree[-1]


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, (Gaussian, Constant))


def _leaves(specs: Any) -> tuple[list[str], list[Gaussian | Constant]]:
    flat, _ = jax.tree.flatten_with_path(specs, is_leaf=_is_spec)
    for path, leaf in flat:
        if not _is_spec(leaf):
            where = jax.tree_util.keystr(path) or "the top"
            raise InputError(
                f"init(width) has a {type(leaf).__name__} at {where}, expected tp.Gaussian or tp.Constant at every leaf"
            )
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in flat], [leaf for _, leaf in flat]


def same_structure(jaxpr1: jex.ClosedJaxpr, jaxpr2: jex.ClosedJaxpr) -> None:
    """The same operations at both widths; what they call is compared where it is entered."""
    eqns1, eqns2 = jaxpr1.jaxpr.eqns, jaxpr2.jaxpr.eqns
    for eqn1, eqn2 in zip(eqns1, eqns2, strict=False):
        if eqn1.primitive is not eqn2.primitive:
            break
    else:
        if len(eqns1) == len(eqns2):
            return
        eqn1 = (eqns1 if len(eqns1) > len(eqns2) else eqns2)[min(len(eqns1), len(eqns2))]
    raise NetworkError(
        explain(
            "the network does different things at different widths",
            where=str(source_of(eqn1) or ""),
            reason=f"traced at widths {WIDTHS[0]} and {WIDTHS[1]} it gives {len(eqns1)} and {len(eqns2)} operations, "
            "which differ from here on",
            mend="do not let the code's path depend on the width",
        )
    )
