"""A whole program as a file of LiteRT, and how its tensors stand for the program's."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from truequant.errors import ExportError
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Dequantize, Quantize
from truequant.runtimes.litert.nodes import WRITERS
from truequant.runtimes.litert.orders import Order, Sizes, channels_last, plain
from truequant.runtimes.litert.writer import Writer
from truequant.runtimes.onnx.metadata import PROGRAM, digest


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file holds an edge: the stored tensor's place among the file's inputs or outputs, its axes' order, and the sizes
    `(C, *space)` of a plane that is stored channels last as rows.
    """

    position: int
    order: Order
    flat: Sizes | None = None


@dataclass(frozen=True, slots=True)
class TfliteFile:
    """data: the file. inputs, outputs: where it holds each edge that it reads or writes, by name."""

    data: bytes
    inputs: dict[str, Place]
    outputs: dict[str, Place]


def tflite_file(program: IntegerProgram, *, show_edges: bool = False) -> TfliteFile:
    """The program's codes from those of its quantized inputs: int8 in and out, tensors of four axes channels last.

    show_edges: every edge is an output, as it is stored. `ExportError` for a program that holds floats between its codes, or a
    node that has no exact form.
    """
    if program.target != "xnnpack":
        raise ExportError(
            f"a program for target '{program.target}' in LiteRT's file", got=f"target '{program.target}'",
            expected="target 'xnnpack', whose rules LiteRT computes",
            fix="tq.prepare(model, x, tq.QConfig().for_target('xnnpack')), calibrated or trained again",
        )  # fmt: skip
    writer = Writer(program)
    inputs: dict[str, Place] = {}
    indices: list[int] = []
    values = {i.name for i in program.inputs}
    wanted: list[str] = []
    for node in program.nodes:
        if isinstance(node, Quantize) and node.input in values:
            order = _outer(len(writer.shapes[node.output]))
            indices.append(writer.write(node.output, order))
            inputs[node.output] = Place(len(indices) - 1, order)
        elif isinstance(node, Dequantize) and not program.readers(node.output):
            wanted.append(node.input)
        elif type(node) in WRITERS and node.output in program.edges:
            WRITERS[type(node)](writer, node)
        else:
            raise ExportError(
                f"{node.label} has no exact form in LiteRT",
                got="floats between codes" if node.output not in program.edges else "no kernel that computes it exactly",
                expected="integers from the quantized inputs to the outputs",
                fix="the plan says why: print(tq.plan(model, x, config)); or another target, by export_onnx",
            )  # fmt: skip
    outputs: dict[str, Place] = {}
    results: list[int] = []
    names = [n for n in writer.index if n not in inputs] if show_edges else list(dict.fromkeys(wanted))
    for name in names:
        order = writer.order[name] if show_edges else _outer(len(writer.shapes[name]))
        index = writer.read(name, order)
        position = results.index(index) if index in results else len(results)
        results += [index] if position == len(results) else []
        outputs[name] = Place(position, order, writer.flat.get(name))
    metadata = {"truequant.version": version("truequant"), PROGRAM: digest(program)}
    return TfliteFile(writer.file.serialized(indices, results, "truequant", metadata), inputs, outputs)


def _outer(rank: int) -> Order:
    """The order of inputs and outputs: images channels last, everything else as the model has it."""
    return channels_last(rank) if rank == 4 else plain(rank)
