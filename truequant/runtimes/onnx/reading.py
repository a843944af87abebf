"""An ONNX file as it lies on the disk, read without a runtime: its model, and the program that it claims to be.

The program that a file claims to be stands in its metadata, whole (`truequant.program.container`, the base64 text of a `.tq`
file's content) or as a digest, and then lies beside it in the `.tq` file of the same name. A file is untrusted: sizes are
checked, external data must lie in the file's own folder, and a program is read as a `.tq` file is.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from truequant.errors import FileError
from truequant.files import parse_container
from truequant.integer import IntegerProgram, load
from truequant.integer.serialize import from_container
from truequant.runtimes.onnx.external import require_inside
from truequant.runtimes.onnx.forms import FormName
from truequant.runtimes.onnx.metadata import CONTAINER, FORM, PROGRAM, digest
from truequant.runtimes.packages import onnx

MAX_ONNX_BYTES = 2**31 - 1
"""What protobuf itself can hold."""


def read_program(path: str | os.PathLike[str]) -> tuple[IntegerProgram, FormName]:
    """The program that an ONNX file claims to be, and the form in which it is written."""
    model, _ = read_model(Path(path))
    named = next((str(entry.value) for entry in model.metadata_props if entry.key == FORM), "qdq")
    forms: dict[str, FormName] = {form: form for form in get_args(FormName)}
    if named not in forms:
        raise FileError(f"'{path}': no form {named[:40]!r} of an ONNX file", expected=", ".join(forms))
    return program_of_file(model, Path(path)), forms[named]


def program_of_file(model: Any, path: Path) -> IntegerProgram:
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


def read_model(path: Path) -> tuple[Any, str | None]:
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
