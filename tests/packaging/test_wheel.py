"""The package as others get it: an sdist that builds without a compiler, and the wheel in an environment of its own."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, where: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=where,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From the repository to an sdist, from the sdist to a wheel, where no compiler works."""
    folder = tmp_path_factory.mktemp("dist")
    made = run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT, where=folder)
    assert made.returncode == 0, made.stderr[-3000:]
    (sdist,) = folder.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation")
    built = run(*pip, "--wheel-dir", folder, sdist, where=folder, CC="false", CXX="false")
    assert built.returncode == 0, built.stderr[-3000:]
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, and torch and the rest from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("clean")
    assert run(sys.executable, "-m", "venv", "--without-pip", folder / "env", where=folder).returncode == 0
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "env")
    installed = run(*pip, "install", "--no-deps", "--ignore-installed", wheel, where=folder)
    assert installed.returncode == 0, installed.stderr[-3000:]
    return folder / "env" / "bin"


def small_mnist(folder: Path) -> None:
    """Four idx files of the first images."""
    folder.mkdir()
    for part, count in (("train", 600), ("t10k", 100)):
        for kind, rank, size in (("images-idx3", 3, 28 * 28), ("labels-idx1", 1, 1)):
            content = gzip.decompress((ROOT / "data" / "mnist" / f"{part}-{kind}-ubyte.gz").read_bytes())
            head = content[:4] + count.to_bytes(4, "big") + content[8 : 4 + 4 * rank]
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + content[4 + 4 * rank :][: count * size])


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"truequant/py.typed", "truequant/__init__.py", "truequant/cli/commands/train.py"} <= set(names)
    assert {name.split("/")[0] for name in names if not name.startswith("truequant-")} == {"truequant"}
    assert not [name for name in names if name.endswith((".gz", ".so"))]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


@pytest.mark.slow
def test_the_installed_commands_work_anywhere(environment: Path, tmp_path: Path) -> None:
    code = "import truequant; print(truequant.__file__)"
    place = run(environment / "python", "-c", code, where=tmp_path)
    assert str(environment.parent) in place.stdout, place.stderr

    timed = run(
        environment / "truequant", "benchmark", "truequant.demo:mlp", "--input", "4x1x28x28", "--rounds", "1", where=tmp_path
    )
    assert (timed.returncode, "quantization-aware" in timed.stdout) == (0, True), timed.stderr

    without = run(environment / "truequant", "demo", where=tmp_path)
    assert without.returncode == 2
    assert "MNIST was not found: installed packages come without it" in without.stderr
    assert "--data DIR" in without.stderr

    small_mnist(tmp_path / "small")
    short = ["--model", "mlp", "--float-epochs", "1", "--qat-epochs", "1", "--json"]
    done = run(environment / "truequant", "demo", "--data", "small", *short, where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["codes_different"] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.tq", "model.onnx", "result.json", "curves.png"}

    code = "from pathlib import Path; from truequant.demo import load_mnist; print(load_mnist(Path(r'{}')).genuine)"
    found = run(environment / "python", "-c", code.format(ROOT / "data" / "mnist"), where=tmp_path)
    assert found.stdout == "True\n", found.stderr
