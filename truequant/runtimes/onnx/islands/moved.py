"""Movement of values whose sizes or ends follow the inputs, as float islands in ONNX: what is fixed, a program moves itself."""

from __future__ import annotations

from typing import Any

from truequant.errors import ExportError
from truequant.integer.nodes import Island
from truequant.runtimes.onnx.islands.arguments import Arguments, Computed
from truequant.runtimes.onnx.islands.steps import Steps
from truequant.runtimes.onnx.writer import Writer

_END = 2**63 - 1


def reshape(writer: Writer, node: Island, a: Arguments) -> None:
    Steps(writer, node)("Reshape", [a.tensor("0"), a.shape("1")])


def unsqueeze(writer: Writer, node: Island, a: Arguments) -> None:
    Steps(writer, node)("Unsqueeze", [a.tensor("0"), writer.integers(f"{node.output}.axes", [int(a["1"])])])


def squeeze(writer: Writer, node: Island, a: Arguments) -> None:
    """torch leaves axes as they are that are not 1; their sizes are those of the traced shapes."""
    rank, after = len(writer.shapes[a.tensor("0")]), len(writer.shapes[node.output])
    axes = [a["1"]] if isinstance(a["1"], int) else list(a["1"])
    if rank - after != len(axes):
        axes = [axis for axis in axes if writer.shapes[a.tensor("0")][axis] == 1]
    Steps(writer, node)("Squeeze", [a.tensor("0"), writer.integers(f"{node.output}.axes", axes)])


def flatten(writer: Writer, node: Island, a: Arguments) -> None:
    """The sizes before and behind as they are, those between as one."""
    x = a.tensor("0")
    rank = len(writer.shapes[x])
    begin, end = int(a.get("1", 0)) % rank, int(a.get("2", -1)) % rank
    sizes = [*(a.measured("0", i) for i in range(begin)), -1, *(a.measured("0", i) for i in range(end + 1, rank))]
    Steps(writer, node)("Reshape", [x, a.joined(sizes)])


def unflatten(writer: Writer, node: Island, a: Arguments) -> None:
    x = a.tensor("0")
    rank = len(writer.shapes[x])
    axis = int(a["1"]) % rank
    sizes = [*(a.measured("0", i) for i in range(axis)), *a["2"], *(a.measured("0", i) for i in range(axis + 1, rank))]
    Steps(writer, node)("Reshape", [x, a.joined(sizes)])


def _slice(writer: Writer, node: Island, x: str, axis: int, ends: tuple[Any, Any, int], part: str = "") -> str:
    begin, end, stride = ends
    a = Arguments(writer, node, [], {})
    step = Steps(writer, node)
    bounds = [a.size(begin, f"{part}begin"), a.size(end, f"{part}end")]
    axes = writer.integers(f"{node.output}.{part}axis", [axis])
    return step("Slice", [x, *bounds, axes, writer.integers(f"{node.output}.{part}step", [stride])], part)


def cut(writer: Writer, node: Island, a: Arguments) -> None:
    begin, end = a.get("2"), a.get("3")
    ends = (0 if begin is None else begin, _END if end is None else end, int(a.get("4", 1)))
    _slice(writer, node, a.tensor("0"), int(a.get("1", 0)), ends)


def narrow(writer: Writer, node: Island, a: Arguments) -> None:
    _slice(writer, node, a.tensor("0"), int(a["1"]), (a["2"], Computed("add", a["2"], a["3"]), 1))


def part(writer: Writer, node: Island, a: Arguments) -> None:
    """One part of `split` by sizes or of `chunk`, whose parts have one size, the last one what remains."""
    x, number = a.tensor("0"), int(node.part or 0)
    axis = int(a.get("2", 0)) % len(writer.shapes[x])
    if node.op == "chunk.default":  # the whole, divided and rounded up
        whole = Computed("add", a.measured("0", axis), int(a["1"]) - 1)
        size: Any = Computed("floordiv", whole, int(a["1"]))
        begin: Any = Computed("mul", size, number)
    else:
        begin, size = 0, a["1"][number]
        for before in a["1"][:number]:
            begin = Computed("add", begin, before)
    _slice(writer, node, x, axis, (begin, Computed("add", begin, size), 1))


def select(writer: Writer, node: Island, a: Arguments) -> None:
    step = Steps(writer, node)
    index = step("Squeeze", [a.size(a["2"], "index"), writer.integers(f"{node.output}.first", [0])], "place")
    step("Gather", [a.tensor("0"), index], axis=int(a["1"]))


def flip(writer: Writer, node: Island, a: Arguments) -> None:
    x = a.tensor("0")
    for position, axis in enumerate(a["1"], 1):
        x = _slice(writer, node, x, int(axis), (-1, -_END, -1), "" if position == len(a["1"]) else f"turned{position}")


def roll(writer: Writer, node: Island, a: Arguments) -> None:
    """The last places of an axis before the others, by its size as it is."""
    step, x = Steps(writer, node), a.tensor("0")
    shifts, axes = (list(v) if isinstance(v, list) else [v] for v in (a["1"], a.get("2", [])))
    if not axes:
        raise ExportError(f"'{node.output}': rolls a flattened tensor", expected="dims=…")
    for position, (shift, axis) in enumerate(zip(shifts, axes, strict=True), 1):
        if not isinstance(shift, int):
            raise ExportError(f"'{node.output}': rolls by a size", got=str(shift), expected="a number of places")
        parts = [
            _slice(writer, node, x, int(axis), (-shift, _END, 1), f"last{position}"),
            _slice(writer, node, x, int(axis), (0, -shift, 1), f"first{position}"),
        ]
        last = position == len(axes)
        x = step("Concat", parts, "" if last else f"rolled{position}", axis=int(axis)) if shift else x
    if not shifts[-1]:
        step("Identity", [x])
