"""The command line against the library, its exit codes, and its errors without a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tensorprog.apps import GaussianProcess
from tensorprog.apps.command import main
from tests.apps.common import data, kernel

SOURCE = """import jax, tensorprog as tp
from tensorprog import nn

def net(x):
    h = jax.nn.relu(nn.dense(x, weight_var=tp.hyper("w", 1.5), bias_var=tp.hyper("b", 0.3)))
    return nn.dense(h, features=1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    x, y, test = data()
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("1 / 0")
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "exits.py").write_text("raise SystemExit(3)")
    (tmp_path / "words.py").write_text("def net(x):\n    return 'a'\ndef divides(x):\n    return x / (1 // 0)\n")
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:150])
    (tmp_path / "cut.tpk").write_bytes(b"PK")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "ragged.csv").write_text("1,2,3\n1,2\n")
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "nan.npy", np.full((2, 3), np.nan))
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "nothing.npy").write_bytes(b"")
    with open(tmp_path / "archive.npy", "wb") as file:
        np.savez(file, x=x)
    for name, array in (("x", x), ("y", y), ("test", test)):
        np.savetxt(tmp_path / f"{name}.csv", array, delimiter=",", fmt="%.17g")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_gram_and_predict(folder: Path) -> None:
    x, y, test = data()
    assert main(["gram", "net.py:net", "x.npy", "--get", "ntk", "--set", "w=1.2", "--out", "gram.npy"]) == 0
    np.testing.assert_allclose(np.load("gram.npy"), kernel()(x, w=1.2).ntk, atol=1e-12)
    given = ["predict", "net.py:net", "x.csv", "y.csv", "test.csv", "--noise", "0.1"]
    assert main([*given, "--out", "mean.csv", "--std", "std.npy"]) == 0
    expected = GaussianProcess(kernel(), x, y, noise=0.1).predict(test)
    np.testing.assert_allclose(np.loadtxt("mean.csv"), expected.mean, atol=1e-12)
    np.testing.assert_allclose(np.load("std.npy"), np.sqrt(np.diagonal(expected.covariance)), atol=1e-12)
    assert not list(folder.glob(".tensorprog-*"))


@pytest.mark.long
def test_predict_with_the_tangent_kernel(folder: Path) -> None:
    x, y, test = data()
    given = ["predict", "net.py:net", "x.csv", "y.csv", "test.csv", "--noise", "0.1"]
    assert main([*given, "--get", "ntk", "--out", "mean.csv", "--std", "std.npy"]) == 0
    expected = GaussianProcess(kernel(), x, y, noise=0.1, get="ntk").trained(test)  # of networks, not of a process
    np.testing.assert_allclose(np.load("std.npy"), np.sqrt(np.diagonal(expected.covariance)), atol=1e-12)


def test_derive_export_info(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["derive", "net.py:net", "--shape", "3"]) == 0
    assert capsys.readouterr().out.strip() == kernel().derivation().strip()
    assert main(["export", "net.py:net", "--shape", "3", "--platforms", "cpu", "--out", "net.tpk"]) == 0
    assert main(["gram", "net.tpk", "x.csv", "test.csv", "--out", "gram.csv"]) == 0
    x, _, test = data()
    np.testing.assert_allclose(np.loadtxt("gram.csv", delimiter=","), kernel()(x, test).nngp, atol=1e-12)
    assert main(["info", "net.tpk"]) == 0
    said = capsys.readouterr().out
    assert "hyperparameters: w=1.5, b=0.3" in said and "runs here: serialised" in said and "MatMul" in said


@pytest.mark.slow
def test_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("few.npy", data()[0][:2])
    assert (
        main(["check", "net.py:net", "few.npy", "--widths", "32", "128", "--samples", "800", "--plot", "check.png"])
        == 0
    )
    assert capsys.readouterr().out.startswith("Kernel and network agree") and Path("check.png").exists()
    assert main(["check", "net.py:net", "few.npy", "--widths", "8", "16", "--samples", "8"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("derive net.py:net", "--shape is missing"),
        ("derive net.py:net --shape 3,x", "--shape is '3,x', expected whole numbers"),
        ("derive net.py:other --shape 3", "net.py has no 'other'; functions in it: net"),
        ("derive net --shape 3", "expected FILE.py:NAME"),
        ("derive no.py:net --shape 3", "there is no file 'no.py'"),
        ("derive broken.py:net --shape 3", "broken.py cannot be run: ZeroDivisionError"),
        ("gram net.py:net x.npy --out gram.txt", "expected a .npy or .csv file"),
        ("gram net.py:net x.npy --out no/gram.npy", "there is no folder"),
        ("gram net.py:net x.txt --out gram.npy", "neither a .npy nor a .csv"),
        ("gram net.py:net pickled.npy --out gram.npy", "'pickled.npy' holds Python objects (dtype object), expected"),
        ("gram net.py:net nothing.npy --out gram.npy", "'nothing.npy' cannot be read: it is no file of one array"),
        ("gram net.py:net archive.npy --out gram.npy", "'archive.npy' cannot be read: it is no file of one array"),
        ("gram net.py:net x.npy --set w --out gram.npy", "--set has 'w', expected NAME=VALUE"),
        ("gram net.py:net x.npy --set v=1 --out gram.npy", "unknown argument 'v'"),
        ("predict net.py:net x.npy test.csv test.csv --noise 1 --out m.npy", "y has shape (5, 3), expected (12,)"),
        ("info x.npy", "load:"),
        ("derive exits.py:net --shape 3", "exits.py cannot be run: SystemExit: 3"),
        ("derive words.py:net --shape 3", "words.py:net fails: TypeError"),
        ("derive words.py:divides --shape 3", "words.py:divides fails at line 4: ZeroDivisionError"),
        ("gram net.py:net x.npy --out folder.npy", "--out is 'folder.npy', which is a folder"),
        ("gram net.py:net cut.npy --out gram.npy", "'cut.npy' cannot be read"),
        ("gram net.py:net words.npy --out gram.npy", "has dtype <U1, expected an array of real numbers"),
        ("gram net.py:net nan.npy --out gram.npy", "nan at (0, 0)"),
        ("gram net.py:net empty.csv --out gram.npy", "'empty.csv' holds no numbers"),
        ("gram net.py:net ragged.csv --out gram.npy", "at row 2\n  to mend: keep numbers alone in the file"),
        ("gram cut.tpk x.npy --out gram.npy", "'cut.tpk' is not an intact archive"),
        ("predict net.py:net x.npy y.csv test.csv --noise -1 --out m.npy", "noise is -1.0"),
        ("predict net.py:net x.npy y.csv test.csv --noise 1 --out m.npy --std s.txt", "--std is 's.txt'"),
        ("predict net.py:net x.npy y.csv test.csv --noise 1 --out m.csv --std ./m.csv", "it would replace the means"),
        ("check net.py:net x.npy --plot no/check.png", "--plot is 'no/check.png', but there is no folder"),
        ("check net.py:net x.npy --plot check.xyz", "--plot is 'check.xyz', expected a .png or"),
    ],
)
def test_errors_have_no_traceback(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    before = sorted(folder.iterdir())
    assert main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("tensorprog ") and "Traceback" not in said
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "stop", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["interrupt", "disk"]
)
def test_an_interrupted_write_leaves_what_was_there(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    Path("gram.npy").write_bytes(b"older")

    def half(path: Path, array: np.ndarray, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise stop

    monkeypatch.setattr(np, "save", half)
    before = sorted(folder.iterdir())
    code = main(["gram", "net.py:net", "x.npy", "--quiet", "--out", "gram.npy"])
    said = capsys.readouterr().err
    assert (code, "interrupted" in said) == ((130, True) if isinstance(stop, KeyboardInterrupt) else (2, False))
    assert "Traceback" not in said and Path("gram.npy").read_bytes() == b"older" and sorted(folder.iterdir()) == before


def test_help_teaches() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tensorprog.apps", "--help"], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0 and "tensorprog check net.py:net x.npy" in run.stdout
    with pytest.raises(SystemExit) as caught:
        main(["gram"])
    assert caught.value.code == 2


def test_help_of_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("derive", "gram", "predict", "check", "export", "info"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"example: tensorprog {command} net" in " ".join(capsys.readouterr().out.split())
