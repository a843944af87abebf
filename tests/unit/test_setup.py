"""`make` says what is wrong with an interpreter before it makes anything."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOTH = ["venv", "ensurepip"]


@pytest.fixture(scope="module")
def interpreter() -> ModuleType:
    spec = importlib.util.spec_from_file_location("interpreter", ROOT / "requirements" / "interpreter.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_oldest_python_is_the_one_that_the_package_promises(interpreter: ModuleType) -> None:
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert promised == ">={}.{}".format(*interpreter.OLDEST)


@pytest.mark.parametrize(
    ("version", "modules", "environment", "says"),
    [
        ((3, 10), BOTH, None, "Python 3.10 is too old: truequant needs 3.11 or newer\n  fix: make PYTHON=python3.12 demo"),
        ((3, 12), ["venv"], None, "Python 3.12 lacks ensurepip, and no environment can be made without\n"
         "  fix: apt-get install python3.12-venv, on Debian"),
        ((3, 13), [], None, "Python 3.13 lacks venv and ensurepip, and no environment can be made without\n"
         "  fix: apt-get install python3.13-venv, on Debian"),
        ((3, 13), BOTH, (3, 11), ".venv holds Python 3.11, and Python 3.13 was asked for\n"
         "  fix: make clean, which removes .venv"),
        ((3, 13), BOTH, (3, 13), None),
        ((3, 11), BOTH, None, None),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_interpreter(
    interpreter: ModuleType, version: object, modules: object, environment: object, says: str | None
) -> None:
    assert interpreter.unfit(version, modules, environment) == says


def test_the_version_of_an_environment(interpreter: ModuleType, tmp_path: Path) -> None:
    assert interpreter.environment_version(tmp_path) is None
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.13.0\n")
    assert interpreter.environment_version(tmp_path) == (3, 13)


def test_no_wheel_of_torch(interpreter: ModuleType) -> None:
    asked = (3, 15), "linux-x86_64", "torch==2.13.0"
    said = (
        "the package index has no wheel of torch==2.13.0 for Python 3.15 on linux-x86_64\n"
        "  fix: make PYTHON=... with another Python from 3.11 on, or another package index (pip's --index-url)"
    )
    assert interpreter.lacking_torch(*asked, "torch (2.15.0)\nAvailable versions: 2.15.0, 2.14.1\n") == said
    assert interpreter.lacking_torch(*asked, "ERROR: No matching distribution found for torch") == said
    assert interpreter.lacking_torch(*asked, "torch (2.13.0)\nAvailable versions: 2.13.0+cpu, 2.12.1\n") is None
    assert interpreter.lacking_torch(*asked, "ERROR: could not reach the index") is None
    assert interpreter.pinned_torch().startswith("torch==2.")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_stops_before_anything_is_made(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def make(python: Path | str) -> str:
        done = subprocess.run(["make", f"PYTHON={python}", "demo"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        return done.stderr

    assert make("/no/python9.9").startswith(
        "truequant cannot be set up: '/no/python9.9' is no Python 3 that runs here\n  fix: install it, or give another"
    )
    assert not (tmp_path / ".venv").exists()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").write_text("version = 3.10.2\n")
    assert "cannot be set up: .venv holds Python 3.10, and" in make(sys.executable)
    assert [path.name for path in (tmp_path / ".venv").iterdir()] == ["pyvenv.cfg"]


def test_requirements_state_each_package_once() -> None:
    files = sorted((ROOT / "requirements").glob("*.txt"))
    lines = [line for file in files for line in file.read_text().splitlines() if line and not line.startswith("#")]
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert all("==" in line for line in lines)
    assert len(names) == len(set(names))
