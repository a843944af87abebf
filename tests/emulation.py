"""Stored files and codes, run by another CPU than this machine's, which qemu emulates."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

import truequant as tq
from truequant.integer import IntegerProgram
from truequant.runtimes import onnx_bytes
from truequant.runtimes.onnx.forms import FormName
from truequant.runtimes.openvino.session import options_of

QEMU = shutil.which("qemu-x86_64")
WITHOUT_VNNI = "Haswell-noTSX"
"""AVX2 and FMA, no VNNI."""
WITHOUT_FMA = "SandyBridge"
ARM = "cortex-a76"
"""64-bit Arm with dot products."""
ARM_FOLDER = Path(__file__).parents[1] / "build" / "arm64"
needs_arm = pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None or not (ARM_FOLDER / "ready").is_file(),
    reason="no emulated Arm here: tests/arm64.sh build/arm64 (Debian's packages and wheels of onnxruntime); .ci/run does it",
)
needs_qemu = pytest.mark.skipif(QEMU is None, reason="qemu-x86_64 (Debian's qemu-user) is not installed; .ci/run installs it")
Case = tuple[IntegerProgram, tuple[Tensor, ...]]


def _python(cpu: str) -> list[str]:
    """The command that starts Python on a CPU: this environment's, or the one of 64-bit Arm."""
    if cpu != ARM:
        return [QEMU or "", "-cpu", cpu, sys.executable]
    root = ARM_FOLDER / "root"
    packages = f"PYTHONPATH={ARM_FOLDER / 'site'}"
    return ["qemu-aarch64", "-cpu", cpu, "-L", str(root), "-E", packages, str(root / "usr" / "bin" / "python3.11")]


def differences(
    cpu: str, cases: Mapping[str, Case], folder: Path, form: FormName = "qdq"
) -> dict[str, tuple[int, dict[str, int]]]:
    """By case: codes and outputs compared, and those that differ, by edge. OpenVINO runs the form that is its own."""
    runtime = "openvino" if form == "openvino" else "onnxruntime"
    options = json.dumps(options_of(1) if form == "openvino" else {})
    child = Path(__file__).parent / "parity" / "emulated.py"
    command = [*_python(cpu), str(child), runtime, options]
    for number, (program, inputs) in enumerate(cases.values()):
        model, arrays = folder / f"{number}.onnx", folder / f"{number}.npz"
        model.write_bytes(onnx_bytes(program, form=form, show_edges=True))
        int8 = tq.Int8Model(program)
        stored = {f"out:{n}": c.numpy() for n, c in int8.codes(*inputs).items()}
        stored |= {f"out:{program.outputs}": int8(*inputs).numpy()}
        stored |= {f"in:{i.name}": x.numpy() for i, x in zip(program.inputs, inputs, strict=True)}
        np.savez(arrays, **stored)
        command += [str(model), str(arrays)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {
        name: (r["compared"], {edge: n for edge, n in r["different"].items() if n})
        for name, r in zip(cases, reports, strict=True)
    }
