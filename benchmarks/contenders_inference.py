"""Forms of a model that can be deployed: float, ours, and other tools' int8, each for one batch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import truequant as tq
from truequant.runtimes import RUNTIMES
from truequant.schemes import TARGETS

Forward = Callable[[Tensor], Any]
FLOAT, DEFAULT = "float, onnxruntime", "ours, onnxruntime, default"
GRADES: dict[int, str] = {}
"""Of our compiled models, by identity: EXACT where all codes and outputs of the measured batch are the program's."""


@dataclass(frozen=True)
class Contender:
    """kind: "float", "int8" of another tool, or "ours"; package: what must be installed."""

    name: str
    kind: str
    make: Callable[[nn.Module, Tensor, int], Forward]
    package: str = "torch"

    @property
    def installed(self) -> bool:
        return find_spec(self.package) is not None


def _eager(model: nn.Module, x: Tensor, threads: int) -> Forward:
    return model


def _compiled(model: nn.Module, x: Tensor, threads: int) -> Forward:
    torch._dynamo.reset()
    return torch.compile(model)


def _onnxruntime(model: nn.Module, x: Tensor, threads: int) -> Forward:
    import onnxruntime

    file = io.BytesIO()
    torch.onnx.export(model, (x,), file, input_names=["x"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, threads
    active = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(active.run(None, {"x": x.numpy()})[0])


def _ours(
    preset: str, runtime: str = "onnxruntime", *, target: str = "onnxruntime", **options: Any
) -> Callable[[nn.Module, Tensor, int], Forward]:
    def make(model: nn.Module, x: Tensor, threads: int) -> Forward:
        qat = tq.prepare(model, x, replace(tq.QConfig.preset(preset), target=TARGETS[target]))
        tq.calibrate(qat, [x])
        int8 = tq.convert(qat)
        compiled = tq.compile(int8, runtime, threads=threads, **options)
        found = RUNTIMES[runtime].edges(int8.program, threads=threads, **options).codes(x)
        largest = max(int((found[n].int() - wanted.int()).abs().max()) for n, wanted in int8.codes(x).items())
        exact = largest == 0 and torch.equal(compiled(x), int8(x))
        GRADES[id(compiled)] = "EXACT" if exact else "WITHIN 1" if largest <= 1 else "DIFFERENT"
        return compiled

    return make


def _fx(model: nn.Module, x: Tensor, threads: int) -> Forward:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.backends.quantized.engine = "x86"
    prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    return convert_fx(prepared)


def _pt2e(model: nn.Module, x: Tensor, threads: int) -> Forward:
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    torch._dynamo.reset()
    exported = torch.export.export(model, (x,)).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    prepared(x)
    return torch.compile(lower_pt2e_quantized_to_x86(convert_pt2e(prepared), (x,)))


CONTENDERS = (
    Contender("float, eager", "float", _eager),
    Contender("float, torch.compile", "float", _compiled),
    Contender(FLOAT, "float", _onnxruntime, "onnxruntime"),
    Contender("torch.ao FX int8", "int8", _fx),
    Contender("torchao pt2e int8, compiled", "int8", _pt2e, "torchao"),
    Contender(DEFAULT, "ours", _ours("int8"), "onnxruntime"),
    Contender("ours, onnxruntime, default, QOperator", "ours", _ours("int8", form="qoperator"), "onnxruntime"),
    Contender("ours, onnxruntime, w7a8", "ours", _ours("w7a8"), "onnxruntime"),
    Contender("ours, onnxruntime, w8a8", "ours", _ours("w8a8"), "onnxruntime"),
    Contender("ours, onnxruntime, w8a8, VNNI", "ours", _ours("w8a8", target="onnxruntime-vnni"), "onnxruntime"),
    Contender("ours, openvino, default", "ours", _ours("int8", "openvino"), "openvino"),
)


def made(contender: Contender, model: nn.Module, x: Tensor, threads: int) -> tuple[Forward, str]:
    """The contender on a copy of the model, without gradients or warnings, and its grade."""
    import copy

    forward = contender.make(copy.deepcopy(model), x, threads)

    def call(x: Tensor) -> Any:
        with torch.no_grad():
            return forward(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(x)
    return call, GRADES.get(id(forward), "")
