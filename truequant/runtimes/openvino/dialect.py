"""OpenVINO's dialect of ONNX, and the form of file that is written in it."""

from __future__ import annotations

from collections.abc import Callable

from truequant.errors import ExportError
from truequant.integer import IntegerProgram, is_wide
from truequant.runtimes.onnx.dialect import Dialect, Form
from truequant.runtimes.openvino.nodes import WRITTEN_OUT
from truequant.runtimes.openvino.session import compiled


def _require(program: IntegerProgram) -> None:
    for node in program.nodes:
        if is_wide(node, program.edges):
            raise ExportError(
                f"'{node.output}': OpenVINO's form has no codes of 16 bits",
                fix="form='qdq', or activations of 8 bits: QConfig(wide_streams=False), no rule of 16",
            )


def _prove(program: IntegerProgram, data: bytes, form: Form, folder: str | None) -> None:
    compiled(data, folder=folder)


FORM = Form("openvino", "qdq", Dialect("openvino", WRITTEN_OUT, require=_require, prove=_prove))
FORMS: dict[str, Callable[[IntegerProgram], Form]] = {"openvino": lambda program: FORM}
