"""An ONNX file in onnxruntime: its inner edges, its outputs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from truequant.errors import ExportError, FileError
from truequant.integer import IntegerProgram
from truequant.integer.binding import bind
from truequant.integer.nodes import Edge
from truequant.planning import build
from truequant.runtimes.onnx.reading import program_of_file, read_model
from truequant.runtimes.onnxruntime.census import census, same_kernels
from truequant.runtimes.onnxruntime.hidden_edges import show
from truequant.runtimes.onnxruntime.session import Level, run, session
from truequant.runtimes.packages import onnx


class ShippedFile:
    """The file in onnxruntime: codes of every edge from a copy that shows them, outputs from the file itself."""

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 0, level: Level = "all") -> None:
        self.path = Path(path)
        model, folder = read_model(self.path)
        self.program = program_of_file(model, self.path)
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
    except ExportError as error:  # of a session, which speaks of files that we write
        raise FileError(f"'{path}': onnxruntime does not run it", got=error.got) from error
