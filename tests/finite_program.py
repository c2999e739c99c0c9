"""Programs at finite width, for tests: the instructions of a `Program` run with sampled Gaussian weights.

A program's variable is an array of vectors of R^(w n), stored here as an array of its shape at unit width with one
last axis for the coordinates. A weight of widths w_1, w_2 is an array of its shape with last axes w_1 n, w_2 n.
Entries of matrices have the variance std^2 / n (Yang, Tensor Programs III, section 2): a `Weight` is sampled with the
standard deviation std, and a `MatMul` that sums over a width divides by sqrt(n).

So a program evaluated with the parameters of a finite network is that network, digit by digit, whatever its width:
the front end, and each pass, is tested without any sampling error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_rules.functions import to_jax
from tensorprog.ir import (
    ArrayOp,
    Const,
    Hyper,
    Input,
    LinComb,
    MatMul,
    Moment,
    Node,
    Nonlin,
    PositionMap,
    Program,
    Trsp,
    Weight,
    operands,
)

Parameter = tuple[str, bool]  # the name of a weight, and whether it is the direction in which it moves


@dataclass
class Weights:
    """Whole parameters by (name, primed), each with its axes as in the network: `part` cuts out what a Weight is.

    Parameters that are not given are sampled when they are first needed, with standard normal entries; the
    standard deviation is the instruction's.
    """

    width: int
    seed: int = 0
    step: Any = 0.0  # how far every trained weight has moved in its primed direction
    arrays: dict[Parameter, jax.Array] = field(default_factory=dict)

    def sample(self, programs: Sequence[Program]) -> Weights:
        """Sample every parameter of these programs that is not there yet."""
        sizes: dict[Parameter, list[int]] = {}
        for node in (w for program in programs for w in program.weights):
            stops = [
                int(stop * (self.width if w is not None else 1))
                for (_, stop), w in zip(node.region, node.widths, strict=True)
            ]
            known = sizes.setdefault((node.name, node.primed), stops)
            sizes[node.name, node.primed] = [max(a, b) for a, b in zip(known, stops, strict=True)]
        for i, (key, shape) in enumerate(sorted(sizes.items())):
            if key not in self.arrays:
                rng = np.random.default_rng([self.seed, i, key[1]])
                self.arrays[key] = jnp.asarray(rng.standard_normal(shape))
        return self

    def part(self, weight: Weight) -> jax.Array:
        """The entries of one instruction: unit shape first, then the coordinates along each width axis."""
        value = weight.std * self._cut(self.arrays[weight.name, weight.primed], weight)
        if not (weight.tangent_std or weight.primed):  # frozen, or behind lax.stop_gradient
            value = jax.lax.stop_gradient(value)
        if weight.tangent_std and (weight.name, True) in self.arrays:
            value = value + self.step * weight.tangent_std * self._cut(self.arrays[weight.name, True], weight)
        return value

    def _cut(self, whole: jax.Array, weight: Weight) -> jax.Array:
        cut, shape, order = [], [], []
        for (start, stop), size, width in zip(weight.region, weight.shape, weight.widths, strict=True):
            scale = 1 if width is None else self.width
            cut.append(slice(_whole(start * scale), _whole(stop * scale)))
            order.append(len(shape))
            shape.append(size)
            if width is not None:
                shape.append(_whole(width * self.width))
        inner = [i for i in range(len(shape)) if i not in order]
        part = jnp.transpose(whole[tuple(cut)].reshape(shape), (*order, *inner))
        if weight.symmetric:
            turned = jnp.swapaxes(jnp.swapaxes(part, *weight.matrix_axes), -1, -2)
            return (part + turned) / jnp.sqrt(2.0)
        return part


def _whole(number: Fraction) -> int:
    assert number.denominator == 1, f"{number} is not a whole number of coordinates"
    return int(number)


def directional_derivative(program: Program, weights: Weights, inputs: Sequence[Any]) -> jax.Array:
    """The derivative of the output along the primed weights, with every Moment held fixed.

    A Moment concentrates, so the tangent program leaves its derivative out (it vanishes like 1/sqrt(n)).
    """
    moved = lambda step: evaluate(program, replace(weights, step=step), inputs, fixed_moments=True)
    return jax.jvp(moved, (0.0,), (1.0,))[1]


def evaluate(
    program: Program,
    weights: Weights,
    inputs: Sequence[Any],
    hypers: Mapping[str, Any] | None = None,
    *,
    fixed_moments: bool = False,
) -> jax.Array:
    """The program's output for one input, with these weights."""
    values: dict[Node, jax.Array] = dict(zip(program.inputs, map(jnp.asarray, inputs), strict=True))
    given = program.hypers | dict(hypers or {})
    for node in program.nodes:
        if isinstance(node, Input):
            continue
        if isinstance(node, Hyper):
            values[node] = jnp.asarray(given[node.name])
        elif isinstance(node, Weight):
            values[node] = weights.part(node)
        else:
            values[node] = RUN[type(node)](node, [values[o] for o in operands(node)], weights.width)
        if fixed_moments and isinstance(node, Moment):
            values[node] = jax.lax.stop_gradient(values[node])
    return values[program.output]


def at_once(function: Callable[[Weights], Any], weights: Weights) -> Any:
    """`function(weights)`, compiled as a whole: its operations one by one would take JAX longer."""
    return jax.jit(lambda arrays: function(replace(weights, arrays=arrays)))(weights.arrays)


def hidden(node: Node) -> bool:
    """Does its array have a last axis of coordinates?"""
    return node.type.kind == "vector" and node.type.width is not None


# ------------------------------------------------------------------------------------------ instructions


def _const(node: Const, args: list[jax.Array], n: int) -> jax.Array:
    return jnp.asarray(node.value.array())


def _matmul(node: MatMul, args: list[jax.Array], n: int) -> jax.Array:
    """Letters for positions, capitals of the Greek kind for coordinates."""
    weight, x = args
    w, own, out = node.letters
    coordinates = {
        c: "ΑΒΓ"[i] for i, c in enumerate(c for c, v in zip(w, node.root.widths, strict=True) if v is not None)
    }
    axis = node.x.type.axis
    inner = "" if axis is None else coordinates[own[axis]]
    made = "" if node.type.axis is None else coordinates[out[node.type.axis]]
    names = {c: chr(ord("a") + i) for i, c in enumerate(dict.fromkeys([*w, *own, *coordinates.values()]))}
    spell = lambda letters: "".join(names[c] for c in letters)
    spec = f"{spell([*w, *coordinates.values()])},{spell([*own, *inner])}->{spell([*out, *made])}"
    summed = any(c not in out for c in coordinates)
    return jnp.einsum(spec, weight, x) / (jnp.sqrt(n) if summed else 1)


def _against(value: jax.Array, like: Node) -> jax.Array:
    """A deterministic array that broadcasts against a variable."""
    return value[..., None] if hidden(like) else value


def _lincomb(node: LinComb, args: list[jax.Array], n: int) -> jax.Array:
    rest, total = iter(args), 0.0
    for a, x in node.terms:
        factor = _against(next(rest), node) if isinstance(a, Node) else a
        value = next(rest)
        total = total + factor * (value if hidden(x) else _against(value, node))
    return total


def _position(node: PositionMap, args: list[jax.Array], n: int) -> jax.Array:
    x, *aux = args
    if hidden(node.args[0]):
        return jax.vmap(lambda one: node.op(one, *aux), in_axes=-1, out_axes=-1)(x)
    return node.op(x, *aux)


def _phi(node: Nonlin | Moment, args: list[jax.Array]) -> jax.Array:
    xs, thetas = args[: len(node.xs)], args[len(node.xs) :]
    if node.xs:
        thetas = [_against(t, node.xs[0]) for t in thetas]
    value = to_jax(node.phi.expr, (*node.phi.vectors, *node.phi.parameters))(*xs, *thetas)
    return jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, *(a.shape for a in (*xs, *thetas))))


def _nonlin(node: Nonlin, args: list[jax.Array], n: int) -> jax.Array:
    return _phi(node, args)


def _moment(node: Moment, args: list[jax.Array], n: int) -> jax.Array:
    return jnp.mean(_phi(node, args), axis=-1)


def _array_op(node: ArrayOp, args: list[jax.Array], n: int) -> jax.Array:
    kinds = {"to_real": float, "to_integer": int, "to_boolean": bool}
    if node.primitive in kinds:
        return args[0].astype(kinds[node.primitive])
    primitive = getattr(jax.lax, f"{node.primitive}_p")
    result = primitive.bind(*args, **dict(node.params))
    return result[0] if primitive.multiple_results else result


def _trsp(node: Trsp, args: list[jax.Array], n: int) -> jax.Array:
    return args[0]  # the letters of a product are those of the weight itself


RUN: dict[type, Callable[..., jax.Array]] = {
    Const: _const,
    Trsp: _trsp,
    MatMul: _matmul,
    LinComb: _lincomb,
    PositionMap: _position,
    Nonlin: _nonlin,
    Moment: _moment,
    ArrayOp: _array_op,
}


# ------------------------------------------------------------------------------------------ a network as a program


def network_program(net: Any, example: Any) -> Program:
    """The program as the front end makes it, before any pass."""
    from tensorprog.frontend.interpret import interpret
    from tensorprog.frontend.model import as_model
    from tensorprog.frontend.trace import trace

    return interpret(trace(as_model(net, example), example))


def sampled_network(net: Any, example: Any, width: int, seed: int = 0) -> tuple[Any, Weights]:
    """Parameters of a finite network, for `tp.apply`, and the same numbers as weights of its program."""
    import tensorprog as tp
    from tensorprog.frontend.model import collect

    params = tp.init(net, example, width, jax.random.key(seed))
    specs = net.init(width) if isinstance(net, tp.Network) else collect(net, example, width).specs
    is_spec = lambda leaf: isinstance(leaf, (tp.Gaussian, tp.Constant))
    named = jax.tree.flatten_with_path(specs, is_leaf=is_spec)[0]
    arrays = {}
    for (path, spec), array in zip(named, jax.tree.leaves(dict(params)), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        arrays[name, False] = jnp.asarray(array) / (spec.std or 1.0)
    return params, Weights(width, arrays=arrays)
