"""Whole kernel matrices, by their layers or by a shorter way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tensorprog.runtime.assembly import SIMPLER, Ahead, Interpreted, Pairs
from tensorprog.runtime.inputs import is_traced
from tensorprog.runtime.kernel import GET, Functions, Hypers, Leaves, Steps, float_dtype, part, whole
from tensorprog.runtime.pieces import Code, Piece, Progress, Work, assemble, matrices
from tensorprog.runtime.refine import ANGLE, Refine, in_float64, sketch, stds_of
from tensorprog.runtime.tiles import TILE_BYTES, Tiling, pairs_in_memory

__all__ = ["Gram", "Layers", "Sharp", "Way", "refined"]

SHARP = 16  # (`tensorprog.lower.sharpness`) up to which float32 keeps kernels to 1e-5
FEW = 2  # see `Piece.cached`: tiles of a series, and of layers without positions, are passed over few times


class Sharp(Exception):
    """Functions are too sharp at these variances for float32, or what they are computed by loses too many digits."""


class Way(Protocol):
    """A way to compute matrices."""

    def work(self, x1: Leaves, x2: Leaves | None, hypers: Hypers, get: tuple[str, ...]) -> Work | None:
        """The matrices named by `get` between two sets of inputs, or one and itself; None where it does not apply, or pay."""


def refined(made: Functions) -> Refine | None:
    """What computes near pairs again, where a kernel in float32 needs it."""
    if made.rows is None or not made.kinks or (made.shape and made.draws):
        return None
    return Refine(made.rows, made.pair_entries, ANGLE if made.shape else None, made.directions, made.noise)


class Layers:
    """Pair by pair, one layer after the other: for every kernel there is.

    names: of what a pair has. entries: of the largest array of a pair. cached: of `Piece`. refine: for near pairs.
    """

    def __init__(self, steps: Steps, names: Sequence[str], entries: int, cached: int = 1, refine: Refine | None = None):
        self._steps, self._names, self._entries = steps, tuple(names), entries
        self._cached, self._refine = cached, refine
        self._states = Ahead(self._of_inputs, ("own",), SIMPLER if entries == 1 else None)
        self._checked, self._few = Ahead(steps.states), Interpreted(steps.states)
        # The longest input that `check` has let pass, and for which dtype and hyperparameters.
        self._passed: tuple[Any, float] = (None, 0.0)
        self._tile = Ahead(self._of_pairs, ("rows", "columns", "get"))

    def _of_inputs(self, sides: list[Leaves], hypers: Hypers, own: bool) -> Any:
        """What pairs read of the inputs of all sides, and what is to be checked of them, in float32 the variances that say how sharp functions
        are; if `own`, with the standard deviations of each input, sketches of directions, its ntk with itself, and whether it is near itself.
        They are not taken apart again, which would be code for every array."""
        joined = [jnp.concatenate(leaves) for leaves in zip(*sides, strict=True)]
        kept, states = self._steps.kept(joined, hypers)
        checked, sharp = None if self._steps.strained is None else states, None
        if self._steps.sharp is not None and float_dtype(joined) == np.float32:
            sharp = self._steps.sharp.variances(states)
        if not own or self._refine is None:
            return kept, checked, None, sharp
        nngp, ntk = self._steps.own(states)
        more = stds_of(nngp), sketch(joined) if self._refine.directions else None
        return kept, checked, (*more, ntk, self._refine.near_itself(nngp)), sharp

    def _of_pairs(
        self, states: Any, i: Any, j: Any, *, rows: int, columns: int, get: tuple[str, ...]
    ) -> tuple[list[jax.Array], jax.Array | None]:  # fmt: skip
        """One tile, of inputs from i and from j on, and which of its pairs are near."""
        kept, _, more, _ = states
        found, near = self._steps.pairs(self._steps.part(kept, i, rows), self._steps.part(kept, j, columns)), None
        if more is not None and self._refine is not None:
            std, directions, _, _ = more
            near = self._refine.near(found[0], part(std, i, rows), part(std, j, columns))
            if directions is not None:
                near |= self._refine.alike(part(directions, i, rows), part(directions, j, columns))
        return [found[self._names.index(name)] for name in get], near

    def work(
        self, x1: Leaves, x2: Leaves | None, hypers: Hypers, get: tuple[str, ...], loose: bool = False
    ) -> Work:  # fmt: skip
        """The matrices named by `get`. `Sharp` ends them where float32 is not enough. loose: of `check`."""
        sides, second = ([x1], 0) if x2 is None else ([x1, x2], len(x1[0]))  # where the second inputs begin
        refine = self._refine if "ntk" in get and float_dtype(x1) == np.float32 else None
        compiled, kinds = self._states.begun(sides, hypers, own=refine is not None)
        states = functools.cache(lambda: compiled.result()(sides, hypers))
        kinds = _placed(kinds, [leaf for x in sides for leaf in x]) or states()
        if self._steps.strained is not None:
            self._check(states()[1], loose=loose)
        at = np.int32(0)

        def tile(rows: int, columns: int) -> Code:
            code, made = self._tile(kinds, at, at, rows=rows, columns=columns, get=get), states()
            if self._steps.sharp is not None and made[-1] is not None and self._steps.sharp.largest(made[-1]) > SHARP:
                raise Sharp
            return lambda i, j: code(made, np.int32(i), np.int32(second + j))

        if refine is None:
            return Work(tile)

        def exact(pairs: Pairs) -> dict[str, np.ndarray]:
            own, near_itself = (None if a is None else np.asarray(a) for a in states()[2][2:])
            assert own is not None
            return {"ntk": refine.mended(x1, sides[-1], own, near_itself, hypers, pairs)}

        return Work(tile, exact)

    def _check(self, states: Any, own: bool = False, loose: bool = False) -> None:
        if self._steps.strained is not None and not self._steps.strained(states, own, loose):
            raise Sharp

    def check(self, x: Leaves, hypers: Hypers, largest: bool = False, own: bool = False, loose: bool = False) -> None:
        """InputError where variances are beyond what quadrature follows. largest: look at the longest input alone. own: only what an
        input with itself asks for. loose: for a result in float32, of computations in float64."""
        if self._steps.strained is None or is_traced((x, hypers)):
            return
        if not largest:
            self._check(self._checked(x, hypers)(x, hypers), own, loose)
            return
        sizes = sum(np.square(np.asarray(leaf, float)).reshape(len(leaf), -1).sum(1) for leaf in x)
        at = int(np.argmax(sizes))
        key = (float_dtype(x), loose, *((name, np.asarray(value).tobytes()) for name, value in sorted(hypers.items())))
        if self._passed[0] != key or self._passed[1] < sizes[at]:
            self._check(self._few([np.asarray(leaf)[at : at + 1] for leaf in x], hypers), own, loose)
            self._passed = key, sizes[at]

    def _inputs_at_once(self, x: Leaves, hypers: Hypers) -> int:
        """Of how many inputs what pairs read fits into the bound of memory."""
        n = len(x[0])
        if n * self._entries * np.dtype(float_dtype(x)).itemsize <= TILE_BYTES // 16:
            return n  # no need to count: fewer than sixteen arrays of such a size are kept of an input
        of_inputs = partial(self._of_inputs, own=self._refine is not None)
        found = jax.eval_shape(of_inputs, [[leaf[:1] for leaf in x]], hypers)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(found))
        return min(n, max(1, TILE_BYTES // size))

    def pieces(
        self, x1: Leaves, x2: Leaves | None, hypers: Hypers, get: tuple[str, ...], loose: bool = False
    ) -> list[Piece]:  # fmt: skip
        """A matrix in as many pieces as keep what pairs read of their inputs within the bound of memory. loose: of `check`."""
        most, other, pieces = self._inputs_at_once(x1, hypers), x1 if x2 is None else x2, []
        cached = self._cached * (FEW if self._entries == 1 and x2 is not None else 1)
        for i, j in Tiling(len(x1[0]), len(other[0]), most, most, x2 is None):
            rows, columns = (_stretch(x, k, most) for x, k in ((x1, i), (other, j)))
            own = x2 is None and i == j
            work = partial(self.work, rows, None if own else columns, hypers, get, loose)
            pieces.append(Piece(i, j, len(rows[0]), len(columns[0]), own, self._entries, cached, work))
        return pieces


def _stretch(x: Leaves, start: int, most: int) -> Leaves:
    """So many inputs from there on; all of them as they are."""
    return x if most >= len(x[0]) else [leaf[start : start + most] for leaf in x]


def _placed(kinds: Any, inputs: Leaves) -> Any:
    """Shapes and dtypes of what is made of the inputs, on the device that they are bound to, if any; None where they are on several."""
    if any(len(leaf.devices()) > 1 for leaf in inputs):
        return None
    bound = [leaf.sharding for leaf in inputs if leaf.committed]
    if not bound:
        return kinds
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=bound[0]), kinds)


class Gram:
    """Whole kernel matrices out of tiles.

    All arrays carry a leading batch axis; hyperparameters are scalars. `get` chooses what is computed. shortcut: a way that is asked
    first; the layers can always be computed. off: optimisations that are switched off. average: is the output an average over the
    width, whose nngp does not say which inputs are near?
    """

    def __init__(self, made: Functions, shortcut: Way | None = None, off: Collection[str] = (), average: bool = False):
        self._in_float64 = () if made.draws else GET if made.norms else ("ntk",) if average and made.kinks else ()
        # of an input with itself the ntk alone is none of pairs that are near, but of positions that are
        self._own_in_float64 = self._in_float64 == GET or bool(made.shape and made.kinks and not made.draws)
        self.shape, self.pair_entries = made.shape, made.pair_entries
        cached = int(not ("rows" in off or made.draws))
        self._layers = Layers(made.steps or whole(made), GET, made.pair_entries, cached, refined(made))
        self._shortcut, self._symmetry, self._threads = shortcut, "symmetry" not in off, "threads" not in off
        self._reuse = "reuse" not in off

        @partial(jax.jit, static_argnames="get")
        def block(x1: Leaves, x2: Leaves, hypers: Hypers, get: tuple[str, ...]) -> list[jax.Array]:
            found = made.block(x1, x2, hypers)
            return [found[GET.index(name)] for name in get]

        self._diagonal = jax.jit(made.diagonal)
        self._block: Callable[[Leaves, Leaves, Hypers, tuple[str, ...]], list[jax.Array]] = block

    def diagonal(self, x: Leaves, hypers: Hypers, loose: bool = False) -> tuple[jax.Array, jax.Array]:
        """The kernel of every input with itself, shape (N, ..)."""
        if x[0].shape[0] == 0:
            empty = jnp.zeros((0, *self.shape, *self.shape), float_dtype(x))
            return empty, empty
        wide = self._own_in_float64
        if float_dtype(x) == np.float32 and not is_traced((x, hypers)):
            try:
                self._layers.check(x, hypers, own=True, loose=loose)
            except Sharp:
                wide = True
            if wide:
                found = in_float64(lambda a, _, values: list(self.diagonal(a, values, loose=True)), x, None, hypers)
                return found[0], found[1]
        else:
            self._layers.check(x, hypers, own=True, loose=loose)
        return self._diagonal(x, hypers)

    def traced(self, x1: Leaves, x2: Leaves | None, hypers: Hypers, get: tuple[str, ...]) -> list[jax.Array]:
        """Inside jit, grad or vmap: rows in a loop where one block would be too large."""
        other = x1 if x2 is None else x2
        n1, n2 = x1[0].shape[0], other[0].shape[0]
        if n1 == 0 or n2 == 0:
            return self._empty(n1, n2, float_dtype(x1), get)
        most = pairs_in_memory(self.pair_entries * np.dtype(float_dtype(x1)).itemsize)
        if n1 * n2 <= most:
            return self._block(x1, other, hypers, get)
        rows = min(n1, max(1, most // n2))
        whole = n1 // rows * rows
        stacked = [leaf[:whole].reshape(-1, rows, *leaf.shape[1:]) for leaf in x1]
        parts = lax.map(lambda leaves: self._block(leaves, other, hypers, get), stacked)
        found = [part.reshape(whole, *part.shape[2:]) for part in parts]
        if whole == n1:
            return found
        last = self._block([leaf[whole:] for leaf in x1], other, hypers, get)
        return [jnp.concatenate(pair) for pair in zip(found, last, strict=True)]

    def _empty(self, n1: int, n2: int, dtype: Any, get: tuple[str, ...]) -> list[jax.Array]:
        return [jnp.zeros((n1, n2, *self.shape, *self.shape), dtype) for _ in get]

    def __call__(
        self,
        x1: Leaves,
        x2: Leaves | None,
        hypers: Hypers,
        get: tuple[str, ...],
        progress: Progress,
        loose: bool = False,
    ) -> list[Any]:
        """The matrices named by `get`. loose: of `Layers.check`."""
        dtype = np.dtype(float_dtype(x1))
        n1, n2 = len(x1[0]), len((x1 if x2 is None else x2)[0])
        if n1 == 0 or n2 == 0:
            return self._empty(n1, n2, dtype, get)
        if dtype == np.float32 and not set(get).isdisjoint(self._in_float64):
            return in_float64(lambda a, b, values: self(a, b, values, get, progress), x1, x2, hypers)
        if x2 is None and not self._symmetry:
            x2 = x1
        shape, axes = (n1, n2, *self.shape, *self.shape), len(self.shape)
        try:
            pieces = self._pieces(x1, x2, hypers, get, loose)
            made = matrices([shape] * len(get), dtype, x1, [(k, axes) for k in range(len(get))], self._reuse)
            return assemble(made, pieces, get, x2 is None, self._threads, progress)
        except Sharp:
            return in_float64(lambda a, b, values: self(a, b, values, get, progress, loose=True), x1, x2, hypers)

    def _pieces(
        self, x1: Leaves, x2: Leaves | None, hypers: Hypers, get: tuple[str, ...], loose: bool
    ) -> list[Piece]:  # fmt: skip
        """The matrix in pieces: one by the short way, or those of the layers."""
        work = None if self._shortcut is None else self._shortcut.work(x1, x2, hypers, get)
        if work is None:
            return self._layers.pieces(x1, x2, hypers, get, loose)
        for x in (x1, x2):
            if x is not None:
                self._layers.check(x, hypers, largest=True, loose=loose)
        return [
            Piece(0, 0, len(x1[0]), len((x1 if x2 is None else x2)[0]), x2 is None, 1, FEW, lambda: work, short=True)
        ]
