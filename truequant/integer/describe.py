"""A program as text: one row a node."""

from __future__ import annotations

from truequant.integer.binding import signature
from truequant.integer.nodes import Conv, Linear, Node, Weighted
from truequant.integer.program import IntegerProgram

HEADS = ("node", "output", "codes", "scale", "zero point", "weight")


def describe(program: IntegerProgram) -> str:
    """What the program takes, what it is made of, and where each edge's codes lie."""
    layers = [node for node in program.nodes if isinstance(node, (Conv, Linear))]
    weights = sum(node.weight.numel() for node in program.nodes if isinstance(node, Weighted))
    biases = sum(node.bias.numel() for node in layers)
    census = ", ".join(f"{count} {kind}" for kind, count in program.census().items())
    title = f"Int8Model{signature(program)} for {program.target}: {weights:,} int8 weights, {biases:,} int32 biases"
    return "\n".join([title, census, *_table([HEADS, *(_row(node, program) for node in program.nodes)])])


def _row(node: Node, program: IntegerProgram) -> tuple[str, ...]:
    edge = program.edges.get(node.output)
    codes = ("float32", "", "") if edge is None else (f"{edge.qmin}…{edge.qmax}", f"{edge.scale:.6g}", str(edge.zero_point))
    weight = "×".join(map(str, node.weight.shape)) if isinstance(node, Weighted) else ""
    return (type(node).__name__, node.output, *codes, weight)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
