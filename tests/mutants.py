"""How good the tests are: break the library in one place at a time and see whether they notice.

    python tests/mutants.py --count 100 --seed 1 [--room numerics …]

Works in a copy of the tree. A mutant that makes a test run time out counts as noticed. Survivors are printed: some cannot be
told apart from the original (they change speed, or a message), the others are holes in the tests.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("numerics", "observers", "fake", "planning", "integer", "transform")
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any"}
QUICK = ["tests/quantization/qat", "tests/parity", "tests/properties"]
LEFT_OUT = [
    f"--ignore=tests/{path}"
    for path in ("quantization/qat/test_end_to_end_qat.py", "parity/test_mnist_models.py", "parity/test_coverage.py")
]


@dataclass(frozen=True)
class Mutant:
    path: Path
    line: int
    text: str
    source: str


class _Sites(ast.NodeVisitor):
    """Places to break: not in messages of errors, annotations, decorators, docstrings or `__all__`."""

    def __init__(self) -> None:
        self.found: list[ast.AST] = []

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, (ast.Raise, ast.Assert, ast.Import, ast.ImportFrom)):
            return
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            for child in node.body:
                self.visit(child)
            return
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.visit(node.value)
            return
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return
        if isinstance(node, (ast.BinOp, ast.Compare, ast.BoolOp)) or (
            isinstance(node, ast.Constant) and isinstance(node.value, (int, bool))
        ):
            self.found.append(node)
        if isinstance(node, ast.Name) and node.id in NAMES:
            self.found.append(node)
        if isinstance(node, ast.Attribute) and node.attr in NAMES:
            self.found.append(node)
        self.generic_visit(node)


def _broken(node: ast.AST) -> bool:
    """Break a node in place; whether it could be."""
    if (isinstance(node, ast.BinOp) and type(node.op) in SWAPS) or isinstance(node, ast.BoolOp):
        node.op = SWAPS[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()  # type: ignore[assignment, call-overload]
    elif isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else int(node.value) + 1  # type: ignore[arg-type]
    elif isinstance(node, ast.Name):
        node.id = NAMES[node.id]
    elif isinstance(node, ast.Attribute):
        node.attr = NAMES[node.attr]
    else:
        return False
    return True


def mutants(tree: Path, rooms: tuple[str, ...], seed: int) -> Iterator[Mutant]:
    """Mutants without end, each place of the rooms as likely as every other."""
    chosen = random.Random(seed)
    places = []
    for room in rooms:
        for path in sorted((tree / "truequant" / room).glob("*.py")):
            if path.name != "__init__.py":
                sites = _Sites()
                sites.visit(ast.parse(path.read_text()))
                places += [(path, i) for i in range(len(sites.found))]
    while True:
        path, index = chosen.choice(places)
        parsed = ast.parse(path.read_text())
        sites = _Sites()
        sites.visit(parsed)
        node = sites.found[index]
        before = ast.unparse(node)
        if _broken(node):
            text = f"{before}  ->  {ast.unparse(node)}"
            yield Mutant(path.relative_to(tree), getattr(node, "lineno", 0), text, ast.unparse(parsed))


def noticed(tree: Path, room: str, seconds: int) -> str | None:
    """The first group of tests that fails in `tree`, or None."""
    groups = [[f"tests/unit/{room}", f"truequant/{room}"], *([g] for g in QUICK), ["tests/unit"]]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    options = ["-x", "-q", "-m", "not slow and not emulated", "-p", "no:cacheprovider", *LEFT_OUT]
    for group in groups:
        there = [g for g in group if (tree / g).exists()]
        try:
            command = [sys.executable, "-m", "pytest", *options, *there]
            done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"{group[0]} (no end)"
        if done.returncode not in (0, 5):
            return group[0]
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--room", nargs="*", default=ROOMS, choices=ROOMS)
    parser.add_argument("--seconds", type=int, default=300, help="after which a group of tests counts as never ending")
    options = parser.parse_args()
    killed, tried = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".venv", ".git", "out", "*_cache", "__pycache__"))
        for mutant in mutants(tree, tuple(options.room), options.seed):
            if tried == options.count:
                break
            tried += 1
            target, original = tree / mutant.path, (tree / mutant.path).read_text()
            target.write_text(mutant.source)
            by = noticed(tree, mutant.path.parts[1], options.seconds)
            target.write_text(original)
            killed += by is not None
            print(f"{mutant.path}:{mutant.line}  {mutant.text}  {f'noticed by {by}' if by else 'SURVIVED'}", flush=True)
    print(f"{killed} of {tried} noticed ({killed / max(1, tried):.0%})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
