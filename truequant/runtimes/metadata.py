"""The program of an ONNX file, in the file's own metadata."""

from __future__ import annotations

import base64

from truequant.files import container_bytes
from truequant.integer import IntegerProgram
from truequant.integer.serialize import to_container
from truequant.runtimes.packages import onnx

PROGRAM, CONTAINER, FORM = "truequant.program", "truequant.program.container", "truequant.form"
"""Keys of the program's digest, of the whole of it, and of the form of the file."""


def with_program(data: bytes, program: IntegerProgram) -> bytes:
    """A serialized model that carries its whole program, so that it can be verified alone."""
    model = onnx().load_model_from_string(data)
    entry = model.metadata_props.add()
    entry.key = CONTAINER
    entry.value = base64.b64encode(container_bytes("program", *to_container(program))).decode("ascii")
    made: bytes = model.SerializeToString(deterministic=True)
    return made
