"""What an exported file looks like: only what it needs, under names that one knows, with types and shapes between the nodes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import truequant as tq
from tests.models import FAMILIES
from tests.programs import hidden, residual_net
from tests.scripts import script
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Conv, Linear, Normalize
from truequant.reports import versions
from truequant.runtimes import digest, onnx_bytes
from truequant.runtimes.onnxruntime.pooled_sums import pooling_of

MATRIX = script("exactness")
MODELS = [
    ("ResNet", "w8a8"), ("MobileNetV3", "w8a8"), ("DenseNet", "w4a8"), ("U-Net, bilinear", "w8a8"), ("SqueezeNet", "w4a4"),
    ("attention by hand", "w8a8"), ("MLP-Mixer", "w8a8"), ("siamese", "w7a8"), ("YOLO", "w8a8"), ("feature pyramid", "w8a8"),
]  # fmt: skip
INVERSE = {"QuantizeLinear": "DequantizeLinear", "DequantizeLinear": "QuantizeLinear"}


def file_of(program: IntegerProgram, form: Any = "qdq") -> Any:
    model = onnx.load_model_from_string(onnx_bytes(program, form=form))
    onnx.checker.check_model(model, full_check=True)  # infers every shape again, and compares
    return model


def tidy(model: Any, program: IntegerProgram) -> None:
    """No node, constant or conversion that could be left out. Every edge must be there by its name, though."""
    graph = model.graph
    writers = {output: node for node in graph.node for output in node.output}
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    outputs = {o.name for o in graph.output}
    assert all(node.name for node in graph.node)
    assert [n for n, count in Counter(node.name for node in graph.node).items() if count > 1] == []
    unread = [o for node in graph.node for o in node.output if o and not readers[o] and o not in outputs]
    assert unread == [], "nodes that nobody reads"
    assert [c for c in constants if not readers[c]] == [], "constants that nobody reads"
    pooled = {n.output for n in program.nodes if isinstance(n, Conv) and pooling_of(program, n)}
    centred = {node.input[0] for node in graph.node if node.op_type == "Conv" and node.name in pooled}
    normalized = {n.output for n in program.nodes if isinstance(n, Normalize)}
    centred |= {f"{name}.centred" for name in normalized}
    for node in graph.node:
        before = writers.get(node.input[0]) if node.input else None
        if before is None:
            continue
        if node.op_type == INVERSE.get(before.op_type):
            grids = [[constants[name].tolist() for name in n.input[1:3]] for n in (before, node)]
            assert node.op_type != "QuantizeLinear", f"{node.name}: codes to values and back, {grids}"
        pair = (before.op_type, node.op_type)
        if node.input[0] not in program.edges:
            assert pair not in {("Cast", "Cast"), ("Reshape", "Reshape"), ("Identity", "Identity"), ("Clip", "Clip")}, node.name
        if pair == ("Transpose", "Transpose") and node.input[0] not in program.edges:
            first, second = (list(n.attribute[0].ints) for n in (before, node))
            assert [first[i] for i in second] != sorted(first), f"{node.name} turns back what {before.name} turned"
        if node.op_type == "DequantizeLinear" and before.op_type == "QuantizeLinear":
            # Codes less their zero point, whose scale is 1; and a norm is divided by its scale before it is quantized.
            own = 2 if node.output[0] in centred or before.output[0] in normalized else 1
            assert list(node.input[own:3]) == list(before.input[own:3]), f"{node.name}: read on another grid than written"
    quantized = [n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"]
    assert len(set(quantized)) == len(quantized), "a value quantized twice"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the models' own
@pytest.mark.parametrize(("name", "preset"), MODELS)
def test_files_hold_only_what_they_need(name: str, preset: str) -> None:
    program = MATRIX.trained(FAMILIES[name], preset).program
    for form in ("qdq", "qoperator"):
        model = file_of(program, form)
        tidy(model, program)
        described(model, program)


def described(model: Any, program: IntegerProgram) -> None:
    """Every edge and value of the program has its type and rank in the file."""
    infos = {i.name: i.type.tensor_type for i in (*model.graph.value_info, *model.graph.output)}
    written = {o for node in model.graph.node for o in node.output}
    assert len(model.graph.value_info) == len({i.name for i in model.graph.value_info})
    assert {i.name for i in model.graph.value_info} <= written
    left_out = hidden(program) - written
    for name, edge in program.edges.items():
        if name in left_out:
            continue
        expected = onnx.TensorProto.INT8 if edge.signed else onnx.TensorProto.UINT8
        assert infos[name].elem_type == expected
        assert infos[name].HasField("shape")
    for node in program.nodes:
        assert node.output in infos or node.output in left_out


def test_the_small_net_is_tidy() -> None:
    for form in ("qdq", "qoperator"):
        program = residual_net()
        model = file_of(program, form)
        tidy(model, program)
        described(model, program)


def test_what_is_untidy_is_seen() -> None:
    """The test above can fail."""
    whole = onnx_bytes(residual_net())
    grid = ["stem.scale", "stem.zero_point"]
    made = onnx.helper.make_node
    extra = {
        "nobody reads": [made("Neg", ["x"], ["unread"], name="extra")],
        "codes to values and back": [
            made("DequantizeLinear", ["stem", *grid], ["v"], name="e1"), made("QuantizeLinear", ["v", *grid], ["q"], name="e2"),
            made("DequantizeLinear", ["q", *grid], ["y2"], name="e3"),
        ],
        "'stem'": [made("Identity", ["stem"], ["z"], name="stem")],
    }  # fmt: skip
    for message, nodes in extra.items():
        model = onnx.load_model_from_string(whole)
        model.graph.node.extend(nodes)
        if message != "nobody reads":
            last = nodes[-1].output[0]
            model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
        with pytest.raises(AssertionError, match=message):
            tidy(model, residual_net())


def test_shapes_between_the_nodes() -> None:
    """Fixed sizes as numbers, the batch left open and without a name."""
    infos = {i.name: i.type.tensor_type for i in file_of(residual_net()).graph.value_info}

    def shape(name: str) -> list[int | str]:
        return [d.dim_value or d.dim_param or "?" for d in infos[name].shape.dim]

    assert shape("stem") == ["?", 4, 8, 8]
    assert shape("b1.value") == ["?", 8, 4, 4]
    assert shape("mean") == ["?", 8]
    assert infos["b1.value"].elem_type == onnx.TensorProto.FLOAT


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        block = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
        self.features = nn.Sequential(nn.Sequential(*block), nn.Conv2d(8, 8, 3, padding=1))
        self.classifier = nn.ModuleDict({"head": nn.Linear(8, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.features[0](x)
        return self.classifier["head"]((y + self.features[1](y)).mean((2, 3)))


@pytest.fixture(scope="module")
def nested() -> IntegerProgram:
    torch.manual_seed(0)
    qat = tq.prepare(Nested(), torch.randn(2, 3, 8, 8))
    return tq.convert(tq.calibrate(qat, [torch.randn(8, 3, 8, 8)]).eval()).program


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_nodes_are_named_after_modules(form: str, nested: IntegerProgram) -> None:
    nodes = {node.name: node.op_type for node in file_of(nested, form).graph.node}
    layers = {"qdq": ("Conv", "Gemm"), "qoperator": ("QLinearConv", "QGemm")}[form]
    assert nodes["features.0.0"] == nodes["features.1"] == layers[0]
    assert nodes["classifier.head"] == layers[1]
    assert nodes["add_0"] == {"qdq": "Add", "qoperator": "QLinearAdd"}[form]
    modules = {name for name, _ in Nested().named_modules()}
    assert {n.output for n in nested.nodes if isinstance(n, (Conv, Linear))} <= modules


@pytest.mark.parametrize("form", ["qdq", "qoperator", "openvino"])
def test_opset_and_metadata(form: str, nested: IntegerProgram) -> None:
    """Opset 21 has 16-bit and 4-bit codes; onnxruntime's own domain is named only where a node is of it."""
    model = file_of(nested, form)
    domains = {o.domain: o.version for o in model.opset_import}
    assert domains == ({"": 21, "com.microsoft": 1} if form == "qoperator" else {"": 21})
    assert {node.domain for node in model.graph.node} == set(domains)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert entries["truequant.form"] == form
    assert entries["truequant.program"] == digest(nested)
    assert entries["truequant.target"] == "onnxruntime"
    assert entries["truequant.schemes"] == "weights int8 x 3; activations uint8 x 6"
    assert entries["truequant.made_with"] == f"torch {torch.__version__}, onnx {onnx.__version__}"
    assert (model.producer_name, model.producer_version) == ("truequant", versions()["truequant"])


def test_equal_programs_give_equal_files(nested: IntegerProgram) -> None:
    assert onnx_bytes(nested) == onnx_bytes(nested)
