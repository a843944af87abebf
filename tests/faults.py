"""Single faults, put into a program or into its ONNX file: does verification see each one, and at the right edge?

python -m tests.faults --markdown docs/faults.md
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.programs import edge, f32, program, values_of
from truequant import numerics
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Add, Edge

MANY = 192
FOLLOWED = ("Clip", "Reshape", "Transpose", "Identity")
"""What may stand between the tensor of an edge and the node that rounds."""


class Net(nn.Module):
    """Every kind of integer node once: two convs and a sum, tables, a product, padding, concat, pooling, a mean, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.gate = nn.Conv2d(8, 8, 1)
        self.left, self.right = nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 3)
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.hardswish(self.branch(x) + x)
        x = x * torch.sigmoid(self.gate(x))
        x = F.pad(x, (1, 1, 1, 1))
        x = torch.cat([torch.relu(self.left(x)), self.right(x)], 1)
        result: Tensor = self.last(F.max_pool2d(x, 2).mean((2, 3)))
        return result


class File:
    """An ONNX file being edited. Nodes are found from the edges that they write, not by their names."""

    def __init__(self, path: Path) -> None:
        self.path, self.model = path, onnx.load(str(path))
        self.graph = self.model.graph

    def save(self) -> None:
        onnx.save(self.model, str(self.path))

    def writer(self, tensor: str) -> Any:
        return next(n for n in self.graph.node if tensor in n.output)

    def gathering(self, name: str) -> Any:
        """The GatherElements of a table's edge."""
        return next(n for n in self.graph.node if n.op_type == "GatherElements" and n.input[0] == f"{name}.table")

    def rounding(self, name: str) -> Any:
        """The QuantizeLinear of an edge."""
        node = self.writer(name)
        while node.op_type in FOLLOWED:
            node = self.writer(node.input[0])
        assert node.op_type == "QuantizeLinear", node
        return node

    def operand(self, name: str, index: int) -> Any:
        """The DequantizeLinear that an edge's op reads at a position."""
        return self.writer(self.writer(self.rounding(name).input[0]).input[index])

    def array(self, node: Any, index: int) -> Any:
        tensor = next(t for t in self.graph.initializer if t.name == node.input[index])
        return onnx.numpy_helper.to_array(tensor).copy()

    def put(self, node: Any, index: int, values: Any) -> None:
        """Another constant for one input of one node."""
        name = f"fault.{len(self.graph.initializer)}"
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        node.input[index] = name

    def change(self, node: Any, index: int, change: Callable[[Any], Any]) -> None:
        old = self.array(node, index)
        self.put(node, index, np.asarray(change(old)).astype(old.dtype).reshape(old.shape))

    def instead(self, node: Any, *nodes: Any) -> None:
        """Other nodes in a node's place."""
        at = list(self.graph.node).index(node)
        self.graph.node.remove(node)
        for offset, new in enumerate(nodes):
            self.graph.node.insert(at + offset, new)

    def rounded(self, name: str, how: str) -> None:
        """Quantization written out, `Floor` of x / s + offset in place of rint."""
        node = self.rounding(name)
        zero = float(self.array(node, 2))
        self.put(node, 2, np.float32(zero + (0.5 if how == "half up" else 0.0)))
        offset = node.input[2]
        limits = [self.constant(np.float32(0)), self.constant(np.float32(255))]
        make, end = onnx.helper.make_node, node.output[0]
        self.instead(
            node, make("Div", [node.input[0], node.input[1]], [f"{end}.1"]), make("Add", [f"{end}.1", offset], [f"{end}.2"]),
            make("Floor", [f"{end}.2"], [f"{end}.3"]), make("Clip", [f"{end}.3", *limits], [f"{end}.4"]),
            make("Cast", [f"{end}.4"], [end], to=onnx.TensorProto.UINT8),
        )  # fmt: skip

    def constant(self, values: Any) -> str:
        name = f"fault.{len(self.graph.initializer)}"
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), name))
        return name


def up(value: Any) -> Any:
    """One ulp more."""
    return np.nextafter(value, np.float32(np.inf))


def at(array: Any, index: Any, change: Callable[[Any], Any]) -> Any:
    """A copy with one element changed."""
    made = array.clone() if isinstance(array, Tensor) else array.copy()
    made[index] = change(made[index])
    return made


def swapped(array: Any, i: int, j: int) -> Any:
    made = array.copy()
    made[[i, j]] = made[[j, i]]
    return made


# -- faults of a file ---------------------------------------------------------------------------------------------------
def exchange(one: Any, i: int, two: Any, j: int) -> None:
    one.input[i], two.input[j] = two.input[j], one.input[i]


def _swap_codes(f: File) -> None:
    exchange(f.operand("add_0", 0), 0, f.operand("add_0", 1), 0)


def _swap_operands(f: File) -> None:
    node = f.writer(f.rounding("y").input[0])
    exchange(node, 0, node, 1)


def _swap_zero_points(f: File) -> None:
    exchange(f.operand("add_0", 0), 2, f.operand("add_0", 1), 2)


def _no_clamp(f: File) -> None:
    node = f.writer("left")
    assert node.op_type == "Clip"
    f.instead(node, onnx.helper.make_node("Identity", [node.input[0]], ["left"]))


def _concat(f: File) -> None:
    exchange(f.writer("cat_0"), 0, f.writer("cat_0"), 1)


def _pad_value(f: File) -> None:
    node = f.writer("pad_0")
    f.put(node, 2, np.uint8(0))


def _pool(f: File) -> None:
    node = f.writer("max_pool2d_0")
    for attribute in node.attribute:
        if attribute.name == "kernel_shape":
            attribute.ints[:] = [1, 1]


# -- faults of a program ------------------------------------------------------------------------------------------------
def node_of(p: IntegerProgram, name: str) -> Any:
    return next(n for n in p.nodes if n.output == name)


def with_node(p: IntegerProgram, name: str, **fields: Any) -> IntegerProgram:
    nodes = tuple(dataclasses.replace(n, **fields) if n.output == name else n for n in p.nodes)
    return dataclasses.replace(p, nodes=nodes)


def with_edge(p: IntegerProgram, name: str, **fields: Any) -> IntegerProgram:
    return dataclasses.replace(p, edges=dict(p.edges) | {name: dataclasses.replace(p.edges[name], **fields)})


def in_tensor(name: str, field: str, index: Any, change: Callable[[Any], Any]) -> Callable[[IntegerProgram], IntegerProgram]:
    return lambda p: with_node(p, name, **{field: at(getattr(node_of(p, name), field), index, change)})


def _flipped(p: IntegerProgram) -> IntegerProgram:
    return with_node(p, "right", weight=node_of(p, "right").weight.transpose(2, 3).contiguous())


@dataclass(frozen=True)
class Fault:
    """edge: where it must be found, the name of an output for a fault behind the last edge. subject: the preset of the net, or
    "pairs"; images: as many as show it.
    """

    name: str
    edge: str
    inject: Callable[[Any], Any]
    place: str = "file"
    subject: str = "w8a8"
    images: int = 8


FAULTS = (  # one a line
    Fault("lowest bit of a weight flipped", "branch.0", lambda f: f.change(f.operand("branch.0", 1), 0, lambda w: at(w, (3, 2, 1, 1), lambda v: v ^ 1))),
    Fault("highest bit of a weight flipped", "left", lambda f: f.change(f.operand("left", 1), 0, lambda w: at(w, (0, 2, 1, 1), lambda v: v ^ 128))),
    Fault("zero point of the weights off by one", "stem.0", lambda f: f.change(f.operand("stem.0", 1), 2, lambda z: z + 1)),
    Fault("scales of the weights off by one ulp", "stem.0", lambda f: f.change(f.operand("stem.0", 1), 1, up), images=MANY),
    Fault("scales of the channels rotated", "last", lambda f: f.change(f.operand("last", 1), 1, lambda s: np.roll(s, 1))),
    Fault("two channels of the weights exchanged", "branch.0", lambda f: f.change(f.operand("branch.0", 1), 0, lambda w: swapped(w, 1, 5))),
    Fault("kernel transposed", "right", lambda f: f.change(f.operand("right", 1), 0, lambda w: w.transpose(0, 1, 3, 2))),
    Fault("bias off by one", "left", lambda f: f.change(f.operand("left", 2), 0, lambda b: at(b, 2, lambda v: v + 1))),
    Fault("bias of a channel lost", "gate", lambda f: f.change(f.operand("gate", 2), 0, lambda b: at(b, 1, lambda v: 0))),
    Fault("output scale off by one ulp", "branch.0", lambda f: f.change(f.rounding("branch.0"), 1, up), images=MANY),
    Fault("input scale off by one ulp", "input_0", lambda f: f.change(f.rounding("input_0"), 1, up), images=MANY),
    Fault("output zero point off by one", "right", lambda f: f.change(f.rounding("right"), 2, lambda z: z + 1)),
    Fault("half up in place of half to even", "input_0", lambda f: f.rounded("input_0", "half up")),
    Fault("floor in place of rint", "branch.0", lambda f: f.rounded("branch.0", "floor")),
    Fault("clamp dropped", "left", _no_clamp),
    Fault("operands of an add exchanged, not their scales", "add_0", _swap_codes),
    Fault("operands of an add in the other order, scales too", "y", _swap_operands, subject="pairs"),
    Fault("zero points of an add exchanged", "add_0", _swap_zero_points),
    Fault("zero point of a factor off by one", "mul_0", lambda f: f.change(f.operand("mul_0", 0), 2, lambda z: z + 1)),
    Fault("one entry of a table off by one", "hardswish_0", lambda f: f.change(f.gathering("hardswish_0"), 0, lambda t: at(t, 70, lambda v: v + 1))),
    Fault("table shifted by one entry", "sigmoid_0", lambda f: f.change(f.gathering("sigmoid_0"), 0, lambda t: np.roll(t, 1))),
    Fault("inputs of a concat exchanged", "cat_0", _concat),
    Fault("padding with code 0 in place of the zero point", "pad_0", _pad_value),
    Fault("window of a max-pool too small", "max_pool2d_0", _pool),
    Fault("mean over one element less", "mean_0", lambda f: f.change(f.operand("mean_0", 0), 1, lambda s: s * np.float32(196 / 195))),
    Fault("scale of the output off by one ulp", "output", lambda f: f.change(f.writer("output"), 1, up), images=MANY),
    Fault("lowest bit of a weight flipped", "branch.0", in_tensor("branch.0", "weight", (3, 2, 1, 1), lambda v: v ^ 1), "program"),
    Fault("scales of the weights off by one ulp", "stem.0", in_tensor("stem.0", "weight_scale", slice(None), lambda v: torch.nextafter(v, torch.tensor(1.0))), "program", images=MANY),
    Fault("bias off by one", "left", in_tensor("left", "bias", 2, lambda v: v + 1), "program"),
    Fault("scale of an edge off by one ulp", "branch.0", lambda p: with_edge(p, "branch.0", scale=float(up(np.float32(p.edges["branch.0"].scale)))), "program", images=MANY),
    Fault("zero point of an edge off by one", "branch.0", lambda p: with_edge(p, "branch.0", zero_point=p.edges["branch.0"].zero_point + 1), "program"),
    Fault("clamp of a ReLU dropped", "left", lambda p: with_node(p, "left", low=0), "program"),
    Fault("clamp at too low a code", "right", lambda p: with_node(p, "right", high=150), "program"),
    Fault("add by another rule", "add_0", lambda p: with_node(p, "add_0", rule="portable"), "program", "w8a8-pow2"),
    Fault("mul by another rule", "mul_0", lambda p: with_node(p, "mul_0", rule="portable"), "program", "w8a8-pow2"),
    Fault("one entry of a table off by one", "sigmoid_0", in_tensor("sigmoid_0", "entries", 150, lambda v: v + 1), "program"),
    Fault("padding on one side only", "branch.0", lambda p: with_node(p, "branch.0", padding=((2, 0), (1, 1))), "program"),
    Fault("kernel transposed", "right", _flipped, "program"),
    Fault("inputs of a concat exchanged", "cat_0", lambda p: with_node(p, "cat_0", inputs=("right", "left")), "program"),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What verification said."""

    grade: str
    edge: str
    different: int
    largest: int


@cache
def net(preset: str = "w8a8") -> tuple[nn.Module, IntegerProgram, Tensor]:
    """The evaluated model, its program, and images of which the first has values half-way between two codes."""
    torch.manual_seed(0)
    x = torch.rand(MANY, 1, 28, 28)
    qat = tq.prepare(Net(), x[:8], preset)
    tq.calibrate(qat, [x[:64]])
    read = tq.convert(qat).program
    halves = (torch.arange(784).reshape(1, 1, 28, 28) % 255 + 0.5) * read.edges["input_0"].scale
    return qat, read, torch.cat([halves, x[1:]])


@cache
def pairs() -> tuple[None, IntegerProgram, tuple[Tensor, Tensor]]:
    """An add for which the order of its operands matters, and all pairs of codes."""
    random = np.random.default_rng(0)
    a, b = (v.flatten() for v in torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij"))
    while True:
        left, right, y = (edge(f32(2.0 ** random.uniform(-4, 1)), int(random.integers(0, 256))) for _ in range(3))
        p, q, r = ((torch.tensor(e.scale), torch.tensor(float(e.zero_point))) for e in (left, right, y))
        one, two = numerics.add(a, b, p, q, r, 0, 255, "onnxruntime"), numerics.add(b, a, q, p, r, 0, 255, "onnxruntime")
        if not torch.equal(one, two):
            edges: dict[str, Edge] = {"a": left, "b": right, "y": y}
            made = program(Add("a", "b", "y", "onnxruntime", 0, 255), edges, "a", "b", rank=1)
            return None, made, (values_of(a, left), values_of(b, right))


def found(fault: Fault, folder: Path) -> Found:
    """Put one fault in, and verify."""
    qat, read, data = pairs() if fault.subject == "pairs" else net(fault.subject)
    batches = [data[: fault.images]] if isinstance(data, Tensor) else [data]
    if fault.place == "program":
        report = tq.verify(qat, tq.Int8Model(fault.inject(read)), batches, runtimes=("reference",)).runtimes["reference"]
        first = report.first_difference
        return Found(report.grade, first.edge if first else "", report.codes_different, report.max_difference)
    path = folder / "faulty.onnx"
    tq.export_onnx(read, path, program=True)
    file = File(path)
    fault.inject(file)
    file.save()
    report = tq.verify(qat, path, batches, runtimes=("onnxruntime",)).runtimes["onnxruntime"]
    where, first = list(report.origins), report.first_difference
    if len(where) == 1 and (first is None or first.edge == where[0]):
        return Found(report.grade, where[0], report.codes_different, report.max_difference)
    return Found(report.grade, f"{where}, first at {first}", report.codes_different, report.max_difference)


def markdown(rows: list[tuple[Fault, Found]]) -> str:
    lines = [
        "# Faults", "",
        "One fault at a time was put into an integer program or into its ONNX file, and `verify` compared it with the evaluated",
        "model: a network with every kind of integer node (`tests/faults.py`), on 8 random images, and on 192 where a row says ulp. `python -m tests.faults",
        "--markdown docs/faults.md` makes this page; `tests/parity/test_faults.py` holds every row.", "",
        "*found at*: the edge at which verification says the differences begin: in a file, the only one whose node computes",
        "another code from equal codes; in a program, the first that differs. *different*: all codes that differ, there and",
        "behind.", "",
        "| fault | in the | found at | different | largest | grade |", "|---|---|---|---:|---:|---|",
    ]  # fmt: skip
    for fault, f in rows:
        right = f.edge if f.edge == fault.edge else f"**{f.edge or 'not found'}**, not {fault.edge}"
        lines.append(f"| {fault.name} | {fault.place} | `{right}` | {f.different:,} | {f.largest} | {f.grade} |")
    caught = sum(f.grade != "EXACT" for _, f in rows)
    located = sum(f.edge == fault.edge for fault, f in rows)
    lines += ["", f"{caught} of {len(rows)} faults caught, {located} located at their edge."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for fault in FAULTS:
            rows.append((fault, found(fault, Path(folder))))
            print(f"{fault.place:8} {fault.name:52} {fault.edge:13} {rows[-1][1]}", flush=True)
    if options.markdown is not None:
        options.markdown.write_text(markdown(rows))
    return 0 if all(f.grade != "EXACT" and f.edge == fault.edge for fault, f in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
