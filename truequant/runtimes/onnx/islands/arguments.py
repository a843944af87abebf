"""The arguments of a float island as names and numbers of an ONNX graph."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from truequant.errors import ExportError
from truequant.integer.nodes import Island
from truequant.runtimes.onnx.writer import Writer, numpy_of


class Arguments:
    """Arguments by position ("0") or by the name in torch's schema; tensors stand as names of values and constants."""

    def __init__(self, writer: Writer, node: Island, values: list[Any], named: dict[str, Any]) -> None:
        self.writer, self.node, self.values, self._named = writer, node, values, named

    def get(self, key: str, default: Any = None) -> Any:
        return self._named.get(key, default)

    def __getitem__(self, key: str) -> Any:
        return self._named[key]

    def names(self) -> frozenset[str]:
        """Positions and names of the arguments that were given."""
        return frozenset(self._named)

    def tensor(self, key: str) -> str:
        """The name of a tensor; a number becomes a constant of the dtype of the tensor beside it."""
        value = self._named[key]
        if isinstance(value, str):
            return value
        beside = next(
            (self.writer.dtypes[v] for v in self.values if isinstance(v, str) and v in self.writer.dtypes), torch.float32
        )
        dtype = torch.float32 if beside == torch.bool or isinstance(value, float) else beside
        return self.writer.constant(f"{self.node.output}.number{key}", np.array(value, self.writer.numpy(dtype)))

    def sizes(self, key: str, n: int, default: int) -> list[int]:
        """A size for each of n axes."""
        value = self._named.get(key)
        value = default if value is None or value == [] else value
        values = [value] * n if isinstance(value, int) else list(value)
        return values * n if len(values) == 1 else values

    def kind(self, key: str) -> str:
        """The dtype of a tensor, as torch names it."""
        return str(self.writer.dtypes.get(self._named[key], torch.float32)).removeprefix("torch.")

    def dtype(self) -> torch.dtype:
        """The dtype of what the island writes."""
        return self.writer.dtypes[self.node.output]

    def shape(self, key: str) -> str:
        """A list of sizes, some of them read from inputs, as one int64 tensor."""
        parts = []
        for position, size in enumerate(self._named[key]):
            if isinstance(size, int):
                parts.append(self.writer.integers(f"{self.node.output}.size{position}", [size]))
                continue
            source, axis = size
            name = self.writer.fresh(f"{self.node.output}.size{position}")
            parts.append(self.writer.node("Shape", [source], name, name=name, start=axis, end=axis + 1))
        name = self.writer.fresh(f"{self.node.output}.sizes")
        return self.writer.node("Concat", parts, name, name=name, axis=0)


def arguments_of(writer: Writer, node: Island) -> Arguments:
    """The arguments of an island, its stored tensors written as constants."""
    packet, overload = node.op.split(".")
    schema = getattr(getattr(torch.ops.aten, packet), overload)._schema.arguments
    values = [_resolved(writer, node, json.loads(text)) for text in node.arguments]
    named: dict[str, Any] = {str(i): v for i, v in enumerate(values)}
    named |= {schema[i].name: v for i, v in enumerate(values)}
    for text in node.options:
        name, value = json.loads(text)
        position = next((i for i, argument in enumerate(schema) if argument.name == name), None)
        named[name] = _resolved(writer, node, value)
        if position is not None:
            named[str(position)] = named[name]
    return Arguments(writer, node, values, named)


def _resolved(writer: Writer, node: Island, value: Any) -> Any:
    if isinstance(value, list):
        return [_resolved(writer, node, v) for v in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"input": i}:
            return node.inputs[i]
        case {"tensor": i}:
            tensor = node.tensors[i]
            name = writer.constant(f"{node.output}.constant_{i}", numpy_of(tensor))
            writer.dtypes[name] = tensor.dtype
            writer.shapes[name] = tuple(tensor.shape)
            return name
        case {"number": text}:
            return float(text)
        case {"size": [i, axis]}:
            return (node.inputs[i], axis % len(writer.shapes[node.inputs[i]]))
        case {"dtype": name}:
            return name
    raise ExportError(
        f"'{node.output}': a size that the forward computes", got=str(value), expected="sizes of tensors, numbers"
    )
