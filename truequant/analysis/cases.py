"""A reproducible case: an input, the codes that were expected of it at one edge, and those that a runtime gave.

header   {"format": "truequant case", "version": 1, "program": DIGEST, "runtime": …, "edge": …, "position": […],
          "inputs": […]}
tensors  "expected", "got": the edge's codes; "input.0" …: the program's inputs, in the order of their names in the header
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from truequant.errors import FileError
from truequant.files import read_container, write_container

FORMAT, VERSION = "truequant case", 1
_FIELDS = {"format": str, "version": int, "program": str, "runtime": str, "edge": str, "position": list, "inputs": list}


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """inputs: tensors by the program's names. expected, got: all codes of `edge`, which first differ at `position`."""

    program: str
    runtime: str
    edge: str
    position: tuple[int, ...]
    inputs: dict[str, Tensor]
    expected: Tensor
    got: Tensor

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the case to one file and return its size in bytes."""
        header = {
            "format": FORMAT, "version": VERSION, "program": self.program, "runtime": self.runtime, "edge": self.edge,
            "position": list(self.position), "inputs": list(self.inputs),
        }  # fmt: skip
        tensors = {f"input.{i}": tensor for i, tensor in enumerate(self.inputs.values())}
        return write_container(path, header, tensors | {"expected": self.expected, "got": self.got})


def read_case(path: str | os.PathLike[str]) -> Case:
    """The case of a file that anybody may have written. FileError where it is none, or damaged."""
    header, tensors = read_container(path)

    def wrong(what: str, got: object, expected: object) -> FileError:
        return FileError(f"'{path}': {what}", got=repr(got)[:80], expected=expected)

    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise wrong("no case of a verification", header.get("format"), f"'{FORMAT}', version {VERSION}")
    if sorted(header) != sorted(_FIELDS):
        raise wrong("not these fields", sorted(header)[:8], ", ".join(sorted(_FIELDS)))
    fields: dict[str, Any] = {}
    for name, kind in _FIELDS.items():
        if type(value := header[name]) is not kind:
            raise wrong(f"'{name}' cannot be", value, kind.__name__)
        fields[name] = value
    names, position = fields["inputs"], fields["position"]
    if not all(isinstance(n, str) for n in names) or len(set(names)) != len(names):
        raise wrong("'inputs' cannot be", names, "distinct names")
    wanted = {"expected", "got", *(f"input.{i}" for i in range(len(names)))}
    if set(tensors) != wanted:
        raise wrong("not these tensors", sorted(tensors)[:8], ", ".join(sorted(wanted)))
    expected, got = tensors["expected"], tensors["got"]
    if expected.shape != got.shape or expected.is_floating_point() or got.is_floating_point():
        raise wrong("'expected' and 'got' are not codes of one edge", (expected.dtype, got.dtype), "integers of one shape")
    inside = len(position) == expected.dim() and all(
        type(i) is int and 0 <= i < n for i, n in zip(position, expected.shape, strict=True)
    )
    if not inside:
        raise wrong("'position' lies outside the edge", position, f"an index into {tuple(expected.shape)}")
    inputs = {name: tensors[f"input.{i}"] for i, name in enumerate(names)}
    return Case(fields["program"], fields["runtime"], fields["edge"], tuple(position), inputs, expected, got)
