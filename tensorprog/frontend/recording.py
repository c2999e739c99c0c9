"""What a network written with `tensorprog.nn` asks for while it runs: its width, parameters and hyperparameters.

They are asked of a `Recorder`, which is there while the network runs and is no argument of it. JAX does not know that: of a function under
`jax.jit`, or the body of a loop, it keeps what it has traced, with the parameters of that time in it. So a part that is traced on its own may
ask only where JAX is told to trace it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex

from tensorprog.errors import InputError, NetworkError, explain
from tensorprog.frontend.callers import check_callers

if TYPE_CHECKING:
    from tensorprog.frontend.params import Hyper, Spec

__all__ = [
    "AskedElsewhere",
    "Recorder",
    "called",
    "current",
    "deriving",
    "is_derived",
    "is_single",
    "run",
    "watched_first",
]

T = TypeVar("T")


class Recorder:
    """What `tensorprog.nn` talks to while a network runs: it hands out parameters and remembers their specs.

    With `params` None it only records (under abstract evaluation) and hands out zeros; otherwise it hands out the
    arrays in `params`. watched: it is to be asked in one trace alone, see `watched_first`. given: the values that a trace is to take for
    arguments, by name.
    """

    def __init__(self, width: int, params: dict[str, Any] | None, hypers: dict[str, Any], watched: bool):
        self.width = width
        self.params = params
        self.watched = watched
        self.home: Any = None  # the trace in which the network was called
        self.asked: Callable[[], Any] = lambda: None  # to be called when something is asked
        self.given: dict[str, dict[str, Any]] | None = None
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
        check_callers(name, called.__code__)
        self.specs[name] = spec
        if self.params is None:
            return jnp.zeros(spec.shape) if self.given is None else self._argument("params", name, spec.shape)
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
        if self.given is not None:
            return self._argument("hypers", hyper.name)
        return jnp.asarray(self.hyper_values.get(hyper.name, hyper.default), dtype=float)

    def _argument(self, kind: str, name: str, shape: tuple[int, ...] = ()) -> jax.Array:
        """The result of an equation of its own."""
        assert self.given is not None
        if name not in self.given[kind]:
            value = jnp.zeros(shape)
            self.given[kind][name] = value if shape else lax.optimization_barrier(value)
        return self.given[kind][name]


_recorder: ContextVar[Recorder | None] = ContextVar("tensorprog_recorder", default=None)
_derived: ContextVar[bool] = ContextVar("tensorprog_derived", default=False)
_single: ContextVar[bool] = ContextVar("tensorprog_single", default=False)
_kept_for = jax.make_user_context(None)  # what JAX has traced under one value of this, it reads under no other
_WATCHED = "watched"  # what is kept under this has asked for nothing


class AskedElsewhere(BaseException):
    """A part of the network that JAX traces on its own, and may keep, asks for something. No part of a network is to catch it."""


def current() -> Recorder | None:
    """The recorder of the network being run, if any, which is about to be asked."""
    recorder = _recorder.get()
    if recorder is None:
        return None
    if not recorder.watched:
        recorder.asked()
    elif recorder.home != _trace() and _is_traced():
        raise AskedElsewhere
    return recorder


def _trace() -> Any:
    """The innermost trace."""
    return jex.get_opaque_trace_state(convention="tensorprog")


def _is_traced() -> bool:
    """Is what is computed here kept for later?"""
    return isinstance(jnp.zeros(()), jax.core.Tracer)


def is_derived() -> bool:
    """Is a kernel being derived?"""
    return _derived.get()


@contextmanager
def deriving() -> Iterator[None]:
    """While a network is traced and read, in double precision."""
    single = _single.get() if is_derived() else not jax.config.jax_enable_x64  # type: ignore[attr-defined]
    tokens = _derived.set(True), _single.set(single)
    try:
        yield
    finally:
        _derived.reset(tokens[0])
        _single.reset(tokens[1])


def is_single() -> bool:
    """Is the network that is being derived one that its user runs in single precision?"""
    return _single.get()


def called(net: Callable[[Any], Any], recorder: Recorder, x: Any) -> Any:
    """A network of one input, which asks that recorder."""
    with _recording(recorder):
        return net(x)


@contextmanager
def _recording(recorder: Recorder) -> Iterator[None]:
    token, recorder.home = _recorder.set(recorder), _trace()
    try:
        with ExitStack() as contexts:
            contexts.enter_context(_kept_for(_WATCHED if recorder.watched else object()))
            # what has asked once asks anew when it is called again: another layer, another parameter
            recorder.asked = lambda: contexts.enter_context(_kept_for(object()))
            yield
    finally:
        _recorder.reset(token)


def watched_first(once: Callable[[bool], T], anew: Callable[[], T] | None = None) -> T:
    """`once(watched=True)`; and where a part that is traced on its own asks, which is found before JAX keeps it, `anew()`, by default
    `once(watched=False)`: for that nothing is read of what JAX has kept, nor of this later, which takes its time and memory."""
    with suppress(AskedElsewhere):
        return once(True)
    return once(False) if anew is None else anew()


def run(
    net: Callable[[Any], Any], width: int, params: dict[str, Any], hypers: dict[str, Any], x: Any
) -> tuple[Any, Recorder]:
    """A network of given parameters and one input; and what it has asked for.

    Outside of any trace it is run operation by operation; or else, where a part is traced on its own, compiled for this one call.
    """

    def once(watched: bool, params: Any = params, hypers: Any = hypers, x: Any = x) -> tuple[Any, Recorder]:
        recorder = Recorder(width, params, hypers, watched)
        return called(net, recorder, x), recorder

    def compiled() -> tuple[Any, Recorder]:
        asked: list[Recorder] = []

        def whole(*args: Any) -> Any:
            out, recorder = once(False, *args)
            asked.append(recorder)
            return out

        return jax.jit(whole)(params, hypers, x), asked[-1]

    return watched_first(once, None if _is_traced() else compiled)
