"""A file of LiteRT under construction: tensors, constants and operators, written by the schema that its package brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from truequant.runtimes.packages import package

_TYPES = {"int8": "INT8", "int32": "INT32", "float32": "FLOAT32"}
IDENTIFIER = b"TFL3"


def schema() -> Any:
    """The object API of the file format. `ExportError` where the package is not installed."""
    package("flatbuffers", "litert")
    return package("ai_edge_litert.schema_py_generated", "litert")


class File:
    """One subgraph. `tensor` and `constant` return the index of a tensor, `op` that of its result."""

    def __init__(self) -> None:
        self._schema = schema()
        self._buffers: list[Any] = [self._schema.BufferT()]
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[tuple[int, int], Any] = {}

    def tensor(
        self, name: str, shape: Sequence[int | None], dtype: str, scale: Any = None, zero_point: int = 0, axis: int = 0,
        buffer: int = 0,
    ) -> int:  # fmt: skip
        """A tensor. A size that is None follows the caller's batch. scale: one, or one for each index along `axis`."""
        made = self._schema.TensorT()
        made.name = name.encode()
        made.shape = [1 if n is None else int(n) for n in shape]
        if None in shape:
            made.shapeSignature = [-1 if n is None else int(n) for n in shape]
        made.type, made.buffer = getattr(self._schema.TensorType, _TYPES[dtype]), buffer
        if scale is not None:
            grid = self._schema.QuantizationParametersT()
            grid.scale = np.atleast_1d(np.asarray(scale, np.float32))
            grid.zeroPoint = np.full(grid.scale.shape, zero_point, np.int64)
            grid.quantizedDimension = axis
            made.quantization = grid
        self._tensors.append(made)
        return len(self._tensors) - 1

    def constant(self, name: str, array: Any, scale: Any = None, zero_point: int = 0, axis: int = 0) -> int:
        """A tensor of the file's own."""
        array = np.ascontiguousarray(array)
        return self.tensor(name, array.shape, str(array.dtype), scale, zero_point, axis, self._buffer(array.tobytes()))

    def op(
        self, name: str, inputs: Sequence[int], output: int, version: int = 1, options: str | None = None, **fields: Any
    ) -> int:
        """An operator of the runtime's own, with one result."""
        number = getattr(self._schema.BuiltinOperator, name)
        code = self._codes.get((number, version))
        if code is None:
            made = self._schema.OperatorCodeT()
            made.builtinCode, made.deprecatedBuiltinCode, made.version = number, min(number, 127), version
            code = self._codes[number, version] = (len(self._codes), made)
        operator = self._schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = code[0], list(inputs), [output]
        if options is not None:
            operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self._schema, f"{options}T")()
            for field, value in fields.items():
                assert hasattr(operator.builtinOptions, field), (options, field)
                setattr(operator.builtinOptions, field, value)
        self._operators.append(operator)
        return output

    def serialized(self, inputs: Sequence[int], outputs: Sequence[int], description: str, metadata: Mapping[str, str]) -> bytes:
        """The file. Equal programs give equal bytes."""
        graph, model = self._schema.SubGraphT(), self._schema.ModelT()
        graph.name, graph.tensors, graph.operators = b"main", self._tensors, self._operators
        graph.inputs, graph.outputs = list(inputs), list(outputs)
        model.version, model.subgraphs, model.description = 3, [graph], description.encode()
        model.operatorCodes = [made for _, made in self._codes.values()]
        model.metadata = [self._metadata(name, text) for name, text in metadata.items()]
        model.buffers = self._buffers
        builder = package("flatbuffers", "litert").Builder(1 << 16)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _metadata(self, name: str, text: str) -> Any:
        made = self._schema.MetadataT()
        made.name, made.buffer = name.encode(), self._buffer(text.encode())
        return made

    def _buffer(self, data: bytes) -> int:
        made = self._schema.BufferT()
        made.data = np.frombuffer(data, np.uint8)
        self._buffers.append(made)
        return len(self._buffers) - 1
