"""A kernel of several outputs and its archive: what is written, and the kernel that is read back."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax

from tensorprog.errors import ArchiveError, ProgramError
from tensorprog.ir import Input, Program, parse_program, verify
from tensorprog.runtime.archive import JOINT_FORMAT, check_target, write_archive
from tensorprog.runtime.blocks import BlockFunctions, Blocks, partners_of
from tensorprog.runtime.exported import check_platforms, deserialise_blocks, serialise, structure, tree_of
from tensorprog.runtime.inputs import is_traced
from tensorprog.runtime.joint_call import JointFunction
from tensorprog.runtime.kernel import GET
from tensorprog.runtime.loaded import DERIVATION, MALFORMED, Serialised, described, malformed, read_description

__all__ = ["LoadedJoint", "LoadedOutput", "save_joint"]

KINDS = ("gaussian", "hidden", "average")


@dataclass(frozen=True)
class LoadedOutput:
    """One output of a loaded kernel: what `tp.joint` said of it, and its tensor program."""

    label: str
    kind: str
    shape: tuple[int, ...]
    full_shape: tuple[int, ...]
    copies: tuple[int, ...]
    method: str
    method_reason: str
    program: Program

    @property
    def ntk_power(self) -> int:
        return 1 if self.kind == "average" else 0

    def __repr__(self) -> str:
        return f"<{self.kind} output {self.label!r} of shape {self.shape}>"


def _program(place: int) -> str:
    return f"program.{place}.txt"


def save_joint(
    path: str | os.PathLike[str], platforms: Sequence[str], functions: Callable[[], BlockFunctions], inputs: Sequence[Input],
    trees: tuple[Any, Any], hypers: tuple[Mapping[str, float], frozenset[str]], outputs: Sequence[Any], tolerance: float | None,
    method: str, derivation: Callable[[], str],
) -> None:  # fmt: skip
    """Write the archive of a kernel of several outputs. functions: of all blocks of nngp, then of ntk. trees: the structures of the
    inputs and of what the network returns. hypers: their defaults, and which are not negative.

    Raises ArchiveError, InputError before the long part of the work where they can be foreseen.
    """
    check_target(path)
    names, encoded = check_platforms(platforms), structure(trees[0])
    returned = structure(trees[1], "what the network returns")
    made = functions()
    members = {_program(k): str(output.raw).encode() for k, output in enumerate(outputs)}
    members[DERIVATION] = derivation().encode()
    artefacts, missing = serialise(made, inputs, trees[0], hypers[0], names)
    manifest = {
        "format": JOINT_FORMAT,
        **described(inputs, encoded, *hypers, names, missing),
        "tolerance": tolerance,
        "method": method,
        "returns": returned,
        "outputs": [
            {
                "label": output.label,
                "kind": output.kind,
                "shape": list(output.shape),
                "full_shape": list(output.full_shape),
                "copies": list(output.copies),
                "method": output.method,
                "method_reason": output.method_reason,
            }
            for output in outputs
        ],
        "pair_entries": made.entries,
        "kinks": made.kinks,
        "draws": made.draws,
        "positions": made.positions,
        "norms": made.norms,
        "noise": made.noise,
    }
    write_archive(path, manifest, members | artefacts)


class LoadedJoint(Serialised, JointFunction):
    """A kernel of several outputs read from an archive: called like the one that was exported.

    outputs, source, note, manifest: as in `JointKernel` and `LoadedKernel`. Serialised functions can be jitted and differentiated
    once in reverse mode. For higher derivatives, `by_parameter` and `standard_error` take `recompile()`, a `JointKernel` like any other.
    """

    def __init__(
        self, path: str | os.PathLike[str], manifest: dict[str, Any], members: dict[str, bytes], compiled: Callable[..., Any]
    ):  # fmt: skip
        """manifest, members: what `read_archive` found in the file. compiled: makes the kernel of outputs, where need be."""
        self.manifest, self._members, self._compiled = manifest, members, compiled
        try:
            inputs, tree, hypers, nonnegative, self._tolerance, noise, self.method = read_description(manifest)
            self._out_tree = tree_of(manifest["returns"])
            self.outputs = tuple(self._output(k, entry) for k, entry in enumerate(manifest["outputs"]))
            entries = int(manifest["pair_entries"])
            kinds = [bool(manifest.get(name, False)) for name in ("kinks", "draws", "positions", "norms")]
            if self._out_tree.num_leaves != len(self.outputs):
                raise ValueError(f"{len(self.outputs)} outputs but {self._out_tree.num_leaves} leaves")
        except ProgramError as error:
            raise ArchiveError(
                f"load: {os.fspath(path)!r} is of no use: a program in it cannot be read: {error}"
            ) from error
        except MALFORMED as error:
            raise malformed(path, error) from error
        super().__init__(inputs, tree, hypers, nonnegative, noise)
        pairs = [(a.shape, b.shape) for a in self.outputs for b in self.outputs] * 2
        shapes, rights = [(*a, *b) for a, b in pairs], [len(b) for _, b in pairs]
        try:
            self._serialised = deserialise_blocks(members, inputs, tree, hypers, shapes, rights, entries, noise, *kinds)
        except Exception as error:  # JAX names no exception for an artefact that it refuses
            self._fall_back(error)
        self._made: dict[tuple[str, ...], Blocks] = {}

    def _output(self, place: int, entry: Mapping[str, Any]) -> LoadedOutput:
        shape, full, copies = (tuple(map(int, entry[name])) for name in ("shape", "full_shape", "copies"))
        label, kind, method, reason = (str(entry[name]) for name in ("label", "kind", "method", "method_reason"))
        if kind not in KINDS:
            raise ValueError(f"an output of the kind {kind!r}")
        program = verify(parse_program(self._members[_program(place)].decode()))
        return LoadedOutput(label, kind, shape, full, copies, method, reason, program)

    def recompile(self) -> Any:
        """The `JointKernel` that the programs' text describes, derived anew."""
        return self._recompiled

    @cached_property
    def _recompiled(self) -> Any:
        return self._compiled(
            tuple(self._inputs), self.outputs, self._tree, self._out_tree, self._tolerance, self.method
        )

    def _blocks(self, names: tuple[str, ...]) -> Blocks:
        made = self._serialised
        if made is None:
            return self._recompiled._blocks(names)
        if names not in self._made:
            count = len(self.outputs) ** 2
            which = [GET.index(name) * count + k for name in names for k in range(count)]
            partners = partners_of(len(self.outputs), len(names))
            self._made[names] = _SerialisedBlocks(made.some(which), partners, self, names)
        return self._made[names]

    def _mean_blocks(self) -> Blocks:
        return self._recompiled._mean_blocks() if self._serialised is None else self._blocks(("nngp",))

    def __repr__(self) -> str:
        note = f" because {self.note}" if self.note else ""
        return f"<LoadedJoint of {', '.join(map(repr, self.outputs))}: {self.source}{note}>"


class _SerialisedBlocks(Blocks):
    """Matrices from serialised functions; from the kernel derived anew where JAX turns out not to run them, or transforms them in a
    way that it does not give to serialised functions."""

    def __init__(self, made: BlockFunctions, partners: Sequence[int], kernel: LoadedJoint, names: tuple[str, ...]):
        super().__init__(made, partners)
        self._kernel, self._get, self._has_run = kernel, names, False

    def _again(self) -> Blocks:
        return self._kernel._recompiled._blocks(self._get)

    def _attempt(self, method: str, instead: Callable[[], Blocks], *args: Any, **more: Any) -> Any:
        if is_traced(args) and not self._kernel.manifest["gradients"]:
            return getattr(instead(), method)(*args, **more)
        try:
            found = getattr(super(), method)(*args, **more)
            self._has_run = self._has_run or not is_traced(args)
            return found
        except Exception as error:
            if not is_traced(args):
                if self._has_run:  # it is sound: what it raises is the caller's to see
                    raise
                self._kernel._fall_back(error)
            return getattr(instead(), method)(*args, **more)

    def __call__(self, *args: Any, **more: Any) -> list[jax.Array]:
        return self._attempt("__call__", self._again, *args, **more)

    def diagonal(self, *args: Any) -> tuple[jax.Array, ...]:
        return self._attempt("diagonal", self._again, *args)

    def means(self, *args: Any) -> tuple[jax.Array, ...]:
        return self._attempt("means", lambda: self._kernel._recompiled._mean_blocks(), *args)
