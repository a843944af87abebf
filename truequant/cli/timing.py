"""What `truequant benchmark` times: a model in its forms, as calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

import truequant as tq
from truequant.cli.inputs import example_inputs, model_and_inputs
from truequant.errors import ArgumentError, ExportError
from truequant.planning import as_arguments, tensors_of
from truequant.runtimes import RUNTIMES
from truequant.runtimes.onnxruntime.session import run, session

Call = Callable[[], object]


@dataclass(slots=True)
class Forms:
    """Calls by the name of the form, on the same inputs: evaluations, and steps of a training."""

    args: Sequence[Any]
    kwargs: Mapping[Any, Any]
    calls: dict[str, Call]
    training: dict[str, Call] = field(default_factory=dict)

    def add_float_file(self, path: Path) -> None:
        """A float model's ONNX file, run by onnxruntime, becomes the first form: what the others are compared with."""
        if not path.is_file():
            raise ArgumentError("--float: no such file", got=f"'{path}'", expected="the float model's ONNX file")
        try:
            active = session(str(path))
        except ExportError as error:
            fix = "torch.onnx.export of the float model writes one"
            raise ArgumentError(f"--float: onnxruntime does not take '{path}'", got=error.got, fix=fix) from error
        names = [given.name for given in active.get_inputs()]
        by_name = {str(key): value for key, value in self.kwargs.items()}
        feeds = dict(zip([name for name in names if name not in by_name], self.args, strict=False)) | by_name
        if set(feeds) != set(names) or len(names) != len(self.args) + len(by_name):
            given = f"{len(self.args)} by position, {sorted(by_name)} by name"
            raise ArgumentError(f"--float: '{path}' takes other inputs than the model", got=given, expected=", ".join(names))
        self.calls = {"float in onnxruntime": partial(run, active, feeds)} | self.calls


def forms_of_float(name: str, shapes: Any, config: tq.QConfig) -> Forms:
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
    return Forms(args, kwargs, forms, training)


def forms_of_int8(int8: tq.Int8Model, shapes: Any, name: str) -> Forms:
    """Calls that evaluate an Int8 model in each form, on example inputs of its signature where no shapes are given."""
    if shapes is None:
        sizes = ["x".join(str(8 if n is None else n) for n in spec.shape) + f":{spec.dtype}" for spec in int8.program.inputs]
        shapes = sizes
    args, kwargs = as_arguments(example_inputs(shapes))
    if len(args) + len(kwargs) != len(int8.program.inputs):
        raise ArgumentError(
            f"'{name}': --input for each of its inputs", got=len(args) + len(kwargs), expected=len(int8.program.inputs)
        )
    return Forms(args, kwargs, _deployed(int8, args, kwargs))


def _deployed(int8: tq.Int8Model, args: Any, kwargs: Any) -> dict[str, Call]:
    found: dict[str, Call] = {"Int8 program": partial(int8, *args, **kwargs)}
    for name, runtime in RUNTIMES.items():
        computed = runtime.targets is None or int8.program.target in runtime.targets
        if runtime.exact and computed and find_spec(runtime.package or name) is not None:
            found[name] = partial(tq.compile(int8, name), *args, **kwargs)
    return found


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """A step on a made-up loss: the sum of squares of all float outputs."""
    optimizer.zero_grad()
    outputs = [x for x in tensors_of(model(*args, **kwargs)) if x.is_floating_point()]
    torch.stack([x.square().mean() for x in outputs]).sum().backward()
    optimizer.step()
