"""Float islands: the ops between quantized edges that a plan left in float (which can be: `planning.float_ops`).

An argument is the JSON text of a number, string, bool, null or array, in which {"input": i}, {"tensor": i},
{"codes": [i, j]} and {"size": [i, axis]} stand for the i-th input, the i-th stored tensor, the i-th, which holds int8 codes,
times the j-th, their scale, and a size of the i-th input.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from truequant import numerics
from truequant.errors import ConversionError
from truequant.integer.edge import Edge
from truequant.integer.nodes.base import Node, Shape
from truequant.planning import RegisteredOp, decode_call, registered_op
from truequant.planning.float_ops import ISLAND_OPS, REGISTERED

MAX_ARGUMENT = 4096
"""Characters of one argument's text."""
_DTYPES = frozenset(("float16", "bfloat16", "float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64"))


@dataclass(frozen=True, slots=True, eq=False)
class Island(Node):
    """A float op between quantized edges, on values: `torch.ops.aten.{op}(*arguments, **options)`.

    arguments: the JSON text of each positional argument; options: of each `[keyword, value]`.
    part: which of several results.
    """

    inputs: tuple[str, ...]
    output: str
    op: str
    arguments: tuple[str, ...]
    options: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    part: int | None = None
    reading = "values"
    writing = "values"

    @property
    def reads(self) -> tuple[str, ...]:
        return self.inputs

    def check(self, edges: Mapping[str, Edge]) -> None:
        """ConversionError unless the op is one of the list and every argument can be read."""
        if self.op.startswith(REGISTERED):
            _registered(self)
        elif self.op not in ISLAND_OPS:
            raise ConversionError(f"{self.label}: no such op", got=self.op, expected="an op of planning.float_ops")
        for text in (*self.arguments, *self.options):
            if len(text) > MAX_ARGUMENT:
                raise ConversionError(f"{self.label}: an argument too long", got=f"{len(text)} characters")
        inputs = [torch.empty((1,) * 4, device="meta")] * len(self.inputs)
        if self.op.startswith(REGISTERED):
            decode_call(self.arguments[0], [*inputs, *self.tensors])
            return
        for text in self.arguments:
            _resolved(_parsed(self, text), self, inputs, check_only=True)
        for text in self.options:
            pair = _parsed(self, text)
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
                raise ConversionError(f"{self.label}: an option is [name, value]", got=text[:80])
            _resolved(pair[1], self, inputs, check_only=True)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return self.layout(shapes, [torch.float32] * len(shapes))[0]

    def layout(self, shapes: Sequence[Shape], dtypes: Sequence[torch.dtype]) -> tuple[Shape, torch.dtype]:
        """Shape and dtype of the result, found without computing it: both may depend on the dtypes of the inputs."""
        inputs = zip(shapes, dtypes, strict=True)
        result = self._call([torch.empty(shape, dtype=dtype, device="meta") for shape, dtype in inputs])
        return tuple(result.shape), result.dtype

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        """The op on its inputs, in float32. They are contiguous, as in evaluation: the order of its sums may depend on it."""
        return self._call([x.contiguous() for x in inputs])

    def _call(self, inputs: Sequence[Tensor]) -> Tensor:
        return (_call_registered if self.op.startswith(REGISTERED) else _call_aten)(self, inputs)


def _call_aten(node: Island, inputs: Sequence[Tensor]) -> Tensor:
    packet, overload = node.op.split(".")
    args = [_resolved(_parsed(node, text), node, inputs) for text in node.arguments]
    options = {name: _resolved(value, node, inputs) for name, value in (_parsed(node, text) for text in node.options)}
    try:
        result = getattr(getattr(torch.ops.aten, packet), overload)(*args, **options)
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ConversionError(
            f"{node.label}: {node.op} cannot compute this", got=str(error).splitlines()[0][:200] if str(error) else ""
        ) from error
    if node.part is not None and isinstance(result, (tuple, list)) and 0 <= node.part < len(result):
        result = result[node.part]
    if not isinstance(result, Tensor):
        raise ConversionError(f"{node.label}: {node.op} returns no tensor", got=type(result).__name__)
    return result


def _registered(node: Island) -> RegisteredOp:
    name = node.op.removeprefix(REGISTERED)
    op = registered_op(name)
    if op is None or len(node.arguments) != 1:
        raise ConversionError(
            f"{node.label}: an op that is not registered here", got=name[:80],
            fix="import what calls tq.register_op before the model is loaded",
        )  # fmt: skip
    return op


def _call_registered(node: Island, inputs: Sequence[Tensor]) -> Tensor:
    op = _registered(node)
    device = inputs[0].device if inputs else torch.device("cpu")
    args, kwargs = decode_call(node.arguments[0], [*inputs, *(t.to(device) for t in node.tensors)])
    try:
        result = op.function(*args, **kwargs)
    except Exception as error:
        raise ConversionError(f"{node.label}: {op.name} cannot compute this", got=str(error)[:200]) from error
    if not isinstance(result, Tensor):
        raise ConversionError(f"{node.label}: {op.name} returns no tensor", got=type(result).__name__)
    return result


def _parsed(node: Island, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{node.label}: an argument that is no JSON", got=text[:80]) from error


def _resolved(value: Any, node: Island, inputs: Sequence[Tensor], *, check_only: bool = False) -> Any:
    if isinstance(value, list):
        return [_resolved(item, node, inputs, check_only=check_only) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"number": "inf" | "-inf" | "nan" as text}:  # JSON has no such numbers
            return float(text)
        case {"dtype": str(name)} if name in _DTYPES:
            return getattr(torch, name)
        case {"arithmetic": ["add" | "sub" | "mul" | "floordiv" as kind, a, b]}:
            pair = [_resolved(v, node, inputs, check_only=check_only) for v in (a, b)]
            if not all(type(v) is int for v in pair) or (kind == "floordiv" and not pair[1]):
                raise ConversionError(f"{node.label}: a size that is no number", got=repr(value)[:80])
            return int(getattr(operator, kind)(*pair))
        case {"input": int(i)} if 0 <= i < len(inputs):
            return inputs[i]
        case {"tensor": int(i)} if 0 <= i < len(node.tensors):
            return node.tensors[i].to(inputs[0].device) if not check_only else node.tensors[i]
        case {"codes": [int(i), int(j)]} if 0 <= i < len(node.tensors) and 0 <= j < len(node.tensors):
            return _dequantized(node, node.tensors[i], node.tensors[j], inputs[0].device if not check_only else None)
        case {"size": [int(i), int(axis)]} if 0 <= i < len(inputs):
            if check_only:
                return 1
            if not -inputs[i].dim() <= axis < inputs[i].dim():
                raise ConversionError(f"{node.label}: no axis {axis}", got=f"{inputs[i].dim()} axes")
            return inputs[i].shape[axis]
    raise ConversionError(f"{node.label}: an argument that points nowhere", got=repr(value)[:80])


def _dequantized(node: Island, codes: Tensor, scale: Tensor, device: torch.device | None) -> Tensor:
    """The values of stored codes. `ConversionError` unless they are int8, with float32 scales that fit them."""
    grouped = codes.dim() == scale.dim() == 2 and scale.shape[1] > 1 and codes.shape[1] % scale.shape[1] == 0
    one_a_row = scale.shape == (*codes.shape[:1], *[1] * (codes.dim() - 1))
    fits = scale.dim() == 0 or one_a_row or (grouped and scale.shape[0] == codes.shape[0])
    if codes.dtype != torch.int8 or scale.dtype != torch.float32 or not fits:
        raise ConversionError(
            f"{node.label}: a weight that is no codes and scale",
            got=f"{codes.dtype} {tuple(codes.shape)}, {scale.dtype} {tuple(scale.shape)}",
            expected="int8 codes, and a float32 scale for all, for each of the first axis, or for each group of a row",
        )
    return codes if device is None else numerics.stored_values(codes.to(device), scale.to(device))
