"""Kernel functions as `jax.export` artefacts: serialised StableHLO that runs without this package.

At least four artefacts: the block of all pairs and the diagonal, each in float32 and float64. Their signature is that of a
user, with the batch sizes left open (symbols N1 and N2): block(x1, x2, hypers) -> (nngp, ntk) and diagonal(x,
hypers) -> (nngp, ntk), where the x have the structure of the example input and hypers is a dict of scalars. Of several
outputs both return the blocks of nngp, row by row, and then those of ntk, and two more artefacts have the means of every output.
Their gradients go with them (`vjp_order=1`). Where functions are smooth, one more, in float32, says how sharp they are at the variances
of every input: whether float32 is enough for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from tensorprog.errors import InputError, explain
from tensorprog.ir import Input
from tensorprog.runtime.blocks import BlockFunctions
from tensorprog.runtime.kernel import Functions, Hypers, Leaves, float_dtype

__all__ = [
    "PLATFORMS",
    "check_platforms",
    "deserialise",
    "deserialise_blocks",
    "member",
    "serialise",
    "structure",
    "tree_of",
]

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_DTYPES = ("float32", "float64")
_SHARP = "sharp", "float32"  # not in archives of older versions, nor of networks without smooth functions


def member(kind: str, dtype: str) -> str:
    """The name in the archive of an artefact: kind is "block", "diagonal", "means" or "sharp"."""
    return f"{kind}.{dtype}.jax_export"


# ---------------------------------------------------------------------------------------------- writing


def serialise(
    made: Functions | BlockFunctions,
    inputs: Sequence[Input],
    tree: Any,
    hypers: Mapping[str, float],
    platforms: Sequence[str],
) -> tuple[dict[str, bytes], str | None]:
    """The artefacts by member name, and why they carry no gradients (None when they do)."""
    n1, n2 = export.symbolic_shape("N1, N2")

    def block(x1: Any, x2: Any, values: Hypers) -> tuple[jax.Array, ...]:
        return made.block(jax.tree.leaves(x1), jax.tree.leaves(x2), values)

    def of_one(function: Callable[[Leaves, Hypers], tuple[jax.Array, ...]]) -> Callable[..., tuple[jax.Array, ...]]:
        return lambda x, values: function(jax.tree.leaves(x), values)

    singles = {"diagonal": of_one(made.diagonal)}
    if isinstance(made, BlockFunctions):
        singles["means"] = of_one(made.means)
    sharp = None if (of_each := made.sharp) is None else of_one(lambda x, values: (of_each(x, values),))

    def artefact(function: Callable[..., Any], args: tuple[Any, ...], order: int) -> bytes:
        return bytes(export.export(jax.jit(function), platforms=tuple(platforms))(*args).serialize(vjp_order=order))

    def write(order: int) -> dict[str, bytes]:
        written = {}
        for dtype in _DTYPES:
            with jax.enable_x64(dtype == "float64"), _short_file_names():
                values = {name: jax.ShapeDtypeStruct((), dtype) for name in hypers}
                x1, x2 = (_specs(inputs, tree, n, dtype) for n in (n1, n2))
                every = [("block", block, (x1, x2, values)), *((kind, f, (x1, values)) for kind, f in singles.items())]
                for kind, function, args in every:
                    written[member(kind, dtype)] = artefact(function, args, order)
                if sharp is not None and dtype == "float32":
                    written[member(*_SHARP)] = artefact(sharp, (x1, values), 0)
        return written

    try:
        return write(1), None
    except (
        Exception
    ) as error:  # a part that is simply run may have no reverse mode (a while loop): the values still export
        return write(0), f"{type(error).__name__}: {error}".splitlines()[0]


def _specs(inputs: Sequence[Input], tree: Any, n: Any, dtype: str) -> Any:
    kinds = [dtype if leaf.dtype == "float64" else jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in inputs]
    leaves = [jax.ShapeDtypeStruct((n, *leaf.shape), k) for leaf, k in zip(inputs, kinds, strict=True)]
    return jax.tree.unflatten(tree, leaves)


@contextmanager
def _short_file_names() -> Iterator[None]:
    """Source locations without folders and call stacks: smaller artefacts, which do not tell whose disk they came
    from."""
    wanted = {
        "jax_hlo_source_file_canonicalization_regex": ".*[/\\\\]",
        "jax_include_full_tracebacks_in_locations": False,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


# ---------------------------------------------------------------------------------------------- reading


def deserialise(
    members: Mapping[str, bytes], inputs: Sequence[Input], tree: Any, hypers: Mapping[str, float], shape: tuple[int, ...], pair_entries: int,
    kinks: bool = False, draws: bool = False, directions: bool = True, norms: bool = False, noise: bool = False,
) -> Functions:  # fmt: skip
    """The functions of an archive, tried out by lowering one for the default device.

    Raises whatever JAX raises for an artefact that it can no longer read, or that was not exported for this platform.
    """
    run = _runners(members, inputs, tree, hypers, ("block", "diagonal"))
    block = run("block")
    more = {"kinks": kinks, "draws": draws, "directions": directions, "norms": norms, "noise": noise}
    every = {"rows": _one_by_one(block), "sharp": _sharp(members, run), **more}
    return Functions(block, run("diagonal"), shape, pair_entries, **every)  # type: ignore[arg-type]


def deserialise_blocks(
    members: Mapping[str, bytes], inputs: Sequence[Input], tree: Any, hypers: Mapping[str, float], shapes: Sequence[tuple[int, ...]],
    rights: Sequence[int], entries: int, noise: bool, kinks: bool = False, draws: bool = False, positions: bool = False,
    norms: bool = False,
) -> BlockFunctions:  # fmt: skip
    """The same of an archive of several outputs."""
    run = _runners(members, inputs, tree, hypers, ("block", "diagonal", "means"))
    block, sizes = run("block"), (tuple(shapes), tuple(rights), entries, noise)
    return BlockFunctions(
        block, run("diagonal"), run("means"), *sizes, None, draws, _one_by_one(block), kinks, positions, norms, _sharp(members, run)
    )  # fmt: skip


def _sharp(
    members: Mapping[str, bytes], run: Callable[[str], Callable[..., tuple[jax.Array, ...]]]
) -> Callable[[Leaves, Hypers], jax.Array] | None:
    """How sharp functions are, where the archive says so."""
    return (lambda x, hypers: run("sharp")(x, hypers)[0]) if member(*_SHARP) in members else None


def _one_by_one(
    block: Callable[..., tuple[jax.Array, ...]],
) -> Callable[[Leaves, Leaves, Hypers], tuple[jax.Array, ...]]:
    """The i-th with the i-th input, by the function of all pairs: for the few pairs that are computed again in float64."""

    def rows(x1: Leaves, x2: Leaves, hypers: Hypers) -> tuple[jax.Array, ...]:
        def one(pair: tuple[Leaves, Leaves]) -> tuple[jax.Array, ...]:
            first, second = ([leaf[None] for leaf in x] for x in pair)
            return tuple(k[0, 0] for k in block(first, second, hypers))

        return lax.map(one, (x1, x2))

    return rows


def _runners(
    members: Mapping[str, bytes], inputs: Sequence[Input], tree: Any, hypers: Mapping[str, float], kinds: Sequence[str]
) -> Callable[[str], Callable[..., tuple[jax.Array, ...]]]:
    """The artefacts as functions, by kind."""
    names = [(kind, d) for kind in kinds for d in _DTYPES] + ([_SHARP] if member(*_SHARP) in members else [])
    found = {name: export.deserialize(bytearray(members[member(*name)])) for name in names}
    with jax.enable_x64(False):
        x, values = _specs(inputs, tree, 1, "float32"), {name: jax.ShapeDtypeStruct((), "float32") for name in hypers}
        jax.jit(found["block", "float32"].call).lower(
            x, x, values
        )  # they all come from one JAX, for the same platforms

    def run(kind: str) -> Callable[..., tuple[jax.Array, ...]]:
        def function(*args: Any) -> tuple[jax.Array, ...]:
            *batches, values = args
            return _call(found, kind, inputs, tree, batches, values)

        return function

    return run


def _call(
    found: Mapping[tuple[str, str], Any], kind: str, inputs: Sequence[Input], tree: Any, batches: Sequence[Leaves], values: Hypers
) -> tuple[jax.Array, ...]:  # fmt: skip
    """Call the artefact of the inputs' dtype; half precision is computed in float32 and rounded."""
    asked = float_dtype(a for leaves in batches for a in leaves)
    dtype = "float64" if asked == jnp.float64 else "float32"
    args = []
    for leaves in batches:
        kinds = [s.dtype for s in jax.tree.leaves(_specs(inputs, tree, leaves[0].shape[0], dtype))]
        args.append(jax.tree.unflatten(tree, [a.astype(k) for a, k in zip(leaves, kinds, strict=True)]))
    made = found[kind, dtype].call(*args, {name: value.astype(dtype) for name, value in values.items()})
    return tuple(value.astype(asked) for value in made)


# ---------------------------------------------------------------------------------------------- structures


def structure(tree: Any, what: str = "the example input") -> Any:
    """A pytree's structure as JSON: a leaf is its number, {"tuple": [..]}, {"list": [..]}, {"dict": {..}}, null for
    None. what: whose it is, for the error.

    Raises InputError for other containers, which a file cannot name without running code.
    """
    return _encode(jax.tree.unflatten(tree, range(tree.num_leaves)), what)


def _encode(node: Any, whose: str) -> Any:
    if node is None or type(node) is int:
        return node
    if type(node) in (tuple, list):
        return {type(node).__name__: [_encode(item, whose) for item in node]}
    if type(node) is dict and all(isinstance(key, str) for key in node):
        return {"dict": {key: _encode(item, whose) for key, item in node.items()}}
    what = "a dict with keys other than strings" if isinstance(node, dict) else f"a {type(node).__name__}"
    raise InputError(
        explain(
            f"export: {whose} holds {what}, expected dicts with string keys, lists, tuples and arrays",
            reason="an archive holds data alone, and other containers are known to Python code only",
            mend="give the network dicts, lists or tuples of arrays, and let it return such, and compile it again",
        )
    )


def tree_of(encoded: Any) -> Any:
    """The pytree structure of its JSON form. Raises ValueError or TypeError for anything else."""
    return jax.tree.structure(_decode(encoded))


def _decode(node: Any) -> Any:
    if node is None or type(node) is int:
        return node
    ((kind, items),) = node.items()
    match kind:
        case "dict":
            return {key: _decode(item) for key, item in items.items()}
        case "list":
            return [_decode(item) for item in items]
        case "tuple":
            return tuple(_decode(item) for item in items)
    raise ValueError(f"unknown container {kind!r}")


def check_platforms(platforms: Sequence[str]) -> tuple[str, ...]:
    """The platforms to export for. Raises InputError."""
    names = tuple(platforms) if not isinstance(platforms, str) else (platforms,)
    if not names or any(name not in PLATFORMS for name in names):
        raise InputError(
            f"export: platforms is {platforms!r}, expected some of {', '.join(PLATFORMS)}, as in ('cpu', 'cuda')"
        )
    return tuple(dict.fromkeys(names))
