"""onnxruntime's dialect of ONNX, in both layouts, and the forms of file that it reads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

from truequant.errors import ArgumentError
from truequant.integer import IntegerProgram
from truequant.runtimes.onnx.dialect import PLAIN, Dialect, Form
from truequant.runtimes.onnx.forms import Layout
from truequant.runtimes.onnx.graph import whole
from truequant.runtimes.onnxruntime.attention_proofs import require_exact_attention
from truequant.runtimes.onnxruntime.census import require_integer_kernels
from truequant.runtimes.onnxruntime.hidden_edges import show
from truequant.runtimes.onnxruntime.nodes import WRITERS
from truequant.runtimes.onnxruntime.norm_proofs import require_exact_norms
from truequant.runtimes.onnxruntime.table_proofs import require_exact_tables
from truequant.runtimes.targets import runs_here


def _prove(program: IntegerProgram, data: bytes, form: Form, folder: str | None) -> None:
    require_integer_kernels(program, data, folder=folder)
    for prove in (require_exact_tables, require_exact_norms, require_exact_attention):
        prove(program, lambda alone: whole(alone, form, show_edges=True))


ONNXRUNTIME = Dialect(
    # Signed codes by name: onnxruntime makes some of them unsigned in QDQ layout, and fuses neither those nor what reads them.
    "onnxruntime", WRITERS, signed_by_name=True, show=show, prove=_prove,
)  # fmt: skip


def form_of(program: IntegerProgram, layout: Layout) -> Form:
    """A layout for the target of a program: in onnxruntime's dialect, or plain where a runtime that is not here will read it.

    `ArgumentError` for another layout.
    """
    if layout not in get_args(Layout):
        raise ArgumentError(
            f"no form {layout!r} of an ONNX file for onnxruntime", got=repr(layout),
            expected=" or ".join(map(repr, get_args(Layout))),
        )  # fmt: skip
    return Form(layout, layout, ONNXRUNTIME if runs_here(program) else PLAIN)


FORMS: dict[str, Callable[[IntegerProgram], Form]] = {
    layout: partial(form_of, layout=layout) for layout in get_args(Layout)
}  # fmt: skip
