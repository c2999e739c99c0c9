"""Parametrisations by powers of the width: what they do to a network, before a kernel is taken.

An abc-parametrisation (Yang and Hu 2021, Tensor Programs IV, definition 3.1) multiplies a weight w by n^-a, draws it with entries
of the variance n^-2b, and trains it at the rate n^-c. `tp.scaling` counts powers of n through the program and classifies it as in their
corollary 3.9: trivial, unstable, in the kernel regime, or learning features.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import jax

from tensorprog.apps.parametrization import Parametrization, parametrization_of
from tensorprog.compile import Kernel
from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.frontend.interpret import interpret
from tensorprog.frontend.model import abstract, as_model
from tensorprog.frontend.trace import trace
from tensorprog.ir import MatMul, Moment, Node, Nonlin, Program, Weight, operands, topological
from tensorprog.ir.rebuild import rebuild
from tensorprog.passes.methods import prepared
from tensorprog.passes.powers import NEVER, Counts, Power, count_powers, over_width

__all__ = ["Row", "Scaling", "scaling"]


@dataclass(frozen=True)
class Row:
    """Powers of n of one variable: its size at initialisation, how much one step of gradient descent changes it, how much later
    steps do, and how much of that is the update of its own weight. None where it is zero."""

    name: str
    what: str
    initial: Power | None
    step: Power | None
    later: Power | None
    update: Power | None
    node: Node = field(repr=False)


@dataclass(frozen=True)
class Scaling:
    """What powers of n say about a parametrisation of a network.

    kind: "unstable", "trivial", "kernel regime" or "feature learning". decides: the instruction that says so, and its power. rows:
    every variable; output: the last of them. features: the power of the change of what the readout reads, -r in the
    paper. ntk_power: that of the neural tangent kernel; leading: the parameters whose parts grow so. updates: by weight, the
    power of what its own update adds to the layer it makes; zero is the most that is stable.
    """

    parametrization: Parametrization
    kind: str
    decides: str
    rows: tuple[Row, ...]
    features: Power | None
    ntk_power: Power | None
    leading: tuple[str, ...]
    updates: dict[str, Power | None]
    _program: Program = field(repr=False)
    _tree: Any = field(repr=False)
    _stable_start: bool = field(repr=False, default=True)

    @property
    def output(self) -> Row:
        return self.rows[-1]

    def kernel(self, *, tolerance: float | None = None) -> Kernel:
        """The normalised kernel: its ntk is the limit of n^-ntk_power times the neural tangent kernel.

        It is made of the parameters in `leading`; the parts of the others vanish beside theirs. Only powers of n are moved between
        multiplier, initialisation and rate: constants stay where the network has them, in front of standard Gaussian entries.
        Where the output has the size n^p at initialisation, nngp is the covariance of n^-p f.

        Raises NetworkError for a parametrisation in which a layer explodes or vanishes at initialisation.
        """
        if not self._stable_start:
            raise NetworkError(
                explain(
                    "the parametrisation has no kernel", reason=self.decides,
                    mend="choose a + b = 0 for the input and a + b = 1/2 for hidden weights (1 for a readout that is tied to what it reads)",
                )
            )  # fmt: skip
        frozen = {
            w: replace(w, tangent_std=0.0, stopped=0.0) for w in self._program.weights if w.name not in self.leading
        }
        new: dict[Node, Node] = {}
        for node in topological([self._program.output]):
            parts = [new[o] for o in operands(node)]
            new[node] = frozen.get(node, rebuild(node, parts)) if isinstance(node, Weight) else rebuild(node, parts)
        program = replace(self._program, output=new[self._program.output])
        return Kernel(prepared(program), self._tree, tolerance)

    def __str__(self) -> str:
        head = ("", "instruction", "size", "one step", "later", "own update")
        lines = [head] + [(r.name, r.what, *map(_show, (r.initial, r.step, r.later, r.update))) for r in self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        ntk = (
            f"the NTK scales like {_show(self.ntk_power)}: {', '.join(self.leading)}"
            if self.leading
            else "nothing is trained"
        )
        return "\n".join([*table, "", f"{self.kind}: {self.decides}", ntk])


def _show(power: Power | None) -> str:
    return "0" if power is None else "1" if power == 0 else f"n^{power}" if power != 1 else "n"


def scaling(net: Any, example: Any = None, parametrization: str | Parametrization = "ntk") -> Scaling:
    """Count powers of the width through a network in an abc-parametrisation, and classify it.

    net: as for `tp.compile`, or a `Program`; its own powers of n are replaced by those of the parametrisation. example: an example
    input (None for a program). parametrization: "standard", "ntk", "mup", "mean_field" or a `tp.Parametrization`. The output is a
    readout, by whatever power of n it is divided (as an average of weights times coordinates is one divided by n), or an average over
    the width of other functions, which is of the size 1 and whose gradients are of the size 1/n. A weight may have several roles, as in
    tied embeddings, if it starts with one law in all of them; else InputError names it.

    Returns a `Scaling`: sizes at initialisation, changes by one step of gradient descent and by later ones, the class, and the
    instruction that decides. Powers are those of generic inputs, nonlinearities and targets. Unstable is a hidden layer that is not of
    the size 1 at initialisation, or any variable that grows; trivial an output that does not change; features are learned where
    what the readout reads changes by the size 1, and in the kernel regime it does not.
    Source: Yang and Hu 2021 (Tensor Programs IV), definition 3.1, theorems 3.4 and 3.8, for perceptrons; the counting holds for programs.

    Example:
        >>> import jax, jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import nn
        >>> def net(x):
        ...     h = jnp.tanh(nn.dense(x))
        ...     return nn.dense(jnp.tanh(nn.dense(h)), features=1)
        >>> for name in ("standard", "ntk", "mup"):
        ...     found = tp.scaling(net, jnp.zeros(3), name)
        ...     print(f"{name}: {found.kind}, {found.decides}")
        standard: unstable, v3 = MatMul(dense_1.weight, v2) changes by n^1/2
        ntk: kernel regime, v0 = MatMul(dense_0.weight, x0) changes by n^-1/2
        mup: feature learning, v0 = MatMul(dense_0.weight, x0) changes by 1
    """
    chosen = parametrization_of(parametrization)
    if isinstance(net, Program):
        program, tree = net, jax.tree.structure(0 if len(net.inputs) == 1 else (0,) * len(net.inputs))
    else:
        program = interpret(trace(as_model(net, example), example), averages=True, any_power=True)
        tree = jax.tree.structure(abstract(example))
    unknown = sorted(set(chosen.given) - {w.name for w in program.weights})
    if unknown:
        raise InputError(
            f"scaling: the parametrisation names {unknown[0]!r}, expected one of {[w.name for w in program.weights]}"
        )
    _check_roles(program, chosen)
    counts = count_powers(program, chosen.scales)
    return _classified(program, tree, chosen, counts)


def _check_roles(program: Program, chosen: Parametrization) -> None:
    """Refuse a weight in two roles in which it would start with two laws."""
    drawn: dict[str, tuple[Fraction, Node]] = {}
    for user in program.nodes:
        uses = [user] if isinstance(user, MatMul) else [o for o in operands(user) if isinstance(o, Weight)]
        for node in uses:
            weight = node.root if isinstance(node, MatMul) else node
            b = chosen.pair(node, weight)[1]
            first, at = drawn.setdefault(weight.name, (b, user))
            if first != b and weight.std:
                raise InputError(
                    explain(
                        f"scaling: the parametrisation draws the weight {weight.name!r} with b = {first} in one role and {b} in another",
                        where=f"{at.source or '?'} and {user.source or '?'}",
                        reason="a weight starts with one law, whatever it is used for",
                        mend=f"give its powers by name: tp.Parametrization(.., given={{{weight.name!r}: (a, b)}})",
                    )
                )  # fmt: skip


def _classified(program: Program, tree: Any, chosen: Parametrization, counts: Counts) -> Scaling:
    above = _above_averages(program)
    rows = tuple(
        _row(program, node, counts)
        for node in program.nodes
        if node in above or (node.type.kind == "vector" and not isinstance(node, Weight))
    )
    read = _read_by_readouts(program) + [x for node in above if isinstance(node, Moment) for x in node.xs]
    features = max((_later(counts, x) for x in read), default=NEVER)
    start = _first(rows, lambda r: _not_of_size_one(r, program, counts), "initial", "has the size {} at initialisation")
    kind, decides = "unstable", start
    if start is None:
        kind, decides = _trained(program, rows, features, counts)
    ntk = {w: _ntk_power(program, w, chosen, counts) for w in dict.fromkeys(w.name for w in program.weights)}
    top = max(ntk.values(), default=NEVER)
    return Scaling(
        chosen, kind, decides or "", rows, _none(features), _none(top),
        tuple(name for name, power in ntk.items() if power == top and power != NEVER), _updates(program, counts), program, tree,
        start is None or start.startswith(rows[-1].name + " ="),
    )  # fmt: skip


def _row(program: Program, node: Node, counts: Counts) -> Row:
    update = counts.updates[-1].get(node, NEVER)
    powers = counts.initial[node], counts.changes[0][node], _later(counts, node), update
    initial, step, later, own = map(_none, powers)
    return Row(program.names[node], _what(program, node), initial, step, later, own, node)


def _what(program: Program, node: Node) -> str:
    if isinstance(node, MatMul):
        return f"MatMul({node.root.name}, {program.names[node.x]})"
    kind = f"{type(node).__name__}"
    shown = ", ".join(program.names[o] for o in operands(node))
    return f"{kind}({node.phi}; {shown})" if isinstance(node, Nonlin | Moment) else f"{kind}({shown})"


def _later(counts: Counts, node: Node) -> Power:
    return max(change[node] for change in counts.changes)


def _none(power: Power) -> Power | None:
    return None if power == NEVER else power


def _first(rows: tuple[Row, ...], test: Any, which: str, text: str) -> str | None:
    """The first instruction of which a test holds, with its power."""
    for row in rows:
        if test(row):
            return f"{row.name} = {row.what} {text.format(_show(getattr(row, which)))}"
    return None


def _not_of_size_one(row: Row, program: Program, counts: Counts) -> bool:
    """Is a hidden layer not of the size 1, or an output larger than that?"""
    size = counts.initial[row.node]
    if row.node.type.width is None:
        return size > 0
    return isinstance(row.node, MatMul) and size != 0 and bool(row.node.root.std)


def _trained(program: Program, rows: tuple[Row, ...], features: Power, counts: Counts) -> tuple[str, str | None]:
    for which, change in (("step", counts.changes[0]), ("later", counts.changes[-1])):
        grows = _first(rows, lambda r, change=change: change[r.node] > 0, which, "changes by {}")
        if grows is not None:
            return "unstable", grows
    moved = _later(counts, program.output)
    if moved < 0:
        return "trivial", f"{rows[-1].name} = {rows[-1].what} changes by {_show(_none(moved))}"
    hidden = tuple(r for r in rows if r.node.type.width is not None)
    most = max((_later(counts, r.node) for r in hidden), default=NEVER)
    text = "changes by {}"
    if features == 0:
        return "feature learning", _first(hidden, lambda r: _later(counts, r.node) == 0, "later", text)
    return "kernel regime", _first(hidden, lambda r: _later(counts, r.node) == most, "later", text)


def _read_by_readouts(program: Program) -> list[Node]:
    """What the readouts sum over the width."""
    return [n.x for n in program.nodes if isinstance(n, MatMul) and n.type.width is None and n.x.type.kind == "vector"]


def _above_averages(program: Program) -> list[Node]:
    """The averages over the width that the output is a function of, and what is made of them."""
    found: set[Node] = set()
    open_ = [program.output] if program.output.type.kind == "scalar" else []
    while open_:
        node = open_.pop()
        if node not in found:
            found.add(node)
            open_ += [] if isinstance(node, Moment) else operands(node)
    inside = [node for node in program.nodes if node in found]
    above: set[Node] = set()
    for node in inside:
        if isinstance(node, Moment) or any(o in above for o in operands(node)):
            above.add(node)
    return [node for node in inside if node in above]


def _updates(program: Program, counts: Counts) -> dict[str, Power | None]:
    found: dict[str, Power] = {}
    for node, power in counts.updates[-1].items():
        weight = node.root if isinstance(node, MatMul) else node
        if isinstance(weight, Weight) and (isinstance(node, MatMul) or counts.gradients[node] != NEVER):
            found[weight.name] = max(found.get(weight.name, NEVER), power)
    return {name: _none(power) for name, power in found.items()}


def _ntk_power(program: Program, name: str, chosen: Parametrization, counts: Counts) -> Power:
    """The power of n of a parameter's part of the neural tangent kernel, sum |dh|^2 |x|^2 times its rate."""
    powers: list[Power] = []
    for node in program.nodes:
        wide = 0 if node.type.width is None else 1
        gradient = counts.gradients[node]
        if isinstance(node, MatMul) and node.root.name == name:
            rate = chosen.scales(node, node.root).rate
            powers.append(rate + wide + 2 * gradient + (1 if over_width(node) else 0) + 2 * counts.initial[node.x])
        elif isinstance(node, Weight) and node.name == name and gradient != NEVER:
            powers.append(chosen.scales(node, node).rate + wide + 2 * gradient)
    return max(powers, default=NEVER)
