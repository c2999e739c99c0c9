"""How the parameters of a model move: the parametrisations.

ntk: in proportion to how they start, so that every layer trains (Jacot et al. 2018). standard: all alike, as plain gradient descent
moves them; the kernel then grows like the width n, and the limit is that of the kernel over n, or, at a stated width N, the limit
with N in the place of n where the kernel grows (Sohl-Dickstein et al. 2020, section 3). mup: the maximal update
parametrisation (Yang and Hu 2021, Tensor Programs IV, table 1; Yang et al. 2022, Tensor Programs V, table 3, SGD): the output is 1/sqrt(n)
of the module's, and the rates are n for what is not summed over a width, 1 for hidden weights, 1/n for the readout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.frontend.params import Constant, Gaussian
from tensorprog.models.laws import Law

__all__ = ["PARAMETRIZATIONS", "Given", "Spec", "Training"]

Spec = Gaussian | Constant
Given = Spec | Callable[[int], Spec]
PARAMETRIZATIONS = ("ntk", "standard", "mup")


@dataclass(frozen=True)
class Training:
    """A parametrisation. at_width: the finite width of the standard one, or None for the limit of its kernel over n."""

    name: str
    at_width: int | None = None

    @classmethod
    def of(cls, what: str, name: str, at_width: int | None) -> Training:
        """Check what the user asked the public function `what` for."""
        if name not in PARAMETRIZATIONS:
            raise InputError(f"{what}: parametrization is {name!r}, expected 'ntk', 'standard' or 'mup'")
        if at_width is not None and name != "standard":
            raise InputError(
                f"{what}: at_width is {at_width!r} with parametrization={name!r}, expected None: only the kernel of 'standard' "
                "depends on the width"
            )
        if at_width is not None and not (isinstance(at_width, int) and at_width > 0):
            raise InputError(f"{what}: at_width is {at_width!r}, expected a positive whole number, or None")
        return cls(name, at_width)

    @property
    def by_use(self) -> bool:
        """Does a parameter's rate depend on whether the network sums over a width with it?"""
        return self.name == "mup" or self.at_width is not None

    def check(self, what: str, laws: Mapping[str, Law]) -> None:
        """Refuse laws whose part of the kernel would grow faster than the rest."""
        if self.name != "ntk":
            for name, law in laws.items():
                if law.power < -1:
                    raise _no_limit(what, name, law, self.name)

    def check_use(self, laws: Mapping[str, Law], summed: frozenset[str]) -> None:
        """The same where it depends on the use. summed: what the network sums over a width with."""
        for name in sorted(summed):
            law = laws[name]
            if self.by_use and law.power != -1 and not law.constant:
                raise _no_limit("the model", name, law, self.name)

    def spec(
        self, law: Law, shape: tuple[int, ...], width: int, given: Given | None, summed: bool | None
    ) -> Spec:  # fmt: skip
        """How a parameter starts and moves. summed: does the network sum over a width with it? None where that is not
        known; it then moves as it starts."""
        start: Spec = Constant(shape, law.value) if law.constant else Gaussian(shape, law.std(width))
        by_hand = False
        if given is not None:
            start = replace(given(width) if callable(given) else given, shape=shape)
            by_hand = isinstance(start, Gaussian) and start.tangent_std is not None
        if self.name == "ntk" or start.tangent_std == 0 or by_hand:
            return start
        # a matrix of zeros is summed over a width too, or has no part in the limit: of layers that start at zero, and of readouts
        zeros = law.constant and not law.value and len(shape) > 1
        if not self.by_use:  # what remains are the parameters of variance c/n, whose gradients are the largest
            return replace(start, tangent_std=width**-0.5 if zeros or (law.power == -1 and not law.constant) else 0.0)
        if summed is None:
            return replace(start, tangent_std=width**-0.5) if zeros else start
        if summed:
            return replace(start, tangent_std=((self.at_width or 1) / width) ** 0.5)
        if law.power < 0 and not law.constant:  # how it starts has no part in the limit, how it moves has
            return Constant(shape, 0.0, 1.0)
        return replace(start, tangent_std=1.0)

    def legend(self) -> list[str]:
        """What the kernels are, for the table."""
        if self.name == "mup":
            return [
                "The network is sqrt(n) times the model in the maximal update parametrisation, whose own output vanishes like 1/sqrt(n):",
                "its NNGP kernel is the covariance of that. The neural tangent kernel is the model's own, at initialisation.",
            ]
        if self.at_width is not None:
            return [
                f"The neural tangent kernel is that of plain gradient descent on the parameters at width {self.at_width}."
            ]
        if self.name == "standard":
            return ["The neural tangent kernel is that of plain gradient descent on the parameters, divided by n."]
        return []


def _no_limit(what: str, name: str, law: Law, parametrization: str) -> NetworkError:
    more = "more" if law.power < -1 else "less"
    return NetworkError(
        explain(
            f"{what}: {name!r} starts with the variance {law.variance()}, for which parametrization={parametrization!r} has no limit",
            reason=f"a parameter that is summed over a width starts with c/n; this one moves {more} in proportion to how it starts, so "
            "that its part of the kernel is not of the order of the others",
            mend="use parametrization='ntk', or give it the variance c/n: "
            f"init={{{name!r}: lambda width: tp.Gaussian(std=width**-0.5)}}",
        )
    )
