"""The one file that knows every stage: a network or a program in, a compiled kernel out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from tensorprog.frontend.interpret import interpret
from tensorprog.frontend.params import abstract, as_model, collect
from tensorprog.frontend.trace import trace
from tensorprog.ir import Program, parse_program, verify
from tensorprog.kernel import KernelGraph, derive
from tensorprog.kernel.report import derivation
from tensorprog.lower import lower
from tensorprog.passes.conditions import check_conditions
from tensorprog.passes.fuse import fuse
from tensorprog.passes.tangent import tangent
from tensorprog.runtime.inputs import check_hypers, check_inputs, is_traced
from tensorprog.runtime.kernel import Gram, KernelResult, check_get
from tensorprog.runtime.progress import progress_bar

__all__ = ["Kernel", "compile"]


class Kernel:
    """The infinite-width kernels of a network, compiled.

    program: the network as a tensor program. tangent_program: its derivative in a random direction of all parameters, whose
    covariance is the NTK (None when nothing is trained). graph: what is computed. hypers: its named arguments and defaults.
    """

    def __init__(self, program: Program, tree: Any, nonnegative: frozenset[str] = frozenset()):
        self.program = program
        self._tree = tree
        self._nonnegative = nonnegative
        moved = tangent(program)
        self.tangent_program = None if moved is None else fuse(moved, drop_zeros=True)
        self.graph: KernelGraph = derive(fuse(program, drop_zeros=True), self.tangent_program)

    @cached_property
    def _gram(self) -> Gram:
        return Gram(lower(self.graph, self.program.inputs), self.graph)

    @property
    def hypers(self) -> dict[str, float]:
        """The named arguments that `tp.hyper` opened, with their defaults."""
        return self.program.hypers

    def __call__(
        self, x1: Any, x2: Any = None, *, get: str | Sequence[str] | None = None, progress: bool = False, **hypers: Any
    ) -> Any:
        """The kernel matrices between two sets of inputs.

        x1, x2: arrays (N1, *example) and (N2, *example), or pytrees of them like the example input; NumPy or JAX. Without x2, the
        gram matrix of x1, of which each pair is computed once. get: "nngp", "ntk" or a tuple of them (default: both).
        progress: show a bar. hypers: values of hyperparameters, by name.

        Returns a `KernelResult` with fields nngp and ntk, of shape (N1, N2) (for an output with position axes of shape S:
        (N1, N2, *S, *S)), or with `get` one array, or a tuple. The dtype follows the inputs, as JAX sees them: float64 needs
        `jax_enable_x64`. Memory besides the result is bounded by `tensorprog.runtime.TILE_BYTES`, whatever N1 and N2.

        Raises InputError for wrong structures, shapes or dtypes, NaN or infinite inputs and bad hyperparameters.

        Example:
            >>> import jax, jax.numpy as jnp, tensorprog as tp
            >>> from tensorprog import nn
            >>> kernel = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), jnp.zeros(3))
            >>> kernel(jnp.eye(3), jnp.ones((2, 3))).ntk.shape
            (3, 2)
        """
        names = check_get(get)
        leaves1 = check_inputs(x1, "x1", self.program.inputs, self._tree)
        leaves2 = None if x2 is None else check_inputs(x2, "x2", self.program.inputs, self._tree)
        if leaves2 is not None:
            kinds = [jnp.result_type(a, b) for a, b in zip(leaves1, leaves2, strict=True)]
            leaves1, leaves2 = ([a.astype(k) for a, k in zip(x, kinds, strict=True)] for x in (leaves1, leaves2))
        dtype = jnp.result_type(*[a for a in leaves1 if jnp.issubdtype(a.dtype, jnp.floating)] or [float])
        values = check_hypers(hypers, self.hypers, self._nonnegative, dtype)
        if is_traced((leaves1, leaves2, values)):
            found = self._gram.traced(leaves1, leaves2, values, names)
        else:
            found = self._gram(leaves1, leaves2, values, names, progress_bar(progress))
        if get is None:
            return KernelResult(*found)
        return found[0] if isinstance(get, str) else tuple(found)

    def diag(self, x: Any, **hypers: Any) -> KernelResult:
        """The kernels of each input with itself, shape (N,): what `kernel(x)` has on its diagonal."""
        leaves = check_inputs(x, "x", self.program.inputs, self._tree)
        dtype = jnp.result_type(*[a for a in leaves if jnp.issubdtype(a.dtype, jnp.floating)] or [float])
        return KernelResult(*self._gram.diagonal(leaves, check_hypers(hypers, self.hypers, self._nonnegative, dtype)))

    def derivation(self) -> str:
        """How the kernels come about, as Markdown with LaTeX: the program, the rule and error bound of every Gaussian
        expectation, the recursion."""
        return derivation(self.program, self.tangent_program, self.graph)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{leaf.name}: {leaf.shape}" for leaf in self.program.inputs)
        return f"<Kernel of a network on {shapes}: {len(self.program)} instructions, {len(self.graph)} quantities>"


def compile(net: Any, example: Any) -> Kernel:
    """Derive the infinite-width NNGP and neural tangent kernels of a network.

    net: a JAX function of one example, written with `tensorprog.nn`, or a `Network`. example: an example input: an array, a
    `jax.ShapeDtypeStruct`, or a pytree of them (only shapes and dtypes matter).

    Raises NetworkError and UnsupportedError, with the user's source line, for a function that is not a network or uses what the
    theorem does not cover.

    Example:
        >>> import jax, jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import nn
        >>> def net(x):
        ...     h = jax.nn.relu(nn.dense(x, weight_var=2.0))
        ...     return nn.dense(h, features=1)
        >>> kernel = tp.compile(net, jnp.zeros(2))
        >>> [round(float(v), 4) for v in kernel(jnp.eye(2)).ntk[0]]
        [1.0, 0.1592]
    """
    model = as_model(net, example)
    program = fuse(interpret(trace(model, example)))
    nonnegative = frozenset() if not model.hypers else frozenset(collect(net, example, 2520).nonnegative)
    return Kernel(check_conditions(program), jax.tree.structure(abstract(example)), nonnegative)


def compile_program(program: Program | str, tree: Any = None) -> Kernel:
    """A kernel from a program, written by hand or read from its text form. Its inputs are a tuple of arrays, or one array."""
    made = verify(parse_program(program) if isinstance(program, str) else program)
    if tree is None:
        tree = jax.tree.structure(0 if len(made.inputs) == 1 else (0,) * len(made.inputs))
    return Kernel(check_conditions(fuse(made)), tree)
