"""The end of several commands: an evaluated model is converted, written, exported and verified, and the outcome shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from torch import nn

import truequant as tq
from truequant.analysis import Requirement, Verification
from truequant.cli.data import first
from truequant.cli.session import DIFFERENT, Session
from truequant.cli.tables import table
from truequant.errors import ArgumentError, ExportError
from truequant.fake import outermost
from truequant.reports import verification_table


def deploy(
    run: Session,
    qat: nn.Module,
    out: Path,
    onnx: Path | None,
    batches: Iterable[Any] | None,
    limit: int,
    known: Mapping[str, Any] | None = None,
) -> None:
    """Convert `qat`, write it to `out` and `onnx`, verify it where there are batches; exit code 1 where a code differs.

    known: what else the object that `--json` prints holds.
    """
    writable(out, onnx)
    int8 = tq.convert(qat)
    found: dict[str, Any] = {**(known or {}), "files": {str(out): int8.save(out)}, "ops": int8.ops()}
    if onnx is not None:
        found["files"][str(onnx)] = tq.export_onnx(int8, onnx)
    checked = None
    if batches is not None:
        runtimes = ("reference",) if onnx is None else ("reference", "onnxruntime")
        checked = tq.verify(qat, int8, first(batches, limit), runtimes)
        found["verification"] = checked.to_dict()
    show_files(run, found["files"])
    conclude(run, checked, found)


def exportable(qat: nn.Module, fix: str) -> None:
    """`ExportError` for a prepared model that no ONNX file can hold: before it is trained, and not behind that."""
    left = outermost(qat).binding.plan.without_onnx()  # type: ignore[union-attr]
    if left:
        raise ExportError(
            f"no ONNX file can hold '{left[0].name}'",
            got=", ".join(f"{site.name}: {', '.join(site.without_onnx)}" for site in left),
            expected="ops that have an ONNX form", fix=fix,
        )  # fmt: skip


def conclude(
    run: Session, checked: Verification | None, found: dict[str, Any], require: Requirement = "EXACT BETWEEN ISLANDS"
) -> None:
    """Show a verification and print what was found; exit code 1 where a runtime does not meet what is required.

    A model without float islands is exact between islands where it is exact.
    """
    if checked is not None:
        run.show(verification_table(checked, "Every code of every edge"))
    run.result(found)
    if checked is not None and not all(report.meets(require) for report in checked.runtimes.values()):
        place = checked.first_difference
        where = f" First at {place}." if place is not None else ""
        Console(stderr=True).print(f"The deployed model is not the validated one.{where}", style="bold red", highlight=False)
        raise typer.Exit(DIFFERENT)


def writable(*paths: Path | None) -> None:
    """`ArgumentError` now rather than behind minutes of work."""
    for path in paths:
        if path is not None and (path.is_dir() or not path.resolve().parent.is_dir()):
            what = "is a folder" if path.is_dir() else "lies in no folder that is there"
            raise ArgumentError(f"'{path}' {what}", expected="a file's path", fix="--out FILE")


def show_files(run: Session, sizes: dict[str, int]) -> None:
    """What was written, with sizes."""
    files = table("", ("wrote", "bytes"), right=("bytes",))
    files.title = None
    for name, size in sizes.items():
        files.add_row(name, f"{size:,}")
    run.show(files)
