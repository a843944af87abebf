"""What a measurement was made with: versions of the packages, name and features of the CPU."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from truequant.runtimes import Machine as Cpu
from truequant.runtimes import machine as cpu

__all__ = ["Cpu", "cpu", "versions"]
_PACKAGES = ("truequant", "torch", "numpy", "onnx", "onnxruntime", "safetensors")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter here; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
