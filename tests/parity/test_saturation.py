"""Built to saturate: weights and activations of the largest magnitude, here and on CPUs without VNNI, AVX2 and FMA."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from tests.emulation import WITHOUT_FMA, WITHOUT_VNNI, Case, differences, needs_qemu
from tests.programs import S8, edge, f32, program, values_of
from truequant.errors import ExportError
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Add, Conv, Edge, Linear
from truequant.runtimes import adds_that_differ, machine, onnx_bytes, promises, saturating_layers
from truequant.runtimes.saturation import layer_bound


def case(made: IntegerProgram, target: str, *inputs: Tensor) -> Case:
    """For a target, with all sizes but the batch fixed."""
    sized = tuple(dataclasses.replace(i, shape=(None, *x.shape[1:])) for i, x in zip(made.inputs, inputs, strict=True))
    return dataclasses.replace(made, target=target, inputs=sized), inputs


def conv(first: int, second: int, *, target: str = "onnxruntime", codes: tuple[int, int] = (0, 255)) -> Case:
    """A conv of which each kernel is `first, second, first …`, or its negative; the inputs' codes are the largest ones."""
    x, y = edge(0.02, 0, codes), edge(3.0, 0 if codes == S8 else 128, codes)
    kernel = torch.tensor([first, second] * 8, dtype=torch.int8).reshape(1, 4, 2, 2)
    weight = torch.cat([kernel, -kernel])
    low, high = (-128, 127) if codes == S8 else (0, 255)
    bias, pads = torch.zeros(2, dtype=torch.int32), ((0, 0), (0, 0))
    node = Conv("x", "y", weight, torch.full((2,), f32(0.01)), bias, (1, 1), pads, (1, 1), 1, low, high)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(max(200, codes[0]), 256, (3, 4, 9, 9), generator=generator).clamp(*codes)
    images[0] = codes[1]
    return case(program(node, {"x": x, "y": y}, "x"), target, values_of(images, x))


def one_weight_or_depthwise(*shape: int) -> Case:
    """A conv whose kernels add products in int32, all of them the largest; signed weights for the default target."""
    axes = len(shape) - 2
    x, y = edge(0.02, 0), edge(3.0 * 2**axes, 128)
    weight = torch.full(shape, 127, dtype=torch.int8)
    weight[::2] *= -1
    channels = len(weight) if shape[1] == 1 and axes and max(shape[2:]) > 1 else 1
    count, pads = torch.zeros(len(weight), dtype=torch.int32), ((1, 0),) * axes
    node = Conv(
        "x", "y", weight, torch.full((len(weight),), f32(0.01)), count, (1,) * axes, pads, (1,) * axes, channels, 0, 255
    )
    images = torch.randint(200, 256, (3, channels, *(9,) * axes), generator=torch.Generator().manual_seed(0))
    return case(program(node, {"x": x, "y": y}, "x", rank=axes + 2), "onnxruntime", values_of(images, x))


def linear(largest: int, *, target: str = "onnxruntime") -> Case:
    """A layer that writes its sums as floats."""
    x = edge(0.02, 0)
    weight = torch.full((4, 64), largest, dtype=torch.int8)
    weight[1] *= -1
    node = Linear("x", "y", weight, torch.full((4,), f32(0.01)), torch.zeros(4, dtype=torch.int32), 0, 255)
    return case(program(node, {"x": x}, "x", rank=2), target, values_of(torch.full((3, 64), 255), x))


@cache
def add(target: str) -> Case:
    """All pairs of codes of an add for some of which FMA matters."""
    generator = torch.Generator().manual_seed(0)
    while True:
        scales = (2.0 ** (torch.rand(3, generator=generator) * 5 - 4)).tolist()
        zeros = torch.randint(0, 256, (3,), generator=generator).tolist()
        edges: dict[str, Edge] = {n: edge(s, z) for n, s, z in zip("aby", scales, zeros, strict=True)}
        made = program(Add("a", "b", "y", "onnxruntime", 0, 255), edges, "a", "b", rank=1)
        if adds_that_differ(made, "x86 without FMA"):
            break
    a, b = (v.flatten() for v in torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"))
    return case(made, target, values_of(a, edges["a"]), values_of(b, edges["b"]))


EXACT_ANYWHERE: dict[str, Case] = {
    "u8 weights": conv(127, 127),
    "7 bits": conv(64, 64),
    "7 bits, signed activations": conv(64, 64, codes=S8),
    "the largest pair that fits": conv(64, 64, target="onnxruntime-vnni"),
    "sums as floats": linear(127),
    "one weight a channel": one_weight_or_depthwise(8, 1, 1, 1),
    "depthwise 1d": one_weight_or_depthwise(8, 1, 3),
    "depthwise 2d": one_weight_or_depthwise(8, 1, 3, 3),
    "depthwise 2d, 5": one_weight_or_depthwise(33, 1, 5, 5),
    "depthwise 3d": one_weight_or_depthwise(4, 1, 3, 3, 3),
    "an add in a table": add("onnxruntime-sse"),
}
SATURATING: dict[str, Case] = {
    "s8 weights": conv(127, 127, target="onnxruntime-vnni"),
    "the smallest pair that does not fit": conv(65, 64, target="onnxruntime-vnni"),
    "sums as floats": linear(127, target="onnxruntime-vnni"),
}


def test_the_bound() -> None:
    for name, (p, _) in EXACT_ANYWHERE.items():
        layers = [n for n in p.nodes if isinstance(n, (Conv, Linear))]
        assert all(layer_bound(p, n) <= 32767 or p.target == "onnxruntime" for n in layers), name
    for p, _ in SATURATING.values():
        assert saturating_layers(p) == ["y"]
        assert "x86 with AVX2, without VNNI: other codes" in " ".join(promises(p))
    assert saturating_layers(SATURATING["the smallest pair that does not fit"][0])
    assert not saturating_layers(EXACT_ANYWHERE["the largest pair that fits"][0])
    with pytest.raises(ExportError, match="may saturate on CPUs without VNNI"):
        onnx_bytes(conv(127, 127, codes=S8)[0])


@pytest.mark.parametrize("name", EXACT_ANYWHERE)
def test_exact_on_this_machine(name: str) -> None:
    """Whichever it is: the files of the default target need no VNNI."""
    p, inputs = EXACT_ANYWHERE[name]
    tq.assert_exact(None, p, [inputs])


@pytest.mark.parametrize("name", SATURATING)
def test_signed_weights_are_exact_where_the_machine_has_vnni(name: str) -> None:
    p, inputs = SATURATING[name]
    grade = tq.verify(None, p, [inputs]).runtimes["onnxruntime"].grade
    assert (grade == "EXACT") is machine().vnni


def on(cpu: str, cases: dict[str, Case], folder: Path) -> dict[str, int]:
    """Codes and outputs that differ on an emulated CPU, case by case."""
    return {name: sum(different.values()) for name, (_, different) in differences(cpu, cases, folder).items()}


@pytest.mark.emulated
@needs_qemu
@pytest.mark.parametrize("cpu", [WITHOUT_VNNI, WITHOUT_FMA])
def test_other_machines(cpu: str, tmp_path: Path) -> None:
    """What is promised holds, and what is not promised does differ, by as many pairs as the rule without FMA predicts."""
    (tmp_path / "exact").mkdir()
    assert on(cpu, EXACT_ANYWHERE, tmp_path / "exact") == dict.fromkeys(EXACT_ANYWHERE, 0)
    found = on(cpu, SATURATING | {"add": add("onnxruntime")}, tmp_path)
    (pairs,) = adds_that_differ(add("onnxruntime")[0], "x86 without FMA").values()
    # A code that differs is counted where it is computed and where it is dequantized.
    assert found.pop("add") == (2 * pairs if cpu == WITHOUT_FMA else 0)
    # AVX2's kernels sum pairs in int16; those of SSE do not.
    assert all(found.values()) if cpu == WITHOUT_VNNI else not any(found.values())


class Separable(nn.Module):
    """A depthwise convolution, pointwise ones over one and several channels, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.widen, self.depth, self.mix = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1)
        self.out = nn.Linear(8, 4)
        with torch.no_grad():
            for layer in (self.widen, self.depth, self.mix, self.out):
                layer.weight.copy_(layer.weight.sign())  # each weight has the largest code

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(torch.relu(self.mix(torch.relu(self.depth(torch.relu(self.widen(x)))))).mean((2, 3)))
        return y


def test_a_default_model_ships_signed_weights_of_full_width_where_nothing_saturates() -> None:
    x = torch.rand(4, 1, 9, 9) + 0.5
    int8 = tq.convert(tq.calibrate(tq.prepare(Separable(), x), [x]).eval())
    layers = [n for n in int8.program.nodes if isinstance(n, (Conv, Linear))]
    assert [int(n.weight.abs().max()) for n in layers] == [127, 127, 64, 64]
    assert saturating_layers(int8.program) == []
    for form in ("qdq", "qoperator"):
        made = onnx.load_from_string(onnx_bytes(int8.program, form=form))
        weights = [onnx.numpy_helper.to_array(i) for i in made.graph.initializer if i.name.endswith(".weight")]
        assert {w.dtype.name for w in weights} == {"int8"}
        assert sorted(int(abs(w.astype(int)).max()) for w in weights) == [64, 64, 127, 127]
    tq.assert_exact(None, int8, [x])
    wide = tq.convert(tq.calibrate(tq.prepare(Separable(), x, "w8a8"), [x]).eval())
    assert len(saturating_layers(wide.program)) == 2
