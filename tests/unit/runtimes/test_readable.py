"""An exported file is pleasant in a viewer: nodes and weights carry the names of the model's own modules."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

import truequant as tq
from truequant.demo import lenet


def test_nodes_weights_and_sizes_have_names(tmp_path: Path) -> None:
    x = torch.rand(8, 1, 28, 28)
    tq.export_onnx(tq.convert(tq.calibrate(tq.prepare(lenet(), x), [x]).eval()), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    layers = {"conv1": "Conv", "conv2": "Conv", "hidden": "Gemm", "classifier": "Gemm"}
    assert {node.name: node.op_type for node in model.graph.node if node.name in layers} == layers
    assert {f"{layer}.weight" for layer in layers} <= {constant.name for constant in model.graph.initializer}
    assert [size.dim_param or size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == ["N", 1, 28, 28]
    assert (model.producer_name, model.graph.name) == ("truequant", "truequant")
    onnx.checker.check_model(model, full_check=True)  # shapes are inferred from end to end
