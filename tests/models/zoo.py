"""The models of the examples by name: "flax perceptron", "equinox gru"."""

from __future__ import annotations

from examples import equinox_models, flax_models
from examples.models import Model

__all__ = ["CASES", "Model"]

CASES: dict[str, Model] = {
    f"{library}: {name}": model
    for library, models in (("flax", flax_models.MODELS), ("equinox", equinox_models.MODELS))
    for name, model in models.items()
}
