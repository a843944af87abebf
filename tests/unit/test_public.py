"""The whole public API is on one screen, and importing it is quick and imports nothing optional."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    used = "import sys, truequant; truequant.prepare"
    assert _in_a_new_process(f"{used}; print([m for m in {OPTIONAL} if m in sys.modules])") == "[]"


def test_torch_comes_with_the_first_name_that_is_used() -> None:
    code = "import sys, truequant; print('torch' in sys.modules, truequant.int8, 'torch' in sys.modules)"
    assert _in_a_new_process(code) == "False int8 True"
    assert _in_a_new_process("from truequant import *; print(prepare.__name__, len(dir(__import__('truequant'))) > 80)") == (
        "prepare True"
    )
    assert _in_a_new_process("import truequant as tq; print(tq.kernels.__name__)") == "truequant.kernels"
    with pytest.raises(AttributeError, match="module 'truequant' has no attribute 'prepair'"):
        tq.prepair  # noqa: B018


@pytest.mark.parametrize("room", sorted(p.name for p in Path(tq.__file__).parent.iterdir() if (p / "__init__.py").exists()))
def test_every_room_can_be_the_first_that_is_imported(room: str) -> None:
    if room != "integrations":  # which holds nothing itself
        assert _in_a_new_process(f"import truequant.{room} as room; print(len(room.__all__) > 0)") == "True"


def test_importing_takes_less_than_three_tenths_of_a_second_beyond_torch() -> None:
    code = "import time, torch; start = time.process_time(); from truequant import prepare; print(time.process_time() - start)"
    # One of several: what else the machine does makes it slower, and nothing makes it faster.
    assert any(float(_in_a_new_process(code)) < 0.3 for _ in range(4))
