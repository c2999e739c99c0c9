"""The command line: derive, gram, predict, check, export, info.

Every command is a thin call of the library. Errors of a request are one message on standard error and exit code 2; 1 means that
`check` found kernel and network to differ, 3 that it could not tell.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tensorprog as tp
from tensorprog.apps.agreement import check
from tensorprog.apps.grams import Grams, precision, widened
from tensorprog.apps.posterior import GaussianProcess
from tensorprog.errors import InputError, TensorprogError

__all__ = ["main"]

DESCRIPTION = """Kernels of infinitely wide neural networks.

A network is given as FILE.py:NAME, a function of one example in a Python file (the file is run), or, where a compiled kernel will
do, as FILE.tpk, which `tensorprog export` writes. Arrays are .npy files, or .csv files without a header; the first axis counts examples.
"""
EXAMPLES = """examples:
  tensorprog derive net.py:net --shape 3
  tensorprog gram net.py:net x.npy --get ntk --out gram.npy
  tensorprog predict net.py:net x.csv y.csv test.csv --noise 0.01 --out mean.csv
  tensorprog check net.py:net x.npy --widths 64 128 256
  tensorprog export net.py:net --shape 8,8,1 --out net.tpk
  tensorprog info net.tpk

exit codes: 0 done; 1 check found that kernel and networks differ; 2 the request cannot be met, standard error says why; 3 check has too
few draws to tell
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    Example:
        >>> from tensorprog.apps.command import main
        >>> main(["info", "nowhere.tpk"])
        2
    """
    given = _parser().parse_args(arguments)
    try:
        return given.run(given)
    except TensorprogError as error:
        print(f"tensorprog {given.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"tensorprog {given.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tensorprog", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], int], text: str, *arguments: str) -> None:
        example = next(line for line in EXAMPLES.splitlines() if line.startswith(f"  tensorprog {name}"))
        sub = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:{example}\nmore: tensorprog --help",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for argument in arguments:
            names, options = ARGUMENTS[argument]
            sub.add_argument(*names, **options)
        sub.set_defaults(run=run)

    command(
        "derive", _derive, "print the derivation of a network's kernels, as Markdown with LaTeX", "net", "shape", "text"
    )
    command("gram", _gram, "compute a kernel matrix", "net", "x", "x2", "get", "set", "float32", "quiet", "out")
    command("predict", _predict, "predict by Gaussian-process regression, or with --get ntk by networks trained to the end (--noise "
            "penalises the way of their parameters)",
            "net", "x", "y", "test", "noise", "diag_reg", "get", "set", "std", "out")  # fmt: skip
    command("check", _check, "sample networks of growing width and say whether they agree with the kernel",
            "net", "x", "widths", "samples", "set", "plot")  # fmt: skip
    command("export", _export, "write a compiled kernel to a file", "net", "shape", "platforms", "tpk")
    command("info", _info, "say what a kernel file holds", "file")
    return parser


ARGUMENTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "net": (("net",), dict(help="FILE.py:NAME, or FILE.tpk")),
    "file": (("net",), dict(metavar="file", help="FILE.tpk")),
    "x": (("x",), dict(help="inputs, .npy or .csv")),
    "x2": (("x2",), dict(nargs="?", help="other inputs; without them the matrix of x with itself")),
    "y": (("y",), dict(help="targets of the inputs, .npy or .csv")),
    "test": (("test",), dict(help="inputs to predict at, .npy or .csv")),
    "shape": (("--shape",), dict(help="of one example, as 8,8,1; a .tpk file knows its own")),
    "get": (("--get",), dict(choices=("nngp", "ntk"), default="nngp", help="which kernel (default: nngp)")),
    "set": (("--set",), dict(nargs="+", default=[], metavar="NAME=VALUE", help="hyperparameters")),
    "float32": (("--float32",), dict(action="store_true", help="compute in float32 (default: float64)")),
    "quiet": (("--quiet",), dict(action="store_true", help="no progress bar")),
    "noise": (("--noise",), dict(type=float, required=True, help="the variance of the noise in y")),
    "diag_reg": (("--diag-reg",), dict(type=float, default=0.0, help="added to the diagonal, as a multiple of its mean")),
    "std": (("--std",), dict(metavar="FILE", help="also write standard deviations here: of the posterior, or with --get ntk "
                "of trained networks over their initialisations")),
    "widths": (("--widths",), dict(nargs="+", type=int, help="growing (default: up to 512, as far as the work allows)")),
    "samples": (("--samples",), dict(type=int, default=256, help="networks at the largest width (default: 256)")),
    "plot": (("--plot",), dict(metavar="FILE.png", help="also draw the distances over the width")),
    "platforms": (("--platforms",), dict(nargs="+", default=["cpu", "cuda"], help="(default: cpu cuda)")),
    "out": (("--out", "-o"), dict(required=True, help="file to write, .npy or .csv")),
    "text": (("--out", "-o"), dict(help="file to write; without it the text is printed")),
    "tpk": (("--out", "-o"), dict(required=True, help="file to write, by custom FILE.tpk")),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- commands


def _derive(given: Any) -> int:
    text = _kernel(given.net, _shape(given.shape)).derivation()
    if given.out:
        _replace(given.out, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    else:
        print(text)
    return 0


def _gram(given: Any) -> int:
    _writable(given.out)
    x, x2 = _read(given.x), None if given.x2 is None else _read(given.x2)
    kernel, dtype = _kernel(given.net, x.shape[1:]), np.float32 if given.float32 else np.float64
    show = not given.quiet and sys.stderr.isatty()
    with precision(dtype):
        second = None if x2 is None else widened(x2, dtype)
        found = kernel(widened(x, dtype), second, get=given.get, progress=show, **_hypers(given.set))
        _write(given.out, np.asarray(found))
    return 0


def _predict(given: Any) -> int:
    _writable(given.out)
    if given.std:
        _writable(given.std, "--std")
        if Path(given.std).absolute() == Path(given.out).absolute():
            raise InputError(
                f"--std is {given.std!r}, and --out too: expected another file, or it would replace the means"
            )
    x, y, test = _read(given.x), _read(given.y), _read(given.test)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y  # a column of a .csv file
    options = dict(noise=given.noise, diag_reg=given.diag_reg, get=given.get)
    process = GaussianProcess(_kernel(given.net, x.shape[1:]), x, y, **options, **_hypers(given.set))
    if given.std is None:
        _write(given.out, process.mean(test))
        return 0
    found = process.trained(test) if given.get == "ntk" else process.predict(test)
    covariance = Grams(lambda *_, **__: [found.covariance], {})("", test)
    _write(given.out, found.mean)
    _write(given.std, np.sqrt(np.clip(np.diagonal(covariance), 0, None)))
    return 0


def _check(given: Any) -> int:
    if given.plot:
        _writable(given.plot, "--plot", (".png", ".svg", ".pdf"))
    x = _read(given.x)
    kernel = _kernel(given.net, x.shape[1:])
    found = check(kernel, x, given.widths, samples=given.samples, **_hypers(given.set))
    if given.plot:
        _replace(given.plot, found.plot)
    print(found)
    return {True: 0, False: 1, None: 3}[found.agrees]


def _export(given: Any) -> int:
    kernel = _kernel(given.net, _shape(given.shape))
    if not isinstance(kernel, tp.Kernel):
        raise InputError(f"{given.net} is exported already")
    kernel.export(given.out, platforms=tuple(given.platforms))
    return 0


def _info(given: Any) -> int:
    kernel = tp.load(given.net)
    manifest = kernel.manifest
    inputs = ", ".join(f"{i['name']}: {tuple(i['shape'])} {i['dtype']}" for i in manifest["inputs"])
    print(f"kernel of a network on {inputs}")
    if isinstance(kernel, tp.LoadedJoint):
        print("outputs: " + ", ".join(f"{o.label} ({o.kind}, {o.shape})" for o in kernel.outputs))
    else:
        print(f"output axes: {tuple(manifest['output_axes'])}")
    print("hyperparameters: " + (", ".join(f"{k}={v:g}" for k, v in kernel.hypers.items()) or "none"))
    print(
        f"written by tensorprog {manifest['tensorprog']} with JAX {manifest['jax']} for {', '.join(manifest['platforms'])}"
    )
    print(f"runs here: {kernel.source}" + (f", because {kernel.note}" if kernel.note else ""))
    for program in [o.program for o in kernel.outputs] if isinstance(kernel, tp.LoadedJoint) else [kernel.program]:
        print(f"\n{program}")
    return 0


# ---------------------------------------------------------------------------------------------- arguments


def _kernel(name: str, shape: tuple[int, ...] | None) -> Any:
    if name.endswith(".tpk"):
        loaded = tp.load(name)
        if isinstance(loaded, tp.LoadedJoint):
            raise InputError(
                f"{name} holds the kernels of several outputs, expected those of one: use it from Python, by tp.load"
            )
        return loaded
    file, colon, attribute = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise InputError(f"net is {name!r}, expected FILE.py:NAME, as net.py:net, or FILE.tpk")
    if not Path(file).is_file():
        raise InputError(f"net is {name!r}, but there is no file {file!r}")
    if shape is None:
        raise InputError("--shape is missing: give the shape of one example, as --shape 3 or --shape 8,8,1")
    try:
        found = runpy.run_path(file)
    except (Exception, SystemExit) as error:
        raise InputError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    if attribute not in found:
        names = ", ".join(k for k, v in found.items() if callable(v) and not k.startswith("_")) or "none"
        raise InputError(f"{file} has no {attribute!r}; functions in it: {names}")
    try:
        return tp.compile(found[attribute], np.zeros(shape))
    except (TensorprogError, MemoryError):
        raise
    except Exception as error:  # of the network's own code, of which a line is enough
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        where = f" at line {frames[-1].lineno}" if frames else ""
        raise InputError(f"{name} fails{where}: {type(error).__name__}: {str(error).splitlines()[0]}") from error


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        shape = (-1,)
    if any(size < 1 for size in shape):
        raise InputError(f"--shape is {text!r}, expected whole numbers, as 3 or 8,8,1")
    return shape


def _hypers(pairs: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            raise InputError(f"--set has {pair!r}, expected NAME=VALUE with a number, as weight_var=1.5") from None
    return values


def _read(path: str) -> np.ndarray:
    try:
        if path.endswith(".npy"):
            array = _read_npy(path)
        elif path.endswith(".csv"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a file without numbers, which is an error below
                array = np.loadtxt(path, delimiter=",", ndmin=2)
            if not array.size:
                raise InputError(f"{path!r} holds no numbers")
        else:
            raise InputError(f"{path!r} is neither a .npy nor a .csv file")
    except FileNotFoundError:
        raise InputError(f"there is no file {path!r}") from None
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).split("; use `usecols`")[0]
        mend = (
            "\n  to mend: keep numbers alone in the file, one example a line, without a header"
            if path.endswith(".csv")
            else ""
        )
        raise InputError(f"{path!r} cannot be read: {reason}{mend}") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path!r} has dtype {array.dtype}, expected an array of real numbers")
    if array.ndim == 0:
        raise InputError(f"{path!r} holds one number, expected an array whose first axis counts examples")
    return array


def _read_npy(path: str) -> np.ndarray:
    """An array as `numpy.save` writes it. The header says whether it holds Python objects, which are never unpickled."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
        except ValueError:
            raise InputError(
                f"{path!r} cannot be read: it is no file of one array as numpy.save writes them\n"
                "  to mend: numpy.save('x.npy', array)"
            ) from None
        if version not in headers:
            raise InputError(
                f"{path!r} cannot be read: its format is {version}, expected an array of plain numbers, whose is (1, 0)"
            )
        dtype = headers[version](file)[2]
        if dtype.hasobject:
            raise InputError(
                f"{path!r} holds Python objects (dtype {dtype}), expected an array of real numbers\n"
                "  to mend: numpy.save('x.npy', numpy.asarray(array, float))"
            )
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _writable(path: str, option: str = "--out", endings: tuple[str, ...] = (".npy", ".csv")) -> None:
    """Refuse before the work what could not be written after it."""
    target = Path(path).absolute()
    if not path.endswith(endings):
        raise InputError(f"{option} is {path!r}, expected a {' or '.join(endings)} file")
    if not target.parent.is_dir():
        raise InputError(f"{option} is {path!r}, but there is no folder {str(target.parent)!r}")
    if target.is_dir():
        raise InputError(f"{option} is {path!r}, which is a folder")


def _write(path: str, array: np.ndarray) -> None:
    if path.endswith(".csv"):
        flat = array.reshape(len(array), -1)
        _replace(path, lambda part: np.savetxt(part, flat, delimiter=",", fmt="%.17g"))
    else:
        _replace(path, lambda part: np.save(part, array, allow_pickle=False))


def _replace(path: str, write: Callable[[Path], Any]) -> None:
    """Write beside the file and put it in place in one step, so that nothing is ever half written."""
    target = Path(path).absolute()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tensorprog-") as folder:
            part = Path(folder) / target.name
            write(part)
            part.replace(target)
    except OSError as error:
        raise InputError(f"{path!r} cannot be written: {error.strerror or error}") from None
