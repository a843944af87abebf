"""OpenVINO on CPUs without VNNI, whose int8 kernels sum pairs of products in int16: here, whichever this is, and emulated."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

import truequant as tq
from tests.emulation import WITHOUT_FMA, WITHOUT_VNNI, Case, differences, needs_qemu
from tests.models import FAMILIES
from tests.parity.test_openvino import calibrated
from tests.programs import S8, U8, edge, f32, program, values_of
from truequant.integer.nodes import Conv, Linear, MatMul
from truequant.runtimes import machine, promises
from truequant.runtimes.openvino.model import OpenvinoEdges, OpenvinoModel
from truequant.runtimes.openvino.saturation import openvino_saturating

ON_VNNI = "onnxruntime-vnni"


def of_largest(node: Conv | Linear, codes: tuple[int, int], zero_point: int, *size: int) -> Case:
    """One layer on inputs of which half have the largest code everywhere."""
    x, y = edge(0.02, zero_point, codes), edge(4.0, 128 if codes == U8 else 0, codes)
    made = program(node, {"x": x, "y": y}, "x", rank=len(size))
    made = dataclasses.replace(made, inputs=(dataclasses.replace(made.inputs[0], shape=(None, *size[1:])),))
    images = torch.randint(codes[0], codes[1] + 1, size, generator=torch.Generator().manual_seed(0))
    images[::2] = codes[1]
    return made, (values_of(images, x),)


def weights(*shape: int) -> torch.Tensor:
    """The first channel has the largest weights only, the others any."""
    made = torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(1)).to(torch.int8)
    made[0] = 127
    return made


def conv(shape: tuple[int, ...], groups: int = 1, codes: tuple[int, int] = U8, zero_point: int = 0) -> Case:
    outputs, axes = shape[0], len(shape) - 2
    node = Conv(
        "x", "y", weights(*shape), torch.full((outputs,), f32(0.01)), torch.zeros(outputs, dtype=torch.int32), (1,) * axes,
        ((1, 1),) * axes, (1,) * axes, groups, *codes,
    )  # fmt: skip
    return of_largest(node, codes, zero_point, 2, shape[1] * groups, *(7,) * axes)


def linear(codes: tuple[int, int] = U8, zero_point: int = 0) -> Case:
    node = Linear("x", "y", weights(8, 64), torch.full((8,), f32(0.01)), torch.zeros(8, dtype=torch.int32), *codes)
    return of_largest(node, codes, zero_point, 4, 64)


def matmul(codes: tuple[int, int], zero_point: int) -> Case:
    """A right operand that fits in s8 less its zero point, where OpenVINO has an int8 kernel for it."""
    a, b, y = edge(0.02, 0, codes), edge(0.02, zero_point, codes), edge(40.0, 128 if codes == U8 else 0, codes)
    made = program(MatMul("a", "b", "y", *codes), {"a": a, "b": b, "y": y}, "a", "b", rank=3)
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(codes[0], codes[1] + 1, size, generator=generator) for size in ((2, 8, 16), (2, 16, 8)))
    left[0], right[0] = codes[1], codes[1]
    shapes = (None, 8, 16), (None, 16, 8)
    made = dataclasses.replace(
        made, inputs=tuple(dataclasses.replace(i, shape=s) for i, s in zip(made.inputs, shapes, strict=True))
    )
    return made, (values_of(left, a), values_of(right, b))


SATURATING: dict[str, Case] = {
    "conv": conv((8, 16, 3, 3)),
    "conv, a zero point": conv((8, 3, 3, 3), zero_point=131),
    "conv in one dimension": conv((8, 4, 3)),
    "conv in three dimensions": conv((8, 4, 2, 2, 2)),
    "groups": conv((8, 2, 3, 3), 4),
    "groups, a zero point": conv((16, 4, 3, 3), 4, zero_point=77),
    "two outputs a channel": conv((16, 1, 3, 3), 8),
    "linear": linear(),
    "linear, a zero point": linear(zero_point=131),
    "product": matmul(U8, 128),
}
SIGNED: dict[str, Case] = {
    "conv": conv((8, 16, 3, 3), codes=S8),
    "conv, a zero point": conv((8, 16, 3, 3), codes=S8, zero_point=3),
    "groups, a zero point": conv((16, 4, 3, 3), 4, S8, 3),
    "depthwise": conv((8, 1, 3, 3), 8, S8),
    "linear": linear(S8),
    "product": matmul(S8, 0),
}
DEPTHWISE: dict[str, Case] = {
    "depthwise": conv((16, 1, 3, 3), 16),
    "depthwise, a zero point": conv((5, 1, 5, 5), 5, zero_point=77),
    "depthwise in one dimension": conv((8, 1, 3), 8),
    "depthwise in three dimensions": conv((8, 1, 3, 3, 3), 8),
}
ANYWHERE = SATURATING | {f"signed {name}": case for name, case in SIGNED.items()} | DEPTHWISE


def signed_weights(case: Case) -> Case:
    return dataclasses.replace(case[0], target=ON_VNNI), case[1]


CONTROLS: dict[str, Case] = {name: signed_weights(case) for name, case in SATURATING.items() if name != "product"}
"""Products of activations saturate on some CPUs without VNNI only: on a Zen 3, not on an emulated Haswell."""


def differ(case: Case) -> int:
    """Codes and outputs that OpenVINO computes otherwise on this machine."""
    p, inputs = case
    model, found = tq.Int8Model(p), OpenvinoEdges(p).codes(*inputs)
    codes = sum(int((c.int() != found[name].int()).sum()) for name, c in model.codes(*inputs).items())
    return codes + int((model(*inputs) != OpenvinoModel(p)(*inputs)).sum())


@pytest.mark.parametrize("name", ANYWHERE)
def test_exact_on_this_machine(name: str) -> None:
    """Whichever it is: the form needs no VNNI."""
    case = ANYWHERE[name]
    assert differ(case) == 0
    assert bool(openvino_saturating(case[0])) is (name not in DEPTHWISE and name != "signed depthwise")


@pytest.mark.parametrize("name", CONTROLS)
def test_signed_weights_are_exact_where_the_machine_has_vnni(name: str) -> None:
    """The control: the form for CPUs with VNNI only saturates on others, and says so."""
    case = CONTROLS[name]
    assert (differ(case) == 0) is machine().vnni
    assert "openvino, x86 with AVX2, without VNNI: other codes, because pairs saturate in 'y'" in " ".join(
        promises(case[0], ("openvino",))
    )


@pytest.mark.emulated
@needs_qemu
def test_a_cpu_without_vnni(tmp_path: Path) -> None:
    """The form that is exact anywhere, and the control, which saturates. In one child, as an emulated start takes its time."""
    controls = {f"control: {name}": case for name, case in CONTROLS.items()}
    found = differences(WITHOUT_VNNI, ANYWHERE | controls, tmp_path, "openvino")
    assert {name for name, (_, different) in found.items() if different} == set(controls)


@pytest.mark.emulated
@needs_qemu
def test_a_cpu_without_fma(tmp_path: Path) -> None:
    found = differences(WITHOUT_FMA, ANYWHERE, tmp_path, "openvino")
    assert {name: different for name, (_, different) in found.items() if different} == {}


@pytest.mark.emulated
@needs_qemu
@pytest.mark.filterwarnings("ignore")
def test_models_on_a_cpu_without_vnni(tmp_path: Path) -> None:
    pairs = itertools.product(("LeNet, tanh", "ResNet", "U-Net"), ("int8", "w8a8", "w8a8-pow2"))
    cases = {
        f"{name}, {preset}": (calibrated(name, preset).program, (FAMILIES[name].inputs(),))
        for name, preset in (*pairs, ("MobileNetV2", "int8"))
    }
    found = differences(WITHOUT_VNNI, cases, tmp_path, "openvino")
    assert all(compared > 10_000 for compared, _ in found.values())
    assert {name: different for name, (_, different) in found.items() if different} == {}
