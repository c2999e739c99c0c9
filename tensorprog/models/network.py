"""A model of Flax or Equinox as a `Network`: how its parameters start and move, as a table to read and to override."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from tensorprog.errors import InputError, LawWarning, NetworkError, explain
from tensorprog.frontend.finite import Parameters
from tensorprog.frontend.interpret import interpret
from tensorprog.frontend.model import Model
from tensorprog.frontend.params import Constant, Gaussian, Network
from tensorprog.frontend.trace import trace
from tensorprog.frontend.values import WIDTHS, fit_power, layout_of
from tensorprog.ir import MatMul, Program, Weight, operands
from tensorprog.models.door import Door, sample
from tensorprog.models.independence import check_alike, check_independent
from tensorprog.models.laws import Law, power_of_width, read_law
from tensorprog.models.training import Given, Spec, Training

__all__ = ["ModelNetwork", "network_of"]

SAMPLED = (120, 240, 360)  # widths, divisible by the usual numbers of heads and groups
SAMPLED_ONCE = (120, 240, 360, 720, 1440, 2520)  # of a model that draws from no key of ours: every width gives one draw


@dataclass(frozen=True)
class ModelNetwork(Network):
    """A model of another library as a network that `tp.compile`, `tp.init` and `tp.apply` take.

    laws: how each parameter starts, by its path. parametrization, at_width: how it is trained. `print` shows
    both as a table; `table(example)` also says which parameters the limit takes as Gaussian though they are not.
    """

    laws: Mapping[str, Law] = field(default_factory=dict)
    parametrization: str = "ntk"
    at_width: int | None = None
    _door: Door | None = field(default=None, repr=False)
    _by_use: Callable[[frozenset[str] | None], Callable[[int], Parameters]] | None = field(default=None, repr=False)

    @property
    def training(self) -> Training:
        """The parametrisation."""
        return Training(self.parametrization, self.at_width)

    def at(self, example: Any) -> ModelNetwork:
        """The same network with what depends on how the parameters are used on an input like the example."""
        if self._by_use is None:
            return self
        uses = _uses(self._program(example))
        summed = frozenset(weight.name for weight, node in uses if _sums_over_width(node))
        self.training.check_use(self.laws, summed)
        return replace(self, init=self._by_use(summed), _by_use=None)

    def _program(self, example: Any) -> Program:
        model = Model(self.init, lambda width, params, hypers, x: self.apply(params, x), {})
        return interpret(trace(model, example))

    def draw(self, width: int, key: jax.Array) -> Parameters:
        """The model's own parameters at a width, from its own initialisers, for `tp.apply`."""
        assert self._door is not None
        return Parameters(self._door.parameters(width, key), width)

    def check(self, program: Program) -> None:
        """Warn where the limit of the model depends on a law that is not Gaussian."""
        if turned := self.orthogonal_and_transposed(program):
            warnings.warn(
                f"this kernel is that of the model with independent entries of the same variance in place of {', '.join(turned)} (orthogonal)\n"
                "  reason: a product with the transpose takes one with an orthogonal matrix back, which it does not with independent entries\n"
                f"  to mend: say that these are meant, init={{{turned[0]!r}: lambda n: tp.Gaussian(std=...)}}, or initialise the model so",
                LawWarning,
                stacklevel=3,
            )
        names = self.law_matters(program)
        if names:
            kinds = ", ".join(f"{name} ({self.laws[name].kind})" for name in names)
            first = names[0]
            warnings.warn(
                f"this kernel is that of the model with Gaussian entries of the same variance in place of {kinds}\n"
                "  reason: these parameters are not summed over a width, so the law of their entries stays in the limit; the difference "
                "is of the order of 1/fan-in\n"
                f"  to mend: say that Gaussian entries are meant, init={{{first!r}: tp.Gaussian(std={self.laws[first].std(1):.6g})}}, "
                "or initialise the model so",
                LawWarning,
                stacklevel=3,
            )

    def law_matters(self, program: Program) -> list[str]:
        """The parameters whose law, beyond its variance, the limit depends on: not Gaussian, and used other than in a sum over
        a width."""
        named = {
            n for n, law in self.laws.items() if not (law.gaussian or (law.kind == "orthogonal" and not law.error))
        }
        uses = ((w.name, node) for w, node in _uses(program) if w.name in named and w.std)
        return sorted({name for name, node in uses if node.type.width is not None and not _sums_over_width(node)})

    def orthogonal_and_transposed(self, program: Program) -> list[str]:
        """The parameters that start as orthogonal matrices and are summed over either of their width axes."""
        summed: dict[str, set[tuple[int, ...]]] = {}
        for weight, node in _uses(program):
            if self.laws[weight.name].kind == "orthogonal" and _sums_over_width(node):
                letters, _, out = node.letters
                axes = tuple(i for i, w in enumerate(node.root.widths) if w is not None and letters[i] not in out)
                summed.setdefault(weight.name, set()).add(axes)
        return sorted(name for name, axes in summed.items() if len(axes) > 1)

    def table(self, example: Any = None) -> str:
        """The table of parameters: shape, law, variance at initialisation, variance of the training direction.

        example: an input, as for `tp.compile`; with it the table says where a law that is not Gaussian matters.
        """
        if example is not None and self._by_use is not None:
            return self.at(example).table(example)
        matters = None if example is None else self.law_matters(self._program(example))
        shapes = _symbolic(self.init(WIDTHS[0]), self.init(WIDTHS[1]))
        head = ("parameter", "shape", "starts as", "variance", "moves with", "")
        rows = [head] + [self._row(name, shape, matters) for name, shape in shapes.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", *self._legend(matters)])

    __str__ = table

    def _row(self, name: str, shape: str, matters: Iterable[str] | None) -> tuple[str, ...]:
        law = self.laws[name]
        start = f"constant {law.value:.6g}" if law.constant else law.kind
        note = []
        if law.given:
            note.append("given")
        if law.error:
            note.append("sampled")
        if not law.gaussian:
            note.append(
                "law matters?"
                if matters is None
                else "TAKEN AS GAUSSIAN"
                if name in matters
                else "same limit as Gaussian"
            )
        moves = "by its use" if self._by_use is not None else _moves(self.init, name)
        return name, shape, start, law.variance(), moves, ", ".join(note)

    def _legend(self, matters: list[str] | None) -> list[str]:
        lines = [
            f'n is the width; "moves with" is the variance of the direction of training ({self.parametrization} parametrisation).'
        ]
        lines += self.training.legend()
        if self._by_use is not None:
            lines.append("How a parameter moves depends on whether it is summed over a width: table(example) says it.")
        if any(not law.gaussian for law in self.laws.values()):
            if matters is None:
                lines.append(
                    "A law that is not Gaussian matters where a parameter is not summed over a width: table(example) says where."
                )
            elif matters:
                lines.append(
                    "TAKEN AS GAUSSIAN: the limit depends on this law, and is computed with Gaussian entries of the same variance."
                )
        return lines


def _moves(init: Callable[[int], Any], name: str) -> str:
    a, b = (s.std if s.tangent_std is None else s.tangent_std for s in (init(w)[name] for w in WIDTHS))
    if not a:
        return "0"
    value, power = fit_power((np.asarray(a), np.asarray(b)))
    square = float(value) ** 2
    exact = Fraction(square).limit_denominator(100_000)
    return power_of_width(exact if abs(float(exact) / square - 1) < 1e-12 else square, 2 * power)


def _symbolic(first: Mapping[str, Spec], second: Mapping[str, Spec]) -> dict[str, str]:
    """Shapes with the width as n."""

    def axis(factors: tuple[int | Fraction, ...]) -> str:
        size = factors[0] if factors else 1
        if isinstance(size, int):
            return str(size)
        return (
            ("" if size.numerator == 1 else str(size.numerator))
            + "n"
            + ("" if size.denominator == 1 else f"/{size.denominator}")
        )

    return {
        name: "(" + ", ".join(map(axis, layout_of((first[name].shape, second[name].shape)))) + ")" for name in first
    }


def _uses(program: Program) -> Iterable[tuple[Weight, Any]]:
    """The parameters of a program, each with an instruction that reads it."""
    return ((w, node) for node in program.nodes for w in operands(node) if isinstance(w, Weight))


def _sums_over_width(node: Any) -> bool:
    if not isinstance(node, MatMul):
        return False
    letters, _, out = node.letters
    return any(w is not None and letters[i] not in out for i, w in enumerate(node.root.widths))


# ------------------------------------------------------------------------------------------ making one


def network_of(
    what: str,
    door: Door,
    training: Training,
    init: Mapping[str, Given] | None,
    widths: tuple[int, ...] | None,
    seed: int,
) -> ModelNetwork:
    """Sample what is not given and put the network together. what: the public function's name, for messages."""
    widths = widths or (SAMPLED if door.keyed else SAMPLED_ONCE)
    given = _checked(what, init, door.shapes(WIDTHS[0]))
    _check_proportional(what, door, widths)
    names = set(door.shapes(WIDTHS[0])) - set(given)
    sampled, draws = sample(door, widths, names, seed)
    laws = {}
    for name, shape in sorted(door.shapes(WIDTHS[0]).items()):
        fixed = [a for a, b in zip(shape, door.shapes(WIDTHS[1])[name], strict=True) if a == b]
        laws[name] = (
            _given_law(what, name, given[name], shape) if name in given else read_law(name, sampled[name], fixed)
        )
    random = [name for name in sorted(names) if not laws[name].constant]
    for name in random:
        check_alike(name, [drawn[name] for drawn in draws])
    check_independent([{name: drawn[name] for name in random} for drawn in draws])
    training.check(what, laws)

    def by_use(summed: frozenset[str] | None) -> Callable[[int], Parameters]:
        def specs(width: int) -> Parameters:
            shapes = door.shapes(width)
            used = lambda name: None if summed is None else name in summed
            made = {n: training.spec(law, shapes[n], width, given.get(n), used(n)) for n, law in laws.items()}
            return Parameters(made, width)

        return specs

    def apply(params: Any, x: Any) -> Any:
        if not isinstance(params, Parameters):
            raise InputError(
                f"apply: params is a {type(params).__name__}, expected what tp.init or the network's draw(width, key) gives, "
                "which knows its width"
            )
        return door.run(params.width, dict(params), x)

    return ModelNetwork(
        by_use(None), apply, laws, training.name, training.at_width, door, by_use if training.by_use else None
    )


def _checked(what: str, init: Mapping[str, Given] | None, shapes: Mapping[str, Any]) -> dict[str, Given]:
    given = dict(init or {})
    for name, spec in given.items():
        if name not in shapes:
            raise InputError(
                f"{what}: init has {name!r}, which is no parameter of the model\n  it has: {', '.join(sorted(shapes))}"
            )
        if not isinstance(spec, (Gaussian, Constant)) and not callable(spec):
            raise InputError(
                f"{what}: init[{name!r}] is a {type(spec).__name__}, expected tp.Gaussian(std=...), tp.Constant(value=...), or a "
                "function of the width that gives one"
            )
    return given


def _given_law(what: str, name: str, given: Given, shape: tuple[int, ...]) -> Law:
    specs = [given(width) if callable(given) else given for width in WIDTHS]
    for spec in specs:
        if not isinstance(spec, (Gaussian, Constant)):
            raise InputError(
                f"{what}: init[{name!r}] gives a {type(spec).__name__}, expected tp.Gaussian or tp.Constant"
            )
        if spec.shape not in ((), shape):
            raise InputError(
                f"{what}: init[{name!r}] has shape {spec.shape}, the parameter {shape}\n  to mend: leave the shape out"
            )
    if isinstance(specs[0], Constant):
        return Law("constant", value=specs[0].value, given=True)
    try:
        std, power = fit_power((np.asarray(specs[0].std), np.asarray(specs[1].std)))
    except ValueError:
        raise InputError(f"{what}: init[{name!r}]: its std is {specs[0].std} at width {WIDTHS[0]} and {specs[1].std} at width "
                         f"{WIDTHS[1]}, expected c n^p") from None  # fmt: skip
    square = float(std) ** 2
    exact = Fraction(square).limit_denominator(10_000)
    return Law("Gaussian", exact if abs(float(exact) - square) <= 1e-12 * square else square, 2 * power, given=True)


def _check_proportional(what: str, door: Door, widths: tuple[int, ...]) -> None:
    """Every axis is fixed or proportional to the width, at all widths that are used."""
    first, second = (door.shapes(w) for w in WIDTHS)
    for width in widths:
        shapes = door.shapes(width)
        if set(shapes) != set(first):
            raise NetworkError(f"{what}: the model has different parameters at widths {width} and {WIDTHS[0]}: "
                               f"{sorted(set(shapes) ^ set(first))}")  # fmt: skip
        for name, shape in shapes.items():
            for i, (a, b, c) in enumerate(zip(first[name], second[name], shape, strict=True)):
                if (b - a) * (width - WIDTHS[0]) != (c - a) * (WIDTHS[1] - WIDTHS[0]) or (
                    a != b and a * WIDTHS[1] != b * WIDTHS[0]
                ):
                    raise NetworkError(
                        explain(
                            f"{what}: axis {i} of {name!r} has the sizes {c}, {a} and {b} at widths {width}, {WIDTHS[0]} and {WIDTHS[1]}",
                            reason="an axis must be of a fixed size or proportional to the width",
                            mend="write hidden sizes as fixed numbers or as multiples of the width",
                        )
                    )
