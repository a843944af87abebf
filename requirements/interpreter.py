"""What keeps `make` from setting up `.venv` with this interpreter, said before anything is made.

    python3.13 requirements/interpreter.py             # too old, without venv, or not the one that .venv holds?
    .venv/bin/python requirements/interpreter.py torch # why was torch not installed?

Runs on interpreters that are too old for the package, and without any package.
"""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
"""As `requires-python` of pyproject.toml says; a test holds them together."""


def unfit(version, modules, environment):
    """Why `.venv` cannot be made, or None. version: of this interpreter. modules: which of its own it has.

    environment: the version that .venv was made with, None where there is none.
    """
    name = "Python {}.{}".format(*version)
    if version < OLDEST:
        return "{} is too old: truequant needs {}.{} or newer\n  fix: make PYTHON=python3.12 demo".format(name, *OLDEST)
    missing = [module for module in ("venv", "ensurepip") if module not in modules]
    if missing:
        return (
            f"{name} lacks {' and '.join(missing)}, and no environment can be made without\n"
            f"  fix: apt-get install python{version[0]}.{version[1]}-venv, on Debian"
        )
    if environment is not None and environment != version:
        return ".venv holds Python {}.{}, and {} was asked for\n  fix: make clean, which removes .venv".format(
            *environment, name
        )
    return None


def environment_version(folder):
    """Of the interpreter that an environment was made with: (3, 11); None where there is no environment."""
    path = folder / "pyvenv.cfg"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for key, _, value in (line.partition("=") for line in lines):
        if key.strip() == "version":
            return tuple(int(part) for part in value.strip().split(".")[:2])
    return None


def pinned_torch():
    """The requirement that requirements/package.txt states: "torch==…"."""
    lines = (ROOT / "requirements" / "package.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def lacking_torch(version, platform, torch, answer):
    """Why torch was not installed, by the answer of `pip index versions torch`; None where it has a wheel, or did not answer.

    The answer names the versions that have a wheel for this interpreter here. (`pip install --dry-run` would download it.)
    """
    found = [line.partition(":")[2] for line in answer.splitlines() if line.startswith("Available versions:")]
    versions = [each.strip().partition("+")[0] for each in found[0].split(",")] if found else []
    if torch.partition("==")[2] in versions or not (found or "No matching distribution" in answer):
        return None
    return (
        f"the package index has no wheel of {torch} for Python {version[0]}.{version[1]} on {platform}\n"
        "  fix: make PYTHON=... with another Python from 3.11 on, or another package index (pip's --index-url)"
    )


def main(arguments):
    version = sys.version_info[:2]
    if arguments == ["torch"]:
        torch = pinned_torch()
        command = [sys.executable, "-m", "pip", "index", "versions", "--only-binary=:all:", "torch"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        reason = lacking_torch(version, sysconfig.get_platform(), torch, done.stdout)
    else:
        modules = [module for module in ("venv", "ensurepip") if importlib.util.find_spec(module)]
        reason = unfit(version, modules, environment_version(ROOT / ".venv"))
    if reason is not None:
        sys.exit(f"truequant cannot be set up: {reason}")


if __name__ == "__main__":
    main(sys.argv[1:])
