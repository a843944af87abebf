"""LiteRT (TensorFlow Lite) on phones and PCs: files for its XNNPACK delegate, and programs in its interpreter."""

from truequant.runtimes.litert.export import export_tflite
from truequant.runtimes.litert.model import LitertEdges, LitertModel
from truequant.runtimes.litert.promises import exceptions

__all__ = ["LitertEdges", "LitertModel", "exceptions", "export_tflite"]
