"""`truequant demo`: the main job on MNIST."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from truequant.cli.options import AsJson, one_of
from truequant.cli.session import DIFFERENT, session
from truequant.schemes import PRESETS

Model = Enum("Model", {name: name for name in ("mlp", "lenet", "resnet", "mobilenet")}, type=str)  # type: ignore[misc]
"""Names and defaults are those of `truequant.demo`, which a test holds them to."""
_LENET = Model("lenet")
_DURATION = (
    "By default a LeNet takes one to three minutes on two free cores, the larger models take minutes; bars show how many."
)
_PRESET = "int8, w8a8, w7a8, w4a4, w8a8-pow2 …: bits of weights and activations."


def demo(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="Folder of MNIST's four idx files, gzipped or not.", show_default="the repository's")
    ] = None,
    model: Annotated[Model, typer.Option(help="Architecture.")] = _LENET,
    preset: Annotated[str, typer.Option(help=_PRESET, autocompletion=one_of(PRESETS))] = "int8",
    float_epochs: Annotated[int, typer.Option(min=1, help="Epochs of float training.")] = 3,
    qat_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs of QAT, and extra epochs of the float model that it is compared with.")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and shuffling.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for model.tq, model.onnx, result.json, curves.png.")] = Path("out"),
    checkpoint_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of checkpoints, from which --resume goes on.")
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, metavar="STEPS", help="Steps from one checkpoint to the next.")] = 100,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoints, to the same bits; fresh where there are none.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train on MNIST, quantize, convert, export, and verify that nothing changed on the way."""
    with session(context, as_json) as run:
        epochs = f"{float_epochs} and {qat_epochs}" if qat_epochs else str(float_epochs)
        run.show(  # before torch is loaded, which takes seconds
            f"{model.value} on MNIST: {epochs} epochs of training, float and quantization-aware; then Int8 and ONNX files, "
            f"and the proof that they compute the same. {_DURATION}"
        )
        from truequant.demo import DemoOptions, run_demo
        from truequant.reports import stage_table, verification_table

        options = DemoOptions(
            data, model.value, preset, float_epochs, qat_epochs, seed, out, checkpoint_dir, checkpoint_every, resume
        )
        result = run_demo(options, run.console)
        run.show(
            "", stage_table(list(result.stages.values()), f"{model.value}, {preset}: {result.test_images:,} test images"),
            verification_table(result.verification, "Every code of every edge, against QAT as evaluated"),
            f"wrote model.tq, model.onnx, result.json, curves.png into {out}/", f"{result.seconds:.0f} s in all",
        )  # fmt: skip
        run.result(result.as_json())
        if not result.identical:
            Console(stderr=True).print("The deployed model is not the validated one: see the table above.", style="bold red")
            raise typer.Exit(DIFFERENT)
