"""Names of layouts and forms of an ONNX file.

A layout says how the file spells an integer kernel. A dialect (`dialect.py`) says what one runtime wants otherwise. A form,
which callers name, is a layout in a dialect.
"""

from __future__ import annotations

from typing import Literal

Layout = Literal["qdq", "qoperator"]
"""QDQ: float ops between DequantizeLinear and QuantizeLinear, which runtimes fuse; QOperator: integer kernels by name."""
FormName = Literal["qdq", "qoperator", "openvino"]
"""The layouts in the dialect of the program's target, and openvino: sums of codes and their requantization written out."""
