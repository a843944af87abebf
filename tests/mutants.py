"""How much the tests notice: small changes of the library, one at a time, and which of them turn a test red.

    python tests/mutants.py --count 100 --seed 1                       all rooms
    python tests/mutants.py --count 20 --room numerics integer         some rooms
    python tests/mutants.py --again report.json                        the survivors of an earlier `--json report.json`

The working tree is copied to a temporary folder and changed there. Lines are drawn uniformly among those that can be
changed, then one change of the line. A change that no test notices is equivalent, or it shows a test that is missing.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("numerics", "observers", "fake", "planning", "integer", "transform")
QAT, UNIT = "tests/quantization/qat", "tests/unit"
NEAREST = {
    "numerics": (f"{UNIT}/numerics",),
    "observers": (f"{QAT}/test_activation_observer.py", f"{QAT}/test_moving_average_statistics.py"),
    "fake": (f"{QAT}/test_fake_quantize.py", f"{QAT}/test_fake_quantize_layer.py", f"{QAT}/test_qat_module_wrapper.py"),
    "planning": (f"{UNIT}/planning", f"{QAT}/test_layerwise_config.py"),
    "integer": (f"{UNIT}/integer",),
    "transform": (f"{QAT}/test_model_preparation.py", f"{QAT}/test_qat_preparer.py", f"{QAT}/test_conversion.py"),
}
"""The tests that most likely notice a change of a room; all others run behind them, quick ones first."""
OTHERS = ("tests/properties", "tests/parity", "tests/attacks", QAT, UNIT)
LONG = ("tests/parity/test_coverage.py", "tests/parity/test_mnist_models.py", f"{QAT}/test_end_to_end_qat.py")
COMPILED = f"{QAT}/test_training_integration.py::test_torch_compile_gives_the_eager_results"
MEMORY = 16 * 2**30

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {"min": "max", "minimum": "maximum", "amin": "amax", "any": "all"}
NAMES |= {after: before for before, after in NAMES.items()}


@dataclass(frozen=True)
class Mutant:
    """The `index`-th change of a file. `killed_by` names the first red test, None where all were green."""

    file: str
    line: int
    index: int
    before: str = ""
    after: str = ""
    killed_by: str | None = None


class Changes(ast.NodeVisitor):
    """All changes of a module; annotations, decorators, texts, asserts and what is for type checkers have none."""

    def __init__(self, module: ast.Module) -> None:
        self.found: list[tuple[ast.expr | ast.stmt, Callable[[], None]]] = []  # what changes, and what changes it in place
        self.visit(module)

    def add(self, node: ast.expr | ast.stmt, make: Callable[[], None]) -> None:
        self.found.append((node, make))

    def visit_Raise(self, node: ast.AST) -> None:
        """Nothing: what is raised and formatted is for people, an assert for type checkers, an argument an annotation."""

    visit_JoinedStr = visit_Assert = visit_arg = visit_Raise

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        parts = [node.args] if isinstance(node, ast.FunctionDef) else []
        for part in (*parts, *node.body):
            self.visit(part)

    visit_ClassDef = visit_FunctionDef

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self.add(node, lambda: setattr(node, "value", ast.Constant(None)))
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp | ast.AugAssign | ast.BoolOp) -> None:
        other = SWAPPED.get(type(node.op))
        if other is not None:
            self.add(node, lambda: setattr(node, "op", other()))
        self.generic_visit(node)

    visit_AugAssign = visit_BoolOp = visit_BinOp

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.add(node, lambda: setattr(node, "operand", ast.UnaryOp(ast.Not(), node.operand)))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for position, op in enumerate(node.ops):
            other = SWAPPED.get(type(op))
            if other is not None:
                self.add(node, lambda at=position, other=other: node.ops.__setitem__(at, other()))  # type: ignore[misc]
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.add(node, lambda: setattr(node, "value", not value))
        elif isinstance(value, (int, float)):
            self.add(node, lambda: setattr(node, "value", value + 1))

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        if name.endswith("Error"):
            return
        if name in NAMES:
            self.add(node, lambda: setattr(function, "id" if isinstance(function, ast.Name) else "attr", NAMES[name]))
        for keyword in node.keywords:
            if keyword.arg in NAMES:
                self.add(node, lambda it=keyword: setattr(it, "arg", NAMES[it.arg or ""]))  # type: ignore[misc]
        self.generic_visit(node)


def drawn(rooms: tuple[str, ...], count: int, seed: int) -> list[Mutant]:
    """`count` mutants: lines uniformly, without repetition, and one change of each."""
    lines: dict[tuple[str, int], list[Mutant]] = {}
    for room in rooms:
        for path in sorted((ROOT / "truequant" / room).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            for index, (node, _) in enumerate(Changes(ast.parse(path.read_text())).found):
                lines.setdefault((file, node.lineno), []).append(Mutant(file, node.lineno, index))
    generator = random.Random(seed)
    chosen = generator.sample(sorted(lines), min(count, len(lines)))
    return [generator.choice(lines[line]) for line in chosen]


def mutated(source: str, mutant: Mutant) -> tuple[str, str, str]:
    """The source of a mutant, and the changed expression before and after."""
    module = ast.parse(source)
    node, make = Changes(module).found[mutant.index]
    before = ast.unparse(node)
    make()
    return ast.unparse(ast.fix_missing_locations(module)), before, ast.unparse(node)


def groups(room: str, everything: bool) -> Iterator[list[str]]:
    """Arguments of pytest, one run after the other: the nearest tests, then all others."""
    yield [*NEAREST[room], f"truequant/{room}"]
    quick = ["-m", "not slow and not emulated", *(f"--ignore={path}" for path in LONG), f"--deselect={COMPILED}"]
    yield [*OTHERS, *([] if everything else quick)]


def first_red(copy: Path, arguments: list[str], timeout: float) -> str | None:
    """The name of the first red test, None where all are green; "timeout" where they take too long."""
    shutil.rmtree(copy / ".hypothesis", ignore_errors=True)  # what one mutant failed on would be tried on the next
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY)),
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "timeout"
    red = [line.split(" - ")[0].split(" ", 1)[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return None if process.returncode == 0 else red[0] if red else f"exit status {process.returncode} of pytest"


def judged(copy: Path, mutant: Mutant, everything: bool, timeout: float) -> Mutant:
    """The mutant with what the tests say of it."""
    path = copy / mutant.file
    original = path.read_text()
    changed, before, after = mutated(original, mutant)
    path.write_text(changed)
    try:
        reds = (first_red(copy, group, timeout) for group in groups(Path(mutant.file).parts[1], everything))
        killed_by = next((red for red in reds if red is not None), None)
        return replace(mutant, before=before, after=after, killed_by=killed_by)
    finally:
        path.write_text(original)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--room", nargs="*", default=ROOMS, choices=ROOMS)
    parser.add_argument("--seconds", type=float, help="after which a run of tests counts as never ending")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file")
    parser.add_argument("--again", type=Path, help="judge the survivors of such a file again, on the same sources")
    parser.add_argument("--all", action="store_true", help="also run the slow tests")
    options = parser.parse_args()
    mutants = drawn(tuple(options.room), options.count, options.seed)
    if options.again:
        mutants = [Mutant(**m) for m in json.loads(options.again.read_text()) if m["killed_by"] is None]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "out", "build"))
        began = time.monotonic()
        for arguments in groups("numerics", options.all):
            if (red := first_red(copy, arguments, timeout=3600)) is not None:
                sys.exit(f"the tests are red without a mutant: {red}")
        timeout = options.seconds or 60 + 3 * (time.monotonic() - began)
        outcomes = []
        for number, mutant in enumerate(mutants, start=1):
            outcome = judged(copy, mutant, options.all, timeout)
            outcomes.append(outcome)
            verdict = "SURVIVED" if outcome.killed_by is None else f"killed by {outcome.killed_by}"
            print(
                f"[{number}/{len(mutants)}] {mutant.file}:{mutant.line}  {outcome.before} -> {outcome.after}  {verdict}",
                flush=True,
            )
            if options.json:
                options.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1))
    killed = sum(outcome.killed_by is not None for outcome in outcomes)
    print(f"{killed} of {len(outcomes)} mutants killed, {killed / max(1, len(outcomes)):.0%}")


if __name__ == "__main__":
    main()
