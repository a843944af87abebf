"""`export_program`: the model as a program of torch.export, with quantizing ops around float ops, as ExecuTorch takes it."""

from __future__ import annotations

import inspect
import io
import itertools
import os
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from truequant.errors import ExportError
from truequant.files import atomic_write
from truequant.integer import Int8Model, IntegerProgram
from truequant.integer.nodes import (
    Constant,
    Conv,
    Dequantize,
    DynamicLinear,
    Edge,
    FloatLinear,
    Linear,
    Lookup,
    Node,
    Quantize,
    Table,
)
from truequant.integer.program import DTYPES
from truequant.integer.storage import storage
from truequant.planning import build
from truequant.runtimes.programs import program_of
from truequant.runtimes.torch.nodes import VALUES, conv, linear

_SIZE = 64
"""Dynamic sizes of the example that the program is made with, but for the batch: enough for any stride and pooling."""


def export_program(int8: Int8Model | IntegerProgram, path: str | os.PathLike[str] | None = None) -> ExportedProgram:
    """The model as a program of `torch.export`, and its file at `path`, which `torch.export.load` reads.

    Weights are int8 behind `quantized_decomposed.dequantize_per_channel`; between float ops of ATen stand
    `quantized_decomposed.quantize_per_tensor` and `dequantize_per_tensor` with int8 codes (unsigned codes and their zero point
    are moved by 128, which changes no value), as XNNPACK's delegate of ExecuTorch and other backends fuse them. Dynamic sizes
    stay dynamic. Tables of functions are rows by number, which such backends leave in portable kernels.

    Its arithmetic is floats': sums in float32, `x * (1 / s)` instead of `x / s`. It is never EXACT by promise: its codes follow
    the program's up to the rounding of float32, and each backend has rules of its own. `verify(…, runtimes=["torch.export"])`
    counts what differs here, and grades it WITHIN 1 at best.

    Raises `ExportError` for a program that torch.export cannot follow, `FileError` where the file cannot be written.
    """
    program = program_of(int8)
    made = exported(program)
    if path is not None:
        written = io.BytesIO()
        torch.export.save(made, written)
        atomic_write(path, written.getvalue())
    return made


def exported(program: IntegerProgram, *, show_edges: bool = False) -> ExportedProgram:
    """The exported program. show_edges: it returns the codes of all edges, by name, beside what the model returns."""
    module = QuantizingModule(program, show_edges=show_edges)
    args = tuple(_example(i.dtype, i.shape) for i in program.inputs if i.keyword is None)
    kwargs = {i.keyword: _example(i.dtype, i.shape) for i in program.inputs if i.keyword is not None}
    dynamic = ({axis: Dim.AUTO for axis, n in enumerate(i.shape) if n is None} for i in program.inputs)
    shapes = dict(zip(module.parameter_names(), dynamic, strict=True))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch.export says of its own insides
            made = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises anything at all
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ExportError(
            "torch.export cannot follow this program", got=f"{type(error).__name__}: {lines[0][:300] if lines else ''}",
            fix="export_onnx, or fewer dynamic sizes: tq.prepare(…, dynamic=…)",
        ) from error  # fmt: skip
    _require_dynamic(program, made)
    return made


class QuantizingModule(nn.Module):
    """A program as float ops between quantizing ops. Every edge holds int8 codes (int16 where 8 bits do not hold them)."""

    def __init__(self, program: IntegerProgram, *, show_edges: bool = False) -> None:
        super().__init__()
        import torch.ao.quantization.fx._decomposed  # registers the ops

        self.program, self.show_edges = program, show_edges
        self._ops = torch.ops.quantized_decomposed
        self._buffer_of: dict[tuple[str, str], str] = {}
        self._shared: dict[int, str] = {}
        self._one_scale: dict[str, float] = {}
        for node in program.nodes:
            if isinstance(node, (Conv, Linear)):
                self._constant(node.output, "weight", node.weight, node.weight.to(torch.int8))
                if len(node.weight_scale) == 1:
                    self._one_scale[node.output] = float(node.weight_scale[0])
                else:
                    self._constant(node.output, "weight_scale", node.weight_scale, node.weight_scale.float())
                    self._constant(node.output, "weight_zero", None, torch.zeros(len(node.weight_scale), dtype=torch.int64))
                self._constant(node.output, "bias", None, self._bias(node))
            elif isinstance(node, FloatLinear):
                self._constant(node.output, "weight", node.weight, node.weight.to(torch.int8))
                self._constant(node.output, "weight_scale", node.weight_scale, node.weight_scale.float())
                zeros = torch.zeros(node.weight_scale.shape, dtype=torch.int64)
                self._constant(node.output, "weight_zero", None, zeros)
                if node.bias is not None:
                    self._constant(node.output, "bias", node.bias, node.bias.float())
            elif isinstance(node, (Table, Lookup)):
                edge = program.edges[node.output]
                self._constant(node.output, "table", None, (node.entries.int() - shift(edge)).to(code_dtype(edge)))

            elif isinstance(node, Constant):
                held = program.edges.get(node.output)
                codes = node.codes if held is None else (node.codes.int() - shift(held)).to(code_dtype(held))
                self._constant(node.output, "codes", None, codes)

        self.forward = self._forward_with_signature()

    def parameter_names(self) -> list[str]:
        """What `forward` calls each input of the program: its keyword, or its place."""
        keywords = {i.keyword for i in self.program.inputs}
        names = (f"input_{place}" for place in itertools.count())
        free = (name for name in names if name not in keywords)
        return [i.keyword if i.keyword is not None else next(free) for i in self.program.inputs]

    def _forward_with_signature(self) -> Callable[..., Any]:
        """torch.export looks for dynamic sizes by the names of parameters, and not in `*args` and `**kwargs`."""

        def forward(*args: Tensor, **kwargs: Tensor) -> Any:
            return self._computed(signature.bind(*args, **kwargs).arguments)

        kinds = {True: inspect.Parameter.POSITIONAL_OR_KEYWORD, False: inspect.Parameter.KEYWORD_ONLY}
        named = zip(self.parameter_names(), self.program.inputs, strict=True)
        parameters = [inspect.Parameter(name, kinds[i.keyword is None]) for name, i in named]
        signature = inspect.Signature(sorted(parameters, key=lambda p: p.kind))
        forward.__signature__ = signature  # type: ignore[attr-defined]
        return forward

    def _computed(self, arguments: Mapping[str, Tensor]) -> Any:
        names = zip(self.parameter_names(), self.program.inputs, strict=True)
        held = {spec.name: arguments[name] for name, spec in names}
        for node in self.program.nodes:
            held[node.output] = self._run(node, held)
        returned = build(self.program.outputs, held, dict)  # which torch.export knows
        return (returned, {name: held[name] for name in self.program.edges}) if self.show_edges else returned

    def _run(self, node: Node, held: dict[str, Tensor]) -> Tensor:
        edges = self.program.edges
        target = edges.get(node.output)
        if isinstance(node, (Table, Lookup)):
            assert target is not None
            index = held[node.input].long()
            if isinstance(node, Table):
                source = edges[node.input]
                index = index + (shift(source) - source.qmin)
            return self._stored(node.output, "table")[index]
        if isinstance(node, Constant):
            codes = self._stored(node.output, "codes")
            return codes if node.like is None else codes.expand(held[node.like].shape[0], *codes.shape[1:])
        values = [self._value(held[name], edges[name]) if name in edges else held[name] for name in node.reads]
        if isinstance(node, (Conv, Linear)):
            layer: Callable[..., Tensor] = conv if isinstance(node, Conv) else linear
            value = layer(node, *values, self._weight(node), self._stored(node.output, "bias"))
        elif isinstance(node, FloatLinear):
            value = self._float_linear(node, *values)
        elif isinstance(node, (Quantize, Dequantize)):
            (value,) = values
        else:
            value = VALUES[type(node)](node, *values)
        return value if target is None else self._codes(value, node, target)

    def _float_linear(self, node: FloatLinear, x: Tensor) -> Tensor:
        """A layer that reads floats: its weight alone is integers, or its tokens are quantized at run time too."""
        codes, scales, zeros = (self._stored(node.output, kind) for kind in ("weight", "weight_scale", "weight_zero"))
        grid, size = (-127, 127, torch.int8), codes.shape[1] // scales.shape[1]
        if scales.shape[1] == 1:
            weight = self._ops.dequantize_per_channel.default(codes, scales[:, 0], zeros[:, 0], 0, *grid)
        else:
            weight = self._ops.dequantize_per_channel_group.default(codes, scales, zeros, *grid, size, torch.float32)
        if isinstance(node, DynamicLinear):
            scale = (x.abs().amax(-1, keepdim=True) / node.qmax).clamp(2.0**-64, 2.0**64)
            x = torch.round(x / scale).clamp(-node.qmax, node.qmax) * scale
        return torch.nn.functional.linear(x, weight, None if node.bias is None else self._stored(node.output, "bias"))

    def _value(self, codes: Tensor, edge: Edge) -> Tensor:
        moved = shift(edge)
        grid = edge.scale, edge.zero_point - moved, edge.qmin - moved, edge.qmax - moved, code_dtype(edge)
        return self._ops.dequantize_per_tensor.default(codes, *grid)  # type: ignore[no-any-return]

    def _codes(self, value: Tensor, node: Node, edge: Edge) -> Tensor:
        """A fused clip that is not the grid's own end acts on the value, where runtimes fuse it with the op before."""
        low, high = getattr(node, "low", edge.qmin), getattr(node, "high", edge.qmax)
        ends = [None if a == b else (a - edge.zero_point) * edge.scale for a, b in ((low, edge.qmin), (high, edge.qmax))]
        if ends != [None, None]:
            value = torch.clamp(value, *ends)
        moved = shift(edge)
        grid = edge.scale, edge.zero_point - moved, edge.qmin - moved, edge.qmax - moved, code_dtype(edge)
        return self._ops.quantize_per_tensor.default(value, *grid)  # type: ignore[no-any-return]

    def _weight(self, node: Conv | Linear) -> Tensor:
        codes, grid = self._stored(node.output, "weight"), (-127, 127, torch.int8)
        if node.output in self._one_scale:
            scale = self._one_scale[node.output]
            return self._ops.dequantize_per_tensor.default(codes, scale, 0, *grid)  # type: ignore[no-any-return]
        scales, zeros = (self._stored(node.output, kind) for kind in ("weight_scale", "weight_zero"))
        return self._ops.dequantize_per_channel.default(codes, scales, zeros, 0, *grid)  # type: ignore[no-any-return]

    def _bias(self, node: Conv | Linear) -> Tensor:
        """The value of the rounded bias, `bq * float32(sx * sw)`: backends round it to these integers again."""
        sx = torch.tensor(self.program.edges[node.input].scale, dtype=torch.float32)
        return node.bias.float() * (sx * node.weight_scale.float())

    def _constant(self, name: str, kind: str, key: Tensor | None, value: Tensor) -> None:
        """A buffer; a tensor that several nodes hold is one buffer."""
        buffer = f"{re.sub(r'[^A-Za-z0-9_]', '_', name)}_{kind}"
        while hasattr(self, buffer):
            buffer += "_"
        if key is not None and id(key) in self._shared:
            buffer = self._shared[id(key)]
        else:
            self.register_buffer(buffer, value.contiguous())
        if key is not None:
            self._shared[id(key)] = buffer
        self._buffer_of[name, kind] = buffer

    def _stored(self, name: str, kind: str) -> Tensor:
        return getattr(self, self._buffer_of[name, kind])  # type: ignore[no-any-return]


class ExportedModel:
    """The exported program as a runtime: called like the model, it computes with floats in torch."""

    def __init__(self, program: IntegerProgram, *, threads: int = 0) -> None:
        self._module = exported(program).module()

    def __call__(self, *args: Tensor, **kwargs: Tensor) -> Any:
        with torch.no_grad():
            return self._module(*args, **kwargs)


class ExportedEdges:
    """The codes of its edges, as the integer program has them."""

    def __init__(self, program: IntegerProgram, *, threads: int = 0) -> None:
        self.program, self._module = program, exported(program, show_edges=True).module()

    def codes(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            found = self._module(*args, **kwargs)[1]
        edges = self.program.edges
        return {name: (codes.int() + shift(edges[name])).to(storage(edges[name])) for name, codes in found.items()}


def code_dtype(edge: Edge) -> torch.dtype:
    """int8, or int16 where its codes need that."""
    return torch.int8 if edge.qmax - edge.qmin <= 255 else torch.int16


def shift(edge: Edge) -> int:
    """What is taken from an unsigned edge's codes and zero point: backends take signed ones."""
    return 0 if edge.signed else 128 if code_dtype(edge) == torch.int8 else 1 << 15


def _example(dtype: str, shape: tuple[int | None, ...]) -> Tensor:
    sizes = [(3 if axis == 0 else _SIZE) if n is None else n for axis, n in enumerate(shape)]
    return torch.zeros(sizes, dtype=DTYPES[dtype])


def _require_dynamic(program: IntegerProgram, made: ExportedProgram) -> None:
    """`ExportError` where torch.export fixed a size that is dynamic."""
    inputs = set(made.graph_signature.user_inputs)
    found = [node.meta["val"].shape for node in made.graph.nodes if node.name in inputs]
    for spec, shape in zip(program.inputs, found, strict=True):
        fixed = [axis for axis, n in enumerate(spec.shape) if n is None and isinstance(shape[axis], int)]
        if fixed:
            raise ExportError(
                f"input '{spec.name}': torch.export fixed the size of axes {fixed}", got=tuple(map(str, shape)),
                fix="export_onnx keeps it dynamic",
            )  # fmt: skip
