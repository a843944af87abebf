"""The program of an ONNX file, in the file's own metadata."""

from __future__ import annotations

import base64
from collections import Counter

from truequant.files import container_bytes
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Weighted
from truequant.integer.packing import narrowest
from truequant.integer.serialize import to_container
from truequant.runtimes.packages import onnx

PROGRAM, CONTAINER, FORM = "truequant.program", "truequant.program.container", "truequant.form"
"""Keys of the program's digest, of the whole of it, and of the form of the file."""


def schemes_of(program: IntegerProgram) -> str:
    """The widths of a program's integers, and how many layers and edges have them."""
    weights = Counter(f"int{narrowest(node.weight)}" for node in program.nodes if isinstance(node, Weighted))
    edges = Counter(f"{'' if e.signed else 'u'}int{16 if e.wide else 8}" for e in program.edges.values())
    parts = (("weights", weights), ("activations", edges))
    return "; ".join(f"{what} {', '.join(f'{k} x {n}' for k, n in sorted(counts.items()))}" for what, counts in parts if counts)


def digest(program: IntegerProgram) -> str:
    """SHA-256 of the program's contents, hexadecimal: the one that its `.tq` file holds."""
    return str(to_container(program)[0]["sha256"])


def with_program(data: bytes, program: IntegerProgram) -> bytes:
    """A serialized model that carries its whole program, so that it can be verified alone."""
    model = onnx().load_model_from_string(data)
    entry = model.metadata_props.add()
    entry.key = CONTAINER
    entry.value = base64.b64encode(container_bytes("program", *to_container(program))).decode("ascii")
    made: bytes = model.SerializeToString(deterministic=True)
    return made
