"""`export_onnx`: the program as a model that onnxruntime runs in integer kernels, proven before it is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch

from truequant.errors import ArgumentError, ArgumentTypeError, ExportError
from truequant.files import atomic_write
from truequant.integer import Int8Model, IntegerProgram
from truequant.integer.serialize import to_container
from truequant.runtimes.onnx import external
from truequant.runtimes.onnx.metadata import FORM, PROGRAM, schemes_of, with_program
from truequant.runtimes.onnx.nodes import write
from truequant.runtimes.onnx.writer import IR_VERSION, Form, Writer, opsets, runs_here
from truequant.runtimes.onnxruntime.census import require_integer_kernels
from truequant.runtimes.onnxruntime.hidden_edges import show
from truequant.runtimes.onnxruntime.table_proofs import require_exact_tables
from truequant.runtimes.openvino.session import compiled
from truequant.runtimes.packages import onnx

_ELEMENTS = {
    "float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "float64": "DOUBLE", "bool": "BOOL", "uint8": "UINT8",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
}  # fmt: skip


def export_onnx(
    int8: Int8Model | IntegerProgram, path: str | os.PathLike[str], *, form: Form = "qdq", program: bool = False
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
    model = onnx_model(source, form=form)
    if external.too_large(model):
        return _in_parts(source, model, Path(path), form, program)
    data = _serialized(model)
    _prove(source, data, form)
    data = with_program(data, source) if program else data
    atomic_write(path, data)
    external.forget_others(Path(path), None)
    return len(data)


def _in_parts(source: IntegerProgram, model: Any, path: Path, form: Form, program: bool) -> int:
    """Constants beside the file first, under a name of their own, then the file itself: a reader finds a whole model."""
    path = Path(os.path.realpath(path))
    constants = external.beside(model, path)
    there = constants.exists()
    size = external.split(model, constants)
    try:
        data = _serialized(model)
        _prove(source, data, form, str(path.parent))
    except BaseException:
        if not there:
            constants.unlink(missing_ok=True)
        raise
    if program:
        size += Int8Model(source).save(path.with_suffix(".tq"))
    atomic_write(path, data)
    external.forget_others(path, constants)
    return size + len(data)


def _prove(program: IntegerProgram, data: bytes, form: Form, folder: str | None = None) -> None:
    if form == "openvino":
        compiled(data, folder=folder)
    elif runs_here(program):
        require_integer_kernels(program, data, folder=folder)
        require_exact_tables(program, lambda tables: onnx_bytes(tables, form=form, show_edges=True))


def program_of(int8: Int8Model | IntegerProgram) -> IntegerProgram:
    """The program of a model, or the program itself."""
    if isinstance(int8, Int8Model):
        return int8.program
    if isinstance(int8, IntegerProgram):
        return int8
    raise ArgumentTypeError("not an Int8 model", got=type(int8).__name__, expected="Int8Model", fix="tq.convert(qat)")


@contextmanager
def placed(program: IntegerProgram, *, form: Form = "qdq", show_edges: bool = False) -> Iterator[tuple[bytes, str | None]]:
    """The serialized model, and a folder that holds its constants where they are too large for it."""
    model = onnx_model(program, form=form, show_edges=show_edges)
    if not external.too_large(model):
        yield _serialized(model), None
        return
    # A runtime that keeps the constants mapped has them still when the folder is gone.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        external.split(model, Path(folder) / "constants.data")
        yield _serialized(model), folder


def onnx_bytes(program: IntegerProgram, *, form: Form = "qdq", show_edges: bool = False) -> bytes:
    """The serialized model. `ExportError` for one that is too large for one message (see `placed`)."""
    model = onnx_model(program, form=form, show_edges=show_edges)
    if external.too_large(model):
        raise ExportError(
            "the model is too large for one message", expected=f"constants of at most {external.INLINE_LIMIT} bytes",
            fix="tq.export_onnx(int8, path) writes its constants beside the file",
        )  # fmt: skip
    return _serialized(model)


def _serialized(model: Any) -> bytes:
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def onnx_model(program: IntegerProgram, *, form: Form = "qdq", show_edges: bool = False) -> Any:
    """The model of a program. show_edges: its outputs are the codes of every edge as well, for comparison."""
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
    shown = {info.name for info in (*inputs, *outputs)}
    inner = [info for info in _inner(writer) if info.name not in shown]
    graph = helper.make_graph(writer.nodes, "truequant", inputs, outputs, list(writer.constants.values()), value_info=inner)
    if show_edges:
        show(graph, program)
    model = helper.make_model(
        graph, producer_name="truequant", producer_version=version("truequant"), ir_version=IR_VERSION,
        opset_imports=opsets(writer.nodes),
    )  # fmt: skip
    helper.set_model_props(
        model,
        {
            "truequant.format": "1",
            FORM: form,
            "truequant.target": program.target,
            PROGRAM: digest(program),
            "truequant.schemes": schemes_of(program),
            "truequant.made_with": f"torch {torch.__version__}, onnx {onnx().__version__}",
        },
    )
    if not external.too_large(model):  # the checker reads a serialized model
        onnx().checker.check_model(model, full_check=False)
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


def digest(program: IntegerProgram) -> str:
    """SHA-256 of the program's contents, hexadecimal: the one that its `.tq` file holds."""
    return str(to_container(program)[0]["sha256"])


def _sizes(shape: tuple[int | None, ...], name: str) -> list[int | str]:
    """Symbolic names for dynamic sizes: the batch is N."""
    return [("N" if axis == 0 else f"{name}_{axis}") if n is None else n for axis, n in enumerate(shape)]
