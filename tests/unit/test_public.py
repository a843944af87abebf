"""The whole public API is on one screen, and importing it is quick and imports nothing optional."""

from __future__ import annotations

import subprocess
import sys

import truequant as tq

OPTIONAL = (
    "accelerate", "IPython", "lightning", "matplotlib", "onnx", "onnxruntime", "openvino", "pydantic", "rich", "tensorboard",
    "torch._dynamo", "torch._inductor", "torchmetrics", "transformers", "triton", "typer", "wandb",
)  # fmt: skip


def test_every_public_name_is_there_and_no_other() -> None:
    assert len(set(tq.__all__)) == len(tq.__all__)
    for name in tq.__all__:
        assert getattr(tq, name).__module__.startswith("truequant") or name.startswith(("int", "uint"))


def _in_a_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_imports_nothing_optional() -> None:
    assert _in_a_new_process(f"import sys, truequant; print([m for m in {OPTIONAL} if m in sys.modules])") == "[]"


def test_importing_takes_less_than_three_tenths_of_a_second_beyond_torch() -> None:
    code = "import time; a = time.process_time(); import torch; b = time.process_time(); import truequant"
    # A machine that is busy with other things is slow with torch, too, which takes 1.2 s or more where it is idle.
    limits = (
        (float(own), max(0.3, 0.25 * float(torch)))
        for own, torch in (_in_a_new_process(f"{code}; print(time.process_time() - b, b - a)").split() for _ in range(3))
    )
    assert any(own < limit for own, limit in limits)
