"""A program in OpenVINO on the CPU, called with torch tensors, and a copy of it that shows its inner edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truequant.integer import IntegerProgram
from truequant.integer.binding import bind, build
from truequant.runtimes.export import onnx_bytes
from truequant.runtimes.packages import openvino
from truequant.runtimes.writer import Form


def compiled(data: bytes, threads: int = 0) -> Any:
    """OpenVINO's compiled model: float32 where it is float, no quantization but the program's own."""
    core = openvino().Core()
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
    }
    return core.compile_model(core.read_model(data), "CPU", options)


def kernels(model: Any) -> dict[str, int]:
    """How many kernels of each kind and precision the compiled model runs."""

    def info(node: Any, key: str) -> str:
        value = node.get_rt_info()[key]
        return str(value.value if hasattr(value, "value") else value)

    nodes = model.get_runtime_model().get_ops()
    return dict(sorted(Counter(f"{info(n, 'layerType')} {info(n, 'runtimePrecision')}" for n in nodes).items()))


def run(request: Any, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name; tensors pass in without a copy where they are contiguous and on the CPU."""
    arrays = {name: np.asarray(t.detach().cpu().contiguous()) for name, t in feeds.items()}
    found = request.infer(arrays, share_inputs=True)
    return {name: torch.from_numpy(np.array(array)) for port, array in found.items() for name in port.get_names()}


class OpenvinoModel:
    """A model in OpenVINO: torch tensors in and out, the structure that the model returns."""

    def __init__(self, program: IntegerProgram, *, threads: int = 0, form: Form = "openvino") -> None:
        self.program = program
        self._model = compiled(onnx_bytes(program, form=form), threads)
        self._request = self._model.create_infer_request()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return build(self.program.outputs, run(self._request, bind(self.program, args, kwargs)))

    def kernels(self) -> dict[str, int]:
        """How many kernels of each kind and precision it runs: `Convolution u8` is an int8 one."""
        return kernels(self._model)

    def __repr__(self) -> str:
        return f"OpenvinoModel({len(self.program.nodes)} nodes)"


class OpenvinoEdges:
    """A copy of the compiled graph that shows its inner edges."""

    def __init__(self, program: IntegerProgram, *, threads: int = 0, form: Form = "openvino") -> None:
        self.program = program
        self._request = compiled(onnx_bytes(program, form=form, show_edges=True), threads).create_infer_request()

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The codes of every edge for these inputs, by name."""
        found = run(self._request, bind(self.program, args, kwargs))
        return {name: found[name] for name in self.program.edges}
