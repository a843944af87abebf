"""`export_onnx`: the program as a model that onnxruntime runs in integer kernels, proven before it is written."""

from __future__ import annotations

import os
from typing import get_args

from truequant.errors import ArgumentError, ArgumentTypeError
from truequant.files import atomic_write
from truequant.integer import Int8Model, IntegerProgram
from truequant.integer.serialize import to_container
from truequant.runtimes.census import require_integer_kernels
from truequant.runtimes.metadata import with_program
from truequant.runtimes.onnx_nodes import write
from truequant.runtimes.openvino_session import compiled
from truequant.runtimes.packages import onnx
from truequant.runtimes.tables import require_exact_tables
from truequant.runtimes.writer import IR_VERSION, Form, Writer, opsets
from truequant.schemes import TARGETS

_ELEMENTS = {
    "float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "float64": "DOUBLE", "bool": "BOOL", "uint8": "UINT8",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
}  # fmt: skip


def export_onnx(
    int8: Int8Model | IntegerProgram, path: str | os.PathLike[str], *, form: Form = "qdq", program: bool = False
) -> int:
    """Write the model as ONNX (opset 21, dynamic sizes kept) and return its size in bytes.

    form: "qdq" has float ops between DequantizeLinear and QuantizeLinear, which onnxruntime fuses into integer kernels at its
        highest optimization level, and which other runtimes read; "qoperator" names the integer kernels themselves
        (QLinearConv, QGemm, QLinearAdd …) and is exact at every optimization level; "openvino" writes sums and requantization
        out, so that OpenVINO, which must be installed, computes the program's integers.
    program: the file carries the integer program too, about as many bytes again, so that `verify` needs nothing else.

    Before anything is written the runtime compiles the model; for onnxruntime every integer node of the program must have
    become an integer kernel, every add and mul must compute its rule for all pairs of codes, and every table give all its
    entries. Sums over codes of 16 bits are the exception: they run in float32 between DequantizeLinear and QuantizeLinear, in
    every form, and `verify` grades them, never EXACT. A target that has no runtime here ("tensorrt", "xnnpack", "qnn") gets
    plain QDQ within its constraints, UNVERIFIED.
    Raises `ExportError` where that is not so.
    """
    source = program_of(int8)
    data = onnx_bytes(source, form=form)
    target = TARGETS.get(source.target)
    if form == "openvino":
        compiled(data)
    elif target is None or target.runs_here:
        require_integer_kernels(source, data)
        require_exact_tables(source, lambda tables: onnx_bytes(tables, form=form, show_edges=True))
    data = with_program(data, source) if program else data
    atomic_write(path, data)
    return len(data)


def program_of(int8: Int8Model | IntegerProgram) -> IntegerProgram:
    """The program of a model, or the program itself."""
    if isinstance(int8, Int8Model):
        return int8.program
    if isinstance(int8, IntegerProgram):
        return int8
    raise ArgumentTypeError("not an Int8 model", got=type(int8).__name__, expected="Int8Model", fix="tq.convert(qat)")


def onnx_bytes(program: IntegerProgram, *, form: Form = "qdq", show_edges: bool = False) -> bytes:
    """The serialized model. show_edges: its outputs are the codes of every edge as well, for comparison."""
    helper, proto = onnx().helper, onnx().TensorProto
    if form not in get_args(Form):
        raise ArgumentError(
            f"no form {form!r} of an ONNX file", got=repr(form), expected=" or ".join(map(repr, get_args(Form)))
        )
    writer = Writer(program, form)
    for node in program.nodes:
        write(writer, node)
    inputs = [
        helper.make_tensor_value_info(i.name, getattr(proto, _ELEMENTS[i.dtype]), _sizes(i.shape, i.name))
        for i in program.inputs
    ]
    names = list(dict.fromkeys(program.output_names()))
    outputs = [helper.make_tensor_value_info(n, writer.element(writer.dtypes[n]), _sizes(writer.shapes[n], n)) for n in names]
    if show_edges:
        outputs += [
            helper.make_tensor_value_info(n, writer.element_of(e), _sizes(writer.shapes[n], n))
            for n, e in program.edges.items()
        ]
    graph = helper.make_graph(writer.nodes, "truequant", inputs, outputs, list(writer.constants.values()))
    model = helper.make_model(graph, producer_name="truequant", ir_version=IR_VERSION, opset_imports=opsets(writer.nodes))
    helper.set_model_props(
        model,
        {
            "truequant.format": "1",
            "truequant.form": form,
            "truequant.target": program.target,
            "truequant.program": digest(program),
        },
    )
    onnx().checker.check_model(model, full_check=False)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def digest(program: IntegerProgram) -> str:
    """SHA-256 of the program's contents, hexadecimal: the one that its `.tq` file holds."""
    return str(to_container(program)[0]["sha256"])


def _sizes(shape: tuple[int | None, ...], name: str) -> list[int | str]:
    """Symbolic names for dynamic sizes: the batch is N."""
    return [("N" if axis == 0 else f"{name}_{axis}") if n is None else n for axis, n in enumerate(shape)]
