"""What `truequant benchmark` times: a model in its forms, as calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

import truequant as tq
from truequant.cli.inputs import example_inputs, model_and_inputs
from truequant.errors import ArgumentError
from truequant.planning import as_arguments, tensors_of
from truequant.runtimes import RUNTIMES

Call = Callable[[], object]


def forms_of_float(name: str, shapes: Any, config: tq.QConfig) -> tuple[dict[str, Call], dict[str, Call]]:
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


def forms_of_int8(int8: tq.Int8Model, shapes: Any, name: str) -> dict[str, Call]:
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
