"""Which kind of machine this is: the features of its CPU that decide which integers its kernels compute."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

# What decides which integer kernels a runtime takes; Linux spells the dot products of x86 avx_vnni and avx512_vnni.
_FEATURES = (
    "sse4_1", "avx", "fma", "f16c", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "amx_int8", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip
_TORCH_NAMES = {
    "fma3": "fma", "avx512_f": "avx512f", "avx512_bw": "avx512bw", "neon": "asimd", "neon_dot": "asimddp", "dot": "asimddp",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Machine:
    """Name, cores that this process may use, and the features above that the CPU has."""

    name: str
    cores: int
    features: tuple[str, ...]

    @property
    def x86(self) -> bool:
        return "sse4_1" in self.features

    @property
    def vnni(self) -> bool:
        """Whether dot products of u8 x s8 are summed in int32. Without it x86 sums pairs in int16, which saturate."""
        return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(self.features))

    @property
    def fma(self) -> bool:
        """Whether a product and a sum are rounded once: named rule "onnxruntime" of an add."""
        return "fma" in self.features

    @property
    def kind(self) -> str:
        """`x86 with VNNI`, `x86 with AVX2 and FMA, without VNNI`, `x86 without FMA and VNNI`, or another architecture."""
        if not self.x86:
            return "Arm" if "asimd" in self.features else "unknown"
        if self.vnni:
            return "x86 with VNNI"
        return "x86 with AVX2 and FMA, without VNNI" if self.fma else "x86 without FMA and VNNI"

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}"


@cache
def machine() -> Machine:
    """The machine that this process runs on, an emulated one included: the CPU itself is asked where torch can do that."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable is not None else os.cpu_count() or 1
    cpuinfo = Path("/proc/cpuinfo")
    name, features = read_cpuinfo(cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else "")
    asked = _asked()
    if asked is not None:
        name, features = asked[0] or name, asked[1]
    return Machine(name or platform.processor() or platform.machine(), cores, features)


def _asked() -> tuple[str, tuple[str, ...]] | None:
    """Name and features as the CPU itself gives them, which /proc/cpuinfo does not know of an emulated one."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:
        return None
    found = capabilities()
    flags = {_TORCH_NAMES.get(key, key) for key, value in found.items() if value is True}
    features = tuple(feature for feature in _FEATURES if feature in flags)
    return (str(found.get("cpu_name", "")), features) if features else None


def read_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Name and features of the first CPU in the text of Linux's /proc/cpuinfo, x86 or ARM; empty where it says nothing."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    flags = set(f"{fields.get('flags', '')} {fields.get('features', '')}".lower().split())
    return fields.get("model name", ""), tuple(feature for feature in _FEATURES if feature in flags)
