"""What a runtime wants otherwise than the plain form of a file, and how its installed version is asked about one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from truequant.integer import IntegerProgram
from truequant.integer.nodes import Node
from truequant.runtimes.onnx.forms import FormName, Layout
from truequant.runtimes.onnx.nodes import WRITERS
from truequant.runtimes.onnx.writer import Writer


def _nothing(*args: object) -> None:
    """A dialect without this step."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """writers: its own function for some kinds of nodes; the others are written as in every dialect.

    signed_by_name: nodes that write signed codes are integer kernels by name in QDQ layout too.
    require(program): `ExportError` for a program that it cannot hold. show(graph, program): appends nodes that write the codes
    of edges that are in no tensor of its file. prove(program, data, form, folder): `ExportError` where the installed runtime
    computes something else than the program; folder: where constants beside the model lie.
    """

    name: str
    writers: Mapping[type[Node], Callable[[Writer, Any], None]]
    signed_by_name: bool = False
    require: Callable[[IntegerProgram], None] = _nothing
    show: Callable[[Any, IntegerProgram], None] = _nothing
    prove: Callable[[IntegerProgram, bytes, Form, str | None], None] = _nothing


@dataclass(frozen=True, slots=True)
class Form:
    """A layout in a dialect; name: what callers and the file call it."""

    name: FormName
    layout: Layout
    dialect: Dialect


PLAIN = Dialect("plain", {})
"""For runtimes that do not run here, which fuse QDQ in their own way. Nothing is proven."""


def write(form: Form, program: IntegerProgram) -> Writer:
    """The nodes and constants of a program."""
    form.dialect.require(program)
    writer = Writer(program, form.layout, signed_by_name=form.dialect.signed_by_name)
    writers = {**WRITERS, **form.dialect.writers}
    for node in program.nodes:
        writers[type(node)](writer, node)
    return writer
