"""`export_onnx`: the program as a model that onnxruntime runs in integer kernels, proven before it is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from truequant.files import atomic_write
from truequant.integer import Int8Model, IntegerProgram
from truequant.runtimes.onnx import external
from truequant.runtimes.onnx.dialect import Form
from truequant.runtimes.onnx.forms import FormName
from truequant.runtimes.onnx.graph import onnx_model, serialized, whole
from truequant.runtimes.onnx.metadata import with_program
from truequant.runtimes.programs import program_of
from truequant.runtimes.registry import form_of


def export_onnx(
    int8: Int8Model | IntegerProgram, path: str | os.PathLike[str], *, form: FormName = "qdq", program: bool = False
) -> int:
    """Write the model as ONNX (opset 21, dynamic sizes kept) and return its size in bytes.

    Constants that do not fit one file of 2 GiB lie beside it, in `NAME.onnx.DIGEST.data`; both belong together.

    form: "qdq" has float ops between DequantizeLinear and QuantizeLinear, which onnxruntime fuses into integer kernels at its
        highest optimization level, and which other runtimes read; "qoperator" names the integer kernels themselves
        (QLinearConv, QGemm, QLinearAdd …) and is exact at every optimization level; "openvino" writes sums and requantization
        out, so that OpenVINO, which must be installed, computes the program's integers.
    program: the file carries the integer program too, about as many bytes again, so that `verify` needs nothing else; where
        constants lie beside the file, so does the program, as a `.tq` file.

    Before anything is written the runtime compiles the model; for onnxruntime every integer node of the program must have
    become an integer kernel, every add and mul must compute its rule for all pairs of codes, and every table give all its
    entries. Sums over codes of 16 bits are the exception: they run in float32 between DequantizeLinear and QuantizeLinear, in
    every form, and `verify` grades them, never EXACT. A target that has no runtime here ("tensorrt", "xnnpack", "qnn") gets
    plain QDQ within its constraints, UNVERIFIED.
    Raises `ExportError` where that is not so.
    """
    source = program_of(int8)
    chosen = form_of(source, form)
    model = onnx_model(source, chosen)
    if external.too_large(model):
        return _in_parts(source, model, Path(path), chosen, program)
    data = serialized(model)
    chosen.dialect.prove(source, data, chosen, None)
    data = with_program(data, source) if program else data
    atomic_write(path, data)
    external.forget_others(Path(path), None)
    return len(data)


def _in_parts(source: IntegerProgram, model: Any, path: Path, form: Form, program: bool) -> int:
    """Constants beside the file first, under a name of their own, then the file itself: a reader finds a whole model."""
    path = Path(os.path.realpath(path))
    constants = external.constants_path(model, path)
    there = constants.exists()
    size = external.split(model, constants)
    try:
        data = serialized(model)
        form.dialect.prove(source, data, form, str(path.parent))
    except BaseException:
        if not there:
            constants.unlink(missing_ok=True)
        raise
    if program:
        size += Int8Model(source).save(path.with_suffix(".tq"))
    atomic_write(path, data)
    external.forget_others(path, constants)
    return size + len(data)


def onnx_bytes(program: IntegerProgram, *, form: FormName = "qdq", show_edges: bool = False) -> bytes:
    """The serialized model. `ExportError` for one that is too large for one message."""
    return whole(program, form_of(program, form), show_edges=show_edges)
