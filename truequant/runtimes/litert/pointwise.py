"""Nodes that compute each code from codes at the same place."""

from __future__ import annotations

from typing import Any

import numpy as np

from truequant.integer.nodes import Add, Clamp, Mul, Sub, Table
from truequant.runtimes.litert.layers import clamp, finish, result
from truequant.runtimes.litert.orders import stored
from truequant.runtimes.litert.writer import Writer, refuse

_BOUNDS = {Add: (2.0**-10, 2.0**8), Sub: (2.0**-10, 2.0**8), Mul: (2.0**-16, 2.0**8)}
"""Ratios of scales within which XNNPACK's kernels take an op."""


def write_pair(writer: Writer, node: Add | Sub | Mul) -> None:
    """Two edges in one order, that of the operand with more axes."""
    if node.rule != "xnnpack":
        raise refuse(node, f"rule {node.rule!r}", "tq.QConfig().for_target('xnnpack')")
    y = np.float32(writer.edge(node.output).scale)
    scales = [np.float32(writer.edge(name).scale) for name in node.reads]
    ratios = [scales[0] * scales[1] / y] if isinstance(node, Mul) else [s / y for s in scales]
    low, high = _BOUNDS[type(node)]
    if not all(low <= ratio < high for ratio in ratios):
        raise refuse(
            node,
            f"ratios of scales {[float(r) for r in ratios]} outside {low} … {high}",
            "scales that are closer to each other",
        )
    rank = len(writer.shapes[node.output])
    ranks = [len(writer.shapes[name]) for name in node.reads]
    order = writer.order[node.reads[ranks.index(rank)]]
    operands = [_operand(writer, name, order, node.output) for name in node.reads]
    made, activation = result(writer, node, order)
    kind = type(node).__name__
    writer.file.op(kind.upper(), operands, made, 2, f"{kind}Options", fusedActivationFunction=activation)
    finish(writer, node, made, order)


def _operand(writer: Writer, name: str, order: tuple[int, ...], output: str) -> int:
    shape = writer.shapes[name]
    more = len(order) - len(shape)
    if not more:
        return writer.read(name, order)
    index = writer.plain(name)
    wide = (1,) * more + shape
    if [a for a in order if wide[a] != 1] != [a for a in range(len(order)) if wide[a] != 1]:
        own = tuple(axis - more for axis in order if axis >= more)
        index = writer.read(name, own)
    sizes = stored(wide, order)
    return writer.reshape(index, sizes, writer.tensor(f"{name}.wide", sizes, name), output)


def write_clamp(writer: Writer, node: Clamp) -> None:
    order = writer.order[node.input]
    clamp(writer, node.output, writer.read(node.input), node.low, node.high, stored(writer.shapes[node.output], order), order)


def write_table(writer: Writer, node: Table) -> None:
    """Rows of a table by integers: no kernel that computes the function."""
    source, edge, name, order = writer.edge(node.input), writer.edge(node.output), node.output, writer.order[node.input]
    sizes = stored(writer.shapes[node.input], order)
    whole = writer.file.tensor(writer.fresh(f"{name}.codes"), sizes, "int32")
    types: Any = {"inDataType": 9, "outDataType": 2}
    writer.file.op("CAST", [writer.read(node.input)], whole, 1, "CastOptions", **types)
    rows = writer.file.tensor(writer.fresh(f"{name}.rows"), sizes, "int32")
    first = writer.integers(f"{name}.first", [-source.qmin])
    writer.file.op("ADD", [whole, first], rows, 1, "AddOptions", fusedActivationFunction=0)
    entries = node.entries.cpu().numpy().astype(np.int8)
    table = writer.file.constant(writer.fresh(f"{name}.entries"), entries, np.float32(edge.scale), edge.zero_point)
    writer.file.op("GATHER", [table, rows], writer.write(name, order), 2, "GatherOptions", axis=0)
