"""Nodes of a program tried one by one: a program of their own, fed with chosen codes, in the installed runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from truequant.integer import IntegerProgram, ProgramInput, execute
from truequant.integer.nodes import Dequantize, Edge, Node, Quantize
from truequant.runtimes.onnxruntime.session import run, session

Write = Callable[[IntegerProgram], bytes]
"""The serialized model of a program, its edges shown."""


class Trial:
    """A program of nodes of `program`, none of which reads another one."""

    def __init__(self, program: IntegerProgram) -> None:
        self.edges_of = program.edges
        self.target = program.target
        self.inputs: list[ProgramInput] = []
        self.nodes: list[Node] = []
        self.edges: dict[str, Edge] = {}
        self.feeds: dict[str, Tensor] = {}
        self.outputs: list[str] = []
        self.tried: dict[str, Node] = {}

    def input(self, edge: Edge, codes: Tensor, shape: tuple[int | None, ...] | None = None) -> str:
        """A new edge like `edge` that is fed with `codes`. shape: that of the program's input, by default all sizes fixed."""
        name = f"x{len(self.inputs)}"
        value = f"{name}.value"
        self.inputs.append(ProgramInput(value, "float32", tuple(codes.shape) if shape is None else shape))
        self.nodes.append(Quantize(value, name))
        self.edges[name] = edge
        self.feeds[value] = (codes - edge.zero_point) * torch.tensor(edge.scale)
        return name

    def add(self, node: Node, **reads: Any) -> None:
        """`node`, with these fields in place of the names that it reads."""
        output = f"y{len(self.tried)}"
        self.tried[output] = node
        made: Any = node
        self.nodes.append(replace(made, output=output, **reads))
        if node.output not in self.edges_of:
            self.outputs.append(output)
            return
        self.edges[output] = self.edges_of[node.output]
        self.nodes.append(Dequantize(output, f"{output}.value"))
        self.outputs.append(f"{output}.value")

    def results(self, write: Write) -> Iterator[tuple[Node, Tensor, Tensor]]:
        """Each node with what onnxruntime and what the program writes for it: codes, or values where it writes none."""
        if not self.tried:
            return
        program = IntegerProgram(tuple(self.inputs), tuple(self.nodes), self.edges, self.outputs, self.target)
        found: Mapping[str, Tensor] = run(session(write(program)), self.feeds, list(self.tried))
        expected = execute(program, self.feeds, list(self.tried))
        for name, node in self.tried.items():
            yield node, found[name], expected[name]


def first_difference(found: Tensor, expected: Tensor) -> tuple[tuple[int, ...], int] | None:
    """The first place at which two tensors differ, and how many there are; None where they are equal."""
    wrong = (found.double() != expected.double()).nonzero()
    return (tuple(wrong[0].tolist()), len(wrong)) if len(wrong) else None
