"""Tables between convolutions are looked up as the codes lie: no transpose is left around them in onnxruntime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.integer.nodes import Table
from truequant.runtimes import onnx_bytes


class Gated(nn.Module):
    """Tables behind and before convolutions, behind a sum, around a gate of one number a channel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Conv2d(c, 8, 3, padding=1) for c in (4, 8, 8))
        self.gate, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        y = self.act(self.second(y) + y)
        y = self.act(self.third(y))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        out: Tensor = self.last(y)
        return out


def kernels(int8: tq.Int8Model, form: str, folder: Path) -> Counter[str]:
    """Nodes of the graph that onnxruntime runs, by op."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(folder / f"{form}.onnx")
    onnxruntime.InferenceSession(onnx_bytes(int8.program, form=form), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / f"{form}.onnx").graph.node)


@pytest.mark.parametrize("activation", [tq.types.uint8, tq.types.int8])
@pytest.mark.filterwarnings("ignore")  # onnxruntime's, of a file that holds what was optimized for one machine
def test_no_transpose_around_tables(activation: tq.IntegerType, tmp_path: Path) -> None:
    x = torch.randn(3, 4, 9, 7, generator=torch.Generator().manual_seed(1))
    scheme = tq.QuantScheme(activation)
    int8 = tq.convert(
        tq.calibrate(tq.prepare(Gated(), x, tq.QConfig(activation=scheme, input=scheme, output=scheme)), [x]).eval()
    )
    assert sum(isinstance(node, Table) for node in int8.program.nodes) == 4
    for form in ("qdq", "qoperator"):
        found = kernels(int8, form, tmp_path)
        assert found["GatherElements"] == 4
        assert found["Transpose"] <= 4  # what comes in and goes out, and what is averaged, before and after
    tq.assert_exact(None, int8, [x, x[:1]])


def test_a_table_that_no_convolution_reads_stays_in_order() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(8 * 49, 3)), torch.randn(2, 4, 9, 9)
    int8 = tq.convert(tq.calibrate(tq.prepare(model, x), [x]).eval())
    made = onnx.load_from_string(onnx_bytes(int8.program, form="qoperator"))
    assert not [n for n in made.graph.node if n.op_type == "Transpose"]
    tq.assert_exact(None, int8, [x])
