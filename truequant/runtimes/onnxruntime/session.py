"""onnxruntime sessions over torch tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from truequant.errors import ArgumentError, ExportError
from truequant.runtimes.packages import package

Level = Literal["none", "basic", "extended", "all"]
_LEVELS = {"none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}


def onnxruntime() -> Any:
    """The package onnxruntime."""
    return package("onnxruntime", "onnxruntime")


def session(
    model: bytes | str, *, threads: int = 0, level: Level = "all", optimized_path: str | None = None, folder: str | None = None
) -> Any:
    """An `InferenceSession` on the CPU. threads: 0 for torch's own number. folder: where constants beside a model lie."""
    if level not in _LEVELS:
        raise ArgumentError(f"no optimization level {level!r}", got=level, expected=", ".join(_LEVELS))
    options = onnxruntime().SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or torch.get_num_threads()
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":  # whoever wants torch's threads to wait asleep wants it here
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = getattr(onnxruntime().GraphOptimizationLevel, _LEVELS[level])
    # A product with dequantized weights stays a float32 product: by default onnxruntime rounds its activations to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if optimized_path is not None:
        options.optimized_model_filepath = optimized_path
        # Constants beside it: reading the graph back then costs little, and no limit of size applies.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "constants")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "64")
    try:
        return onnxruntime().InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds have no common one of theirs
        raise ExportError(
            "onnxruntime does not take the ONNX file", got=_said(error), expected="a graph that it can compile", fix=_FIX
        ) from error


_FIX = "int8(x) and int8.save(path) need no ONNX file; please report the op that is named here"


def _said(error: Exception) -> str:
    """The one line that onnxruntime says, without its codes."""
    text = str(error).strip()
    return (text.rpartition("] : ")[2] or text).splitlines()[0][:300] if text else type(error).__name__


def run(active: Any, feeds: Mapping[str, Tensor], names: list[str] | None = None) -> dict[str, Tensor]:
    """Outputs by name, without a copy in either direction where inputs are contiguous and on the CPU.

    onnxruntime reads the inputs where torch keeps them, and allocates the outputs, whose memory the returned tensors own.
    """
    wanted = names or [o.name for o in active.get_outputs()]
    given = {name: t.numpy(force=True) for name, t in feeds.items()}
    try:
        found = active.run(wanted, given)
    except Exception as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in given.items())
        raise ExportError(f"onnxruntime cannot run the ONNX file on inputs of {shapes}", got=_said(error), fix=_FIX) from error
    return {name: torch.from_numpy(np.asarray(array)) for name, array in zip(wanted, found, strict=True)}
