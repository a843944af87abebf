"""`truequant benchmark`: what a model costs in its forms, side by side on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import truequant as tq
from truequant.cli.options import DEFAULT_PRESET, AsJson, ConfigFile, Preset, Shapes, config_of
from truequant.cli.session import session
from truequant.cli.tables import table

Target = Annotated[
    str, typer.Argument(metavar="MODEL", help="MODULE:FACTORY of a float model, or an Int8 model's file MODEL.tq.")
]


def benchmark(
    context: typer.Context,
    model: Target,
    shapes: Shapes = None,
    preset: Preset = DEFAULT_PRESET,
    config: ConfigFile = None,
    float_file: Annotated[
        Path | None,
        typer.Option("--float", metavar="FILE.onnx", help="The float model's own ONNX file: timed by onnxruntime, and first."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each form; the median counts.")] = 30,
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch and of the runtime.", show_default="torch's")] = 0,
    as_json: AsJson = False,
) -> None:
    """Time a model's forms side by side: float, quantization-aware (a training step too), Int8 and runtimes."""
    with session(context, as_json) as run:
        import torch

        from truequant.analysis import median_seconds
        from truequant.cli.timing import forms_of_float, forms_of_int8
        from truequant.reports import cpu, versions

        torch.set_num_threads(threads or torch.get_num_threads())
        if model.endswith(".tq"):
            forms = forms_of_int8(tq.load(Path(model)), shapes, model)
        else:
            forms = forms_of_float(model, shapes, config_of(preset, config))
        if float_file is not None:
            forms.add_float_file(float_file)
        calls, training = forms.calls, forms.training
        run.console.print(f"{rounds} rounds of {', '.join((*calls, *(f'{name} step' for name in training)))} …", soft_wrap=True)
        found = {"inference": median_seconds(calls, rounds)}
        if training:
            found["training step"] = median_seconds(training, rounds, gradients=True)
        run.show(*(_timings(title, seconds) for title, seconds in found.items()))
        machine = {"cpu": cpu().name, "threads": torch.get_num_threads(), "versions": versions()}
        run.result({"seconds": found, "rounds": rounds} | machine)


def _timings(title: str, seconds: dict[str, float]) -> Table:
    first = next(iter(seconds.values()))
    shown = table(title, ("form", "median", "of the first"), right=("median", "of the first"))
    for form, value in seconds.items():
        shown.add_row(form, f"{1000 * value:.3f} ms", f"{value / first:.2f} x")
    return shown
