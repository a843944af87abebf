"""Deployment: ONNX files, and the runtimes that run them. The only room that imports onnx and onnxruntime."""

from truequant.runtimes.census import census, require_integer_kernels
from truequant.runtimes.compiled import CompiledModel, EdgeReader, compile
from truequant.runtimes.export import digest, export_onnx, onnx_bytes

__all__ = ["CompiledModel", "EdgeReader", "census", "compile", "digest", "export_onnx", "onnx_bytes", "require_integer_kernels"]
