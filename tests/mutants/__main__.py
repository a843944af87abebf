"""How much the tests notice: small changes of the library, one at a time, and which of them turn a test red.

    python -m tests.mutants --count 100 --seed 1                       all rooms
    python -m tests.mutants --count 20 --room numerics integer         some rooms
    python -m tests.mutants --again report.json                        the survivors of an earlier `--json report.json`
    python -m tests.mutants --again report.json --tests tests/parity/test_ranks.py      … by tests that are slow

The working tree is copied to a temporary folder and changed there. Lines are drawn uniformly among those that can be
changed, then one change of the line. Each mutant meets the quick tests that reach its line (recorded with `coverage` by
a first run of all of them), the quickest first. A change that no test notices is equivalent, or a test is missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from tests.mutants.changes import ROOMS, ROOT, Mutant, drawn, mutated, statement
from tests.mutants.reach import QAT, QUICK, UNIT, Reach, in_child, preload, record, run

NEAREST = {
    "numerics": (f"{UNIT}/numerics",),
    "observers": (
        f"{UNIT}/observers",
        f"{QAT}/test_activation_observer.py",
        f"{QAT}/test_moving_average_statistics.py",
    ),
    "fake": (
        f"{UNIT}/fake",
        f"{QAT}/test_fake_quantize.py",
        f"{QAT}/test_qat_module_wrapper.py",
    ),
    "planning": (
        f"{UNIT}/planning",
        f"{QAT}/test_layerwise_config.py",
    ),
    "integer": (
        f"{UNIT}/integer",
        f"{QAT}/test_conversion.py",
    ),
    "transform": (
        f"{QAT}/test_model_preparation.py",
        f"{QAT}/test_qat_preparer.py",
        f"{QAT}/test_conversion.py",
    ),
}
"""Which tests come first for a line that runs when its module is imported."""


def recorded(copy: Path, table: Path) -> Reach:
    """Which tests reach which lines: from a file, which is written where it is missing."""
    table = table.resolve()
    if not table.exists() and (red := in_child(copy, lambda: record(copy, table), timeout=7200)):
        sys.exit(f"the tests are red without a mutant: {red}")
    return Reach.load(table)


def chosen(mutant: Mutant, source: str, reach: Reach, longest: float) -> list[str]:
    """The tests that reach a mutant's line; [] where none does."""
    lines = statement(source, mutant.line)
    tests = reach.tests(mutant.file, lines, longest)
    if tests or not reach.reached(mutant.file, lines):
        return tests
    every = [test for test, seconds in reach.seconds.items() if seconds <= longest]  # it runs when its module is imported
    near = [test for test in every if test.startswith(NEAREST[mutant.room])]
    return [*near, *sorted(set(every) - set(near))]


def judged(copy: Path, mutant: Mutant, tests: list[str], timeout: float) -> Mutant:
    """The mutant with what the tests, by name or whole files of them, say of it."""
    path = copy / mutant.file
    original = path.read_text()
    changed, before, after = mutated(original, mutant)
    named = [test for test in tests if "::" in test]
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    path.write_text(changed)
    try:
        red = in_child(copy, lambda: run([*files, *QUICK] if named else files, named or None), timeout) if tests else ""
        return replace(mutant, before=before, after=after, killed_by=red or None, tests=len(tests))
    finally:
        path.write_text(original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--room", nargs="*", default=ROOMS, choices=ROOMS)
    parser.add_argument("--seconds", type=float, default=900, help="after which a run of tests counts as never ending")
    parser.add_argument("--longest", type=float, default=2.0, help="seconds of the longest tests that are run")
    parser.add_argument("--tests", nargs="*", default=[], help="run these instead, slow ones and those in processes too")
    parser.add_argument("--reach", type=Path, help="read from this file which tests reach which lines; written where missing")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file; what it holds is not run again")
    parser.add_argument("--again", type=Path, help="judge the survivors of such a file again, on the same sources")
    options = parser.parse_args()
    mutants = drawn(tuple(options.room), options.count, options.seed)
    if options.again:
        mutants = [Mutant(**m) for m in json.loads(options.again.read_text()) if m["killed_by"] is None]
    preload()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "out", "build"))
        reach = Reach() if options.tests else recorded(copy, options.reach or Path(folder) / "reach.json")
        known = {}
        if options.json and options.json.exists():
            known = {(m["file"], m["line"], m["index"]): Mutant(**m) for m in json.loads(options.json.read_text())}
        outcomes = []
        for number, mutant in enumerate(mutants, start=1):
            outcome = known.get((mutant.file, mutant.line, mutant.index))
            tests = options.tests or chosen(mutant, (copy / mutant.file).read_text(), reach, options.longest)
            outcome = outcome or judged(copy, mutant, tests, options.seconds)
            outcomes.append(outcome)
            verdict = "SURVIVED" if outcome.killed_by is None else f"killed by {outcome.killed_by}"
            change = f"{outcome.before} -> {outcome.after}"
            print(f"[{number}/{len(mutants)}] {mutant.file}:{mutant.line}  {change}  {verdict} of {outcome.tests}", flush=True)
            if options.json:
                options.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    killed = sum(outcome.killed_by is not None for outcome in outcomes)
    print(f"{killed} of {len(outcomes)} mutants killed, {killed / max(1, len(outcomes)):.0%}")


if __name__ == "__main__":
    main()
