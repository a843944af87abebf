"""Every requirement has a wheel for each Python that is promised: the package index is asked, and nothing is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
QUIET = ("--disable-pip-version-check", "--quiet")
DRY = ("--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--use-feature=fast-deps")


def pip(python: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-m", "pip", "install", *QUIET, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment whose pip reads what a wheel says of itself without loading it whole (torch's has half a gigabyte)."""
    folder = tmp_path_factory.mktemp("pip")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    found = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if pip(found, "pip>=25.2").returncode:
        pytest.skip("no package index can be reached")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_all_requirements_have_wheels(python: Path, tmp_path: Path, version: str) -> None:
    files = [part for path in REQUIREMENTS for part in ("-r", path)]
    done = pip(python, *DRY, "--python-version", version, "--target", tmp_path / "nothing", *files)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "nothing").exists()


@pytest.mark.slow
def test_a_requirement_without_a_wheel_is_noticed(python: Path, tmp_path: Path) -> None:
    done = pip(python, *DRY, "--python-version", "3.7", "--target", tmp_path / "nothing", "numpy>=2")
    assert done.returncode != 0
    assert "No matching distribution found for numpy>=2" in done.stderr
