"""The ONNX model of a program in one form."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from truequant.errors import ExportError
from truequant.integer import IntegerProgram
from truequant.runtimes.onnx import external
from truequant.runtimes.onnx.dialect import Form, write
from truequant.runtimes.onnx.metadata import FORM, PROGRAM, digest, schemes_of
from truequant.runtimes.onnx.writer import IR_VERSION, Writer, opsets
from truequant.runtimes.packages import onnx

_ELEMENTS = {
    "float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "float64": "DOUBLE", "bool": "BOOL", "uint8": "UINT8",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
}  # fmt: skip


@contextmanager
def placed(program: IntegerProgram, form: Form, *, show_edges: bool = False) -> Iterator[tuple[bytes, str | None]]:
    """The serialized model, and a folder that holds its constants where they are too large for it."""
    model = onnx_model(program, form, show_edges=show_edges)
    if not external.too_large(model):
        yield serialized(model), None
        return
    # A runtime that keeps the constants mapped has them still when the folder is gone.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        external.split(model, Path(folder) / "constants.data")
        yield serialized(model), folder


def whole(program: IntegerProgram, form: Form, *, show_edges: bool = False) -> bytes:
    """The serialized model. `ExportError` for one that is too large for one message (see `placed`)."""
    model = onnx_model(program, form, show_edges=show_edges)
    if external.too_large(model):
        raise ExportError(
            "the model is too large for one message", expected=f"constants of at most {external.INLINE_LIMIT} bytes",
            fix="tq.export_onnx(int8, path) writes its constants beside the file",
        )  # fmt: skip
    return serialized(model)


def serialized(model: Any) -> bytes:
    """The same bytes for the same model."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def onnx_model(program: IntegerProgram, form: Form, *, show_edges: bool = False) -> Any:
    """The model of a program. show_edges: its outputs are the codes of every edge as well, for comparison."""
    helper, proto = onnx().helper, onnx().TensorProto
    writer = write(form, program)
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
    shown = {info.name for info in (*inputs, *outputs)}
    inner = [info for info in _inner(writer) if info.name not in shown]
    read = {name for node in writer.nodes for name in node.input}
    constants = [constant for name, constant in writer.constants.items() if show_edges or name in read]
    graph = helper.make_graph(writer.nodes, "truequant", inputs, outputs, constants, value_info=inner)
    if show_edges:
        form.dialect.show(graph, program)
    model = helper.make_model(
        graph, producer_name="truequant", producer_version=version("truequant"), ir_version=IR_VERSION,
        opset_imports=opsets(writer.nodes),
    )  # fmt: skip
    helper.set_model_props(
        model,
        {
            "truequant.format": "1",
            FORM: form.name,
            "truequant.target": program.target,
            PROGRAM: digest(program),
            "truequant.schemes": schemes_of(program),
            "truequant.made_with": f"torch {torch.__version__}, onnx {onnx().__version__}",
        },
    )
    if not external.too_large(model):  # the checker reads a serialized model
        try:
            onnx().checker.check_model(model, full_check=False)
        except onnx().checker.ValidationError as error:
            raise ExportError(
                "the ONNX file is none by ONNX's own rules", got=str(error).strip().splitlines()[0][:300],
                fix="int8(x) and int8.save(path) need no ONNX file; please report the op that is named here",
            ) from error  # fmt: skip
    return model


def _inner(writer: Writer) -> list[Any]:
    """Type and shape of what lies between the nodes, for who looks at the file.

    Dynamic sizes have no name here: a runtime may share memory between two tensors of one name.
    """
    program, made = writer.program, onnx().helper.make_tensor_value_info
    written = {name for node in writer.nodes for name in node.output}
    found = []
    for name in (node.output for node in program.nodes):
        edge = program.edges.get(name)
        kind = writer.element(writer.dtypes[name]) if edge is None else writer.element_of(edge)
        names = (name, f"{name}.unclipped") if edge is not None else (name,)
        found += [made(n, kind, writer.shapes[name]) for n in names if n in written]
    inner = {value: of for value, of in writer.floats.items() if value not in writer.shapes and of in writer.shapes}
    found += [made(value, onnx().TensorProto.FLOAT, writer.shapes[of]) for value, of in inner.items()]
    return found


def _sizes(shape: tuple[int | None, ...], name: str) -> list[int | str]:
    """Symbolic names for dynamic sizes: the batch is N."""
    return [("N" if axis == 0 else f"{name}_{axis}") if n is None else n for axis, n in enumerate(shape)]
