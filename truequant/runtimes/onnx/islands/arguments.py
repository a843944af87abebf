"""The arguments of a float island as names and numbers of an ONNX graph."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from truequant.errors import ExportError
from truequant.integer.nodes import Island
from truequant.planning.recurrent import OPS as RECURRENT
from truequant.runtimes.onnx.writer import Writer, numpy_of


@dataclass(frozen=True, slots=True)
class Measured:
    """A size of a tensor of the graph."""

    source: str
    axis: int


@dataclass(frozen=True, slots=True)
class Computed:
    """Arithmetic on sizes: `kind` of `left` and `right`."""

    kind: str
    left: Any
    right: Any


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight by its codes, int8, and their scale: `()`, one for each of the first axis, or `(rows, groups)`."""

    codes: Any
    scale: Any


READ_CODES = RECURRENT | {"embedding"}
"""Ops whose form reads a weight by its codes."""
_ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "floordiv": "Div"}


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
        beside = next((self.writer.dtypes[v] for v in self.values if isinstance(v, str) and v in self.writer.dtypes), None)
        dtype = torch.float32 if beside in (None, torch.bool) or isinstance(value, float) else beside
        return self._number(key, value, dtype or torch.float32)

    def _number(self, key: str, value: Any, dtype: torch.dtype) -> str:
        if isinstance(value, (Measured, Computed)):
            size = self._cast(self.size(value, key), torch.int64, dtype)
            first = self.writer.integers(f"{self.node.output}.first", [0])
            name = self.writer.fresh(f"{self.node.output}.number{key}")
            return self.writer.node("Squeeze", [size, first], name, name=name)
        return self.writer.constant(f"{self.node.output}.number{key}", np.array(value, self.writer.numpy(dtype)))

    def operands(self, *keys: str, dtype: torch.dtype | None = None) -> list[str]:
        """Tensors and numbers of one dtype: `dtype`, or the one to which torch promotes them. ONNX promotes nothing."""
        common = dtype or self.promoted(*keys)
        names = []
        for key in keys:
            value = self._named[key]
            if isinstance(value, str):
                names.append(self._cast(value, self.writer.dtypes.get(value, torch.float32), common))
            else:
                names.append(self._number(key, value, common))
        return names

    def promoted(self, *keys: str) -> torch.dtype:
        """The dtype to which torch promotes these arguments."""
        found: Any = None
        for key in keys:
            value = self._named[key]
            if isinstance(value, str):
                kind = self.writer.dtypes.get(value, torch.float32)
                value = torch.empty((1,) * len(self.writer.shapes[value]), dtype=kind)
            elif isinstance(value, (Measured, Computed)):
                value = 1
            if found is None:
                found = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            else:
                kinds = torch.result_type(found, value)
                rank = max(found.dim(), value.dim() if isinstance(value, torch.Tensor) else 0)
                found = torch.empty((1,) * rank, dtype=kinds)
        return found.dtype  # type: ignore[no-any-return]

    def _cast(self, name: str, have: torch.dtype, want: torch.dtype) -> str:
        if have == want:
            return name
        made = self.writer.fresh(f"{self.node.output}.promoted")
        return self.writer.node("Cast", [name], made, name=made, to=self.writer.element(want))

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
        return self.joined(self._named[key])

    def measured(self, key: str, axis: int) -> Measured | int:
        """The size of an axis of a tensor, a number where it is fixed."""
        source = self.tensor(key)
        size = self.writer.shapes[source][axis]
        return Measured(source, axis % len(self.writer.shapes[source])) if size is None else size

    def joined(self, sizes: Any) -> str:
        """Sizes as one int64 tensor."""
        if all(isinstance(size, int) for size in sizes):
            return self.writer.integers(f"{self.node.output}.sizes", list(sizes))
        parts = [self.size(size, str(position)) for position, size in enumerate(sizes)]
        name = self.writer.fresh(f"{self.node.output}.sizes")
        return self.writer.node("Concat", parts, name, name=name, axis=0)

    def size(self, value: Any, part: str) -> str:
        """One size, as an int64 tensor of one element."""
        writer = self.writer
        if isinstance(value, int):
            return writer.integers(f"{self.node.output}.size{part}", [value])
        name = writer.fresh(f"{self.node.output}.size{part}")
        if isinstance(value, Measured):
            return writer.node("Shape", [value.source], name, name=name, start=value.axis, end=value.axis + 1)
        if isinstance(value, Computed):
            ends = [self.size(value.left, f"{part}.left"), self.size(value.right, f"{part}.right")]
            return writer.node(_ARITHMETIC[value.kind], ends, name, name=name)
        raise ExportError(f"'{self.node.output}': no size", got=str(value), expected="sizes of tensors, integers")


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
        case {"codes": [i, j]}:
            return _stored(writer, node, i, j)
        case {"number": text}:
            return float(text)
        case {"size": [i, axis]}:
            return Measured(node.inputs[i], axis % len(writer.shapes[node.inputs[i]]))
        case {"arithmetic": [kind, left, right]}:
            return Computed(kind, _resolved(writer, node, left), _resolved(writer, node, right))
        case {"dtype": name}:
            return name
    raise ExportError(
        f"'{node.output}': an argument that an ONNX graph cannot hold", got=str(value), expected="tensors, sizes, numbers"
    )


def _stored(writer: Writer, node: Island, i: int, j: int) -> Stored | str:
    """A weight by its codes: as it is for an op whose form reads codes, else its values."""
    codes, scale = numpy_of(node.tensors[i]), numpy_of(node.tensors[j])
    if node.op.partition(".")[0] in READ_CODES:
        return Stored(codes, scale)
    if scale.ndim == 2 and scale.shape[1] > 1:
        raise ExportError(
            f"'{node.output}': {node.op} has no ONNX form that reads a weight with several scales a row",
            got=f"{scale.shape[1]} scales a row", expected="one", fix="weight=QuantScheme(…, PerChannel(0))",
        )  # fmt: skip
    name = writer.fresh(f"{node.output}.weight_{i}")
    writer.dtypes[name], writer.shapes[name] = torch.float32, tuple(codes.shape)
    return writer.on_grid(name, codes, scale.reshape(-1) if scale.ndim else scale)
