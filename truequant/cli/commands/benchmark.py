"""`truequant benchmark`: what a model costs in its forms, side by side on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import nn

import truequant as tq
from truequant.analysis import median_seconds
from truequant.cli.configs import DEFAULT_PRESET, ConfigFile, Preset, config_of
from truequant.cli.inputs import Shapes, example_inputs, model_and_inputs
from truequant.cli.session import AsJson, session
from truequant.cli.tables import table
from truequant.errors import ArgumentError
from truequant.planning import as_arguments, tensors_of
from truequant.reports import cpu, versions
from truequant.runtimes import RUNTIMES

Call = Callable[[], object]
Target = Annotated[
    str, typer.Argument(metavar="MODEL", help="MODULE:FACTORY of a float model, or an Int8 model's file MODEL.tq.")
]


def benchmark(
    context: typer.Context,
    model: Target,
    shapes: Shapes = None,
    preset: Preset = DEFAULT_PRESET,
    config: ConfigFile = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed calls of each form; the median counts.")] = 30,
    threads: Annotated[int, typer.Option(min=0, help="Threads of torch and of the runtime.", show_default="torch's")] = 0,
    as_json: AsJson = False,
) -> None:
    """Time a model's forms side by side: float, quantization-aware (a training step too), Int8 and runtimes."""
    with session(context, as_json) as run:
        torch.set_num_threads(threads or torch.get_num_threads())
        if model.endswith(".tq"):
            calls, training = _of_int8(tq.load(Path(model)), shapes, model), dict[str, Call]()
        else:
            calls, training = _of_float(model, shapes, config_of(preset, config))
        run.console.print(f"{rounds} rounds of {', '.join((*calls, *(f'{name} step' for name in training)))} …", soft_wrap=True)
        found = {"inference": median_seconds(calls, rounds)}
        if training:
            found["training step"] = median_seconds(training, rounds, gradients=True)
        run.show(*(_timings(title, seconds) for title, seconds in found.items()))
        machine = {"cpu": cpu().name, "threads": torch.get_num_threads(), "versions": versions()}
        run.result({"seconds": found, "rounds": rounds} | machine)


def _of_float(name: str, shapes: Any, config: tq.QConfig) -> tuple[dict[str, Call], dict[str, Call]]:
    """Calls that evaluate each form on the example inputs, and calls that train a step. Ranges come from the inputs too."""
    made, inputs = model_and_inputs(name, shapes)
    args, kwargs = as_arguments(inputs)
    trained_float, qat = copy.deepcopy(made).train(), tq.prepare(made, inputs, config)
    tq.calibrate(qat, [inputs], inputs=lambda item: item)
    int8 = tq.convert(qat)
    training: dict[str, Call] = {
        form: partial(_step, module, torch.optim.SGD(module.parameters(), 1e-9), args, kwargs)
        for form, module in (("float", trained_float), ("quantization-aware", copy.deepcopy(qat).train()))
    }
    forms: dict[str, Call] = {"float": partial(made.eval(), *args, **kwargs)}
    forms |= {"QAT, evaluated": partial(qat.eval(), *args, **kwargs)} | _deployed(int8, args, kwargs)
    return forms, training


def _of_int8(int8: tq.Int8Model, shapes: Any, name: str) -> dict[str, Call]:
    if shapes is None:
        sizes = ["x".join(str(8 if n is None else n) for n in spec.shape) + f":{spec.dtype}" for spec in int8.program.inputs]
        shapes = sizes
    args, kwargs = as_arguments(example_inputs(shapes))
    if len(args) + len(kwargs) != len(int8.program.inputs):
        raise ArgumentError(
            f"'{name}': --input for each of its inputs", got=len(args) + len(kwargs), expected=len(int8.program.inputs)
        )
    return _deployed(int8, args, kwargs)


def _deployed(int8: tq.Int8Model, args: Any, kwargs: Any) -> dict[str, Call]:
    found: dict[str, Call] = {"Int8 program": partial(int8, *args, **kwargs)}
    for name in RUNTIMES:
        if find_spec(name) is not None:
            found[name] = partial(tq.compile(int8, name), *args, **kwargs)
    return found


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """A step on a made-up loss: the sum of squares of all float outputs."""
    optimizer.zero_grad()
    outputs = [x for x in tensors_of(model(*args, **kwargs)) if x.is_floating_point()]
    torch.stack([x.square().mean() for x in outputs]).sum().backward()
    optimizer.step()


def _timings(title: str, seconds: dict[str, float]) -> Table:
    first = next(iter(seconds.values()))
    shown = table(title, ("form", "median", "of the first"), right=("median", "of the first"))
    for form, value in seconds.items():
        shown.add_row(form, f"{1000 * value:.3f} ms", f"{value / first:.2f} x")
    return shown
