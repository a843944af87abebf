"""Tables in ONNX: of one code, and of all pairs of codes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from truequant import numerics
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Add, Edge, Lookup, Mul, Sub, Table
from truequant.runtimes.onnx.integer_layers import reshape_to
from truequant.runtimes.onnx.kernels import kernels_of
from truequant.runtimes.onnx.writer import Writer, numpy_of
from truequant.schemes import ArithmeticRule

Kind = Literal["Add", "Sub", "Mul"]
LookUp = Callable[[Writer, Add | Sub | Mul | Table, Any, str], None]
"""`look_up(writer, node, entries, index)` writes the node's edge: `entries[index]`."""


class Pairs(NamedTuple):
    """What decides the code of each pair of codes."""

    kind: Kind
    left: Edge
    right: Edge
    output: Edge
    low: int
    high: int
    rule: ArithmeticRule


def pairs_of(program: IntegerProgram, node: Add | Sub | Mul) -> Pairs:
    """The pairs of a node of a program."""
    kind: Kind = "Add" if isinstance(node, Add) else "Mul" if isinstance(node, Mul) else "Sub"
    left, right, output = (program.edges[n] for n in (node.left, node.right, node.output))
    return Pairs(kind, left, right, output, node.low, node.high, "portable" if isinstance(node, Sub) else node.rule)


def grids(left: Edge, right: Edge) -> tuple[Any, Any]:
    """All pairs `(a, b)` of codes, b fastest."""
    a, b = np.arange(left.qmin, left.qmax + 1), np.arange(right.qmin, right.qmax + 1)
    return np.repeat(a, len(b)), np.tile(b, len(a))


@lru_cache(maxsize=512)
def all_pairs(of: Pairs) -> Any:
    """Codes of the result for each of `grids`, int64 `(levels of a * levels of b,)`."""
    a, b = (torch.from_numpy(codes).float() for codes in grids(of.left, of.right))
    x, y, written = ((torch.tensor(e.scale), torch.tensor(float(e.zero_point))) for e in (of.left, of.right, of.output))
    if of.kind == "Sub":
        codes = numerics.sub(a, b, x, y, written, of.low, of.high)
    else:
        codes = (numerics.add if of.kind == "Add" else numerics.mul)(a, b, x, y, written, of.low, of.high, of.rule)
    return codes.numpy().astype(np.int64)


def write_pairs(writer: Writer, node: Add | Sub | Mul, look_up: LookUp) -> None:
    """All pairs of codes in one table: exact whatever the runtime's own arithmetic is."""
    left, right = writer.edge(node.left), writer.edge(node.right)
    entries = all_pairs(pairs_of(writer.program, node)).astype(writer.dtype(writer.edge(node.output)))
    levels = right.qmax - right.qmin + 1
    indices = []
    for name, edge, step in ((node.left, left, levels), (node.right, right, 1)):
        cast, moved = writer.fresh(f"{node.output}.{name}.cast"), writer.fresh(f"{node.output}.{name}.row")
        writer.node("Cast", [name], cast, name=cast, to=6)
        first = writer.fresh(f"{node.output}.{name}.first")
        writer.node("Sub", [cast, writer.constant("first_code", np.int32(edge.qmin))], first, name=first)
        writer.node("Mul", [first, writer.constant("step", np.int32(step))], moved, name=moved)
        indices.append(moved)
    index = writer.fresh(f"{node.output}.index")
    writer.node("Add", indices, index, name=index)
    look_up(writer, node, entries, index)


def write_table(writer: Writer, node: Table, look_up: LookUp) -> None:
    """A table of one code."""
    source, output = writer.edge(node.input), writer.edge(node.output)
    cast = writer.fresh(f"{node.output}.cast")
    writer.node("Cast", [node.input], cast, name=cast, to=6)
    if source.qmin:
        index = writer.fresh(f"{node.output}.index")
        writer.node("Sub", [cast, writer.constant("first_code", np.int32(source.qmin))], index, name=index)
        cast = index
    look_up(writer, node, numpy_of(node.entries).astype(writer.dtype(output)), cast)


def table_constant(writer: Writer, node: Add | Sub | Mul | Table, entries: Any) -> str:
    """The entries. What is looked up is the edge itself, never clamped behind."""
    writer.raw[node.output] = node.output
    return writer.constant(f"{node.output}.table", entries)


def flat_rows(writer: Writer, node: Add | Sub | Mul | Table, table: str, index: str) -> str:
    """The entries of an index, in one row: over one axis GatherElements takes a third of the time of Gather in onnxruntime."""
    flat, rows = writer.fresh(f"{node.output}.flat_index"), writer.fresh(f"{node.output}.flat")
    writer.node("Reshape", [index, writer.integers("flat", [-1])], flat, name=flat)
    return writer.node(kernels_of(node).table, [table, flat], rows, name=node.output)


def look_up_flat(writer: Writer, node: Add | Sub | Mul | Table, entries: Any, index: str) -> None:
    """Through one row, and back to the shape of the edge."""
    name, shape, table = node.output, writer.shapes[node.output], table_constant(writer, node, entries)
    if len(shape) < 2:
        writer.node(kernels_of(node).table, [table, index], name, name=name)
        return
    rows = flat_rows(writer, node, table, index)
    if sum(n is None for n in shape) > 1:
        whole = writer.measured(index, f"{name}.shape", 0, len(shape))
        writer.node("Reshape", [rows, whole], name, name=f"{name}.reshape")
    else:
        reshape_to(writer, rows, name, shape)


def write_lookup(writer: Writer, node: Lookup) -> None:
    """Rows by number."""
    entries = numpy_of(node.entries).astype(writer.dtype(writer.edge(node.output)))
    entries = writer.constant(f"{node.output}.table", entries)
    writer.node(kernels_of(node).table, [entries, node.input], node.output, name=node.output)
