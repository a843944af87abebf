"""OpenVINO's compiled models over torch tensors."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truequant.runtimes.packages import package


@cache
def _core() -> Any:
    """One for the process. Each gives its thread another stack for signals and puts back, when it ends, the one that it found:
    of two that overlap the last may put back the stack of the first, which is gone, and the next signal kills the process.
    """
    return package("openvino", "openvino").Core()


def options_of(threads: int) -> dict[str, str | int]:
    """With which OpenVINO computes what the form says."""
    return {
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }


def compiled(data: bytes, threads: int = 0, folder: str | None = None) -> Any:
    """OpenVINO's compiled model: float32 where it is float, no quantization but the program's own.

    folder: where constants beside the model lie.
    """
    core, options = _core(), options_of(threads or torch.get_num_threads())
    if folder is None:
        return core.compile_model(core.read_model(data), "CPU", options)
    path = Path(folder) / f".{secrets.token_hex(8)}.onnx"  # OpenVINO looks for constants beside the file that it reads
    try:
        path.write_bytes(data)
        return core.compile_model(core.read_model(path), "CPU", options)
    finally:
        path.unlink(missing_ok=True)


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
