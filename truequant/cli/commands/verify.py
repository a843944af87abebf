"""`truequant verify`: is the deployed model the validated one?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import truequant as tq
from truequant.cli.options import GRADES, RUNTIMES, AsJson, Batches, DataName, Int8File, one_of
from truequant.cli.session import session
from truequant.errors import ArgumentError


def verify(
    context: typer.Context,
    int8: Int8File,
    data: DataName,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The training's checkpoint: what is expected is its evaluation.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODULE:FACTORY", help="What makes the checkpoint's float model; its code is run.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="reference, onnxruntime …: once for each.", show_default="both", autocompletion=one_of(RUNTIMES)),
    ] = None,
    batches: Batches = 32,
    require: Annotated[
        str,
        typer.Option(
            help="Least grade: EXACT, or EXACT BETWEEN ISLANDS (float layers may sum in their own order).",
            autocompletion=one_of(GRADES),
        ),
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
        from truequant.analysis.report import REQUIREMENTS
        from truequant.cli.data import data_of, first
        from truequant.cli.deployed import conclude
        from truequant.cli.inputs import trained_model

        if (checkpoint is None) != (model is None):
            raise ArgumentError(
                "--checkpoint and --model go together", fix="--checkpoint run/checkpoints --model my_models:make"
            )
        if require not in REQUIREMENTS:
            raise ArgumentError("--require: no grade", got=repr(require), expected=", ".join(REQUIREMENTS))
        expected = None if checkpoint is None or model is None else trained_model(checkpoint, model)[0]
        source = data_of(data, "--data")
        checked = tq.verify(expected, int8, first(source.test, batches), runtime, cases=cases)
        run.show(*checked.promise)
        conclude(run, checked, {"verification": checked.to_dict(), "promise": checked.promise}, require)  # type: ignore[arg-type]
