"""Which tests reach a file of the package, the quickest first:  python -m tests.mutants.of truequant/fake/sites.py

What is reached is recorded once, by all quick tests under `coverage` (about half an hour), in .cache/reach.json; `--again`
records anew. A test file stands with its tests that run a line of the file in their call, or all of them where a fixture does.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.mutants.__main__ import recorded
from tests.mutants.changes import ROOMS, ROOT
from tests.mutants.reach import Reach, preload

TABLE = ROOT / ".cache" / "reach.json"


def reaching(reach: Reach, file: str) -> list[tuple[str, int, float]]:
    """Test files that reach a file: how many of their tests do, and their seconds; the quickest on average first."""
    found: dict[str, list[float]] = {}
    for test in reach.tests(file, reach.lines.get(file, {}), float("inf")):
        found.setdefault(test.split("::")[0], []).append(reach.seconds.get(test, 0.0))
    return [(name, len(seconds), sum(seconds)) for name, seconds in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--again", action="store_true", help="record anew what the tests reach")
    options = parser.parse_args()
    file = Path(options.file)
    name = (file.resolve().relative_to(ROOT) if file.is_absolute() else file).as_posix()
    if not (ROOT / name).is_file() or Path(name).parts[:1] != ("truequant",) or Path(name).parts[1] not in ROOMS:
        sys.exit(f"'{options.file}' is no file of these rooms of truequant/: {', '.join(ROOMS)}")
    if options.again:
        TABLE.unlink(missing_ok=True)
    TABLE.parent.mkdir(exist_ok=True)
    preload()
    with tempfile.TemporaryDirectory(prefix="reach-") as folder:
        copy = Path(folder) / "tree"
        if not TABLE.exists():
            print("recording which tests reach which lines, once: about half an hour", flush=True)
            shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "out", "build"))
        reach = recorded(copy, TABLE)
    for tests, count, seconds in reaching(reach, name):
        print(f"{seconds:8.1f} s  {count:4}  {tests}")


if __name__ == "__main__":
    main()
