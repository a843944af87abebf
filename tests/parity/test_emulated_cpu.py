"""The default target is exact on every x86 CPU: the same files on an emulated one with AVX2 and without VNNI."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import truequant as tq
from tests.emulation import WITHOUT_VNNI, differences, needs_qemu
from truequant.demo import MODELS, load_mnist
from truequant.integer import IntegerProgram
from truequant.runtimes.onnx.forms import FormName

pytestmark = [pytest.mark.emulated, needs_qemu]


def on_haswell(
    program: IntegerProgram, images: torch.Tensor, folder: Path, form: FormName = "qdq"
) -> tuple[int, dict[str, int]]:
    """Codes compared, and codes that differ by edge, on a CPU with AVX2 and FMA and without VNNI."""
    return differences(WITHOUT_VNNI, {"": (program, (images,))}, folder, form)[""]


def converted(name: str, preset: str | tq.QConfig) -> tuple[IntegerProgram, torch.Tensor]:
    torch.manual_seed(0)
    data = load_mnist(None)
    qat = tq.prepare(MODELS[name](), data.train_images[:8], preset)
    optimizer = torch.optim.SGD(qat.parameters(), 0.02)
    for images, labels in zip(data.train_images[:256].split(64), data.train_labels[:256].split(64), strict=True):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(qat(images), labels).backward()
        optimizer.step()
    return tq.convert(qat.eval()).program, data.test_images[:4]


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet", "mobilenet"])
@pytest.mark.parametrize("preset", ["w8a8", "w8a8-pow2"])
def test_files_of_the_default_target_are_exact(name: str, preset: str, tmp_path: Path) -> None:
    program, images = converted(name, preset)
    compared, different = on_haswell(program, images, tmp_path)
    assert compared > 4 * 1000
    assert different == {}


def test_seven_bit_weights_are_exact_and_signed(tmp_path: Path) -> None:
    program, images = converted("lenet", "int8")
    assert on_haswell(program, images, tmp_path)[1] == {}


def test_the_emulated_cpu_does_saturate(tmp_path: Path) -> None:
    """The control: with signed 8-bit weights, which the target for VNNI machines ships, codes of inner layers differ.

    By kernels with names: in QDQ form the first layer sums integers in float32, which nothing saturates.
    """
    program, images = converted("lenet", "w8a8")
    program = dataclasses.replace(program, target="onnxruntime-vnni")
    assert on_haswell(program, images, tmp_path, "qoperator")[1] != {}
