"""LiteRT computes the program's codes: every edge of an instrumented copy, and the outputs of the file itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.demo.models import LeNet, MobileNet, ResNet
from truequant.errors import ArgumentError, ExportError
from truequant.integer import Int8Model
from truequant.runtimes.litert import LitertModel

X, DIGITS = torch.randn(4, 3, 16, 16), torch.randn(4, 1, 28, 28)


def conv(i: int, o: int, k: int = 3, **more: int) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, **more)


class Of(nn.Module):
    """A function of some layers and an input."""

    def __init__(self, function: Callable[[nn.ModuleList, Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layers, x)


def converted(model: nn.Module, x: Tensor) -> tuple[nn.Module, Int8Model]:
    torch.manual_seed(0)
    qat = tq.prepare(model.eval(), x, tq.QConfig().for_target("xnnpack"))
    tq.calibrate(qat, [x, torch.randn_like(x)])
    return qat, tq.convert(qat)


def _se(m: nn.ModuleList, x: Tensor) -> Tensor:
    y = F.relu(m[0](x))
    return y * torch.sigmoid(m[1](y.mean((2, 3), keepdim=True)))


def _u_net(m: nn.ModuleList, x: Tensor) -> Tensor:
    a = F.relu(m[0](x))
    return m[2](torch.cat([a, F.interpolate(F.relu(m[1](F.max_pool2d(a, 2))), scale_factor=2)], 1))


def _shuffled(m: nn.ModuleList, x: Tensor) -> Tensor:
    y = F.relu(m[0](x)).reshape(x.shape[0], 2, 4, 14, 14).transpose(1, 2).reshape(x.shape[0], 8, 14, 14)
    return m[1](y[:, :4]) - m[2](y[:, 4:])


def _tokens(m: nn.ModuleList, x: Tensor) -> Tensor:
    return m[2](F.relu(m[1](m[0](x).flatten(2).transpose(1, 2))).mean(1))


TABLE = ("CAST", "ADD", "GATHER")
CASES: dict[str, tuple[nn.Module, Tensor, tuple[str, ...]]] = {
    "lenet": (LeNet(), DIGITS, ()),
    "resnet": (ResNet(), DIGITS, ()),
    "mobilenet": (MobileNet(), DIGITS, ()),
    "grouped": (nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8, groups=2), nn.ReLU6(), conv(8, 12, groups=4)), X, ()),
    "transposed": (nn.Sequential(conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 3, 2, 1, 1)), X, ()),
    "squeeze and excite": (Of(_se, conv(3, 4), conv(4, 4, 1)), X, TABLE),
    "pooling that pads": (nn.Sequential(conv(3, 8), nn.MaxPool2d(3, 2, 1), conv(8, 4), nn.AvgPool2d(3, 1, 1)), X, ("PADV2",)),
    "u-net": (
        Of(_u_net, conv(3, 4, padding=1), conv(4, 4, padding=1), conv(8, 3, padding=1)), X, ("RESIZE_NEAREST_NEIGHBOR",),
    ),
    "shuffled": (Of(_shuffled, conv(3, 8), conv(4, 4), conv(4, 4)), X, ()),
    "tokens": (Of(_tokens, conv(3, 4), nn.Linear(4, 6), nn.Linear(6, 3)), X, ()),
    "one axis": (
        nn.Sequential(nn.Conv1d(3, 8, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(64, 4)),
        torch.randn(4, 3, 16), (),
    ),
    "clipped": (Of(lambda m, x: m[1](m[0](x).clamp(-0.3, 0.4)), conv(3, 4), conv(4, 4)), X, ()),
    "bilinear": (
        Of(lambda m, x: F.interpolate(F.relu(m[0](x)), scale_factor=2, mode="bilinear"), conv(3, 4)), X, ("GATHER",) * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_edge_at_every_batch(name: str) -> None:
    model, x, left_out = CASES[name]
    qat, int8 = converted(model, x)
    batches = [2 * torch.randn(n, *x.shape[1:]) for n in (1, 3, 8)]
    found = tq.verify(qat, int8, batches)
    assert {key: report.grade for key, report in found.runtimes.items()} == {"reference": "EXACT", "litert": "EXACT"}
    assert LitertModel(int8.program).left_out() == left_out


def test_a_code_that_differs_is_found() -> None:
    """The proof of the proof: another bias in the program is another code."""
    from dataclasses import replace

    qat, int8 = converted(CASES["lenet"][0], DIGITS)
    nodes = [replace(n, bias=n.bias + 60) if n.output == int8.program.nodes[1].output else n for n in int8.program.nodes]
    other = Int8Model(replace(int8.program, nodes=tuple(nodes)))
    assert tq.verify(qat, other, [DIGITS], runtimes=["litert"]).runtimes["litert"].grade not in ("EXACT", "UNVERIFIED")


def test_the_file(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    _, int8 = converted(CASES["lenet"][0], DIGITS)
    size = tq.export_tflite(int8, tmp_path / "model.tflite")
    data = (tmp_path / "model.tflite").read_bytes()
    assert len(data) == size
    assert data[4:8] == b"TFL3"
    assert tq.export_tflite(int8, tmp_path / "again.tflite") == size
    assert (tmp_path / "again.tflite").read_bytes() == data
    interpreter = Interpreter(model_content=data)
    (read,) = interpreter.get_input_details()
    edge = int8.program.edges[int8.program.nodes[0].output]
    assert read["quantization"] == (pytest.approx(edge.scale, rel=0), edge.zero_point)
    assert list(read["shape_signature"]) == [-1, 28, 28, 1]
    assert {"conv1.weight", "classifier"} <= {t["name"] for t in interpreter.get_tensor_details()}
    assert b"truequant.program" in data


def test_what_has_no_form_is_refused(tmp_path: Path) -> None:
    other = tq.prepare(nn.Sequential(nn.Linear(3, 3)), torch.randn(4, 3))
    tq.calibrate(other, [torch.randn(4, 3)])
    with pytest.raises(ExportError, match="a program for target 'onnxruntime' in LiteRT's file"):
        tq.export_tflite(tq.convert(other), tmp_path / "model.tflite")
    with pytest.raises(ArgumentError, match="runtime 'litert' does not compute the arithmetic of target 'onnxruntime'"):
        tq.compile(tq.convert(other), "litert")
    _, int8 = converted(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)), torch.randn(3, 8))
    with pytest.raises(ExportError, match="has no exact form in LiteRT"):
        tq.export_tflite(int8, tmp_path / "model.tflite")
    pool = nn.Sequential(conv(3, 4), nn.AvgPool2d(3, 2, 1, count_include_pad=False), conv(4, 4))
    site = tq.plan(pool, X, tq.QConfig().for_target("xnnpack")).site("1")
    assert (site.action, site.reason) == ("float", "target 'xnnpack' has no rule for averages over uneven windows")
