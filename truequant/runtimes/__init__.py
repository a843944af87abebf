"""Deployment: ONNX and GGUF files, and the runtimes that run them. The only room that imports onnx, gguf and the runtimes."""

from truequant.runtimes.export import export_onnx, onnx_bytes
from truequant.runtimes.gguf import export_gguf
from truequant.runtimes.litert import export_tflite
from truequant.runtimes.machine import Machine, machine, read_cpuinfo
from truequant.runtimes.onnx.metadata import digest, with_program
from truequant.runtimes.onnxruntime.census import census, require_integer_kernels
from truequant.runtimes.onnxruntime.cpus import adds_that_differ
from truequant.runtimes.onnxruntime.lint import Lint, Miss, lint
from truequant.runtimes.onnxruntime.model import CompiledModel, EdgeReader
from truequant.runtimes.onnxruntime.shipped import ShippedFile
from truequant.runtimes.promises import promises
from truequant.runtimes.registry import FORMS, RUNTIMES, Runtime, compile, default_runtime, require_target, runtime_of
from truequant.runtimes.saturation import saturating_layers
from truequant.runtimes.torch.program import export_program

__all__ = [
    "FORMS", "RUNTIMES", "CompiledModel", "EdgeReader", "Lint", "Machine", "Miss", "Runtime", "ShippedFile",
    "adds_that_differ", "census", "compile", "default_runtime", "digest", "export_gguf", "export_onnx", "export_program",
    "export_tflite", "lint", "machine", "onnx_bytes", "promises", "read_cpuinfo", "require_integer_kernels", "require_target",
    "runtime_of", "saturating_layers",
    "with_program",
]  # fmt: skip
