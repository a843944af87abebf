"""Built to saturate: weights and activations of the largest magnitude, here and on CPUs without VNNI, AVX2 and FMA."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import truequant as tq
from tests.emulation import WITHOUT_FMA, WITHOUT_VNNI, Case, differences, needs_qemu
from tests.programs import S8, edge, f32, program, values_of
from truequant.errors import ExportError
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Add, Conv, Edge, Linear
from truequant.runtimes import adds_that_need_fma, machine, onnx_bytes, promises, saturating_layers
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
        if adds_that_need_fma(made):
            break
    a, b = (v.flatten() for v in torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"))
    return case(made, target, values_of(a, edges["a"]), values_of(b, edges["b"]))


EXACT_ANYWHERE: dict[str, Case] = {
    "u8 weights": conv(127, 127),
    "7 bits": conv(64, 64),
    "7 bits, signed activations": conv(64, 64, codes=S8),
    "the largest pair that fits": conv(64, 64, target="onnxruntime-vnni"),
    "sums as floats": linear(127),
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
    (pairs,) = adds_that_need_fma(add("onnxruntime")[0]).values()
    # A code that differs is counted where it is computed and where it is dequantized.
    assert found.pop("add") == (2 * pairs if cpu == WITHOUT_FMA else 0)
    # AVX2's kernels sum pairs in int16; those of SSE do not.
    assert all(found.values()) if cpu == WITHOUT_VNNI else not any(found.values())
