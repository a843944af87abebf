"""OpenVINO on the CPU: its dialect of ONNX, and its compiled models."""

from truequant.runtimes.openvino.dialect import FORMS
from truequant.runtimes.openvino.model import OpenvinoEdges, OpenvinoModel
from truequant.runtimes.openvino.promises import computed_in_float, exceptions

__all__ = ["FORMS", "OpenvinoEdges", "OpenvinoModel", "computed_in_float", "exceptions"]
