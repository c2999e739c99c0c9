"""What the examples of models of other libraries have in common: how a model is given to tensorprog, and what is printed.

The models are in `examples.flax_models` and `examples.equinox_models`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tensorprog as tp


@dataclass(frozen=True)
class Model:
    """A module and what its kernel needs to know.

    door: `tp.from_flax` or `tp.from_equinox`. build: makes the module at a width; `features` is the size of its output.
    shape: of one input. call: how the module runs on it. init: laws in place of the module's own. tolerance: where
    expectations are sampled.
    """

    door: Callable[..., tp.ModelNetwork]
    build: Callable[..., Any]
    shape: tuple[int, ...]
    call: Callable[[Any, Any], Any] = lambda model, x: model(x)
    init: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float | None = None

    def network(self, **options: Any) -> tp.ModelNetwork:
        """The model as a network, its initialisers sampled."""
        return self.door(self.build, call=self.call, init={**self.init, **options.pop("init", {})}, **options)

    def inputs(self, count: int = 3) -> np.ndarray:
        """Random inputs, (count, ..)."""
        return np.random.default_rng(0).standard_normal((count, *self.shape))


def main(models: Mapping[str, Model], names: Sequence[str]) -> None:
    """Print the table of parameters and the kernels of the models named, or of all."""
    warnings.simplefilter("ignore", tp.LawWarning)  # the table says it
    for name in names or models:
        model, xs = models[name], models[name].inputs(2)
        net = model.network()
        print(f"\n{name}\n\n{net.table(xs[0])}\n")
        nngp, ntk = tp.compile(net, xs[0], tolerance=model.tolerance)(xs)
        print(f"NNGP kernel:\n{nngp}\nneural tangent kernel:\n{ntk}")
