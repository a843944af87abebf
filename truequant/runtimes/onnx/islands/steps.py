"""Building blocks of the ONNX form of a float island."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from truequant.integer.nodes import Island
from truequant.runtimes.onnx.islands.arguments import Arguments
from truequant.runtimes.onnx.writer import Writer

IslandWriter = Callable[[Writer, Island, Arguments], None]


class Steps:
    """Names of the inner values of one island."""

    def __init__(self, writer: Writer, node: Island) -> None:
        self.writer, self.node = writer, node

    def __call__(self, op: str, inputs: list[str], part: str = "", **attributes: Any) -> str:
        """Append a node; without `part` it writes the island's output."""
        output = self.writer.fresh(f"{self.node.output}.{part}") if part else self.node.output
        return self.writer.node(op, inputs, output, name=output, **attributes)

    def number(self, value: Any, part: str = "number") -> str:
        return self.writer.constant(f"{self.node.output}.{part}", np.float32(value))
