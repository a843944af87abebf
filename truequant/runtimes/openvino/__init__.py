"""OpenVINO on the CPU: its dialect of ONNX, and its compiled models."""

from truequant.runtimes.openvino.dialect import FORMS
from truequant.runtimes.openvino.model import OpenvinoEdges, OpenvinoModel
from truequant.runtimes.openvino.promises import exceptions

__all__ = ["FORMS", "OpenvinoEdges", "OpenvinoModel", "exceptions"]
