"""Archives of kernels of several outputs: what comes back is the kernel that was written, and nothing damaged is let in."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tensorprog as tp
from tensorprog import nn
from tensorprog.runtime import archive, exported

X = np.random.default_rng(0).standard_normal((4, 3))


def net(x: dict[str, jax.Array]) -> dict[str, Any]:
    """Copies and an output of positions that share a readout, a tied readout, an average and a hidden layer."""
    w, u = nn.weight((2, nn.width())), nn.dense(x["a"], weight_var=tp.hyper("w", 1.5))
    h = jax.nn.relu(u)
    places = nn.dense(jnp.stack([h, u]), features=1)[:, 0]
    return {
        "two": (w @ h / jnp.sqrt(nn.width()), places),
        "mean": jnp.mean(jax.scipy.special.erf(nn.dense(h))),
        "layer": [h],
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[tp.JointKernel, Path]:
    path = tmp_path_factory.mktemp("joint") / "net.tpk"
    kernel = tp.joint(net, {"a": X[0]})
    kernel.export(path, platforms=("cpu",))
    return kernel, path


def same(found: Any, wanted: Any, rtol: float = 1e-12) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    largest = max((float(np.abs(b).max()) for b in jax.tree.leaves(wanted)), default=0.0)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        # a block that vanishes is rounding of the others: in float32 averages are computed in float64, but for loaded kernels
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(1e-2 * largest, float(np.abs(b).max())))


@pytest.mark.long
def test_what_comes_back(written: tuple[tp.JointKernel, Path]) -> None:
    kernel, path = written
    loaded = tp.load(path)
    assert isinstance(loaded, tp.LoadedJoint) and loaded.source == "serialised"
    assert [(o.label, o.kind, o.shape, o.ntk_power) for o in loaded.outputs] == [
        (o.label, o.kind, o.shape, o.ntk_power) for o in kernel.outputs
    ]
    assert loaded.derivation() == kernel.derivation() and loaded.hypers == kernel.hypers
    x = {"a": X}
    same(loaded(x, w=0.7), kernel(x, w=0.7))
    same(loaded.mean(x, w=0.3), kernel.mean(x, w=0.3))
    with pytest.raises(tp.InputError, match="x1"):
        loaded(X)


@pytest.mark.long
def test_all_that_one_asks_of_it(written: tuple[tp.JointKernel, Path]) -> None:
    kernel, path = written
    loaded, x = tp.load(path), {"a": X}
    same(loaded(x, {"a": X[:2]}, get="ntk"), kernel(x, {"a": X[:2]}, get="ntk"))
    same(loaded(x, get=("ntk", "nngp")), kernel(x, get=("ntk", "nngp")))
    same(loaded.diag(x), kernel.diag(x))
    slope = lambda k: jax.grad(lambda w: k(x, w=w).ntk["mean"]["mean"].sum())(0.9)
    same(slope(loaded), slope(kernel))


@pytest.mark.slow
def test_single_precision(written: tuple[tp.JointKernel, Path]) -> None:
    """Every day: tests/runtime/test_near_inputs.py."""
    kernel, path = written
    single = {"a": X.astype("float32")}
    same(tp.load(path)(single), kernel(single), 1e-6)


def test_derived_anew(written: tuple[tp.JointKernel, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that share weights share them again; and where JAX refuses the functions the text is there."""
    kernel, path = written
    again = tp.load(path).recompile()
    assert [o.copies for o in again.outputs] == [o.copies for o in kernel.outputs]
    assert [o.method for o in again.outputs] == [o.method for o in kernel.outputs]
    same(again({"a": X}), kernel({"a": X}))

    def refuse(*args: Any) -> Any:
        raise ValueError("unsupported serialization version")

    monkeypatch.setattr(exported.export, "deserialize", refuse)
    back = tp.load(path)
    assert back.source == "recompiled" and "unsupported serialization version" in back.note
    same(back.mean({"a": X}), kernel.mean({"a": X}))


@pytest.mark.parametrize("place", [0, 100, 0.3, 0.7, -200, -1])
def test_altered_and_truncated_files_are_refused(
    written: tuple[tp.JointKernel, Path], tmp_path: Path, place: float
) -> None:
    data = bytearray(written[1].read_bytes())
    at = int(place * len(data)) if isinstance(place, float) else place
    path = tmp_path / "bad.tpk"
    path.write_bytes(data[:at] if at else b"")
    with pytest.raises(tp.ArchiveError):
        tp.load(path)
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(tp.ArchiveError):
        tp.load(path)


def rewritten(path: Path, target: Path, change: Any, **members: bytes | None) -> Path:
    """A sealed archive of the same with another manifest and other members."""
    manifest, held = archive.read_archive(path)
    change(manifest)
    for name in ("members", "version"):
        manifest.pop(name, None)
    kept = {k: v for k, v in {**held, **members}.items() if v is not None}
    archive.write_archive(target, manifest, kept)
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["outputs"].pop(),
        lambda m: m["outputs"][0].update(kind="other"),
        lambda m: m["outputs"][0].pop("copies"),
        lambda m: m.update(returns={"set": []}),
        lambda m: m.update(method="other"),
        lambda m: m.pop("pair_entries"),
    ],
)
def test_a_malformed_manifest_is_refused(written: tuple[tp.JointKernel, Path], tmp_path: Path, change: Any) -> None:
    with pytest.raises(tp.ArchiveError, match="malformed"):
        tp.load(rewritten(written[1], tmp_path / "bad.tpk", change))


def test_a_program_that_cannot_be_read_is_refused(written: tuple[tp.JointKernel, Path], tmp_path: Path) -> None:
    same_manifest = lambda m: None
    bad = {"program.0.txt": b"import os"}
    with pytest.raises(tp.ArchiveError, match="is of no use"):
        tp.load(rewritten(written[1], tmp_path / "bad.tpk", same_manifest, **bad))
    with pytest.raises(tp.ArchiveError, match="malformed"):
        tp.load(rewritten(written[1], tmp_path / "bad.tpk", same_manifest, **{"program.1.txt": None}))


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    class Pair(NamedTuple):
        a: Any
        b: Any

    kernel = tp.joint(lambda x: Pair(nn.dense(x, features=1), jnp.mean(nn.dense(x) ** 2)), X[0])
    with pytest.raises(tp.InputError, match="what the network returns holds a Pair"):
        kernel.export(tmp_path / "net.tpk")
    with pytest.raises(tp.InputError, match="platforms"):
        kernel.export(tmp_path / "net.tpk", platforms=("abacus",))
    with pytest.raises(tp.ArchiveError, match="there is no folder"):
        kernel.export(tmp_path / "none" / "net.tpk")
    assert not list(tmp_path.iterdir())


def test_the_file_is_data_that_jax_alone_reads(written: tuple[tp.JointKernel, Path]) -> None:
    kernel, path = written
    file = zipfile.ZipFile(path)
    manifest = json.loads(file.read("manifest.json"))
    assert manifest["format"] == "tensorprog joint kernel" and manifest["outputs"][0]["kind"] == "hidden"
    block = jax.export.deserialize(bytearray(file.read("block.float64.jax_export")))
    found = block.call({"a": X}, {"a": X[:2]}, {"w": jnp.asarray(1.5)})
    wanted = [jax.tree.leaves(k) for k in kernel({"a": X}, {"a": X[:2]})]
    same(list(found), [*wanted[0], *wanted[1]])
    means = jax.export.deserialize(bytearray(file.read("means.float64.jax_export")))
    assert len(means.call({"a": X}, {"w": jnp.asarray(1.5)})) == len(kernel.outputs)
