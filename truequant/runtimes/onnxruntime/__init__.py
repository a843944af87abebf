"""onnxruntime on the CPU: its dialect of ONNX, sessions, and proofs of what it computes."""

from truequant.runtimes.onnxruntime.dialect import FORMS
from truequant.runtimes.onnxruntime.model import CompiledModel, EdgeReader
from truequant.runtimes.onnxruntime.promises import exceptions

__all__ = ["FORMS", "CompiledModel", "EdgeReader", "exceptions"]
