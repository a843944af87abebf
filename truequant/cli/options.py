"""Options and arguments that commands share. Nothing here, nor at the top of a command's file, imports torch: the shell's
completion and `--help` answer without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from truequant.errors import ArgumentError
from truequant.schemes import PRESETS, QConfig

DEFAULT_PRESET = "int8"
GRADES = ("EXACT", "EXACT BETWEEN ISLANDS")
FORMS = ("qdq", "qoperator", "openvino", "tflite", "torch.export")
RUNTIMES = ("reference", "onnxruntime", "openvino", "litert", "torch.export")
METHODS = (
    "min-max", "percentile", "mse", "entropy", "histogram", "ada-round", "bias-correction", "block-reconstruction",
    "cross-layer-equalization", "gptq", "smooth-quant",
)  # fmt: skip


def one_of(words: Sequence[str]) -> Callable[[str], list[str]]:
    """The shell's completion of an option that takes one of these."""

    def completed(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return completed


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
ModelName = Annotated[str, typer.Argument(metavar="MODULE:FACTORY", help="What makes the float model; its code is run.")]
Int8File = Annotated[Path, typer.Argument(metavar="MODEL.tq", help="An Int8 model that truequant wrote.")]
CheckpointFile = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Written by tq.save_checkpoint or truequant train.")]
ModelOption = Annotated[
    str, typer.Option("--model", metavar="MODULE:FACTORY", help="What makes the float model that was trained; its code is run.")
]
DataName = Annotated[
    str, typer.Option("--data", metavar="MODULE:FACTORY", help="What makes the batches, or (train, test); its code is run.")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="SHAPE", help="Example input: 8x3x224x224, 'ids=8x128:int64<30000'; once for each."),
]
Batches = Annotated[int, typer.Option(min=1, help="How many batches to use at most.")]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="The model's trained weights: safetensors, checkpoint, torch.save."),
]
Int8Out = Annotated[Path, typer.Option("--out", "-o", help="The Int8 model.")]
Onnx = Annotated[Path | None, typer.Option("--onnx", metavar="FILE", help="Export there too, proved on the installed runtime.")]
Preset = Annotated[
    str,
    typer.Option(
        help="int8, w8a8, w7a8, w4a8, w4a4, w8a8-pow2 …: bits of weights and activations.", autocompletion=one_of(PRESETS)
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML file of the config, with rules; instead of a preset.")
]


def config_of(preset: str, file: Path | None) -> QConfig:
    """The config of `Preset` and `ConfigFile`."""
    if file is None:
        return QConfig.preset(preset)
    if preset != DEFAULT_PRESET:
        raise ArgumentError("--preset and --config say different things", fix=f'write preset = "{preset}" into {file}')
    return QConfig.from_file(file)
