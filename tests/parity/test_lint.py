"""What `lint` predicts is what onnxruntime's optimized graph holds: what is missed there, and what is fused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import truequant as tq
from tests.models import FAMILIES
from tests.programs import edge, program, random_linear, residual_net
from tests.scripts import script
from truequant.errors import ArgumentError
from truequant.integer import Int8Model, IntegerProgram
from truequant.integer.nodes import Add, Attend, Conv, Island, Linear, Normalize, Softmax, Sub, Table
from truequant.runtimes import onnx_bytes
from truequant.runtimes.onnxruntime.census import optimized
from truequant.runtimes.onnxruntime.float_tables import float_kernel_of
from truequant.runtimes.onnxruntime.pooled_sums import pooling_of
from truequant.runtimes.packages import onnx

MATRIX = script("exactness")
FLOAT_OPS = frozenset(
    ("Conv", "Gemm", "MatMul", "Add", "Mul", "Sub", "GlobalAveragePool", "AveragePool", "MaxPool", "Pad", "Resize")
)
WEIGHT_ZERO = {"QLinearConv": 5, "QGemm": 5, "ConvInteger": 3, "MatMulInteger": 3}


class Observed:
    """The optimized graph, each of its nodes put down to the program node that it came from."""

    def __init__(self, of: IntegerProgram, form: Any, level: Any) -> None:
        self.program = of
        graph = optimized(onnx_bytes(of, form=form), level)
        names = sorted((n.output for n in of.nodes), key=len, reverse=True)
        self.pattern = re.compile("|".join(re.escape(n) + r"(?=$|[._])" for n in names))
        self.kinds = {n.output: n for n in of.nodes}
        self.types = {c.name: c.data_type for c in graph.initializer}
        self.writers = {o: n for n in graph.node for o in n.output}
        self.nodes = [(self.root(node), node) for node in graph.node]

    def root(self, node: Any) -> str:
        for name in (node.name, node.output[0]):
            if found := self.pattern.match(name):
                return found.group()
        return ""

    def where(self, *ops: str) -> set[str]:
        return {root for root, node in self.nodes if node.op_type in ops}

    def kernels(self) -> dict[str, str]:
        """Integer kernels by the node that they compute, float kernels on centred codes among them."""
        found = {root: n.op_type for root, n in self.nodes if n.op_type.startswith(("QLinear", "QGemm"))}
        return found | {root: "Conv" for root, n in self.nodes if self.on_integers(n)}

    def on_integers(self, node: Any) -> bool:
        """Whether a convolution reads codes less their zero point."""
        writer = self.writers.get(node.input[0]) if node.op_type in ("Conv", "FusedConv") else None
        return writer is not None and writer.op_type == "DequantizeLinear" and writer.input[1] == "one"

    def float_kernels(self) -> set[str]:
        """Ops between DequantizeLinear and QuantizeLinear, islands and the steps of norms apart, which nothing fuses."""

        def dequantized(node: Any) -> bool:
            return any(name in self.writers and self.writers[name].op_type == "DequantizeLinear" for name in node.input)

        found = {r for r, n in self.nodes if n.op_type in FLOAT_OPS and dequantized(n) and not self.on_integers(n)}
        return {root for root in found if not isinstance(self.kinds[root], (Island, Normalize, Table))}

    def islands(self) -> set[str]:
        quantizing = ("QuantizeLinear", "DequantizeLinear")
        return {r for r, n in self.nodes if isinstance(self.kinds.get(r), Island) and n.op_type not in quantizing}

    def gathered(self, *kinds: type) -> set[str]:
        return {r for r in self.where("GatherElements") if isinstance(self.kinds[r], kinds)}

    def unsigned_weights(self) -> set[str]:
        unsigned = onnx().TensorProto.UINT8
        at = [(r, n.input[WEIGHT_ZERO[n.op_type]]) for r, n in self.nodes if n.op_type in WEIGHT_ZERO]
        return {root for root, name in at if self.types.get(name) == unsigned}

    def put_in_order(self, node: Any) -> bool:
        """Whether onnxruntime itself quantizes here again what it has transposed, where it computes in float."""
        writer = self.writers.get(node.input[0])
        return writer is not None and writer.op_type == "Transpose" and writer.name.startswith("Transpose_token")

    def unpacked(self) -> set[str]:
        return {r for r, n in self.nodes if n.op_type == "Cast" and n.input[0].endswith(".packed")}


def agrees(of: IntegerProgram, form: Any, level: Any) -> tq.runtimes.Lint:
    """Compare the prediction with the graph, in both directions."""
    predicted, seen = tq.lint(of, form=form, level=level), Observed(of, form, level)

    def nodes(*kinds: Any) -> set[str]:
        return {miss.node for kind in kinds for miss in predicted.of(kind)}

    attending = {n.output for n in of.nodes if isinstance(n, (Softmax, Attend))}  # written out, whatever the level
    assert dict(predicted.fused) == seen.kernels()
    assert nodes("level", "wide") == seen.float_kernels()
    assert nodes("pairs") == seen.gathered(*(type(n) for n in of.nodes if not isinstance(n, (Table, Softmax, Attend))))
    in_float = {n.output for n in of.nodes if isinstance(n, Table) and float_kernel_of(of, n) is not None}
    assert nodes("table") == seen.gathered(Table) | in_float
    assert not seen.gathered(Table) & in_float
    assert nodes("clamp") == {r for r in seen.where("Clip") if not isinstance(seen.kinds[r], Island)}
    assert nodes("values") == seen.where("ConvInteger", "MatMulInteger") - attending
    assert nodes("float") >= seen.islands()  # of several results of one op only the first has nodes of its own
    assert bool(nodes("float")) == bool(seen.islands())
    if not nodes("level", "wide"):  # a float kernel has a DequantizeLinear for its weights
        assert nodes("weights") == seen.unsigned_weights() - attending
    assert nodes("packed") == seen.unpacked()
    quantized = {r for r, n in seen.nodes if n.op_type == "QuantizeLinear" and not seen.put_in_order(n)}
    pooled = {pool.output for n in of.nodes if isinstance(n, Conv) and (pool := pooling_of(of, n, form)) is not None}
    assert (
        quantized - attending - in_float
        == {n.output for n in of.nodes if type(n).__name__ in ("Quantize", "Normalize")} | nodes("level", "wide") | pooled
    )
    return predicted


MODELS = [
    ("ResNet", "w8a8"), ("MobileNetV3", "w8a8-pow2"), ("MobileNetV2", "int8"), ("DenseNet", "w8a8"),
    ("U-Net, bilinear", "w4a8-all"), ("CBAM", "w4a4"), ("MLP-Mixer", "w4a4"), ("arithmetic", "w7a8"), ("Inception", "w8a8"),
    ("attention by hand", "w8a8"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the models' own
@pytest.mark.parametrize(("name", "preset"), MODELS)
def test_predictions_of_models(name: str, preset: str) -> None:
    int8 = MATRIX.trained(FAMILIES[name], preset)
    for form, level in (("qdq", "all"), ("qdq", "basic"), ("qoperator", "none")):
        found = agrees(int8.program, form, level)
        assert found.fused or level == "basic"
        assert bool(found.of("level")) == (level == "basic")


@pytest.mark.parametrize(
    ("form", "level"), [("qdq", lv) for lv in ("none", "basic", "extended", "all")] + [("qoperator", "none")]
)
def test_predictions_at_every_level(form: str, level: str) -> None:
    found = agrees(residual_net(), form, level)
    assert bool(found.of("level")) == (form == "qdq" and level in ("none", "basic"))
    assert "level 'none' fuses no QDQ" in str(tq.lint(residual_net(), level="none"))


def test_a_relu_that_the_kernel_does_not_hold() -> None:
    """Behind one grid for a concat the zero point is not 0, so that the clamp is not the kernel's own."""
    found = agrees(residual_net(), "qdq", "all")
    (miss, *_) = found.of("clamp")
    assert (miss.node, miss.runs) == ("sum1", "Clip on codes")
    assert miss.why == "the clamp to codes 64 … 255 is not the kernel's own, 0 … 255"


def test_weights_that_could_saturate() -> None:
    net = residual_net()
    exact, fast = (tq.lint(net, target=name) for name in ("onnxruntime", "onnxruntime-vnni"))
    assert {m.node for m in exact.of("weights")} >= {"stem", "a1", "b1"}
    assert fast.of("weights") == ()
    assert "preset 'int8'" in exact.of("weights")[0].fix


def test_sums_that_no_kernel_computes_are_tables() -> None:
    edges = {"x": edge(0.02, 100), "w": edge(0.03, 90), "y": edge(0.05, 80)}
    p = program(Sub("x", "w", "y", 0, 255), edges, "x", "w")
    assert agrees(p, "qdq", "all").of("pairs")[0].why == "no integer kernel subtracts"
    # A rule that QLinearAdd does not have: some pairs differ, so that the file holds all of them.
    p = program(Add("x", "w", "y", "portable", 0, 255), edges | {"y": edge(0.02, 80)}, "x", "w")
    (miss,) = agrees(p, "qdq", "all").of("pairs")
    assert "QLinearAdd gives other codes for some pairs of the grids (0.02, 100), (0.03, 90) -> (0.02, 80)" in miss.why


def test_wide_codes_run_in_float() -> None:
    node = random_linear(torch.Generator().manual_seed(0), "x", "y", 8, 64, high=65535)
    p = sized(program(node, {"x": edge(0.001, 30000, (0, 65535)), "y": edge(0.02, 9, (0, 65535))}, "x"), 64)
    assert [(m.kind, m.runs) for m in agrees(p, "qoperator", "all").missed] == [("wide", "Gemm in float32, never EXACT")]


def test_packed_weights_are_cast_where_nothing_folds_them() -> None:
    weight = torch.randint(-8, 8, (16, 64), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    node = Linear("x", "y", weight, torch.full((16,), 0.01), torch.zeros(16, dtype=torch.int32), 0, 255)
    p = sized(program(node, {"x": edge(0.02, 9), "y": edge(0.02, 9)}, "x"), 64)
    assert [m.kind for m in agrees(p, "qoperator", "none").missed] == ["packed"]
    assert agrees(p, "qoperator", "basic").missed == agrees(p, "qdq", "all").missed == ()


def test_sums_that_leave_as_floats() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    qat = tq.prepare(model, torch.randn(4, 6), tq.QConfig(output=None))
    int8 = tq.convert(tq.calibrate(qat, [torch.randn(4, 6)]).eval())
    assert [m.node for m in agrees(int8.program, "qdq", "all").of("values")] == ["2"]


def test_lint_of_files(tmp_path: Path) -> None:
    net = residual_net()
    Int8Model(net).save(tmp_path / "net.tq")
    tq.export_onnx(net, tmp_path / "net.onnx", form="qoperator")
    of_tq, of_onnx = tq.lint(tmp_path / "net.tq"), tq.lint(str(tmp_path / "net.onnx"))
    assert (of_tq.form, of_onnx.form) == ("qdq", "qoperator")
    assert of_tq.missed == of_onnx.missed == tq.lint(net).missed
    assert of_onnx.to_dict()["missed"][0]["kind"] == of_onnx.missed[0].kind
    assert str(of_onnx).startswith(f"{len(of_onnx.fused)} nodes become integer kernels")


def test_wrong_arguments() -> None:
    with pytest.raises(ArgumentError, match="no target 'tpu'"):
        tq.lint(residual_net(), target="tpu")
    with pytest.raises(ArgumentError, match="fuses nothing in OpenVINO's form"):
        tq.lint(residual_net(), form="openvino")


def sized(p: IntegerProgram, features: int) -> IntegerProgram:
    return replace(p, inputs=(replace(p.inputs[0], shape=(None, features)),))
