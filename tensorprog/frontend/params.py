"""Parameters of a network: how each starts, how each is trained, and the named numbers a kernel keeps open.

`Gaussian` and `Constant` describe one parameter array; `Hyper` is a number that stays an argument of the compiled
kernel; `Network` is the plain form of a model, a pair of functions `init(width)` and `apply(params, x)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.frontend.recording import current, is_derived
from tensorprog.ir import Program

__all__ = ["Constant", "Gaussian", "Hyper", "Network", "Spec", "hyper"]


@dataclass(frozen=True)
class Gaussian:
    """A parameter with independent centred Gaussian entries.

    shape: its shape at this width (left out where a parameter of a model is described, see `tp.from_flax`). std: the
    standard deviation at initialisation.
    tangent_std: the standard deviation of the random direction in which training moves it (its learning rate is
    tangent_std^2 / std^2 times the common one, in the NTK parametrisation); None means equal to `std`, 0 freezes it.
    per_input: noise that is drawn anew for every input and not trained, as `nn.dropout` makes it.
    """

    shape: tuple[int, ...] = ()
    std: float = 1.0
    tangent_std: float | None = None
    per_input: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(s) for s in self.shape))
        for name in ("std", "tangent_std"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"Gaussian: {name} is {value!r}, expected a finite number >= 0 (a standard deviation)")
        if self.per_input:
            object.__setattr__(self, "tangent_std", 0.0)

    @property
    def mean(self) -> float:
        return 0.0

    def sample(self, key: jax.Array) -> jax.Array:
        return self.std * jax.random.normal(key, self.shape)


@dataclass(frozen=True)
class Constant:
    """A parameter whose entries all start at `value`, such as the gain of a norm. It is trained like any other."""

    shape: tuple[int, ...] = ()
    value: float = 0.0
    tangent_std: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(s) for s in self.shape))
        if not math.isfinite(self.value):
            raise InputError(f"Constant: value is {self.value!r}, expected a finite number")
        if not (math.isfinite(self.tangent_std) and self.tangent_std >= 0):
            raise InputError(f"Constant: tangent_std is {self.tangent_std!r}, expected a finite number >= 0")

    @property
    def mean(self) -> float:
        return self.value

    @property
    def std(self) -> float:
        return 0.0

    def sample(self, key: jax.Array) -> jax.Array:
        return jnp.full(self.shape, self.value)


Spec = Gaussian | Constant


@dataclass(frozen=True)
class Network:
    """A network in plain form, for those who keep their own parameters.

    init: `init(width)` gives a pytree of `Gaussian` and `Constant`, one per parameter.
    apply: `apply(params, x)` evaluates the network on one example; any JAX code.

    Example:
        >>> import jax.numpy as jnp, tensorprog as tp
        >>> net = tp.Network(
        ...     init=lambda n: {"W": tp.Gaussian((n, 3)), "v": tp.Gaussian((n,))},
        ...     apply=lambda p, x: p["v"] @ jnp.tanh(p["W"] @ x) / jnp.sqrt(p["v"].size),
        ... )
        >>> tp.compile(net, jnp.zeros(3))(jnp.eye(3)).nngp.shape
        (3, 3)
    """

    init: Callable[[int], Any]
    apply: Callable[[Any, Any], Any]

    def at(self, example: Any) -> Network:
        """Called with an example input before the network is compiled: the place for what depends on it."""
        return self

    def check(self, program: Program) -> None:
        """Called with the network's program when it is compiled: the place for a caveat about the limit."""


# ------------------------------------------------------------------------------------ hyperparameters


@dataclass(frozen=True, eq=False)
class Hyper:
    """A named number. In arithmetic it stands for its value: the default, or what the kernel is called with."""

    name: str
    default: float

    def __jax_array__(self) -> jax.Array:
        recorder = current()
        if recorder is not None:
            return recorder.hyper(self)
        if is_derived():
            raise NetworkError(
                explain(
                    f"hyperparameter {self.name!r} is asked for where it would be its default, whatever the kernel is called with",
                    reason="it is no argument of the rule of a jax.custom_jvp or custom_vjp, nor of tp.Network.apply",
                    mend="give it to that function as an argument, in a network written with tensorprog.nn",
                )
            )
        return jnp.asarray(self.default)

    def __add__(self, other: Any) -> jax.Array:
        return self.__jax_array__() + other

    def __mul__(self, other: Any) -> jax.Array:
        return self.__jax_array__() * other

    def __sub__(self, other: Any) -> jax.Array:
        return self.__jax_array__() - other

    def __rsub__(self, other: Any) -> jax.Array:
        return other - self.__jax_array__()

    def __truediv__(self, other: Any) -> jax.Array:
        return self.__jax_array__() / other

    def __rtruediv__(self, other: Any) -> jax.Array:
        return other / self.__jax_array__()

    def __pow__(self, other: Any) -> jax.Array:
        return self.__jax_array__() ** other

    def __rpow__(self, other: Any) -> jax.Array:
        return other ** self.__jax_array__()

    def __neg__(self) -> jax.Array:
        return -self.__jax_array__()

    def __abs__(self) -> jax.Array:
        return abs(self.__jax_array__())

    def __lt__(self, other: Any) -> jax.Array:
        return self.__jax_array__() < other

    def __le__(self, other: Any) -> jax.Array:
        return self.__jax_array__() <= other

    def __gt__(self, other: Any) -> jax.Array:
        return self.__jax_array__() > other

    def __ge__(self, other: Any) -> jax.Array:
        return self.__jax_array__() >= other

    __radd__ = __add__
    __rmul__ = __mul__


# An argument of a function of JAX's, which takes it apart and puts it together, it is the array that it stands for.
jax.tree_util.register_pytree_node(Hyper, lambda h: ((h.__jax_array__(),), None), lambda _, leaves: leaves[0])


def hyper(name: str, default: float) -> Hyper:
    """A number that stays a named argument of the compiled kernel, differentiable and without a new trace.

    name: a Python identifier, the keyword under which `kernel(x1, x2, name=value)` takes it.
    default: its value when it is not given.

    Example:
        >>> import jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import nn
        >>> net = lambda x: nn.dense(jnp.tanh(nn.dense(x, weight_var=tp.hyper("w2", 1.5))), features=1)
        >>> kernel = tp.compile(net, jnp.zeros(3))
        >>> kernel.hypers
        {'w2': 1.5}
    """
    reserved = {"self", "x", "x1", "x2", "get", "progress", "net", "params", "width"}
    if not isinstance(name, str) or not name.isidentifier() or name in reserved:
        raise InputError(
            f"hyper: name is {name!r}, expected a Python identifier other than {', '.join(sorted(reserved))}, "
            "because kernel(x1, x2, name=value) and tp.apply(net, params, x, name=value) take it as a keyword"
        )
    if not isinstance(default, (int, float)) or not math.isfinite(default):
        raise InputError(f"hyper: default of {name!r} is {default!r}, expected a finite number")
    return Hyper(name, float(default))
