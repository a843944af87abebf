"""An ONNX graph under construction: names, constants, and quantize and dequantize nodes around an op."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truequant.integer import IntegerProgram, is_wide
from truequant.integer.nodes import Conv, Edge, Node
from truequant.runtimes.fresh_names import FreshNames
from truequant.runtimes.onnx.forms import Layout
from truequant.runtimes.onnx.kernels import MICROSOFT, kernels_of
from truequant.runtimes.onnx.shapes import dynamic_shapes
from truequant.runtimes.packages import onnx

OPSET = 21
IR_VERSION = 10
_SHARED_FROM = 1024


def opsets(nodes: Sequence[Any]) -> list[Any]:
    """The operator sets that nodes need."""
    named = {node.domain for node in nodes}
    return [
        onnx().helper.make_opsetid(domain, v) for domain, v in (("", OPSET), (MICROSOFT, 1)) if domain in named or not domain
    ]


def dtype_of(edge: Edge) -> Any:
    """numpy's dtype of the codes of an edge."""
    if edge.wide:
        return np.int16 if edge.signed else np.uint16
    return np.int8 if edge.signed else np.uint8


def limits_of(edge: Edge) -> tuple[int, int]:
    """The codes that the dtype of an edge can hold: what kernels clamp to."""
    whole = np.iinfo(dtype_of(edge))
    return int(whole.min), int(whole.max)


class Writer:
    """Nodes, constants and value infos. The tensor of an edge has the edge's name.

    signed_by_name: nodes that write signed codes are integer kernels by name in every layout.
    """

    def __init__(self, program: IntegerProgram, layout: Layout = "qdq", *, signed_by_name: bool = False) -> None:
        self.program, self.layout, self.signed_by_name = program, layout, signed_by_name
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.raw: dict[str, str] = {}
        """The tensor that an integer kernel writes for an edge: the edge's own, or the one before a clip on codes."""
        self.unpacked: dict[str, str] = {}
        """The int8 tensor of each constant that lies in the file two codes a byte."""
        self.floats: dict[str, str] = {}
        """Values of the file alone, before a quantizer or behind a dequantizer, each with the edge whose shape it has."""
        self.sums: dict[str, tuple[Conv, str]] = {}
        """Edges that a dialect keeps in no tensor of the file: the convolution, and the tensor of its sums."""
        self.flat: dict[str, tuple[str, tuple[int, ...]]] = {}
        """Edges that a dialect keeps in another order: the tensor, and the shape of an image."""
        self.computed: dict[tuple[Any, ...], list[list[str]]] = {}
        """What calls with several results write, by all that they read."""
        self.shapes, self.dtypes = dynamic_shapes(program)
        self._aliases: dict[str, Edge] = {}
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.fresh = FreshNames([*program.edges, *(n.output for n in program.nodes), *(i.name for i in program.inputs)])

    # -- names and constants -------------------------------------------------------------------------------------------
    def constant(self, name: str, values: Any) -> str:
        """An initializer; equal large ones are stored once, so that a layer called twice has one weight."""
        array = np.asarray(values)
        own = b"" if array.nbytes >= _SHARED_FROM else f"{name}\0".encode()
        key = (array.dtype.name, array.shape, hashlib.sha256(own + array.tobytes()).digest())
        if key not in self._names:
            self._names[key] = self.fresh(name)
            self.constants[self._names[key]] = onnx().numpy_helper.from_array(array, self._names[key])
        return self._names[key]

    def node(self, op: str, inputs: list[str], output: str, *, name: str, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output."""
        made = onnx().helper.make_node(op, inputs, [output], name=name, domain=domain, **attributes)
        self.nodes.append(made)
        return output

    def several(self, op: str, inputs: list[str], outputs: list[str], *, name: str, **attributes: Any) -> None:
        """Append a node with several outputs."""
        self.nodes.append(onnx().helper.make_node(op, inputs, outputs, name=name, **attributes))

    def array(self, name: str) -> Any:
        """The numbers of a constant."""
        return onnx().numpy_helper.to_array(self.constants[name])

    def on_grid(self, name: str, codes: Any, scale: Any) -> str:
        """The value `name`: int8 codes times their scale, a number or one for each of the first axis."""
        inputs = [self.constant(f"{name}.codes", codes), self.constant(f"{name}.scale", scale)]
        axis: dict[str, Any] = {"axis": 0} if scale.ndim else {}
        return self.node("DequantizeLinear", inputs, name, name=name, **axis)

    # -- edges ---------------------------------------------------------------------------------------------------------
    def edge(self, name: str) -> Edge:
        """The edge of a name, of the program or of this file alone."""
        return self._aliases.get(name) or self.program.edges[name]

    def alias(self, name: str, of: str) -> None:
        """A tensor of the file alone that holds codes of the edge `of`, moved."""
        self._aliases[name] = self.edge(of)

    def dtype(self, edge: Edge) -> Any:
        """numpy's dtype of the codes of an edge."""
        return dtype_of(edge)

    def limits(self, edge: Edge) -> tuple[int, int]:
        """The codes to which QuantizeLinear itself clamps."""
        return limits_of(edge)

    def by_name(self, node: Node) -> bool:
        """Whether a node is written as an integer kernel by name. None has codes of more than 8 bits."""
        if is_wide(node, self.program.edges) or node.output not in self.program.edges or not kernels_of(node).integer:
            return False
        return self.layout == "qoperator" or (self.signed_by_name and self.edge(node.output).signed)

    def scale_and_zero(self, name: str) -> list[str]:
        """Constants with the scale and zero point of an edge."""
        edge = self.edge(name)
        scale = self.constant(f"{name}.scale", np.float32(edge.scale))
        return [scale, self.constant(f"{name}.zero_point", np.array(edge.zero_point, self.dtype(edge)))]

    def dequantized(self, name: str, reader: str) -> str:
        """The value of an edge for one reader: fusion wants a DequantizeLinear of its own for each."""
        value = self.fresh(f"{reader}.{name}.dequantized")
        self.floats[value] = name
        return self.node("DequantizeLinear", [name, *self.scale_and_zero(name)], value, name=value)

    def quantized(self, value: str, name: str, low: int, high: int) -> None:
        """The edge `name` of a value, clamped on codes where QuantizeLinear's own clamp is too wide.

        A Relu or Clip in between would keep onnxruntime from fusing wherever the zero point is not 0.
        """
        self.floats[value] = name
        raw = self.unclipped(name, low, high)
        self.node("QuantizeLinear", [value, *self.scale_and_zero(name)], raw, name=f"{name}.quantize")
        self.clipped(name, low, high)

    def unclipped(self, name: str, low: int, high: int) -> str:
        """What a kernel writes for an edge: the edge itself, or the tensor that `clipped` then clamps on codes."""
        clipped = (low, high) != self.limits(self.edge(name))
        self.raw[name] = self.fresh(f"{name}.unclipped") if clipped else name
        return self.raw[name]

    def clipped(self, name: str, low: int, high: int) -> None:
        """The clamp behind `unclipped`, where there is one."""
        if self.raw[name] != name:
            self.clip(self.raw[name], name, low, high)

    def kernel(
        self, op: str, inputs: list[str], name: str, low: int, high: int, *, domain: str = "", **attributes: Any
    ) -> None:
        """An integer kernel that writes the edge `name`, clamped on codes where its own clamp is too wide."""
        raw = self.unclipped(name, low, high)
        self.node(op, inputs, raw, name=name, domain=domain, **attributes)
        self.clipped(name, low, high)

    def clip(self, source: str, output: str, low: int, high: int) -> None:
        """`clamp(q, low, high)` on codes; those of 16 bits, for which runtimes have no Clip, as int32."""
        edge = self.edge(output)
        dtype = np.int32 if edge.wide else self.dtype(edge)
        bounds = [self.constant(f"{output}.low", np.array(low, dtype)), self.constant(f"{output}.high", np.array(high, dtype))]
        if not edge.wide:
            self.node("Clip", [source, *bounds], output, name=f"{output}.clip")
            return
        whole, clipped = self.fresh(f"{output}.whole"), self.fresh(f"{output}.clipped")
        self.node("Cast", [source], whole, name=whole, to=int(onnx().TensorProto.INT32))
        self.node("Clip", [whole, *bounds], clipped, name=f"{output}.clip")
        self.node("Cast", [clipped], output, name=f"{output}.codes", to=self.element_of(edge))

    def element_of(self, edge: Edge) -> int:
        """ONNX's number of the dtype of an edge's codes."""
        return int(onnx().helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype(edge))))

    @staticmethod
    def numpy(dtype: torch.dtype) -> Any:
        """numpy's dtype of torch's."""
        return torch.zeros((), dtype=dtype).numpy().dtype

    @staticmethod
    def element(dtype: torch.dtype) -> int:
        """ONNX's number of torch's dtype."""
        return int(onnx().helper.np_dtype_to_tensor_dtype(torch.zeros((), dtype=dtype).numpy().dtype))

    def measured(self, source: str, name: str, begin: int, end: int) -> str:
        """Sizes `begin … end - 1` of a tensor, as an int64 tensor."""
        name = self.fresh(name)
        return self.node("Shape", [source], name, name=name, start=begin, end=end)

    def joined(self, name: str, parts: list[str]) -> str:
        """Parts of a shape as one."""
        name = self.fresh(name)
        return self.node("Concat", parts, name, name=name, axis=0)

    def integers(self, name: str, values: list[int] | tuple[int, ...]) -> str:
        """An int64 constant: a shape, axes, pads."""
        return self.constant(name, np.array(values, np.int64))


def numpy_of(tensor: Tensor) -> Any:
    """The tensor's numbers, on the CPU."""
    return tensor.detach().cpu().contiguous().numpy()
