"""A kernel and its archive: what is written, and the kernel that is read back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import jax

from tensorprog.errors import ArchiveError, ProgramError
from tensorprog.ir import Input, Program, parse_program, verify
from tensorprog.kernel.report import Derivation
from tensorprog.passes.methods import METHODS
from tensorprog.runtime.archive import check_target, write_archive
from tensorprog.runtime.call import KernelFunction
from tensorprog.runtime.exported import check_platforms, deserialise, serialise, structure, tree_of
from tensorprog.runtime.gram import Gram
from tensorprog.runtime.kernel import Functions

__all__ = ["MALFORMED", "Described", "LoadedKernel", "Serialised", "described", "malformed", "read_description", "save"]

_PROGRAM, DERIVATION = "program.txt", "derivation.md"


def save(
    path: str | os.PathLike[str], platforms: Sequence[str], made: Functions, program: Program, tree: Any,
    tolerance: float | None, derivation: Callable[[], str], method: str,
) -> None:  # fmt: skip
    """Write a kernel's archive.

    Raises ArchiveError, InputError before the long part of the work where they can be foreseen.
    """
    check_target(path)
    names, encoded = check_platforms(platforms), structure(tree)
    members = {_PROGRAM: str(program).encode(), DERIVATION: derivation().encode()}
    artefacts, missing = serialise(made, program.inputs, tree, program.hypers, names)
    manifest = {
        **described(program.inputs, encoded, program.hypers, program.nonnegative, names, missing),
        "tolerance": tolerance,
        "method": method,
        "output_axes": list(made.shape),
        "pair_entries": made.pair_entries,
        "kinks": made.kinks,
        "draws": made.draws,
        "directions": made.directions,
        "norms": made.norms,
        "average": program.output.type.kind == "scalar",
        "noise": any(weight.per_input for weight in program.weights),
    }
    write_archive(path, manifest, members | artefacts)


def described(
    inputs: Sequence[Input], encoded: Any, hypers: Mapping[str, float], nonnegative: Collection[str], platforms: Sequence[str],
    missing: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What the manifest of every kernel says. encoded: the structure of the inputs; missing: why there are no gradients."""
    return {
        "tensorprog": _version(),
        "jax": jax.__version__,
        "platforms": list(platforms),
        "inputs": [{"name": leaf.name, "shape": list(leaf.shape), "dtype": leaf.dtype} for leaf in inputs],
        "structure": encoded,
        "hypers": {name: {"default": value, "nonnegative": name in nonnegative} for name, value in hypers.items()},
        "gradients": missing is None,
        "no_gradients_because": missing,
    }


class Described(NamedTuple):
    """What the manifest of every kernel says, read back."""

    inputs: list[Input]
    tree: Any
    hypers: dict[str, float]
    nonnegative: frozenset[str]
    tolerance: float | None
    noise: bool
    method: str


def read_description(m: Mapping[str, Any]) -> Described:
    """Raises AttributeError, KeyError, TypeError, ValueError or RecursionError for a manifest that says something else."""
    inputs = [Input(str(i["name"]), tuple(map(int, i["shape"])), str(i["dtype"])) for i in m["inputs"]]
    tree = tree_of(m["structure"])
    hypers = {str(name): float(h["default"]) for name, h in m["hypers"].items()}
    nonnegative = frozenset(name for name, h in m["hypers"].items() if h["nonnegative"])
    tolerance = None if m["tolerance"] is None else float(m["tolerance"])
    method = str(m.get("method", "tangent"))
    if method not in METHODS:
        raise ValueError(f"a method named {method!r}")
    if tree.num_leaves != len(inputs):
        raise ValueError(f"{len(inputs)} inputs but {tree.num_leaves} leaves")
    return Described(inputs, tree, hypers, nonnegative, tolerance, bool(m.get("noise", False)), method)


def malformed(path: str | os.PathLike[str], error: Exception) -> ArchiveError:
    """The refusal of a manifest that cannot be read."""
    return ArchiveError(f"load: the manifest of {os.fspath(path)!r} is malformed ({type(error).__name__}: {error})")


MALFORMED = (AttributeError, KeyError, TypeError, ValueError, RecursionError)


def _version() -> str:
    try:
        return version("tensorprog")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


class Serialised:
    """What is run of an archive: its own functions, or, where they cannot run here, the kernel derived anew from its text."""

    source, note = "serialised", ""
    _serialised: Any = None
    manifest: dict[str, Any]
    _members: dict[str, bytes]
    _compiled: Callable[..., Any]

    def _fall_back(self, error: Exception) -> None:
        reason = (str(error).splitlines() or [""])[0][:300]
        self.source, self._serialised = "recompiled", None
        self.note = f"the serialised functions cannot run here ({type(error).__name__}: {reason})"

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes: what is in the archive."""
        return _read_again, (type(self), json.dumps(self.manifest), tuple(self._members.items()), self._compiled)

    def derivation(self) -> Derivation:
        """How the kernels come about, as Markdown with LaTeX, as it was written when the kernel was exported."""
        return Derivation(self._members[DERIVATION].decode())

    def _repr_markdown_(self) -> str:
        """For Jupyter: what it is, and the derivation, with its formulas set."""
        return f"`{self!r}`\n\n{self.derivation()}"


@lru_cache(maxsize=16)
def _read_again(kind: Callable[..., Any], manifest: str, members: tuple[tuple[str, bytes], ...], compiled: Any) -> Any:
    """The kernel of a pickle: once in each process, which may be sent many, and compiles for the first."""
    return kind("a pickle", json.loads(manifest), dict(members), compiled)


class LoadedKernel(Serialised, KernelFunction):
    """A kernel read from an archive: called like the one that was exported, with the same checks.

    source: "serialised" while the archive's own functions run; "recompiled" where JAX refuses them (they have
    expired, or were not exported for this platform) and the kernel is derived again from the program text, as `note`
    says. manifest: what the archive says of itself. program: the tensor program. method: the way to the tangent kernel.

    Serialised functions can be jitted and differentiated once in reverse mode (`jax.grad`, `jax.vjp`); under
    `jax.vmap` and in forward mode the kernel is derived anew in their stead. For higher derivatives take
    `recompile()`, a `Kernel` like any other.
    """

    def __init__(
        self, path: str | os.PathLike[str], manifest: dict[str, Any], members: dict[str, bytes],
        compiled: Callable[[Program, Any, float | None, str], Any],
    ):  # fmt: skip
        """manifest, members: what `read_archive` found in the file. compiled: makes a kernel of a program, where need be."""
        self.manifest, self._members, self._compiled = manifest, members, compiled
        try:
            m = manifest
            inputs, tree, hypers, nonnegative, self._tolerance, noise, self.method = read_description(m)
            shape, entries = tuple(map(int, m["output_axes"])), int(m["pair_entries"])
            defaults = {"kinks": False, "draws": False, "directions": True, "norms": False}
            kinds = {name: bool(m.get(name, default)) for name, default in defaults.items()}
        except MALFORMED as error:
            raise malformed(path, error) from error
        super().__init__(inputs, tree, hypers, nonnegative, noise)
        try:
            made = deserialise(self._members, inputs, tree, hypers, shape, entries, **kinds, noise=noise)
        except Exception as error:  # JAX names no exception for an artefact that it refuses
            self._fall_back(error)
            try:
                self.program  # noqa: B018 - parsed now, so that a file of no use is refused when it is loaded
            except ProgramError as unread:
                raise ArchiveError(
                    f"load: {os.fspath(path)!r} is of no use: {self.note}, nor its program: {unread}"
                ) from unread
        else:
            self._serialised = _SerialisedGram(made if m["gradients"] else _with_derivatives(made, self), self)

    @cached_property
    def program(self) -> Program:
        """The network as a tensor program, read from its text form."""
        return verify(parse_program(self._members[_PROGRAM].decode()))

    def recompile(self) -> Any:
        """The `Kernel` that the program text describes, derived anew."""
        return self._recompiled

    @cached_property
    def _recompiled(self) -> Any:
        return self._compiled(self.program, self._tree, self._tolerance, self.method)

    @property
    def _gram(self) -> Gram:  # type: ignore[override]
        return self._recompiled._gram if self._serialised is None else self._serialised

    def __repr__(self) -> str:
        shapes = ", ".join(f"{leaf.name}: {leaf.shape}" for leaf in self._inputs)
        note = f" because {self.note}" if self.note else ""
        return f"<LoadedKernel of a network on {shapes}: {self.source}{note}>"


class _SerialisedGram(Gram):
    """Matrices from serialised functions; from the kernel derived anew where JAX turns out not to run them."""

    def __init__(self, made: Functions, kernel: LoadedKernel):
        super().__init__(made, average=bool(kernel.manifest.get("average", False)))
        self._kernel, self._has_run = kernel, False

    def _attempt(self, method: str, *args: Any, **more: Any) -> Any:
        """A serialised function that has run once is sound: what it raises later is the caller's to see."""
        try:
            found = getattr(super(), method)(*args, **more)
            self._has_run = True
            return found
        except Exception as error:
            if self._has_run:
                raise
            self._kernel._fall_back(error)
            return getattr(self._kernel._recompiled._gram, method)(*args, **more)

    def __call__(self, *args: Any, **more: Any) -> list[Any]:
        return self._attempt("__call__", *args, **more)

    def diagonal(self, *args: Any) -> tuple[jax.Array, jax.Array]:
        return self._attempt("diagonal", *args)

    def traced(self, *args: Any) -> list[jax.Array]:
        try:
            return super().traced(*args)
        except Exception:  # a transformation that JAX does not give to serialised functions
            return self._kernel._recompiled._gram.traced(*args)


def _with_derivatives(made: Functions, kernel: LoadedKernel) -> Functions:
    """Values from the archive; derivatives, which it lacks, from the kernel derived anew when they are first asked
    for."""

    def extended(name: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
        call = jax.custom_jvp(getattr(made, name))

        @call.defjvp
        def tangents(primals: Any, moved: Any) -> Any:
            return jax.jvp(getattr(kernel._recompiled.functions, name), primals, moved)

        return call

    return replace(made, block=extended("block"), diagonal=extended("diagonal"))
