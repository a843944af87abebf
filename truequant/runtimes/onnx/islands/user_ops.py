"""ONNX form of registered float ops: what the user's own `onnx=` writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from truequant.errors import ExportError
from truequant.integer.nodes import Island
from truequant.planning import decode_call, registered_op
from truequant.planning.float_ops import REGISTERED
from truequant.runtimes.onnx.writer import Writer, numpy_of


class OnnxSteps:
    """Appends nodes for one op: `step("Relu", [name], alpha=…)` returns the name of what it writes."""

    def __init__(self, writer: Writer, node: Island) -> None:
        self._writer, self._node = writer, node
        self.last = ""

    def __call__(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        self.last = self._writer.fresh(f"{self._node.output}.{op.lower()}")
        return self._writer.node(op, list(inputs), self.last, name=self.last, **attributes)

    def number(self, value: Any) -> str:
        """A float32 constant: a number, or numbers in lists."""
        return self._writer.constant(self._writer.fresh(f"{self._node.output}.number"), np.asarray(value, np.float32))

    def integers(self, values: Sequence[int]) -> str:
        """An int64 constant: axes, sizes."""
        return self._writer.integers(self._writer.fresh(f"{self._node.output}.integers"), list(values))


def write_registered(writer: Writer, node: Island) -> None:
    """Append the nodes of a registered op. `ExportError` where it has no form or returns something else than a step's name."""
    op = registered_op(node.op.removeprefix(REGISTERED))
    if op is None or op.onnx is None:
        raise ExportError(
            f"'{node.output}': {node.op} has no ONNX form", got=node.op, expected="a registered op with onnx=",
            fix="tq.register_op(…, onnx=…); int8(x) and int8.save(path) hold it as it is",
        )  # fmt: skip
    stored = [writer.constant(f"{node.output}.constant_{i}", numpy_of(t)) for i, t in enumerate(node.tensors)]
    args, kwargs = decode_call(node.arguments[0], [*node.inputs, *stored])
    step = OnnxSteps(writer, node)
    result = op.onnx(step, *args, **kwargs)
    if not step.last or result != step.last:
        raise ExportError(f"'{node.output}': onnx= of '{op.name}' does not return its last step", got=repr(result)[:80])
    writer.node("Identity", [result], node.output, name=node.output)
