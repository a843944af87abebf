"""The whole public API is on one screen, and importing it is quick and imports nothing optional."""

from __future__ import annotations

import os
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
    # With bytecode, as installed packages have it: the first process writes it where it is missing.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout.strip()


def test_importing_imports_nothing_optional() -> None:
    assert _in_a_new_process(f"import sys, truequant; print([m for m in {OPTIONAL} if m in sys.modules])") == "[]"


def test_importing_takes_less_than_three_tenths_of_a_second_beyond_torch() -> None:
    code = "import time, torch; start = time.process_time(); import truequant; print(time.process_time() - start)"
    # One of several: what else the machine does makes it slower, and nothing makes it faster.
    assert any(float(_in_a_new_process(code)) < 0.3 for _ in range(4))
