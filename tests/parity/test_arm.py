"""Files on 64-bit Arm, emulated: onnxruntime's other kernels give the program's codes, and an add's rule there is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from tests.emulation import ARM, Case, differences, needs_arm
from tests.programs import edge, program
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Add
from truequant.runtimes import adds_that_differ, census, onnx_bytes, promises
from truequant.runtimes.onnx.forms import FormName


class Block(nn.Module):
    """An encoder: norms, attention, a table, sums, a softmax that is an edge."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(16, width), nn.Linear(width, 8)
        self.first, self.second, self.last = nn.LayerNorm(width), nn.LayerNorm(width), nn.RMSNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 96), nn.GELU(), nn.Linear(96, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        h = self.first(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return self.out(self.last(x + self.mlp(self.second(x)))).softmax(-1)


class Images(nn.Module):
    """Convolutions of all kinds, a group norm, pads, upsampling, a gate, averages."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.up, self.transposed = nn.Upsample(scale_factor=2, mode="bilinear"), nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x)).relu()
        y = y + self.second(y)
        z = self.up(y) * torch.sigmoid(self.transposed(y))
        return self.last(F.avg_pool2d(F.hardswish(z), 2)).mean((2, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "block": (Block, (37, 16)),
    "images": (Images, (3, 12, 10)),
}


def case(name: str, preset: str) -> Case:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    x = torch.randn(4, *shape)
    config = tq.QConfig.preset(preset).for_target("onnxruntime-arm64")
    return tq.convert(tq.calibrate(tq.prepare(make(), x, config), [x]).eval()).program, (torch.randn(2, *shape),)


@pytest.mark.slow
@pytest.mark.emulated
@needs_arm
@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_one_file_for_both_kinds_of_cpu(form: FormName, tmp_path: Path) -> None:
    """With scales that are powers of two nearly every add is a tie somewhere; the control is the file of the default target."""
    cases = {f"{name} {preset}": case(name, preset) for name in MODELS for preset in ("int8", "w8a8-pow2")}
    assert all(adds_that_differ(p, "64-bit Arm") for key, (p, _) in cases.items() if "pow2" in key)
    for key in [key for key in cases if "pow2" in key]:
        cases[f"{key} for x86"] = replace(cases[key][0], target="onnxruntime"), cases[key][1]
    found = differences(ARM, cases, tmp_path, form)
    assert all(compared > 10_000 for compared, _ in found.values())
    assert {key for key, (_, different) in found.items() if different} == {key for key in cases if "for x86" in key}


def add(scales: Sequence[float], zeros: Sequence[int], target: str, codes: tuple[int, int] = (0, 255)) -> IntegerProgram:
    edges = {n: edge(s, z, codes) for n, s, z in zip("aby", scales, zeros, strict=True)}
    return replace(program(Add("a", "b", "y", "onnxruntime", *codes), edges, "a", "b", rank=1), target=target)


@pytest.mark.emulated
@needs_arm
def test_the_rule_of_adds_on_arm(tmp_path: Path) -> None:
    """All pairs of codes: as many differ from x86's as the rule says."""
    generator, cases, expected = torch.Generator().manual_seed(5), dict[str, Case](), dict[str, int]()
    for number in range(16):
        low = -128 if number % 4 > 1 else 0
        codes = torch.arange(low, low + 256)
        a, b = (t.reshape(-1) for t in torch.meshgrid(codes, codes, indexing="ij"))
        exponents = torch.rand(3, generator=generator) * 4 - 2
        scales = (2.0 ** (exponents.round() if number % 2 else exponents)).tolist()
        zeros = [low] * 3 if number == 1 else (torch.randint(0, 256, (3,), generator=generator) + low).tolist()
        p = add(scales, zeros, "onnxruntime", (low, low + 255))
        values = tuple((t - z) * torch.tensor(s) for t, s, z in zip((a, b), scales, zeros, strict=False))
        cases[str(number)], expected[str(number)] = (p, values), sum(adds_that_differ(p, "64-bit Arm").values())
    found = differences(ARM, cases, tmp_path)
    assert sum(expected.values()) > 10_000
    assert {key: different.get("y", 0) for key, (_, different) in found.items()} == expected


def test_what_ships_and_what_is_promised() -> None:
    scales, zeros = (0.5, 0.25, 1.0), (3, 7, 11)
    default, arm = (add(scales, zeros, target) for target in ("onnxruntime", "onnxruntime-arm64"))
    assert sum(adds_that_differ(default, "64-bit Arm").values()) > 1000
    assert census(onnx_bytes(default)).get("QLinearAdd") == 1
    assert "QLinearAdd" not in census(onnx_bytes(arm))
    assert "64-bit Arm" not in promises(default)[0]
    assert promises(arm)[0].endswith("on 64-bit Arm")
    agreeing = add((0.3, 0.7, 1.1), (3, 7, 11), "onnxruntime-arm64")
    assert not adds_that_differ(agreeing, "64-bit Arm")
    assert census(onnx_bytes(agreeing)).get("QLinearAdd") == 1
    assert adds_that_differ(add((1e-5, 1.0, 1.0), (3, 7, 11), "onnxruntime"), "64-bit Arm")["y"] == 65_536
