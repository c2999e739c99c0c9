"""Pickled kernels: the copy is the kernel that was pickled, bit by bit, in this process and in others."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import apps, nn
from tests.uncompiled import uncompiled

ROOT = Path(__file__).resolve().parents[2]


class Pair(NamedTuple):
    a: Any
    b: Any


def net(x: Any) -> Any:
    h = jax.nn.relu(nn.dense(x, weight_var=tp.hyper("w", 1.5), bias_var=0.1375))
    return nn.dense(h, features=1)


def outputs(x: Any) -> Any:
    h = jax.nn.relu(nn.dense(x))
    return {"readout": nn.dense(h, features=1), "average": jnp.mean(h)}


def data(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def again(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def assert_same(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_compiled_kernel() -> None:
    """Everything but the network's function comes back: values, slopes, the derivation with its source lines, the parts of parameters."""
    kernel, x = tp.compile(net, jnp.zeros(3), tolerance=1e-9), data(4, 3)
    back = again(kernel)
    assert type(back) is tp.Kernel and back is not kernel
    assert back.program == kernel.program and back.hypers == {"w": 1.5} and back.tolerance == 1e-9
    assert (back.method, back.method_reason) == (kernel.method, kernel.method_reason)
    assert str(back.derivation()) == str(kernel.derivation())
    assert "test_pickle.py" in str(back.program)
    assert_same(uncompiled(back, x, w=0.7), uncompiled(kernel, x, w=0.7))
    with pytest.raises(tp.InputError, match="the network of .* is not known"):
        back.check(x)


def test_a_process_derives_it_once() -> None:
    """A search sends it with every fit; what the first compiled is there for the others."""
    kernel = tp.compile(net, jnp.zeros(3))
    assert again(kernel) is again(kernel)
    plain = kernel.without("interpolation")
    assert again(plain)._off == {"interpolation"} and again(plain) is not again(kernel)
    assert again(kernel)._off == frozenset()


def test_copies_are_not_pickles() -> None:
    kernel = tp.compile(net, jnp.zeros(3))
    assert copy.deepcopy(kernel) is kernel
    other = copy.copy(kernel)
    assert other is not kernel and other.graph is kernel.graph and other.model is kernel.model


def test_several_outputs() -> None:
    kernel, x = tp.joint(outputs, jnp.zeros(3)), data(3, 3)
    back = again(kernel)
    assert type(back) is tp.JointKernel and back.outputs == kernel.outputs
    assert_same(uncompiled(back, x), uncompiled(kernel, x))
    assert_same(back.mean(x), kernel.mean(x))
    assert str(back.derivation()) == str(kernel.derivation())


def test_inputs_in_containers_of_other_classes() -> None:
    """An archive cannot name them; a pickle names the class."""
    of_pair = lambda p: nn.dense(jax.nn.relu(nn.dense(p.a) + nn.dense(p.b)), features=1)
    kernel = tp.compile(of_pair, Pair(jnp.zeros(2), jnp.zeros(2)))
    x = Pair(data(3, 2), data(3, 2))
    assert_same(uncompiled(again(kernel), x), uncompiled(kernel, x))


def test_a_deep_network() -> None:
    """No walk of the program is recursive."""

    def deep(x: Any) -> Any:
        for _ in range(100):
            x = jax.nn.relu(nn.dense(x, weight_var=2.0))
        return nn.dense(x, features=1)

    kernel = tp.compile(deep, jnp.zeros(2))
    assert again(kernel).program == kernel.program


def test_programs_and_their_instructions() -> None:
    """Equal instructions are one object, and stay so: they are compared by identity."""
    program = tp.compile(net, jnp.zeros(3)).program
    for made in (again, copy.deepcopy):
        assert made(program) == program
        assert all(made(node) is node for node in program)


@pytest.mark.long
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_a_loaded_kernel(tmp_path: Path, several: bool) -> None:
    kernel = tp.joint(outputs, jnp.zeros(3)) if several else tp.compile(net, jnp.zeros(3))
    kernel.export(tmp_path / "net.tpk", platforms=("cpu",))
    loaded, x = tp.load(tmp_path / "net.tpk"), data(4, 3)
    back = again(loaded)
    assert type(back) is type(loaded) and back.source == "serialised" and back.manifest == loaded.manifest
    assert_same(back(x), loaded(x))
    assert back.derivation() == loaded.derivation()
    assert again(loaded) is back
    if not several:
        assert back.recompile().program == kernel.program


def test_a_sharded_kernel_says_why_not() -> None:
    kernel = tp.compile(net, jnp.zeros(3)).shard(jax.make_mesh((1,), ("rows",)))
    with pytest.raises(
        TypeError, match=r"spread over the devices of a mesh[\s\S]*to mend: pickle the kernel that shard"
    ):
        pickle.dumps(kernel)


CHILD = """
import pickle, sys
import jax, numpy as np
from tests.runtime import test_pickle
process, test = pickle.load(open(sys.argv[1], "rb"))
assert not jax.config.jax_enable_x64
np.save(sys.argv[2], process.mean(test))
"""


@pytest.mark.long
def test_another_process(tmp_path: Path) -> None:
    """Started anew, with other hashes of strings, and with JAX in 32 bits, which would round JAX's arrays."""
    x, kernel = jnp.asarray(data(8, 3)), tp.compile(net, jnp.zeros(3))
    process = apps.GaussianProcess(kernel, x, np.sin(x.sum(1)), noise=1e-3, w=jnp.asarray(1.1))
    test = data(3, 3) / 3
    (tmp_path / "in.pickle").write_bytes(pickle.dumps((process, test)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "JAX_ENABLE_X64": "0"}
    run = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "in.pickle", tmp_path / "out.npy"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), process.mean(test))
