"""`truequant verify`: is the deployed model the validated one?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from torch import nn

import truequant as tq
from truequant.analysis.report import REQUIREMENTS
from truequant.cli.commands.export import Int8File
from truequant.cli.data import Batches, DataName, data_of, shown
from truequant.cli.deployed import conclude
from truequant.cli.inputs import float_model
from truequant.cli.session import AsJson, session
from truequant.errors import ArgumentError


def verify(
    context: typer.Context,
    int8: Int8File,
    data: DataName,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The training's checkpoint: what is expected is its evaluation.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODULE:FACTORY", help="What makes the checkpoint's float model; its code is run.")
    ] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="reference, onnxruntime …: once for each.", show_default="both")
    ] = None,
    batches: Batches = 32,
    require: Annotated[
        str, typer.Option(help="Least grade: EXACT, or EXACT BETWEEN ISLANDS (float layers may sum in their own order).")
    ] = "EXACT BETWEEN ISLANDS",
    cases: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep an input there that shows a difference, for tq.replay.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare every code of every edge: the trained model, its Int8 program, and the runtimes.

    Without --checkpoint the Int8 program itself is what the runtimes are compared with.
    """
    with session(context, as_json) as run:
        expected = _trained(checkpoint, model)
        if require not in REQUIREMENTS:
            raise ArgumentError("--require: no grade", got=repr(require), expected=", ".join(REQUIREMENTS))
        source = data_of(data, "--data")
        checked = tq.verify(
            expected, int8, shown(source.test, "verifying", batches, run.console), runtime, progress=False, cases=cases
        )
        run.show(*checked.promise)
        conclude(run, checked, {"verification": checked.to_dict(), "promise": checked.promise}, require)  # type: ignore[arg-type]


def _trained(checkpoint: Path | None, model: str | None) -> nn.Module | None:
    if (checkpoint is None) != (model is None):
        raise ArgumentError("--checkpoint and --model go together", fix="--checkpoint run/last.ckpt --model my_models:make")
    if checkpoint is None or model is None:
        return None
    return trained_model(checkpoint, model)


def trained_model(checkpoint: Path, model: str) -> nn.Module:
    """The prepared model of a training's checkpoint, in evaluation."""
    made, _ = float_model(model)
    found = tq.load_checkpoint(checkpoint, model=made, restore_random=False)
    if found.kind != "qat":
        raise ArgumentError(f"'{checkpoint}' is no checkpoint of quantization-aware training", got=f"a {found.kind} checkpoint")
    return made.eval()
