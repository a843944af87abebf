"""`export_tflite`: the program as a file of LiteRT, taken by its interpreter before it is written."""

from __future__ import annotations

import os

from truequant.errors import ExportError
from truequant.files import atomic_write
from truequant.integer import Int8Model, IntegerProgram
from truequant.runtimes.litert.graph import tflite_file
from truequant.runtimes.litert.session import Session
from truequant.runtimes.programs import program_of


def export_tflite(int8: Int8Model | IntegerProgram, path: str | os.PathLike[str]) -> int:
    """Write the model as a `.tflite` file for LiteRT's XNNPACK delegate, and return its size in bytes.

    The file reads and writes int8 codes: quantize its inputs as `int8` does, with the scale and zero point that the file holds
    for them. Tensors of four axes are channels last, `(N, H, W, C)`, others as the model has them; any batch is taken
    (`resize_tensor_input`). Tensors have the names of the modules that write them; the metadata names the program's digest.

    Only a program for target "xnnpack" has such a file: `ExportError` for another one, for what has no exact form there, and
    where the package `ai-edge-litert` is missing; `FileError` where the file cannot be written.
    """
    file = tflite_file(program_of(int8))
    if wrong := [found.op for found in Session(file).left_out if found.computes]:
        raise ExportError(
            f"XNNPACK's delegate does not take {len(wrong)} operators, and LiteRT's other kernels round otherwise",
            got=", ".join(wrong), fix="another release of ai-edge-litert, or leave these ops in float",
        )  # fmt: skip
    atomic_write(path, file.data)
    return len(file.data)
