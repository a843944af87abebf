"""Deployment: ONNX files, and the runtimes that run them. The only room that imports onnx and onnxruntime."""

from truequant.runtimes.census import census, require_integer_kernels
from truequant.runtimes.compiled import CompiledModel, EdgeReader
from truequant.runtimes.export import digest, export_onnx, onnx_bytes
from truequant.runtimes.registry import RUNTIMES, Runtime, compile, runtime_of

__all__ = [
    "RUNTIMES", "CompiledModel", "EdgeReader", "Runtime", "census", "compile", "digest", "export_onnx", "onnx_bytes",
    "require_integer_kernels", "runtime_of",
]  # fmt: skip
