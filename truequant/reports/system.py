"""What a measurement was made with: versions of the packages, name and features of the CPU."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("truequant", "torch", "numpy", "onnx", "onnxruntime", "safetensors")
# What decides which integer kernels a runtime takes; Linux spells the dot products of x86 avx_vnni and avx512_vnni.
_FEATURES = (
    "sse4_1", "avx", "fma", "f16c", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "amx_int8", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cpu:
    """Name, cores that this process may use, and the features above that the CPU has."""

    name: str
    cores: int
    features: tuple[str, ...]


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter here; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def cpu() -> Cpu:
    """The CPU of this machine."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable is not None else os.cpu_count() or 1
    cpuinfo = Path("/proc/cpuinfo")
    name, features = read_cpuinfo(cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else "")
    return Cpu(name or platform.processor() or platform.machine(), cores, features)


def read_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Name and features of the first CPU in the text of Linux's /proc/cpuinfo, x86 or ARM; empty where it says nothing."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    flags = set(f"{fields.get('flags', '')} {fields.get('features', '')}".lower().split())
    return fields.get("model name", ""), tuple(feature for feature in _FEATURES if feature in flags)
