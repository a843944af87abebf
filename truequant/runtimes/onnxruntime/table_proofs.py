"""Proofs of tables: every code of every table of a program through the installed runtime."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from truequant.errors import ExportError
from truequant.integer import IntegerProgram, ProgramInput
from truequant.integer.nodes import Dequantize, Edge, Node, Quantize, Table
from truequant.runtimes.onnxruntime.session import run, session


def require_exact_tables(program: IntegerProgram, write: Callable[[IntegerProgram], bytes]) -> int:
    """How many codes were looked up. write: the serialized model of a program, its edges shown.

    `ExportError` naming the first table of which onnxruntime gives another entry for one of its codes.
    """
    tables = [node for node in program.nodes if isinstance(node, Table)]
    if not tables:
        return 0
    longest = max(len(node.entries) for node in tables)  # a batch is N for every input: short tables are read round and round
    inputs: list[ProgramInput] = []
    nodes: list[Node] = []
    edges: dict[str, Edge] = {}
    feeds: dict[str, Tensor] = {}
    for number, node in enumerate(tables):
        x, y, read, value = f"x{number}", f"y{number}", program.edges[node.input], f"v{number}"
        edges |= {x: read, y: program.edges[node.output]}
        inputs.append(ProgramInput(value, "float32", (None,)))
        nodes += [Quantize(value, x), Table(x, y, node.entries, node.function), Dequantize(y, f"w{number}")]
        feeds[value] = (torch.arange(longest) % len(node.entries) + read.qmin - read.zero_point) * torch.tensor(read.scale)
    alone = IntegerProgram(tuple(inputs), tuple(nodes), edges, [f"w{n}" for n in range(len(tables))], program.target)
    found = run(session(write(alone)), feeds, [f"y{n}" for n in range(len(tables))])
    for node, codes in zip(tables, found.values(), strict=True):
        wrong = (codes.int()[: len(node.entries)] != node.entries.cpu().int()).nonzero()
        if len(wrong):
            at = int(wrong[0])
            raise ExportError(
                f"'{node.output}': onnxruntime gives another entry of the table of {node.function}",
                got=f"{int(codes[at])} for code {at + program.edges[node.input].qmin}",
                expected=int(node.entries[at]),
            )
    return sum(len(node.entries) for node in tables)
