"""The whole public API is on one screen, and importing it imports nothing optional."""

from __future__ import annotations

import subprocess
import sys

import truequant as tq


def test_every_public_name_is_there_and_no_other() -> None:
    assert len(set(tq.__all__)) == len(tq.__all__)
    for name in tq.__all__:
        assert getattr(tq, name).__module__.startswith("truequant") or name.startswith(("int", "uint"))


def test_importing_imports_nothing_optional() -> None:
    optional = ("onnx", "onnxruntime", "openvino", "matplotlib", "rich", "typer")
    code = f"import sys, truequant; print([m for m in {optional} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == "[]"
