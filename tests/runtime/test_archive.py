"""Archives: what comes back is the kernel that was written, and nothing damaged, foreign or newer is let in."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import re
import subprocess
import sys
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

ROOT = Path(__file__).resolve().parents[2]
# The same StableHLO, compiled once through the archive and once directly: only XLA's choices of fusion may differ.
CLOSE = {"float32": 1e-6, "float64": 1e-12}


def dense_net(x):
    h = jax.nn.relu(nn.dense(x, weight_var=tp.hyper("w2", 1.5), bias_var=0.1))
    return nn.dense(h, features=1)


def tree_net(inputs):
    h = jax.nn.relu(nn.conv(inputs["image"], (3,), bias_var=0.1))
    return nn.dense(nn.global_avg_pool(h) * (inputs["gate"] + inputs["which"][0]), features=1)


def data(*shape: int, dtype: str = "float64", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def write(folder: Path, net: Any, example: Any) -> tuple[tp.Kernel, Path]:
    kernel = tp.compile(net, example)
    kernel.export(folder / "net.tpk")
    return kernel, folder / "net.tpk"


@pytest.fixture(scope="session")
def dense(tmp_path_factory) -> tuple[tp.Kernel, Path]:
    return write(tmp_path_factory.mktemp("dense"), dense_net, jnp.zeros(4))


@pytest.fixture(scope="session")
def loaded(dense) -> tp.LoadedKernel:
    return tp.load(dense[1])


def assert_close(got: Any, want: Any, dtype: str) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype == dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=CLOSE[dtype] * np.abs(b).max())


# ---------------------------------------------------------------------------------------------- what comes back


@pytest.mark.parametrize("dtype", CLOSE)
def test_values_are_those_of_the_live_kernel(dense, loaded, dtype):
    kernel, (x1, x2) = dense[0], (data(5, 4, dtype=dtype), data(3, 4, dtype=dtype, seed=1))
    assert loaded.source == "serialised" and repr(loaded).endswith("serialised>")
    assert_close(loaded(x1, x2), kernel(x1, x2), dtype)
    assert_close(loaded(x1, x2, w2=0.7), kernel(x1, x2, w2=0.7), dtype)
    assert_close(loaded.diag(x1), kernel.diag(x1), dtype)
    gram = loaded(x1, get="ntk")
    assert_close(gram, kernel(x1, get="ntk"), dtype)
    assert np.array_equal(np.diag(gram), loaded.diag(x1).ntk)
    assert loaded.hypers == {"w2": 1.5}
    assert loaded(x1[:0], x2).ntk.shape == (0, 3) and loaded.diag(x1[:0]).ntk.shape == (0,)


def test_half_precision_keeps_its_dtype(loaded):
    x = jnp.asarray(data(3, 4), jnp.bfloat16)
    got = loaded(x).ntk
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(float), loaded(x.astype("float32")).ntk, rtol=2**-8)  # one rounding to 8 bits


def total(k):
    return lambda w, z: (k(z, w2=w).ntk * jnp.arange(9.0).reshape(3, 3)).sum()


def test_gradients(dense, loaded):
    x = data(3, 4)
    want = jax.grad(total(dense[0]), (0, 1))(1.3, x)
    assert_close(jax.grad(total(loaded), (0, 1))(1.3, x), want, "float64")
    assert loaded.source == "serialised"


@pytest.mark.long
def test_jit_and_other_transformations(dense, loaded):
    x = data(3, 4)
    assert_close(jax.jit(total(loaded))(1.3, x), total(dense[0])(1.3, x), "float64")
    tangent = jax.jvp(lambda w: total(loaded)(w, x), (1.3,), (1.0,))[1]  # not given to exports by JAX: derived anew
    np.testing.assert_allclose(tangent, jax.grad(total(dense[0]))(1.3, x), rtol=1e-10)
    assert loaded.source == "serialised"


def test_tiles_and_loops_give_the_same_matrix(loaded, monkeypatch):
    x1, x2 = data(7, 4), data(3, 4, seed=1)
    whole, gram = loaded(x1, x2), loaded(x1)
    from tensorprog.runtime import tiles

    monkeypatch.setattr(tiles, "TILE_BYTES", 8 * 8 * 6)  # six pairs
    assert_close(loaded(x1, x2), whole, "float64")
    assert_close(loaded(x1), gram, "float64")
    assert np.array_equal(loaded(x1).ntk, loaded(x1).ntk.T)
    assert_close(jax.jit(lambda a, b: loaded(a, b))(x1, x2), whole, "float64")


@pytest.mark.slow
def test_convolution_of_structured_inputs(tmp_path):
    example = {"which": (jnp.zeros((), int),), "image": jnp.zeros((4, 2)), "gate": jnp.zeros(())}
    kernel = tp.compile(tree_net, example)
    kernel.export(tmp_path / "net.tpk", platforms=("cpu",))
    x = {"which": (np.array([0, 2, 1]),), "image": data(3, 4, 2), "gate": data(3)}
    back = tp.load(tmp_path / "net.tpk")
    assert_close(back(x), kernel(x), "float64")
    with pytest.raises(tp.InputError, match="x1 has the structure"):
        back([x["image"]])


def test_the_same_checks(loaded):
    with pytest.raises(tp.InputError, match=r"x1 has shape \(4,\), expected \(N, 4\)"):
        loaded(np.zeros(4))
    with pytest.raises(tp.InputError, match=r"expected finite numbers"):
        loaded(np.full((1, 4), np.nan))
    with pytest.raises(tp.InputError, match=r"'w2' is -1\.0, expected a finite number >= 0"):
        loaded(np.zeros((1, 4)), w2=-1)
    with pytest.raises(tp.InputError, match="unknown argument 'b2'"):
        loaded(np.zeros((1, 4)), b2=1)
    with pytest.raises(tp.InputError, match="get is 'ntks'"):
        loaded(np.zeros((1, 4)), get="ntks")


# ---------------------------------------------------------------------------------------------- the contents


def test_contents_are_small_and_say_what_they_are(dense, loaded):
    kernel, path = dense
    assert path.stat().st_size < 60_000
    assert loaded.program == kernel.program and loaded.derivation() == kernel.derivation()
    m = loaded.manifest
    assert (m["format"], m["version"], m["platforms"], m["gradients"]) == (
        "tensorprog kernel",
        1,
        ["cpu", "cuda"],
        True,
    )
    assert m["inputs"] == [{"name": "x", "shape": [4], "dtype": "float64"}] and m["structure"] == 0
    assert m["hypers"] == {"w2": {"default": 1.5, "nonnegative": True}}
    with zipfile.ZipFile(path) as file:
        assert set(file.namelist()) == {"manifest.json", *m["members"]}
        for name, entry in m["members"].items():
            assert hashlib.sha256(file.read(name)).hexdigest() == entry["sha256"]
            assert str(ROOT).encode() not in file.read(name)  # does not tell whose disk it came from


def test_large_inputs_embed_no_large_constants(tmp_path):
    kernel = tp.compile(lambda x: nn.dense(nn.dense(x), features=1), jnp.zeros(100_000))
    kernel.export(tmp_path / "wide.tpk", platforms=("cpu",))
    assert (tmp_path / "wide.tpk").stat().st_size < 60_000


def test_the_documented_snippet_runs_with_jax_alone(dense):
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    barred = "import sys\nsys.modules['tensorprog'] = sys.modules['ntk_rules'] = None\n"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", barred + snippet + "print(float(ntk[0, 0]))"],
        cwd=dense[1].parent, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    shapes, value = run.stdout.splitlines()
    assert shapes == "(3, 2) (3, 2)"
    np.testing.assert_allclose(float(value), dense[0](np.ones((3, 4), "float32"), get="ntk")[0, 0], rtol=1e-6)


def test_nothing_unpickles_or_evaluates():
    for module in (archive, exported, sys.modules["tensorprog.runtime.loaded"]):
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {
            a.name for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names
        }
        assert not names & {"eval", "exec", "compile", "pickle", "marshal", "shelve", "__import__"}


# ---------------------------------------------------------------------------------------------- what is refused


def altered(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_any_changed_byte_is_noticed(dense, tmp_path):
    good, path = dense[1].read_bytes(), tmp_path / "bad.tpk"
    places = {*range(64), *range(64, len(good), 211), *range(len(good) - 200, len(good))}
    for at in sorted(places):
        path.write_bytes(altered(good, at))
        with pytest.raises(tp.ArchiveError, match=r"not an intact archive[\s\S]*to mend: copy the file again"):
            archive.read_archive(path)


def test_truncation_and_additions_are_noticed(dense, tmp_path):
    good, path = dense[1].read_bytes(), tmp_path / "bad.tpk"
    for size in [0, 1, 3, 10, 100, *range(1000, len(good), 4999), len(good) - 88, len(good) - 1]:
        path.write_bytes(good[:size])
        with pytest.raises(tp.ArchiveError, match=r"it is empty|another kind of file|incomplete or damaged"):
            tp.load(path)
    for more in (good + b"\0", b"\0" + good, good + good):
        path.write_bytes(more)
        with pytest.raises(tp.ArchiveError, match="not an intact archive"):
            tp.load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "foreign.tpk"
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(tp.ArchiveError, match="another kind of file"):
        tp.load(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("manifest.json", "{}")
    with pytest.raises(tp.ArchiveError, match="ZIP file of another kind"):
        tp.load(path)


def sealed(path: Path, manifest: str, members: dict[str, bytes]) -> Path:
    """An archive with a valid seal and these contents, as a hostile or newer writer would make it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in {"manifest.json": manifest.encode(), **members}.items():
            file.writestr(name, content)
        file.comment = bytes(archive._SEAL_BYTES)
    body = buffer.getvalue()[: -archive._SEAL_BYTES]
    path.write_bytes(body + archive._SEAL.encode() + hashlib.sha256(body).hexdigest().encode())
    return path


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (
            '{"format": "tensorprog kernel", "version": 2, "members": {}}',
            "version 2 of the archive format[\\s\\S]*upgrade tensorprog",
        ),
        ('{"format": "tensorprog kernel", "version": "1", "members": {}}', "version '1' of the archive format"),
        ('{"format": "recipe", "version": 1}', "does not say 'tensorprog kernel'"),
        ("[]", "does not say 'tensorprog kernel'"),
        ("{", "manifest is malformed"),
        ("[" * 200_000, "nested too deeply"),
        ('{"format": "tensorprog kernel", "version": 1, "members": []}', "manifest is malformed"),
        (
            '{"format": "tensorprog kernel", "version": 1, "members": {}}',
            "manifest of .* is malformed .KeyError: 'inputs'",
        ),
        (
            '{"format": "tensorprog kernel", "version": 1, "members": {"a": {"bytes": 1, "sha256": ""}}}',
            "not those that its manifest",
        ),
    ],
)
def test_manifests_that_are_refused(tmp_path, manifest, message):
    with pytest.raises(tp.ArchiveError, match=message):
        tp.load(sealed(tmp_path / "bad.tpk", manifest, {}))


def test_a_member_that_unpacks_to_more_than_it_says(tmp_path, monkeypatch):
    zeros = bytes(10**6)
    manifest = {"format": "tensorprog kernel", "version": 1, "members": {"a": {"bytes": 10, "sha256": "0" * 64}}}
    path = sealed(tmp_path / "bomb.tpk", json.dumps(manifest), {"a": zeros})
    with pytest.raises(tp.ArchiveError, match="member a was altered"):
        tp.load(path)
    monkeypatch.setattr(archive, "MAX_BYTES", 10**5)
    with pytest.raises(tp.ArchiveError, match="unpacks to more than"):
        tp.load(path)
    monkeypatch.setattr(archive, "MAX_BYTES", 100)
    with pytest.raises(tp.ArchiveError, match="larger than 100 bytes"):
        tp.load(path)


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(tp.ArchiveError, match=r"there is no file .*none\.tpk"):
        tp.load(tmp_path / "none.tpk")
    with pytest.raises(tp.ArchiveError, match="it is a folder"):
        tp.load(tmp_path)
    with pytest.raises(tp.ArchiveError, match="path is a float"):
        tp.load(1.5)


# ---------------------------------------------------------------------------------------------- writing


def test_paths_that_cannot_be_written(dense, tmp_path):
    with pytest.raises(tp.ArchiveError, match="it is a folder"):
        dense[0].export(tmp_path)
    with pytest.raises(tp.ArchiveError, match=r"there is no folder .*nowhere"):
        dense[0].export(tmp_path / "nowhere" / "net.tpk")
    with pytest.raises(tp.ArchiveError, match="path is a NoneType"):
        dense[0].export(None)
    with pytest.raises(tp.InputError, match="platforms is 'gpu', expected some of cpu, cuda"):
        dense[0].export(tmp_path / "net.tpk", platforms="gpu")
    assert list(tmp_path.iterdir()) == []


def test_containers_without_a_name_are_refused(tmp_path):
    class Pair(NamedTuple):
        a: Any
        b: Any

    kernel = tp.compile(lambda p: nn.dense(nn.dense(p.a) + nn.dense(p.b), features=1), Pair(jnp.zeros(2), jnp.zeros(2)))
    with pytest.raises(tp.InputError, match="holds a Pair, expected dicts"):
        kernel.export(tmp_path / "net.tpk")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["interrupted", "full"]
)
def test_an_interrupted_export_leaves_what_was_there(tmp_path, monkeypatch, call, error):
    path = tmp_path / "net.tpk"
    archive.write_archive(path, {"note": "first"}, {"a": b"1"})

    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr(archive.os, call, fail)
    expected = tp.ArchiveError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
        archive.write_archive(path, {"note": "second"}, {"a": b"2"})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["net.tpk"]
    assert archive.read_archive(path)[0]["note"] == "first"


def test_equal_contents_make_equal_files_and_links_stay(tmp_path):
    (tmp_path / "link.tpk").symlink_to(tmp_path / "target.tpk")
    archive.write_archive(tmp_path / "a.tpk", {}, {"a": b"1"})
    archive.write_archive(tmp_path / "link.tpk", {}, {"a": b"1"})
    assert (tmp_path / "link.tpk").is_symlink()
    assert (tmp_path / "a.tpk").read_bytes() == (tmp_path / "target.tpk").read_bytes()


# ---------------------------------------------------------------------------------------------- recompiling


def test_refused_functions_are_recompiled_from_the_text(dense, monkeypatch):
    def expired(data: Any) -> Any:
        raise ValueError("unsupported serialization version")

    monkeypatch.setattr(exported.export, "deserialize", expired)
    back, x = tp.load(dense[1]), data(3, 4)
    assert back.source == "recompiled" and "unsupported serialization version" in back.note
    assert "recompiled because the serialised functions cannot run here" in repr(back)
    assert_close(back(x, w2=1.2), dense[0](x, w2=1.2), "float64")
    with pytest.raises(tp.InputError, match=r"'w2' is -1\.0"):
        back(x, w2=-1)


def test_functions_for_another_platform_are_recompiled(dense, tmp_path):
    manifest, members = archive.read_archive(dense[1])
    made = dense[0].functions
    found, _ = exported.serialise(made, dense[0].program.inputs, jax.tree.structure(0), manifest["hypers"], ("cuda",))
    archive.write_archive(tmp_path / "net.tpk", manifest, members | found)
    back = tp.load(tmp_path / "net.tpk")
    assert back.source == "recompiled" and "platform" in back.note


def test_functions_that_fail_when_run_are_recompiled(dense, monkeypatch):
    back, x = tp.load(dense[1]), data(3, 4)

    def fails(*args: Any) -> Any:
        raise ValueError("Error refining shapes")

    monkeypatch.setattr(exported, "_call", fails)
    assert_close(back(x), dense[0](x), "float64")
    assert back.source == "recompiled" and "Error refining shapes" in back.note


def test_without_serialised_gradients_they_are_derived_anew(dense, tmp_path):
    manifest, members = archive.read_archive(dense[1])
    inputs, tree, hypers = dense[0].program.inputs, jax.tree.structure(0), manifest["hypers"]
    original = exported.export.Exported.serialize

    def refuse(self: Any, vjp_order: int = 0) -> Any:
        if vjp_order:
            raise ValueError("Reverse-mode differentiation does not work for this")
        return original(self, vjp_order=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exported.export.Exported, "serialize", refuse)
        found, reason = exported.serialise(dense[0].functions, inputs, tree, hypers, ("cpu",))
    assert reason == "ValueError: Reverse-mode differentiation does not work for this"
    archive.write_archive(tmp_path / "net.tpk", {**manifest, "gradients": False}, members | found)
    back, x = tp.load(tmp_path / "net.tpk"), data(3, 4)
    assert back.source == "serialised"
    assert_close(back(x), dense[0](x), "float64")
    slope = [jax.grad(lambda z, k=k: k(z).ntk.sum())(x) for k in (back, dense[0])]
    assert_close(*slope, "float64")


def test_text_that_no_longer_parses_is_reported(dense, tmp_path, monkeypatch):
    manifest, members = archive.read_archive(dense[1])
    archive.write_archive(
        tmp_path / "net.tpk", manifest, {**members, "program.txt": b"tensorprog 99\n", "block.float32.jax_export": b"x"}
    )
    with pytest.raises(
        tp.ArchiveError, match=r"is of no use: the serialised functions cannot run here[\s\S]*nor its program: line 1"
    ):
        tp.load(tmp_path / "net.tpk")
