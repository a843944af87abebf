"""Pads by codes of the image itself, and pixels that move: the same codes in every form, in the order that is quick."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.interpret import interpret
from truequant.integer.nodes import Concat, Conv, DepthToSpace, Edge, PadRepeated
from truequant.runtimes import onnx_bytes
from truequant.runtimes.onnxruntime.census import census
from truequant.runtimes.onnxruntime.session import Level, run, session


class Between(nn.Module):
    """An op between two convolutions."""

    def __init__(self, op: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.op, self.b = nn.Conv2d(3, 8, 3, padding=1), op, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.op(F.relu(self.a(x))))


OPS: dict[str, Callable[[], nn.Module | Callable[[Tensor], Tensor]]] = {
    "reflect": lambda: lambda x: F.pad(x, (2, 1, 0, 3), mode="reflect"),
    "replicate": lambda: lambda x: F.pad(x, (2, 1, 0, 3), mode="replicate"),
    "circular": lambda: lambda x: F.pad(x, (2, 1, 0, 3), mode="circular"),
    "replicate, cut": lambda: lambda x: F.pad(x, (2, -1, 0, 3), mode="replicate"),
    "nearest": lambda: nn.Upsample(scale_factor=(2, 3)),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "shuffle": lambda: nn.Sequential(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2)),
    "transposed": lambda: nn.ConvTranspose2d(8, 8, 4, 2, 1),
    "transposed, depthwise": lambda: nn.ConvTranspose2d(8, 8, (4, 3), (2, 3), 1, groups=8),
    "transposed, two outputs a channel": lambda: nn.Sequential(nn.ConvTranspose2d(8, 16, 2, 2, groups=8), nn.Conv2d(16, 8, 1)),
    "transposed, stride 1": lambda: nn.ConvTranspose2d(8, 8, 3, 1, 1),
}


def converted(op: nn.Module | Callable[[Tensor], Tensor]) -> tuple[tq.QATModuleWrapper, tq.Int8Model]:
    x = torch.randn(4, 3, 8, 6)
    qat = tq.calibrate(tq.prepare(Between(op), x), [x])
    return qat, tq.convert(qat.eval())


@pytest.mark.parametrize("name", OPS)
def test_the_same_codes(name: str) -> None:
    qat, int8 = converted(OPS[name]())
    assert "Island" not in int8.ops()
    other = torch.randn(3, 3, 8, 6)
    report = tq.verify(qat, int8, [other, other[:1]])
    assert report.codes_different == report.outputs_different == 0
    said = interpret(int8.program, {int8.program.inputs[0].name: other})
    assert all(np.array_equal(codes.numpy(), said[edge]) for edge, codes in int8.codes(other).items())


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
@pytest.mark.parametrize("name", ["bilinear", "transposed, depthwise", "nearest", "reflect"])
def test_at_every_level_of_optimization(name: str, level: Level) -> None:

    int8 = converted(OPS[name]())[1]
    x = torch.randn(2, 3, 8, 6)
    feed, output = int8.program.inputs[0].name, int8.program.output_names()[0]
    for form in ("qdq", "qoperator"):
        found = run(session(onnx_bytes(int8.program, form=form), level=level), {feed: x}, [output])
        assert torch.equal(found[output], int8(x))


def test_a_phase_of_a_depthwise_layer_is_a_layer() -> None:
    """No runtime has a quick integer kernel for several results a channel."""
    program = converted(nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8))[1].program
    phases = [node for node in program.nodes if isinstance(node, Conv) and node.groups == 8]
    assert len(phases) == 4
    assert all(len(node.weight) == 8 for node in phases)
    assert [len(node.inputs) for node in program.nodes if isinstance(node, Concat)] == [4]
    assert [node.phases_first for node in program.nodes if isinstance(node, DepthToSpace)] == [True]


@pytest.mark.parametrize(("name", "transposes"), [("bilinear", 3), ("transposed", 3), ("nearest", 2), ("reflect", 2)])
def test_images_stay_channels_last(name: str, transposes: int) -> None:
    """One Transpose at the input, one at the output, and one of whole pixels where channels move into space."""
    found = census(onnx_bytes(converted(OPS[name]())[1].program))
    assert found.get("Transpose", 0) == transposes
    assert "Resize" not in found


def test_a_border_of_any_size() -> None:
    x = torch.randn(4, 3, 8, 6)
    qat = tq.prepare(Between(nn.ReflectionPad2d(2)), x, dynamic={0: (2, 3)})
    int8 = tq.convert(tq.calibrate(qat, [x]).eval())
    assert tq.verify(qat, int8, [torch.randn(2, 3, 5, 9), torch.randn(1, 3, 12, 4)]).codes_different == 0


@pytest.mark.parametrize(("mode", "room"), [("reflect", 3), ("wrap", 4)])
def test_more_than_there_is(mode: str, room: int) -> None:
    node = PadRepeated("a", "b", ((room, 0),), mode)  # type: ignore[arg-type]
    node.check({"a": Edge(1.0, 0, 0, 255), "b": Edge(1.0, 0, 0, 255)})
    assert node.output_shape([(2, 4)]) == (2, 4 + room)
    with pytest.raises(tq.errors.ConversionError, match="room for"):
        PadRepeated("a", "b", ((room + 1, 0),), mode).output_shape([(2, 4)])  # type: ignore[arg-type]
