"""A program in LiteRT, called with torch tensors, and a copy of it that shows its inner edges."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from truequant.integer import IntegerProgram
from truequant.integer.binding import Binder, bind
from truequant.integer.nodes import Dequantize, Quantize
from truequant.planning import build
from truequant.runtimes.litert.graph import tflite_file
from truequant.runtimes.litert.session import Session


class LitertModel:
    """A model in LiteRT: torch tensors in and out, the structure that the model returns.

    The file reads and writes codes; its inputs are quantized, and its outputs dequantized, as the program says.
    """

    def __init__(self, program: IntegerProgram, *, threads: int = 0) -> None:
        self.program, self._bind, self._session = program, Binder(program), Session(tflite_file(program), threads)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self._session.run(quantized(self.program, self._bind(args, kwargs)))
        values = {
            node.output: node.run(self.program.edges, [found[node.input]])
            for node in self.program.nodes
            if isinstance(node, Dequantize)
        }
        return build(self.program.outputs, values)

    def left_out(self) -> tuple[str, ...]:
        """Operators that run in kernels of LiteRT's own, beside the XNNPACK delegate."""
        return tuple(found.op for found in self._session.left_out)

    def __repr__(self) -> str:
        return f"LitertModel({len(self.program.nodes)} nodes)"


class LitertEdges:
    """A copy of the file of which every edge is an output."""

    def __init__(self, program: IntegerProgram, *, threads: int = 0) -> None:
        self.program, self._session = program, Session(tflite_file(program, show_edges=True), threads)

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The codes of every edge for these inputs, by name."""
        given = quantized(self.program, bind(self.program, args, kwargs))
        found = given | self._session.run(given)
        return {name: found[name] for name in self.program.edges}


def quantized(program: IntegerProgram, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    """The codes of the program's inputs."""
    return {
        node.output: node.run(program.edges, [feeds[node.input].float()])
        for node in program.nodes
        if isinstance(node, Quantize)
    }
