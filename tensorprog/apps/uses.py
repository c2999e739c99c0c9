"""Every use of every parameter of a network, found in its trace, with the derivatives that meet there.

A parameter W enters a network where it is multiplied, z = W x, or as it is. With g the derivative of an output by z, the
derivative by W is the outer product g x', summed over uses and positions: the factors say all, and are far smaller than
the derivative itself (Novak, Sohl-Dickstein and Schoenholz 2022, Fast finite width neural tangent kernel, section 3.3). Here
`Use` says how the axes of g and x go with those of W; products, convolutions and loops are looked into, transposes, reshapes
and factors on the way from a parameter to its use are followed. A use of any other kind has g alone, of the shape of W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

from ntk_rules.interpreted import loop_sizes

__all__ = ["Use", "derivatives", "uses_of"]

LONGEST = 128  # a loop of more steps is left as it is
ENTERED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr"}
Axes = tuple[str, ...]


@dataclass(frozen=True)
class Use:
    """One use of the parameter number `leaf`, or several of one kind.

    layout: the shapes it is given on its way, before its axes count. g: the axes of the derivative by the result, "w0", "w1", .. for
    those of the parameter, "p0", .. for positions. x: those of the other factor; empty where there is none. Sizes are known.
    """

    leaf: int
    layout: tuple[tuple[int, ...], ...]
    g: Axes
    x: Axes
    sizes: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class _Alias:
    """A parameter on its way to its uses: its value, its axes in terms of those of the last layout, a factor."""

    leaf: int
    value: Any
    axes: tuple[int, ...]
    layout: tuple[tuple[int, ...], ...] = ()
    factor: Any = 1.0
    way: tuple[Callable[[Any], Any], ...] = ()

    def then(self, value: Any, step: Callable[[Any], Any], **changed: Any) -> _Alias:
        """After one more operation."""
        kept = dict(axes=self.axes, layout=self.layout, factor=self.factor) | changed
        return _Alias(self.leaf, value, way=(*self.way, step), **kept)


@dataclass
class _Walk:
    """One run through a network's equations. shifts: what is added at each use, to be differentiated by; None adds nothing."""

    params: Sequence[Any]
    opaque: frozenset[int]
    shifts: Sequence[Any] | None = None
    uses: list[Use] = field(default_factory=list)
    shapes: list[jax.ShapeDtypeStruct] = field(default_factory=list)
    factors: list[Any] = field(default_factory=list)
    moved: dict[int, Any] = field(default_factory=dict)

    def meet(self, use: Use, result: Any, factor: Any) -> Any:
        """Note a use, with its other factor, and give its result, shifted."""
        self.uses.append(use)
        self.shapes.append(jax.ShapeDtypeStruct(result.shape, result.dtype))
        self.factors.append(factor)
        return result if self.shifts is None else result + self.shifts[len(self.uses) - 1]

    def plain(self, value: Any) -> Any:
        """A value as an array: a parameter that is used in a way that is not looked into is used as it is."""
        if not isinstance(value, _Alias):
            return value
        if value.leaf not in self.moved:
            leaf = self.params[value.leaf]
            axes = tuple(f"w{k}" for k in range(leaf.ndim))
            use = Use(value.leaf, (), axes, (), tuple(zip(axes, leaf.shape, strict=True)))
            self.moved[value.leaf] = self.meet(use, leaf, None)
        found = self.moved[value.leaf]
        for step in value.way:
            found = step(found)
        return found

    # ---- equations

    def run(self, jaxpr: jex.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        same: dict[Any, Any] = {}  # arrays whose entries are all one number
        read = lambda atom: atom.val if isinstance(atom, jex.Literal) else env[atom]
        for eqn in jaxpr.eqns:
            values = [read(atom) for atom in eqn.invars]
            numbers = [same.get(a) if not isinstance(a, jex.Literal) else None for a in eqn.invars]
            for var, value in zip(eqn.outvars, self.step(eqn, values, numbers), strict=True):
                env[var] = value
            spread = eqn.primitive.name == "broadcast_in_dim" and not isinstance(values[0], _Alias)
            if spread and jnp.ndim(values[0]) == 0:
                same[eqn.outvars[0]] = values[0]
        return [read(atom) for atom in jaxpr.outvars]

    def step(self, eqn: Any, values: list[Any], numbers: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if not any(isinstance(v, _Alias) for v in values):
            return _bind(eqn, values)
        if name in ENTERED:
            body = eqn.params[ENTERED[name]]
            closed = isinstance(body, jex.ClosedJaxpr)
            return self.run(body.jaxpr if closed else body, body.consts if closed else (), values)
        if name == "scan" and eqn.params["length"] <= LONGEST:
            return self.loop(eqn, values)
        rule = RULES.get(name)
        found = None if rule is None else rule(self, eqn, values, numbers)
        return _bind(eqn, [self.plain(v) for v in values]) if found is None else [found]

    def loop(self, eqn: Any, values: list[Any]) -> list[Any]:
        """A scan, step by step: parameters among its constants are followed into it."""
        p = eqn.params
        body = p["jaxpr"] if isinstance(p["jaxpr"], jex.ClosedJaxpr) else jex.ClosedJaxpr(p["jaxpr"], ())
        n, carried = loop_sizes(eqn, body.jaxpr)
        m = n + carried
        consts, carry, xs = values[:n], [self.plain(v) for v in values[n:m]], [self.plain(v) for v in values[m:]]
        rows: list[list[Any]] = [[]] * p["length"]
        for t in range(p["length"])[:: -1 if p["reverse"] else 1]:
            found = self.run(body.jaxpr, body.consts, [*consts, *carry, *(x[t] for x in xs)])
            carry = [self.plain(v) for v in found[: m - n]]
            rows[t] = [self.plain(v) for v in found[m - n :]]
        ys = [jnp.stack(column) for column in zip(*rows, strict=True)] if p["length"] else []
        return [*carry, *ys] if p["length"] else _bind(eqn, [self.plain(v) for v in values])


def _bind(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """The results of one equation, with its own derivatives where it has such: of the program that is this equation alone."""
    given = {v: a for v, a in zip(eqn.invars, values, strict=True) if not isinstance(v, jex.Literal)}
    bodies = [p for p in eqn.params.values() if isinstance(p, (jex.Jaxpr, jex.ClosedJaxpr))]
    if not bodies:
        found = eqn.primitive.bind(*values, **eqn.params)
        return list(found) if eqn.primitive.multiple_results else [found]
    inner = bodies[0].jaxpr if isinstance(bodies[0], jex.ClosedJaxpr) else bodies[0]
    alone = jex.Jaxpr((), list(given), eqn.outvars, [eqn], eqn.effects, inner.debug_info.with_unknown_names())
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(alone, ()))(*given.values())


# ---------------------------------------------------------------------------------------- what is followed


def _moved(walk: _Walk, eqn: Any, values: list[Any], numbers: list[Any]) -> _Alias:
    """Transposed, or of another precision."""
    old = values[0]
    step = lambda v: _bind(eqn, [v])[0]
    order = eqn.params.get("permutation", range(len(old.axes)))
    return old.then(step(old.value), step, axes=tuple(old.axes[k] for k in order))


def _convert(walk: _Walk, eqn: Any, values: list[Any], numbers: list[Any]) -> _Alias | None:
    return _moved(walk, eqn, values, numbers) if jnp.issubdtype(eqn.params["new_dtype"], jnp.floating) else None


def _reshaped(walk: _Walk, eqn: Any, values: list[Any], numbers: list[Any]) -> _Alias | None:
    """Of another shape with the same entries in the same order: axes count anew."""
    old, step = values[0], lambda v: _bind(eqn, [v])[0]
    made = step(old.value)
    turned = eqn.primitive.name == "reshape" and eqn.params.get("dimensions") is not None
    if turned or made.size != old.value.size or old.axes != tuple(range(len(old.axes))):
        return None
    return old.then(made, step, axes=tuple(range(made.ndim)), layout=(*old.layout, tuple(made.shape)))


def _scaled(walk: _Walk, eqn: Any, values: list[Any], numbers: list[Any]) -> _Alias | None:
    """Times a number, divided by one, or with the other sign."""
    which = 0 if isinstance(values[0], _Alias) else 1
    old, name = values[which], eqn.primitive.name
    if name == "neg":
        step, factor = lambda v: _bind(eqn, [v])[0], -1.0
    else:
        other = values[1 - which]
        number = other if not isinstance(other, _Alias) and jnp.ndim(other) == 0 else numbers[1 - which]
        if number is None or (name == "div" and which == 1):
            return None
        step = lambda v: _bind(eqn, [v, other] if which == 0 else [other, v])[0]
        factor = number if name == "mul" else 1.0 / number
    return old.then(step(old.value), step, factor=old.factor * factor)


def _product(walk: _Walk, eqn: Any, values: list[Any], numbers: list[Any]) -> Any:
    """z = W x in any arrangement of axes."""
    which = 1 if isinstance(values[1], _Alias) else 0
    weight, x = values[which], walk.plain(values[1 - which])
    if weight.leaf in walk.opaque:
        return None
    contracted, batched = eqn.params["dimension_numbers"]
    names: list[list[str]] = [[""] * jnp.ndim(x), [""] * len(weight.axes)]
    names[1] = [f"w{k}" for k in weight.axes]
    for pairs in (contracted, batched):
        for mine, its in zip(pairs[1 - which], pairs[which], strict=True):
            names[0][mine] = names[1][its]
    names[0] = [name or f"p{k}" for k, name in enumerate(names[0])]
    sides = names if which == 1 else names[::-1]
    free = [[n for k, n in enumerate(side) if k not in (*contracted[s], *batched[s])] for s, side in enumerate(sides)]
    g = tuple([sides[0][k] for k in batched[0]] + free[0] + free[1])
    result = _bind(eqn, [x, weight.value] if which == 1 else [weight.value, x])[0]
    sizes = dict(zip(names[1], weight.value.shape, strict=True)) | dict(zip(names[0], x.shape, strict=True))
    use = Use(weight.leaf, weight.layout, g, tuple(names[0]), tuple(sorted(sizes.items())))
    return walk.meet(use, result, weight.factor * x)


def _convolution(walk: _Walk, eqn: Any, values: list[Any], numbers: list[Any]) -> Any:
    """A product of W with every window of x."""
    p = eqn.params
    weight = values[1]
    plain = p["feature_group_count"] == p["batch_group_count"] == 1
    if not isinstance(weight, _Alias) or not plain or weight.leaf in walk.opaque:
        return None
    x, numbers_ = walk.plain(values[0]), p["dimension_numbers"]
    kernel, space = numbers_.rhs_spec, len(numbers_.rhs_spec) - 2
    windows = lax.conv_general_dilated_patches(
        jnp.transpose(x, numbers_.lhs_spec), [weight.value.shape[k] for k in kernel[2:]], p["window_strides"], p["padding"],
        p["lhs_dilation"], p["rhs_dilation"], precision=lax.Precision.HIGHEST,
    )  # fmt: skip
    inside = [weight.value.shape[k] for k in kernel[1:]]
    windows = windows.reshape(windows.shape[0], *inside, *windows.shape[2:])
    outside = [f"p{2 + k}" for k in range(space)]
    name = lambda axis: f"w{weight.axes[axis]}"
    names = ("p0", *(name(axis) for axis in kernel[1:]), *outside)
    g = [""] * (space + 2)
    for axis, letter in zip(numbers_.out_spec, ("p0", name(kernel[0]), *outside), strict=True):
        g[axis] = letter
    result = _bind(eqn, [x, weight.value])[0]
    sizes = dict(zip(names, windows.shape, strict=True)) | {name(kernel[0]): weight.value.shape[kernel[0]]}
    use = Use(weight.leaf, weight.layout, tuple(g), names, tuple(sorted(sizes.items())))
    return walk.meet(use, result, weight.factor * windows)


RULES: dict[str, Callable[..., Any]] = {
    "transpose": _moved,
    "convert_element_type": _convert,
    "copy": _moved,
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "expand_dims": _reshaped,
    "broadcast_in_dim": _reshaped,
    "mul": _scaled,
    "div": _scaled,
    "neg": _scaled,
    "dot_general": _product,
    "conv_general_dilated": _convolution,
}


# ---------------------------------------------------------------------------------------- the two results


def _walk(f: Callable[[Any, Any], Any], params: Any, x: Any, opaque: frozenset[int], shifts: Any) -> tuple[Any, _Walk]:
    closed, leaves = jax.make_jaxpr(f)(params, x), [jnp.asarray(p) for p in jax.tree.leaves(params)]
    walk = _Walk(leaves, opaque, shifts)
    aliases = [_Alias(k, leaf, tuple(range(leaf.ndim))) for k, leaf in enumerate(leaves)]
    found = walk.run(closed.jaxpr, closed.consts, [*aliases, *map(jnp.asarray, jax.tree.leaves(x))])
    return jnp.concatenate([jnp.ravel(walk.plain(v)) for v in found]), walk


def uses_of(f: Callable[[Any, Any], Any], params: Any, x: Any) -> tuple[list[Use], list[Any], frozenset[int]]:
    """The uses of the leaves of `params` in f(params, x), the shapes of their results, and leaves that are not looked into.

    A leaf that is used in several layouts is used as it is.
    """

    def once(opaque: frozenset[int]) -> _Walk:
        made: list[_Walk] = []

        def run(p: Any, one: Any) -> Any:
            out, walk = _walk(f, p, one, opaque, None)
            made.append(walk)
            return out

        jax.eval_shape(run, params, x)
        return made[-1]

    walk = once(frozenset())
    layouts: dict[int, set[Any]] = {}
    for use in walk.uses:
        layouts.setdefault(use.leaf, set()).add(use.layout)
    opaque = frozenset(leaf for leaf, found in layouts.items() if len(found) > 1)
    walk = once(opaque) if opaque else walk
    return walk.uses, walk.shapes, opaque


def derivatives(
    f: Callable[[Any, Any], Any], params: Any, x: Any, shapes: Sequence[Any], opaque: frozenset[int]
) -> list[tuple[Any, Any]]:
    """For each use the derivatives (O, ..) of the flat outputs of f by its result, and its other factor or None; for one input."""

    def run(shifts: list[Any]) -> tuple[Any, list[Any]]:
        out, walk = _walk(f, params, x, opaque, shifts)
        return out, walk.factors

    out, pull, factors = jax.vjp(run, [jnp.zeros(s.shape, s.dtype) for s in shapes], has_aux=True)
    (pulled,) = jax.vmap(pull)(jnp.eye(out.size, dtype=out.dtype))
    return list(zip(pulled, factors, strict=True))
