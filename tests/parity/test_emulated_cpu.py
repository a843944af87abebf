"""The default target is exact on every x86 CPU: the same files on an emulated one with AVX2 and without VNNI."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import truequant as tq
from truequant.demo import MODELS, load_mnist
from truequant.integer import IntegerProgram
from truequant.runtimes import onnx_bytes
from truequant.runtimes.writer import Form

QEMU = shutil.which("qemu-x86_64")
pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 (Debian's qemu-user) is not installed; .ci/run installs it"),
]


def on_haswell(program: IntegerProgram, images: torch.Tensor, folder: Path, form: Form = "qdq") -> tuple[int, dict[str, int]]:
    """Codes compared, and codes that differ by edge, on a CPU with AVX2 and FMA and without VNNI."""
    model, arrays = folder / "edges.onnx", folder / "arrays.npz"
    model.write_bytes(onnx_bytes(program, form=form, show_edges=True))
    int8 = tq.Int8Model(program)
    expected = {f"out:{n}": c.numpy() for n, c in int8.codes(images).items()}
    expected |= {f"out:{program.outputs}": int8(images).numpy(), f"in:{program.inputs[0].name}": images.numpy()}
    np.savez(arrays, **expected)
    child = Path(__file__).with_name("emulated.py")
    command = [QEMU or "", "-cpu", "Haswell-noTSX", sys.executable, str(child), str(model), str(arrays)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    return report["compared"], {n: d for n, d in report["different"].items() if d}


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
    program, images = converted("lenet", "w7a8")
    assert on_haswell(program, images, tmp_path)[1] == {}


def test_the_emulated_cpu_does_saturate(tmp_path: Path) -> None:
    """The control: with signed 8-bit weights, which the target for VNNI machines ships, codes of inner layers differ.

    By kernels with names: in QDQ form the first layer sums integers in float32, which nothing saturates.
    """
    program, images = converted("lenet", "w8a8")
    program = dataclasses.replace(program, target="onnxruntime-vnni")
    assert on_haswell(program, images, tmp_path, "qoperator")[1] != {}
