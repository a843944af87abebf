"""An ONNX file as it lies on the disk: its program, its inner edges, its outputs.

The program that a file claims to be stands in its metadata, whole (`truequant.program.container`, the base64 text of a `.tq`
file's content) or as a digest, and then lies beside it in the `.tq` file of the same name. A file is untrusted: sizes are
checked, external data must lie in the file's own folder, and a program is read as a `.tq` file is.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from truequant.errors import FileError, TruequantError
from truequant.files import parse_container
from truequant.integer import IntegerProgram, load
from truequant.integer.binding import bind
from truequant.integer.nodes import Edge
from truequant.integer.serialize import from_container
from truequant.planning import build
from truequant.runtimes.census import census
from truequant.runtimes.compiled import same_kernels
from truequant.runtimes.export import digest
from truequant.runtimes.external import require_inside
from truequant.runtimes.hidden_edges import show
from truequant.runtimes.metadata import CONTAINER, FORM, PROGRAM
from truequant.runtimes.packages import onnx
from truequant.runtimes.session import Level, run, session
from truequant.runtimes.writer import Form

MAX_ONNX_BYTES = 2**31 - 1
"""What protobuf itself can hold."""


class ShippedFile:
    """The file in onnxruntime: codes of every edge from a copy that shows them, outputs from the file itself."""

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 0, level: Level = "all") -> None:
        self.path = Path(path)
        model, folder = _read(self.path)
        self.program = program_beside(model, self.path)
        shown = _shown(model, self.program, self.path)
        with _named(self.path):
            self._outputs = session(str(self.path), threads=threads, level=level)
            self._edges = session(shown, threads=threads, level=level, folder=folder)
            same_kernels(census(model.SerializeToString(), folder=folder), census(shown, folder=folder))

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The codes of every edge for these inputs, by name."""
        return run(self._edges, bind(self.program, args, kwargs), list(self.program.edges))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return build(self.program.outputs, run(self._outputs, bind(self.program, args, kwargs)))


def read_program(path: str | os.PathLike[str]) -> tuple[IntegerProgram, Form]:
    """The program that an ONNX file claims to be, and the form in which it is written."""
    model, _ = _read(Path(path))
    named = next((str(entry.value) for entry in model.metadata_props if entry.key == FORM), "qdq")
    forms: dict[str, Form] = {form: form for form in get_args(Form)}
    if named not in forms:
        raise FileError(f"'{path}': no form {named[:40]!r} of an ONNX file", expected=", ".join(forms))
    return program_beside(model, Path(path)), forms[named]


def program_beside(model: Any, path: Path) -> IntegerProgram:
    """The program that a model claims to be. FileError where there is none, or another one."""
    properties: Mapping[str, str] = {entry.key: entry.value for entry in model.metadata_props}
    claimed = properties.get(PROGRAM)
    if claimed is None:
        raise FileError(
            f"'{path}': no program is named in its metadata", expected=f"an entry '{PROGRAM}', as tq.export_onnx writes"
        )
    beside = path.with_suffix(".tq")
    if CONTAINER in properties:
        where = f"{path}, entry {CONTAINER}"
        try:
            data = base64.b64decode(properties[CONTAINER].encode("ascii"), validate=True)
        except (ValueError, binascii.Error) as error:
            raise FileError(f"'{where}': not base64", got=str(error), expected="what a .tq file holds") from None
        header, tensors = parse_container(data, where)
        program = from_container(header, tensors, f"'{where}'")
    elif beside.is_file():
        where, program = str(beside), load(beside).program
    else:
        raise FileError(
            f"'{path}': its program is nowhere to be found", got=f"no '{beside}', and only a digest in the metadata",
            fix="int8.save(…) to that path, or tq.export_onnx(int8, path, program=True)",
        )  # fmt: skip
    if digest(program) != claimed:
        raise FileError(
            f"'{where}' is not the program of '{path}'", got=digest(program)[:16], expected=claimed[:16],
            fix="put the .tq file beside it that was exported",
        )  # fmt: skip
    return program


def _read(path: Path) -> tuple[Any, str | None]:
    """The model, and the folder of the constants that lie beside it."""
    try:
        size = path.stat().st_size
        if size > MAX_ONNX_BYTES:
            raise FileError(
                f"'{path}': larger than an ONNX file can be", got=f"{size} bytes", expected=f"at most {MAX_ONNX_BYTES}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"'{path}' cannot be read: {error.strerror or error}") from error
    try:
        model = onnx().load_model_from_string(data)
    except Exception as error:  # protobuf's own errors differ from version to version
        raise FileError(f"'{path}': not an ONNX file", got=str(error)[:200]) from error
    return model, str(path.parent) if require_inside(model, path) else None


def _shown(model: Any, program: IntegerProgram, path: Path) -> bytes:
    """The model with every edge among its outputs."""
    copy = type(model)()
    copy.CopyFrom(model)
    show(copy.graph, program)
    written = {name for node in copy.graph.node for name in node.output}
    if missing := [name for name in program.edges if name not in written]:
        raise FileError(f"'{path}': no tensor has the name of an edge", got=", ".join(missing[:4])[:200], expected="every edge")
    there = {output.name for output in copy.graph.output}
    for name, edge in program.edges.items():
        if name not in there:
            copy.graph.output.append(onnx().helper.make_tensor_value_info(name, _element(edge), None))
    data: bytes = copy.SerializeToString(deterministic=True)
    return data


def _element(edge: Edge) -> int:
    wide = edge.qmax > (127 if edge.signed else 255) or edge.qmin < -128
    return int(getattr(onnx().TensorProto, f"{'' if edge.signed else 'U'}INT{16 if wide else 8}"))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What onnxruntime objects to becomes a FileError that names the file."""
    try:
        yield
    except TruequantError:
        raise
    except Exception as error:  # onnxruntime's own classes are not public
        raise FileError(f"'{path}': onnxruntime does not run it", got=str(error).splitlines()[0][:300]) from error
