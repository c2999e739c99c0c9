"""Parameters of a network: how each starts, how each is trained, and the named numbers a kernel keeps open.

`Gaussian` and `Constant` describe one parameter array; `Hyper` is a number that stays an argument of the compiled
kernel; `Network` is the plain form of a model, a pair of functions `init(width)` and `apply(params, x)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.frontend.values import WIDTHS
from tensorprog.ir import Program

__all__ = ["Constant", "Gaussian", "Hyper", "Network", "hyper"]


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
        if recorder is None:
            return jnp.asarray(self.default)
        return recorder.hyper(self)

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


# ------------------------------------------------------------------------------------ recording


class Recorder:
    """What `tensorprog.nn` talks to while a network runs: it hands out parameters and remembers their specs.

    With `params` None it only records (under abstract evaluation) and hands out zeros; otherwise it hands out the
    arrays in `params`. alone: nothing is to be traced around it, see `run`.
    """

    def __init__(self, width: int, params: dict[str, Any] | None, hypers: dict[str, Any], alone: bool = False):
        self.width = width
        self.params = params
        self.alone = alone
        self.specs: dict[str, Spec] = {}
        self.hyper_values = hypers
        self.hyper_defaults: dict[str, float] = {}
        self.nonnegative: set[str] = set()
        self._counts: dict[str, int] = {}

    def layer_name(self, kind: str, name: str | None) -> str:
        if name is not None:
            return name
        index = self._counts.get(kind, 0)
        self._counts[kind] = index + 1
        return f"{kind}_{index}"

    def parameter(self, name: str, spec: Spec) -> jax.Array:
        if name in self.specs:
            raise NetworkError(
                explain(
                    f"two parameters are named {name!r}",
                    reason="a name stands for one array; the second would silently replace the first",
                    mend="give the layers different names, or, to share a weight, make it once with nn.weight and use it twice",
                )
            )
        self.specs[name] = spec
        if self.params is None:
            return jnp.zeros(spec.shape)
        if name not in self.params:
            raise InputError(
                f"params has no entry {name!r}: it has {sorted(self.params)}\n  to mend: make it with tp.init for this same network"
            )
        array = self.params[name]
        if tuple(array.shape) != spec.shape:
            raise InputError(
                f"params[{name!r}] has shape {tuple(array.shape)}, expected {spec.shape} at width {self.width}"
            )
        return array

    def hyper(self, hyper: Hyper) -> jax.Array:
        known = self.hyper_defaults.setdefault(hyper.name, hyper.default)
        if known != hyper.default:
            raise NetworkError(
                explain(
                    f"hyperparameter {hyper.name!r} has two defaults, {known} and {hyper.default}",
                    reason="one name is one argument of the kernel",
                    mend="make it once with tp.hyper and use that object everywhere, or give two names",
                )
            )
        return jnp.asarray(self.hyper_values.get(hyper.name, hyper.default), dtype=float)


_recorder: ContextVar[Recorder | None] = ContextVar("tensorprog_recorder", default=None)
_traced_anew = jax.make_user_context(None)


class _AskedInside(Exception):
    """A function that JAX traces on its own, and may keep, asks for parameters."""


def current() -> Recorder | None:
    """The recorder of the network being run, if any."""
    recorder = _recorder.get()
    if recorder is not None and recorder.alone and _in_a_trace():
        raise _AskedInside
    return recorder


def _in_a_trace() -> bool:
    return isinstance(jnp.zeros(()), jax.core.Tracer)


@contextmanager
def recording(recorder: Recorder):  # type: ignore[no-untyped-def]
    """Make `recorder` the current one. What JAX has kept of functions that another recorder has seen, such as a network under `jax.jit`, with
    that one's width and parameters in it, is traced anew."""
    token = _recorder.set(recorder)
    try:
        with nullcontext() if recorder.alone else _traced_anew(object()):
            yield recorder
    finally:
        _recorder.reset(token)


def run(
    net: Callable[[Any], Any], width: int, params: dict[str, Any], hypers: dict[str, Any], x: Any
) -> tuple[Any, Recorder]:
    """A network written with `tensorprog.nn`, of given parameters and one input; and what it has asked for.

    Outside of any trace it is run operation by operation, and JAX keeps the code of each. Where a part that is traced on its own asks for a
    parameter, which would be kept with it, the whole is compiled for this one call instead.
    """

    def once(params: dict[str, Any], hypers: dict[str, Any], x: Any, alone: bool = False) -> tuple[Any, Recorder]:
        with recording(Recorder(width, params, hypers, alone)) as recorder:
            return net(x), recorder

    if _in_a_trace():
        return once(params, hypers, x)
    with suppress(_AskedInside):
        return once(params, hypers, x, alone=True)
    asked: list[Recorder] = []

    def whole(*args: Any) -> Any:
        out, recorder = once(*args)
        asked.append(recorder)
        return out

    return jax.jit(whole)(params, hypers, x), asked[-1]


# ------------------------------------------------------------------------------------ one form for all


@dataclass(frozen=True)
class Model:
    """Any accepted form of a network, seen by the tracer: its parameters' specs and how it runs, at each width."""

    specs: Callable[[int], Any]
    run: Callable[[int, Any, dict[str, Any], Any], Any]
    hypers: dict[str, float]
    nonnegative: frozenset[str] = frozenset()  # hyperparameters that are variances


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

    made = cache(lambda width: collect(net, example, width))
    any_width = made(WIDTHS[0])
    return Model(lambda width: made(width).specs, checked, any_width.hyper_defaults, frozenset(any_width.nonnegative))


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


def collect(net: Callable[[Any], Any], example: Any, width: int) -> Recorder:
    """What a network written with `tensorprog.nn` makes at one width: parameters and hyperparameters."""
    recorder = Recorder(width, None, {})
    with jax.enable_x64(True), recording(recorder):
        jax.eval_shape(lambda x: net(x), abstract(example))
    return recorder
