"""The one file that knows every stage: a network or a program in, a compiled kernel out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import copy
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from ntk_rules.collector import older_objects_aside
from ntk_rules.sampling import SHIFTS
from tensorprog.errors import InputError, explain
from tensorprog.frontend.interpret import interpret, interpret_outputs
from tensorprog.frontend.model import Model, abstract, as_model
from tensorprog.frontend.outputs import Output
from tensorprog.frontend.params import Network
from tensorprog.frontend.trace import trace
from tensorprog.ir import Input, Program, parse_program, verify
from tensorprog.joint import JointKernel, of_program, outputs_joined
from tensorprog.kernel import KernelGraph, derive
from tensorprog.kernel.graph import Average, Sampled
from tensorprog.kernel.invariant import PLANE, features, homogeneous, in_the_plane
from tensorprog.kernel.report import Derivation, derivation
from tensorprog.lower import SHIFT, lower, value
from tensorprog.passes.adjoint import Adjoint
from tensorprog.passes.dots import expose
from tensorprog.passes.fuse import fuse
from tensorprog.passes.methods import check_method, choose, is_average, moved_by, output_program, prepared
from tensorprog.passes.structure import tied_weights
from tensorprog.runtime.archive import JOINT_FORMAT, read_archive
from tensorprog.runtime.call import KernelFunction, filled
from tensorprog.runtime.gram import Gram
from tensorprog.runtime.interpolated import Interpolated
from tensorprog.runtime.kernel import Functions, functions, kinked, pair_operations
from tensorprog.runtime.loaded import LoadedKernel, save
from tensorprog.runtime.loaded_joint import LoadedJoint, LoadedOutput
from tensorprog.runtime.optimisations import check_optimisations
from tensorprog.runtime.sharded import ShardedGram

__all__ = ["Kernel", "compile", "compile_program", "joint", "load"]


class Kernel(KernelFunction):
    """The infinite-width kernels of a network, compiled.

    program: the network as a tensor program. method: the way to the NTK, "tangent" or "adjoint"; method_reason: why this one.
    tangent_program: the derivative in a random direction of all parameters, whose covariance is the NTK (None when nothing is
    trained, or by the other way). gradients: the uses of trained parameters in the adjoint program, with the gradients in what they
    make, whose pairs add up to the NTK (None by the other way). graph: what is computed. hypers: its named arguments and
    defaults. model: the network that it was compiled from (None for one made of a program). ntk_power: the power of n by which ntk
    is multiplied: 0 for a readout, 1 for an average over the width.
    """

    model: Model | None = None

    def __init__(
        self, program: Program, tree: Any, tolerance: float | None = None, method: str = "auto", apart: bool = True
    ):
        """program: fused, by `tensorprog.passes.methods.prepared`. apart: of `tensorprog.kernel.derive`."""
        super().__init__(program.inputs, tree, program.hypers, program.nonnegative)
        self.program, self._tolerance = program, tolerance
        self._asked, self._apart = method, apart
        chosen = choose(program, method)
        self.method, self.method_reason = chosen.name, chosen.reason
        self.ntk_power = int(is_average(program))
        self._moved = moved_by(program, self.method)
        source = None if self._moved is None else self._moved.source
        self.tangent_program = source if isinstance(source, Program) else None
        self.gradients = source if isinstance(source, Adjoint) else None
        self._exposed = expose(fuse(output_program(program), drop_zeros=True))
        moving = None if self._moved is None else self._moved.exposed
        with older_objects_aside():
            self.graph: KernelGraph = derive(self._exposed.program, moving, tolerance, apart)
        self._noise = self.graph.noise
        self._off: frozenset[str] = frozenset()

    @property
    def exposed_program(self) -> Program:
        """The program that the kernel is derived from: where a weight is used together with its transpose, every MatMul by it
        stands for its Gaussian part, and what the transpose adds (Zdot of the master theorem) is written out."""
        return self._exposed.program

    @cached_property
    def functions(self) -> Functions:
        """The kernel's two functions of leaves with a batch axis, not jitted."""
        return functions(lower(self.graph, self.program.inputs, self._off), self.graph, self._off)

    @cached_property
    def _gram(self) -> Gram:  # type: ignore[override]
        return Gram(self.functions, self._interpolated, self._off, is_average(self.program))

    @cached_property
    def _interpolated(self) -> Interpolated | None:
        """Matrices from a series in norms and angles, of kernels that depend on these alone."""
        vector = None if "interpolation" in self._off else features(self.graph)
        if vector is None:
            return None
        nodes, plane = self.graph.nodes, lambda: lower(in_the_plane(self.graph, vector), PLANE)
        return Interpolated(
            value(vector, self.program.inputs), plane, homogeneous=homogeneous(self.graph, vector), kinks=kinked(nodes),
            cost=pair_operations(nodes), off=self._off,
        )  # fmt: skip

    def without(self, *names: str) -> Kernel:
        """The same kernel with optimisations switched off, to measure them or to check them: docs/speed.md says what each does.

        names: of "loops", "branches", "packing", "together", "windows", "rows", "sides", "threads", "reuse", "symmetry",
        "interpolation", "numpy". Values agree to rounding ("interpolation": to 1e-12 of sqrt(K(x, x) K(x', x')) in float64, 1e-7 in float32).

        Raises InputError for other names.

        Example:
            >>> import jax, jax.numpy as jnp, tensorprog as tp
            >>> from tensorprog import nn
            >>> kernel = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), jnp.zeros(3))
            >>> x = jax.random.normal(jax.random.key(0), (300, 3))
            >>> bool(jnp.allclose(kernel(x).ntk, kernel.without("interpolation", "loops")(x).ntk, atol=1e-5))
            True
        """
        other = copy(self)
        other._off = self._off | check_optimisations(names)
        for made in ("functions", "_gram", "_interpolated"):
            other.__dict__.pop(made, None)
        return other

    def shard(self, mesh: jax.sharding.Mesh) -> Kernel:
        """The same kernel computed by many devices: each has an equal share of the rows of a matrix.

        mesh: the devices, all axes taken together. Matrices come back sharded by rows where their number is a multiple of that of
        the devices. Inputs are copied to all of them. Not for calls inside `jax.jit` or `jax.grad`, which compute as before.

        Raises InputError for anything but a mesh.

        Example:
            >>> import jax, jax.numpy as jnp, tensorprog as tp
            >>> from tensorprog import nn
            >>> kernel = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), jnp.zeros(3))
            >>> kernel.shard(jax.make_mesh((jax.device_count(),), ("rows",)))(jnp.eye(3)).ntk.shape
            (3, 3)
        """
        other = copy(self)
        other.__dict__["_gram"] = ShardedGram(self.functions, mesh, is_average(self.program))
        return other

    def by_parameter(self, x1: Any, x2: Any = None, **hypers: Any) -> dict[str, Any]:
        """The neural tangent kernel's parts of every trained parameter: which layer learns what.

        x1, x2, hypers: as for a call. Returns the parts by the parameters' names, each of the shape of `ntk`, to which they add up
        (to rounding). A part is the kernel of the network with every other parameter frozen.

        Example:
            >>> import jax, jax.numpy as jnp, tensorprog as tp
            >>> from tensorprog import nn
            >>> kernel = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), jnp.zeros(2))
            >>> {name: float(part[0, 0]) for name, part in kernel.by_parameter(jnp.eye(2)).items()}
            {'dense_0.weight': 0.25, 'dense_1.weight': 0.25}
        """
        return self._joint.by_parameter(x1, x2, **hypers)

    @cached_property
    def _joint(self) -> JointKernel:
        """This output as the only one of several."""
        tree = jax.tree.structure(0)
        part = of_program(self.program, self.method)
        return JointKernel(self.program.inputs, [part], self._tree, tree, self._tolerance)

    @property
    def sampled(self) -> bool:
        """Is any expectation in it sampled, so that its values have a standard error?"""
        return any(isinstance(quantity, (Average, Sampled)) for quantity in self.graph.nodes)

    def standard_error(self, x1: Any, x2: Any = None, **options: Any) -> Any:
        """The standard errors of the kernel matrices that sampling leaves; zeros where nothing is sampled.

        x1, x2, options: as for a call, which is made once for each of the random shifts of the points; their spread is
        the error, that of the layers that follow included. Returns what the call returns.

        Example:
            >>> import jax, jax.numpy as jnp, tensorprog as tp
            >>> from tensorprog import nn
            >>> net = lambda x: nn.dense(jnp.tanh(jnp.mean(jax.nn.relu(nn.dense(x)), axis=0)), features=1)
            >>> kernel = tp.compile(net, jnp.zeros((5, 3)), tolerance=1e-2)
            >>> bool(kernel.standard_error(jnp.ones((1, 5, 3))).nngp[0, 0] < 1e-2)
            True
        """
        if not self.sampled:
            return jax.tree.map(jnp.zeros_like, self(x1, x2, **options))
        found = [self._with_shift(k)(x1, x2, **options) for k in range(SHIFTS)]
        return jax.tree.map(lambda *values: jnp.std(jnp.stack(values), axis=0, ddof=1) / SHIFTS**0.5, *found)

    def _with_shift(self, shift: int) -> Kernel:
        """The same kernel with the points of one random shift alone."""
        self._gram  # noqa: B018 (made here, it is shared, and compiled once for all shifts)
        other = copy(self)
        other._more_hypers = {SHIFT: jnp.asarray(shift)}
        return other

    def derivation(self) -> Derivation:
        """How the kernels come about, as Markdown with LaTeX: the program, the rule and error bound of every Gaussian
        expectation, the recursion."""
        how = f"The tangent kernel is that of the {self.method} program: {self.method_reason}"
        moved = self._moved
        if self.method == "tangent" and not tied_weights(self.program.nodes):
            return derivation(self.program, self.tangent_program, self.graph, (), how)
        dots = self._exposed.dots + (moved.dots if moved else ())
        return derivation(self._exposed.program, moved.exposed if moved else None, self.graph, dots, how)

    def export(self, path: str | os.PathLike[str], platforms: Sequence[str] = ("cpu", "cuda")) -> None:
        """Write the kernel to one file, which `tp.load` reads and which JAX alone can run (docs/export.md).

        path: the file, by custom with the ending .tpk; it is replaced in one step, or left as it was. platforms:
        where the serialised functions are to run: of "cpu", "cuda", "rocm" and "tpu". They are written in float32
        and float64, for any number of inputs, with first derivatives; beside them stand the program and the
        derivation as text.

        Raises ArchiveError where the file cannot be written, InputError for unknown platforms or an example input
        made of other containers than dicts, lists and tuples.

        Example:
            >>> import jax, jax.numpy as jnp, tempfile, tensorprog as tp
            >>> from tensorprog import nn
            >>> kernel = tp.compile(lambda x: nn.dense(jax.nn.relu(nn.dense(x)), features=1), jnp.zeros(3))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     kernel.export(f"{folder}/net.tpk", platforms=("cpu",))
            ...     tp.load(f"{folder}/net.tpk")
            <LoadedKernel of a network on x: (3,): serialised>
        """
        save(path, platforms, self.functions, self.program, self._tree, self._tolerance, self.derivation, self.method)

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes: the program, of which the kernel is derived anew there. `model` stays behind, often a local function."""
        if isinstance(self.__dict__.get("_gram"), ShardedGram):
            raise TypeError(
                explain(
                    f"pickle: {self!r} is spread over the devices of a mesh, expected a kernel of no devices in particular",
                    reason="a mesh names devices of this process",
                    mend="pickle the kernel that shard was called on, and call shard where it is loaded",
                )
            )
        how = self._tolerance, self._asked, self._apart, self._off
        return _derived_again, (self.program, filled(self._tree), *how)

    def _repr_markdown_(self) -> str:
        """For Jupyter: the derivation, with its formulas set."""
        return str(self.derivation())

    def __repr__(self) -> str:
        shapes = ", ".join(f"{leaf.name}: {leaf.shape}" for leaf in self.program.inputs)
        return f"<Kernel of a network on {shapes}: {len(self.program)} instructions, {len(self.graph)} quantities>"


def _derived_again(program: Program, example: Any, *how: Any) -> Kernel:
    return _made_once(program, jax.tree.structure(example), *how)


@lru_cache(maxsize=16)
def _made_once(
    program: Program, tree: Any, tolerance: float | None, method: str, apart: bool, off: frozenset[str]
) -> Kernel:
    """The kernel of a pickle: once in each process, which may be sent many, one for every fit of a search, and compiles for the first."""
    kernel = Kernel(program, tree, tolerance, method, apart)
    kernel._off = off
    return kernel


def compile(net: Any, example: Any, *, tolerance: float | None = None, method: str = "auto") -> Kernel:
    """Derive the infinite-width NNGP and neural tangent kernels of a network.

    net: a JAX function of one example, written with `tensorprog.nn`, or a `Network`. example: an example input: an
    array, a `jax.ShapeDtypeStruct`, or a pytree of them (only shapes and dtypes matter). tolerance: the relative error
    allowed to Gaussian expectations without a closed form, in float64 (default 1e-12). Functions that mix three Gaussians
    or more may be sampled where it is 1e-3 or so; the derivation states every bound.

    method: the way to the neural tangent kernel. "tangent": the covariance of the derivative in a random direction of all
    parameters. "adjoint": backpropagation as a program, and the sum over parameters and pairs of their uses (Yang, Tensor Programs
    II, theorem 2.1). "auto": the tangent program wherever its conditions hold, the adjoint program elsewhere; `kernel.method` and
    `kernel.method_reason` say which, and why. Both give the same kernel where both hold (docs/adjoint.md).

    An average over the width, deterministic in the limit, may be the output too: nngp is then the product of the two limits, and
    ntk is n times the inner product of gradients (`kernel.ntk_power` is 1); see `tp.joint`.

    Raises NetworkError and UnsupportedError, with the user's source line, for a function that is not a network or
    uses what the theorem does not cover.

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
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and 0 < tolerance < 1):
        raise InputError(f"compile: tolerance is {tolerance!r}, expected a number between 0 and 1, or None for 1e-12")
    check_method(method, "compile")
    model = as_model(net, example)
    program = prepared(interpret(trace(model, example), averages=True))
    if isinstance(net, Network):
        net.check(program)
    kernel = Kernel(program, jax.tree.structure(abstract(example)), tolerance, method)
    kernel.model = model
    return kernel


def joint(net: Any, example: Any, *, tolerance: float | None = None, method: str = "auto") -> JointKernel:
    """The kernels of all outputs of a network and between them: several readouts, hidden layers, averages over the width.

    net: as for `tp.compile`, but it may return any pytree of arrays; two networks that share weights are one function that returns
    both outputs. example, tolerance, method: as for `tp.compile`. An output
    is, by what it is made of,

    - gaussian: a readout, divided by sqrt(n). nngp is its covariance, ntk its tangent kernel; all readouts are jointly Gaussian.
    - hidden: an array with a width axis, of exchangeable neurons. nngp is the second moment E[h_a(x) h_a(x')] of a neuron, ntk
      the inner product of its gradients; of two hidden layers, those of neurons of one number.
    - average: (1/n) sum_a phi(h_a), or a readout divided by n. It converges to its mean, `kernel.mean(x)`; nngp is the product of the
      means, ntk n times the inner product of gradients, which vanishes like 1/n.

    Between outputs of different kinds, nngp is the product of the means and ntk is zero (a readout has a share of 1/sqrt(n) in
    each neuron). Returns a `JointKernel`: `kernel(x1, x2)` gives a `KernelResult` whose fields are trees of trees.

    Raises NetworkError and UnsupportedError, with the user's source line, for outputs without a limit.

    Example:
        >>> import jax, jax.numpy as jnp, tensorprog as tp
        >>> from tensorprog import nn
        >>> def net(x):
        ...     h = jax.nn.relu(nn.dense(x))
        ...     return {"readout": nn.dense(h, features=1), "average": jnp.mean(h), "layer": h}
        >>> kernel = tp.joint(net, jnp.zeros(2))
        >>> kernel.outputs
        (<average output 'average' of shape ()>, <hidden output 'layer' of shape ()>, <gaussian output 'readout' of shape ()>)
        >>> x = jnp.array([[1.0, 1.0]])
        >>> k = kernel(x)
        >>> [round(float(k.nngp[a][b][0, 0]), 4) for a, b in [("readout", "readout"), ("layer", "average")]]
        [0.5, 0.1592]
        >>> round(float(kernel.mean(x)["average"][0]), 4)                      # E relu(z) = 1/sqrt(2 pi)
        0.3989
    """
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and 0 < tolerance < 1):
        raise InputError(f"joint: tolerance is {tolerance!r}, expected a number between 0 and 1, or None for 1e-12")
    check_method(method, "joint")
    traced = trace(as_model(net, example), example)
    inputs, outputs = interpret_outputs(traced)
    if not outputs:
        raise InputError("joint: the network returns no array, expected a pytree of one or more")
    parts = outputs_joined(inputs, outputs, method)
    if isinstance(net, Network):
        for part in parts:
            net.check(part.program)
    return JointKernel(inputs, parts, jax.tree.structure(abstract(example)), traced.out_tree, tolerance, method)


def compile_program(
    program: Program | str, tree: Any = None, *, tolerance: float | None = None, method: str = "auto"
) -> Kernel:
    """A kernel from a program, written by hand or read from its text form. Its inputs are a tuple of arrays, or one
    array. tolerance, method: as in `compile`."""
    check_method(method, "compile_program")
    made = verify(parse_program(program) if isinstance(program, str) else program)
    if tree is None:
        tree = jax.tree.structure(0 if len(made.inputs) == 1 else (0,) * len(made.inputs))
    return Kernel(prepared(made), tree, tolerance, method)


def load(path: str | os.PathLike[str]) -> LoadedKernel | LoadedJoint:
    """Read a kernel that `Kernel.export` or `JointKernel.export` wrote.

    Where JAX refuses the file's serialised functions, because they have expired with a newer JAX or were not
    exported for this platform, the kernel is derived again from the program text; the result's `source` and `note`
    say so.

    Raises ArchiveError for a file that is missing, truncated, altered, foreign or too new. Nothing in it is
    unpickled or evaluated.
    """
    manifest, members = read_archive(path)
    if manifest["format"] == JOINT_FORMAT:
        return LoadedJoint(path, manifest, members, _joint_of)
    return LoadedKernel(path, manifest, members, _kernel_of)


def _kernel_of(program: Program, *how: Any) -> Kernel:
    """The kernel of a program that was read from a file."""
    return Kernel(prepared(program), *how)


def _joint_of(
    inputs: tuple[Input, ...],
    outputs: Sequence[LoadedOutput],
    tree: Any,
    out_tree: Any,
    tolerance: float | None,
    method: str,
) -> JointKernel:
    """The kernel of outputs whose programs were read from a file."""
    found = [
        Output(o.label, o.kind, o.program.output, o.program.mirrored, o.program.output.type.width) for o in outputs
    ]
    return JointKernel(inputs, outputs_joined(inputs, found, method), tree, out_tree, tolerance, method)
