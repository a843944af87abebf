"""What this machine can do: versions, kernels, runtimes, what would make it faster, and what exported files promise on it."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from truequant import kernels
from truequant.reports.system import Cpu, cpu, versions
from truequant.runtimes import RUNTIMES
from truequant.schemes import TARGETS

_OPTIONAL = {
    "onnx": "onnxruntime", "onnxruntime": "onnxruntime", "matplotlib": "plots", "lightning": "lightning",
    "transformers": "huggingface", "accelerate": "huggingface", "tensorboard": "tensorboard", "wandb": "wandb",
    "torchmetrics": "metrics", "ai_edge_litert": "litert",
}  # fmt: skip
"""Packages that something of truequant needs, and the extra that brings each."""
_DOT_PRODUCTS = ("avx_vnni", "avx512_vnni", "amx_int8")


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine, as a value.

    threads: torch's; kernels: what fake quantization runs on; runtimes: version, or None where not installed; missing: the
    extra that brings each optional package that is not installed; advice: what would make it faster; promises: by target,
    what a file exported for it is worth here.
    """

    versions: dict[str, str | None]
    system: str
    cpu: Cpu
    threads: int
    kernels: str
    runtimes: dict[str, str | None]
    missing: dict[str, str]
    advice: tuple[str, ...]
    promises: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def examine() -> Machine:
    """Look at this machine. Nothing optional is imported, nothing is measured."""
    processor = cpu()
    runtimes = {name: _version(name) for name in (r.package for r in RUNTIMES.values()) if name}
    return Machine(
        versions=versions(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=processor,
        threads=torch.get_num_threads(),
        kernels=kernels.describe(),
        runtimes=runtimes,
        missing={package: extra for package, extra in _OPTIONAL.items() if find_spec(package) is None},
        advice=advice(processor, torch.get_num_threads(), runtimes),
        promises={name: promise(name, processor, platform.machine()) for name in TARGETS},
    )


def advice(processor: Cpu, threads: int, runtimes: dict[str, str | None]) -> tuple[str, ...]:
    """What would make work faster here, most useful first."""
    found = []
    if kernels.levels() == ("reference",):
        found.append(
            "compile the kernels of fake quantization, which make training several times faster: reinstall truequant with a "
            "C++ compiler and pip's --no-build-isolation"
        )
    if runtimes["onnxruntime"] is None:
        found.append("install onnxruntime to run and prove exported files: pip install 'truequant[onnxruntime]'")
    if threads < processor.cores:
        found.append(f"torch uses {threads} of {processor.cores} cores: torch.set_num_threads({processor.cores})")
    if "avx2" in processor.features and not has_dot_products(processor):
        found.append(
            "this CPU has no VNNI: preset int8 is exact and fast on it; w8a8 ships slower weights where sums could saturate"
        )
    elif has_dot_products(processor):
        found.append(
            "this CPU has VNNI: files that only such CPUs will run may be exported for the target onnxruntime-vnni, "
            "whose weights are signed always"
        )
    return tuple(found)


def promise(target: str, processor: Cpu, machine: str) -> str:
    """What a file exported for a target is worth on this machine, in onnxruntime and in OpenVINO (its own form), in words."""
    if not TARGETS[target].runs_here:
        return "no runtime of it runs here: verify says UNVERIFIED"
    x86 = machine.lower() in ("x86_64", "amd64", "i386", "i686")
    if target == "xnnpack":
        return "exact in LiteRT's XNNPACK delegate on x86 with AVX2; its Arm kernels round products otherwise and were not run"
    if target == "portable":
        return "the portable rule (dequantize, float32, quantize); no runtime is proven to keep it bit for bit"
    if not x86 and target == "onnxruntime-arm64" and machine.lower() in ("aarch64", "arm64"):
        return "exact here and on x86 CPUs with FMA, in onnxruntime: proven with its Arm kernels in emulation"
    if not x86:
        return "exact on x86, where it is proven; on this kind of CPU run truequant verify before you rely on it"
    if target == "onnxruntime-vnni" and not has_dot_products(processor):
        return "NOT exact here: this CPU has no VNNI, and int16 sums of 8-bit products may saturate, in OpenVINO too"
    if target == "onnxruntime-vnni":
        return "exact here and on every x86 CPU with VNNI, in onnxruntime and OpenVINO"
    if "x86 without FMA" not in TARGETS[target].other_cpus and "fma" not in processor.features:
        return (
            "NOT exact here in onnxruntime: this CPU has no FMA, which additions need; exact in OpenVINO, where they are tables"
        )
    kinds = (
        "with FMA or without" if "x86 without FMA" in TARGETS[target].other_cpus else "with FMA, which is every one since 2013"
    )
    return f"exact here and on every x86 CPU {kinds}; VNNI makes no difference, in onnxruntime or OpenVINO"


def has_dot_products(processor: Cpu) -> bool:
    """Whether sums of 8-bit products are taken in 32 bits by one instruction."""
    return any(feature in processor.features for feature in _DOT_PRODUCTS)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
