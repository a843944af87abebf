"""Small changes of a source file: what can be changed in it, and what it is then."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("numerics", "observers", "fake", "planning", "integer", "transform")

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {"min": "max", "minimum": "maximum", "amin": "amax", "any": "all"}
NAMES |= {after: before for before, after in NAMES.items()}


@dataclass(frozen=True)
class Mutant:
    """The `index`-th change of a file. `killed_by` names the first red test of `tests`, None where all were green."""

    file: str
    line: int
    index: int
    before: str = ""
    after: str = ""
    killed_by: str | None = None
    tests: int = 0

    @property
    def room(self) -> str:
        return Path(self.file).parts[1]


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


def statement(source: str, line: int) -> range:
    """The lines of the smallest statement around a line; of a compound one, its head alone."""
    found = range(line, line + 1)
    smallest = 10**9
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            inner = getattr(node, "body", None)
            end = (
                inner[0].lineno - 1
                if isinstance(inner, list) and inner[0].lineno > node.lineno
                else node.end_lineno or node.lineno
            )
            if node.lineno <= line <= end and end - node.lineno < smallest:
                found, smallest = range(node.lineno, end + 1), end - node.lineno
    return found
