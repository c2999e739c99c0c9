"""The project's own rules, and canaries: each check of the tool chain is shown a fault that it must report.

A check whose configuration is misspelt passes everything; only a failure that is expected can tell.
"""

from __future__ import annotations

import ast
import email
import importlib.util
import itertools
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tensorprog", "ntk_rules")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
LOCKS = sorted((ROOT / "requirements").glob("lock-*.txt"))
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# JAX's private parts change without notice; unpickling runs whatever a file says.
FORBIDDEN_IMPORTS = ("jax._src", "jax.interpreters", "pickle", "cloudpickle", "dill", "joblib", "shelve")


def needs(module: str) -> pytest.MarkDecorator:
    """Skip where a development tool is not installed; never in CI, where a check must not vanish unseen."""
    absent = importlib.util.find_spec(module) is None and not os.environ.get("CI")
    return pytest.mark.skipif(absent, reason=f"{module} is not installed; it comes with the extra `dev`")


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in a folder, the folder's packages before those of the project."""
    environment = {**os.environ, "PYTHONPATH": str(cwd), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def copy_config(folder: Path) -> None:
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")


# ---- types


FAULTS = {
    "arg-type": "len(3)",
    "return-value": "def wrong() -> int:\n    return 'a'",
    "no-untyped-def": "def bare(x):\n    return x",
    "attr-defined": "import ntk_rules\nntk_rules.no_such_name",
    "import-not-found": "import numpyy",
}


@needs("mypy")
def test_mypy_reports_faults_in_both_packages(tmp_path: Path) -> None:
    copy_config(tmp_path)
    for package in PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
        (tmp_path / package / "sound.py").write_text("def double(x: float) -> float:\n    return 2 * x\n")
        for code, source in FAULTS.items():
            (tmp_path / package / f"{code.replace('-', '_')}.py").write_text(source + "\n")
    run = python("-m", "mypy", "--no-incremental", cwd=tmp_path)
    assert run.returncode == 1, run.stdout + run.stderr
    reported = set(re.findall(r"^(.+?):\d+: error: .*\[(.+)\]$", run.stdout, flags=re.MULTILINE))
    expected = {(f"{package}{os.sep}{code.replace('-', '_')}.py", code) for package in PACKAGES for code in FAULTS}
    # the engine's local functions need no annotations: pyproject.toml says why
    assert reported == expected - {(f"ntk_rules{os.sep}no_untyped_def.py", "no-untyped-def")}


def test_mypy_exempts_only_libraries_that_need_it() -> None:
    settings = PYPROJECT["tool"]["mypy"]
    exempt = [
        name for section in settings["overrides"] if "ignore_missing_imports" in section for name in section["module"]
    ]
    assert not any("ignore_errors" in section for section in (settings, *settings["overrides"]))
    for name in exempt:
        library = name.removesuffix(".*")
        spec = importlib.util.find_spec(library)
        assert spec is not None and spec.origin is not None, f"no library is called {library}"
        assert not Path(spec.origin).with_name("py.typed").exists(), f"{library} ships types: end its exemption"


# ---- the import contract


CONTRACTS = PYPROJECT["tool"]["importlinter"]["contracts"]
LAYERS = [re.split(r"\s*[|:]\s*", layer.strip("()")) for layer in CONTRACTS[0]["layers"]]
NEIGHBOURS = list(itertools.pairwise(layer[0] for layer in LAYERS))


def stub_packages(folder: Path) -> None:
    """Empty modules of the layers' names, under the project's own contract."""
    copy_config(folder)
    names = ["tensorprog", "ntk_rules", *(f"tensorprog/{name}" for layer in LAYERS for name in layer)]
    for name in names:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("")


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return python(str(Path(sys.executable).with_name("lint-imports")), "--no-cache", cwd=folder)


@needs("importlinter")
def test_contract_allows_downward_imports(tmp_path: Path) -> None:
    stub_packages(tmp_path)
    for upper, lower in NEIGHBOURS:
        source = f"import ntk_rules\nimport tensorprog.{lower}\n"
        (tmp_path / "tensorprog" / upper / "__init__.py").write_text(source)
    run = lint_imports(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr


@needs("importlinter")
@pytest.mark.parametrize(
    ("module", "imported", "contract"),
    [
        *((f"tensorprog/{lower}", f"tensorprog.{upper}", 0) for upper, lower in NEIGHBOURS),
        ("tensorprog/frontend", "tensorprog.passes", 0),
        ("tensorprog/lower", "tensorprog.nn", 1),
        ("ntk_rules", "tensorprog.errors", 2),
    ],
)
def test_contract_refuses(tmp_path: Path, module: str, imported: str, contract: int) -> None:
    stub_packages(tmp_path)
    (tmp_path / module / "__init__.py").write_text(f"import {imported}\n")
    run = lint_imports(tmp_path)
    assert run.returncode == 1 and f"{CONTRACTS[contract]['name']} BROKEN" in run.stdout, run.stdout + run.stderr


@needs("importlinter")
def test_contract_refuses_a_module_without_a_layer(tmp_path: Path) -> None:
    stub_packages(tmp_path)
    (tmp_path / "tensorprog" / "stray.py").write_text("")
    run = lint_imports(tmp_path)
    assert run.returncode == 1 and "stray" in run.stdout + run.stderr, run.stdout + run.stderr


# ---- pytest


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("import warnings\ndef test(): warnings.warn('drifting', UserWarning)", "UserWarning: drifting"),
        ("import warnings\ndef test(): warnings.warn('old', DeprecationWarning)", "DeprecationWarning: old"),
        ("import pytest\n@pytest.mark.slwo\ndef test(): pass", "'slwo' not found in `markers`"),
        ("import pytest\n@pytest.mark.xfail\ndef test(): pass", "XPASS(strict)"),
    ],
)
def test_pytest_is_strict(tmp_path: Path, body: str, complaint: str) -> None:
    copy_config(tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_canary.py").write_text(body + "\n")
    run = python("-m", "pytest", "-p", "no:cacheprovider", cwd=tmp_path)
    assert run.returncode in (1, 2) and complaint in run.stdout, run.stdout + run.stderr


def test_pytest_leaves_long_and_slow_tests_out(tmp_path: Path) -> None:
    copy_config(tmp_path)
    (tmp_path / "tests").mkdir()
    marked = "".join(f"@pytest.mark.{mark}\ndef test_{mark}(): pass\n" for mark in ("long", "slow"))
    (tmp_path / "tests" / "test_canary.py").write_text(f"import pytest\n{marked}def test_short(): pass\n")
    for choice, name in (((), "short"), (("-m", "long"), "long"), (("-m", "slow"), "slow")):
        run = python("-m", "pytest", "-p", "no:cacheprovider", "-rp", *choice, cwd=tmp_path)
        assert "1 passed, 2 deselected" in run.stdout and f"::test_{name}\n" in run.stdout, run.stdout


# ---- locks and package


def requirements(extras: set[str]) -> Iterator[Requirement]:
    """The project's requirements with these extras, the extras that name the project itself expanded."""
    texts = list(PROJECT["dependencies"])
    texts += [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    for requirement in map(Requirement, texts):
        if requirement.name == PROJECT["name"]:
            yield from requirements(requirement.extras)
        else:
            yield requirement


def test_a_lock_for_every_supported_python() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    versions = [f"3.{minor}" for minor in range(8, 30) if f"3.{minor}" in supported]
    assert [path.stem.removeprefix("lock-") for path in LOCKS] == versions
    named = [
        c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if c.startswith("Programming Language :: Python :: 3.")
    ]
    assert named == versions


def test_locks_were_made_from_these_requirements() -> None:
    run = python(str(ROOT / "requirements" / "lock.py"), "--check", cwd=ROOT)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_lock_holds_pins_alone_and_meets_every_requirement(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[a-z0-9.+!]+", line)] == []
    pins = {pin.name: next(iter(pin.specifier)).version for pin in map(Requirement, lines)}
    assert len(pins) == len(lines)
    python_version = path.stem.removeprefix("lock-")
    asked = [
        *requirements(set(PROJECT["optional-dependencies"])),
        *map(Requirement, PYPROJECT["build-system"]["requires"]),
    ]
    for requirement in asked:
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python_version}):
            pin = pins.get(canonicalize_name(requirement.name))
            assert pin is not None and requirement.specifier.contains(pin), f"{requirement} but the lock has {pin}"


@needs("build")
@needs("hatchling")
def test_wheel_holds_the_two_packages_and_their_types(tmp_path: Path) -> None:
    run = python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT), cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        header = email.message_from_bytes(archive.read(metadata))
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert {str(path.relative_to(ROOT)) for path in MODULES} <= set(names)
    assert header["License-Expression"] == "Apache-2.0"


# ---- the source


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module or name that a file imports, dotted; relative imports stay within the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden(source: str) -> list[str]:
    """What a file imports and must not, by statement or spelt out as an attribute (jax.interpreters.ad)."""
    tree = ast.parse(source)
    names = {
        *imports(tree),
        *(ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)),
    }
    return sorted(name for name in names if any(f"{name}.".startswith(f"{bad}.") for bad in FORBIDDEN_IMPORTS))


def test_forbidden_imports_are_seen() -> None:
    lines = [
        "import pickle",
        "from jax import interpreters, numpy",
        "from jax._src.core import Jaxpr",
        "import jax",
        "jax.interpreters.ad",
    ]
    seen = ["jax._src.core.Jaxpr", "jax.interpreters", "jax.interpreters.ad", "pickle"]
    assert forbidden("\n".join(lines)) == seen
    assert forbidden("import jax.extend.core\nimport picklescope\nfrom jax import interpreters_of\n") == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_has_a_docstring_and_no_forbidden_import(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert (ast.get_docstring(ast.parse(source)) or "").strip(), "a file opens with what it is for"
    assert forbidden(source) == []


def test_every_folder_is_a_package() -> None:
    """Else the import contract and mypy would pass over it unseen."""
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PACKAGES)
    folders = {path.parent for path in MODULES}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
