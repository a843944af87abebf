"""Proofs of tables: every code of every table of a program through the installed runtime."""

from __future__ import annotations

import torch

from truequant.errors import ExportError
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Table
from truequant.runtimes.onnxruntime.trials import Trial, Write, first_difference


def require_exact_tables(program: IntegerProgram, write: Write) -> int:
    """How many codes were looked up. write: the serialized model of a program, its edges shown.

    `ExportError` naming the first table of which onnxruntime gives another entry for one of its codes.
    """
    tables = [node for node in program.nodes if isinstance(node, Table)]
    longest = max((len(node.entries) for node in tables), default=0)  # a batch is N for every input: short tables repeat
    trial = Trial(program)
    for table in tables:
        read = program.edges[table.input]
        trial.add(table, input=trial.input(read, torch.arange(longest) % len(table.entries) + read.qmin, (None,)))
    for node, found, _ in trial.results(write):
        assert isinstance(node, Table)
        if (differ := first_difference(found[: len(node.entries)], node.entries.cpu())) is not None:
            at = differ[0][0]
            raise ExportError(
                f"'{node.output}': onnxruntime gives another entry of the table of {node.function}",
                got=f"{int(found[at])} for code {at + program.edges[node.input].qmin}",
                expected=int(node.entries[at]),
            )
    return sum(len(node.entries) for node in tables)
