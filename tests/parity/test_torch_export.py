"""The program of torch.export: quantizing ops around float ops, and the numbers of the ONNX file run without optimizations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import truequant as tq
from tests.models import FAMILIES
from truequant.errors import ArgumentError, ExportError
from truequant.integer import Int8Model, IntegerProgram, ProgramInput
from truequant.integer.nodes import Dequantize, Edge, Island, Linear, Quantize
from truequant.planning import as_arguments
from truequant.runtimes import CompiledModel, EdgeReader
from truequant.runtimes.torch.program import ExportedEdges

Q = "quantized_decomposed."


def converted(name: str, config: str | tq.QConfig = "w8a8") -> tuple[nn.Module, Int8Model, object]:
    torch.manual_seed(0)
    family = FAMILIES[name]
    x = family.inputs()
    qat = tq.prepare(family.make(), x, config)
    tq.calibrate(qat, [x], inputs=lambda item: item)
    return qat.eval(), tq.convert(qat), x


def ops_of(program: torch.export.ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ResNet", "w8a8"), ("ResNet", "w4a4-all"), ("ResNet", "w8a8-per-tensor"), ("MobileNetV3", "w8a8-pow2"),
        ("U-Net", "w8a8"), ("Inception", "w8a8"), ("super-resolution", "w8a8"), ("arithmetic", "w8a8"),
        ("transformers: BERT", "w8a8"), ("LSTM", "w8a8"), ("siamese", "w8a8"),
    ],
)  # fmt: skip
def test_its_numbers_are_those_of_the_onnx_file_up_to_rounding(name: str, config: str, tmp_path: Path) -> None:
    _, int8, x = converted(name, config)
    args, kwargs = as_arguments(x)
    found = ExportedEdges(int8.program).codes(*args, **kwargs)
    wanted = EdgeReader(int8.program, form="qdq", level="none").codes(*args, **kwargs)
    assert set(found) == set(wanted) == set(int8.program.edges)
    largest = {edge: int((codes.int() - wanted[edge].int()).abs().max()) for edge, codes in found.items() if codes.numel()}
    different = sum(int((codes.int() != wanted[edge].int()).sum()) for edge, codes in found.items())
    assert max(largest.values()) <= 2, largest  # a tie, and what follows from it
    assert different <= 0.01 * sum(codes.numel() for codes in found.values())

    # The very file, read by torch alone.
    made = tq.export_program(int8, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    mine, theirs = (torch.utils._pytree.tree_leaves(m(*args, **kwargs)) for m in (made.module(), loaded))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_the_graph_is_what_backends_fuse() -> None:
    """int8 weights a channel, float ops between quantizing ops, dynamic batch; signed codes."""
    _, int8, _ = converted("ResNet")
    made = tq.export_program(int8)
    ops = ops_of(made)
    layers = sum(int8.ops().get(kind, 0) for kind in ("Conv", "Linear"))
    assert ops.count(f"{Q}dequantize_per_channel.default") == layers
    assert sum(op in ("aten.conv2d.default", "aten.linear.default") for op in ops) == layers
    assert ops.count(f"{Q}quantize_per_tensor.default") == len(int8.program.edges)
    weights = {name: value for name, value in made.state_dict.items() if name.endswith("_weight")}
    assert len(weights) == layers
    assert {value.dtype for value in weights.values()} == {torch.int8}
    for node in made.graph.nodes:
        if str(node.target) == f"{Q}quantize_per_tensor.default":
            assert node.args[3:] == (-128, 127, torch.int8)
        if str(node.target) == "aten.conv2d.default":
            kinds = [str(n.target) for n in node.args[:2]]
            assert kinds == [f"{Q}dequantize_per_tensor.default", f"{Q}dequantize_per_channel.default"]
    for count in (1, 5):
        assert made.module()(torch.randn(count, 3, 32, 32)).shape[0] == count


def test_it_is_compared_and_never_graded_exact() -> None:
    qat, int8, _ = converted("VGG")
    report = tq.verify(qat, int8, [torch.randn(4, 3, 32, 32)], runtimes=("reference", "torch.export")).runtimes
    assert report["reference"].grade == "EXACT"
    assert (report["torch.export"].grade, report["torch.export"].max_difference <= 1) == ("WITHIN 1", True)
    assert not report["torch.export"].meets("EXACT BETWEEN ISLANDS")
    assert report["torch.export"].note == "its arithmetic is that of floats"
    assert isinstance(tq.compile(int8, "torch.export")(torch.randn(2, 3, 32, 32)), torch.Tensor)


def test_a_clip_between_the_ends_of_the_grid_stays_and_scales_of_one_are_per_tensor() -> None:
    weight = torch.tensor([[100, -50], [7, 127]], dtype=torch.int8)
    layer = Linear("x.q", "y.q", weight, torch.tensor([0.02]), torch.tensor([5, -900], dtype=torch.int32), 30, 200)
    edges = {"x.q": Edge(0.5, 128, 0, 255), "y.q": Edge(0.25, 30, 0, 255)}
    nodes = (Quantize("x", "x.q"), layer, Dequantize("y.q", "y"))
    program = IntegerProgram((ProgramInput("x", "float32", (None, 2), "x"),), nodes, edges, {"dict": {"y": "y"}}, "onnxruntime")
    made = tq.export_program(Int8Model(program))
    assert {"aten.clamp.default", f"{Q}dequantize_per_tensor.default"} <= set(ops_of(made))
    x = torch.randn(500, 2) * 60
    codes = Int8Model(program).codes(x=x)["y.q"]
    assert (int(codes.min()), int(codes.max())) == (30, 200)
    assert torch.equal(made.module()(x=x)["y"], Int8Model(program)(x=x)["y"])
    assert torch.equal(codes, EdgeReader(program, form="qdq", level="none").codes(x=x)["y.q"])


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="not an Int8 model"):
        tq.export_program(nn.Linear(2, 2))  # type: ignore[arg-type]
    island = Island(("x",), "y", "one_hot.default", ('{"input": 0}',), (), ())  # as wide as the largest number
    program = IntegerProgram((ProgramInput("x", "int64", (None,)),), (island,), {}, "y", "onnxruntime")
    with pytest.raises(ExportError, match="torch.export cannot follow this program"):
        tq.export_program(Int8Model(program), tmp_path / "no.pt2")
    assert not (tmp_path / "no.pt2").exists()


@pytest.mark.parametrize("config", ["w8a16", "w4a16", "w8a8-dynamic"])
def test_linear_layers_on_floats(config: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 64)
    qat = tq.prepare(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)), x, config)
    int8 = tq.convert(tq.calibrate(qat, [x]).eval())
    tq.export_program(int8, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.allclose(loaded(x), int8(x), rtol=1e-5, atol=1e-5)
    assert torch.allclose(loaded(x), CompiledModel(int8.program, form="qdq", level="none")(x), rtol=1e-5, atol=1e-5)
