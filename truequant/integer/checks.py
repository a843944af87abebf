"""What each node promises about itself and its edges, checked before anything runs."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.islands import check_island
from truequant.integer.nodes import (
    Add,
    AveragePool,
    Clamp,
    Concat,
    Conv,
    DepthToSpace,
    Dequantize,
    DynamicLinear,
    Edge,
    GlobalAverage,
    Island,
    Linear,
    Lookup,
    MatMul,
    MaxPool,
    Mul,
    Node,
    Pad,
    Quantize,
    Reshape,
    Slice,
    Sub,
    Table,
    Take,
    Transpose,
    Upsample,
    WeightOnlyLinear,
    inputs_of,
)
from truequant.integer.storage import storage, table_dtype

LOWEST_CODE, HIGHEST_CODE = -(2**15), 2**16 - 1
SMALLEST_NORMAL = 2.0**-126
MAX_SIZE = 2**31 - 1
"""Bound of every size, padding, stride and position that a node names."""
MAX_TAPS = 2**16
"""Bound of the elements of one pooling window."""


def label(node: Node) -> str:
    """A node as errors name it: `Conv 'features.0'`."""
    return f"{type(node).__name__} '{node.output}'"


def check_edge(name: str, edge: Edge) -> None:
    """ConversionError unless scale, zero point and codes are what the arithmetic assumes of an edge."""
    if not is_scale(edge.scale):
        raise ConversionError(f"edge '{name}': a scale that cannot be", got=edge.scale, expected="a positive, normal float32")
    if not LOWEST_CODE <= edge.qmin < edge.qmax <= HIGHEST_CODE:
        raise ConversionError(
            f"edge '{name}': impossible codes",
            got=f"{edge.qmin} … {edge.qmax}",
            expected=f"within {LOWEST_CODE} … {HIGHEST_CODE}",
        )
    if not edge.qmin <= edge.zero_point <= edge.qmax:
        raise ConversionError(
            f"edge '{name}': real 0 has no code", got=f"zero point {edge.zero_point}", expected=f"{edge.qmin} … {edge.qmax}"
        )


def is_scale(value: float) -> bool:
    """Whether a Python number is a positive, finite, normal float32."""
    if not (isinstance(value, float) and SMALLEST_NORMAL <= value < 2.0**128):
        return False
    try:
        return bool(struct.unpack("f", struct.pack("f", value))[0] == value)
    except OverflowError:
        return False


def check_node(node: Node, edges: Mapping[str, Edge]) -> None:
    """ConversionError unless the node's fields and tensors agree with each other and with its edges."""
    match node:
        case Conv() | Linear():
            _check_layer(node, edges)
        case Add() | Mul() | AveragePool():
            _check_clamp(node, node.low, node.high, edges[node.output])
            _check_ratios(node, edges)
            if isinstance(node, AveragePool):
                _check_pool(node)
            if node.rule not in ("onnxruntime", "portable"):
                raise ConversionError(
                    f"{label(node)}: no such rule", got=repr(node.rule), expected="'onnxruntime' or 'portable'"
                )
        case MatMul():
            _check_clamp(node, node.low, node.high, edges[node.output])
            _check_ratios(node, edges)
        case Sub():
            _check_clamp(node, node.low, node.high, edges[node.output])
        case Lookup():
            _check_lookup(node, edges[node.output])
        case Table():
            _check_table(node, edges[node.input], edges[node.output])
        case GlobalAverage():
            _check_clamp(node, node.low, node.high, edges[node.output])
            _check_ratios(node, edges)
            if not node.axes or len(set(node.axes)) != len(node.axes) or max(node.axes) >= 0:
                raise ConversionError(
                    f"{label(node)}: impossible axes", got=node.axes, expected="distinct, counted from the end"
                )
        case Quantize() | Dequantize():
            pass
        case Island():
            check_island(node)
        case WeightOnlyLinear() | DynamicLinear():
            _check_float_linear(node)
        case _:
            _check_movement(node, edges)


def _check_layer(node: Conv | Linear, edges: Mapping[str, Edge]) -> None:
    weight, channels = node.weight, node.weight.shape[0] if node.weight.dim() else 0
    _check_tensor(node, "weight", weight, torch.int8, None)
    _check_tensor(node, "bias", node.bias, torch.int32, ((channels,),))
    _check_tensor(node, "weight_scale", node.weight_scale, torch.float32, ((channels,), (1,)))
    if isinstance(node, Conv):
        _check_conv(node)
    elif weight.dim() != 2:
        raise ConversionError(f"{label(node)}: weight of a wrong shape", got=tuple(weight.shape), expected="(out, in)")
    source, target = edges[node.input], edges.get(node.output)
    scale = _float32(source.scale) * node.weight_scale.cpu()
    if not _all_normal(node.weight_scale.cpu()) or not _all_normal(scale):
        raise ConversionError(
            f"{label(node)}: weight_scale cannot be",
            got=f"{node.weight_scale.tolist()[:4]} …",
            expected="positive, normal float32, also times the input's scale",
        )
    if target is not None:
        _check_clamp(node, node.low, node.high, target)
        if not bool(torch.isfinite(scale / _float32(target.scale)).all()):
            raise ConversionError(f"{label(node)}: the multiplier sx * sw / sy overflows float32", got=f"sy = {target.scale}")


def _check_float_linear(node: WeightOnlyLinear | DynamicLinear) -> None:
    weight, scale = node.weight, node.weight_scale
    _check_tensor(node, "weight", weight, torch.int8, None)
    _check_tensor(node, "weight_scale", scale, torch.float32, None)
    rows = weight.shape[0] if weight.dim() == 2 else 0
    if not (rows and scale.dim() == 2 and scale.shape[0] == rows and weight.shape[1] % scale.shape[1] == 0):
        raise ConversionError(
            f"{label(node)}: weight and scales do not fit", got=f"{tuple(weight.shape)} and {tuple(scale.shape)}",
            expected="(out, in) and (out, groups), groups of equal length",
        )  # fmt: skip
    if not _all_normal(scale.cpu()):
        raise ConversionError(f"{label(node)}: weight_scale cannot be", expected="positive, normal float32")
    if node.bias is not None:
        _check_tensor(node, "bias", node.bias, torch.float32, ((rows,),))
    if isinstance(node, DynamicLinear) and not 1 <= node.qmax <= 127:
        raise ConversionError(f"{label(node)}: no such codes", got=f"{-node.qmax} … {node.qmax}", expected="at most 8 bits")


def _check_conv(node: Conv) -> None:
    rank = len(node.stride)
    if node.weight.dim() != rank + 2 or not 1 <= rank <= 3 or len(node.padding) != rank or len(node.dilation) != rank:
        raise ConversionError(
            f"{label(node)}: weight, stride, padding and dilation disagree about the number of spatial axes",
            got=f"weight {tuple(node.weight.shape)}, stride {node.stride}, padding {node.padding}, dilation {node.dilation}",
            expected="1 to 3 axes",
        )
    _check_sizes(node, "stride", node.stride, 1)
    _check_sizes(node, "dilation", node.dilation, 1)
    _check_sizes(node, "padding", tuple(n for pair in node.padding for n in pair), 0)
    if not 1 <= node.groups <= max(1, node.weight.shape[0]) or node.weight.shape[0] % node.groups:
        raise ConversionError(f"{label(node)}: {node.weight.shape[0]} channels do not make {node.groups} groups")


def _check_table(node: Table, source: Edge, target: Edge) -> None:
    _check_tensor(node, "entries", node.entries, table_dtype(target), ((source.qmax - source.qmin + 1,),))
    low, high = int(node.entries.min()), int(node.entries.max())
    if not target.qmin <= low <= high <= target.qmax:
        raise ConversionError(
            f"{label(node)}: entries outside the output's codes", got=f"{low} … {high}", expected=_codes(target)
        )


def _check_lookup(node: Lookup, target: Edge) -> None:
    _check_tensor(node, "entries", node.entries, storage(target), None)
    low, high = int(node.entries.min()), int(node.entries.max())
    if node.entries.dim() < 1 or not target.qmin <= low <= high <= target.qmax:
        raise ConversionError(
            f"{label(node)}: entries outside the output's codes", got=f"{low} … {high}", expected=_codes(target)
        )


def _check_movement(node: Node, edges: Mapping[str, Edge]) -> None:
    target = edges.get(node.output)
    for name in inputs_of(node):
        if target is None:
            break
        source = edges[name]
        if (source.scale, source.zero_point) != (target.scale, target.zero_point):
            raise ConversionError(f"{label(node)} moves codes but changes their meaning", got=target, expected=source)
        if not isinstance(node, Clamp) and not target.qmin <= source.qmin <= source.qmax <= target.qmax:
            raise ConversionError(
                f"{label(node)}: input codes that the output cannot hold", got=_codes(source), expected=_codes(target)
            )
    match node:
        case Clamp():
            _check_clamp(node, node.low, node.high, edges[node.output])
        case MaxPool():
            _check_pool(node)
        case Reshape():
            _check_sizes(node, "shape", node.shape, -1)
            if node.shape.count(-1) > 1:
                raise ConversionError(f"{label(node)}: more than one size left open", got=node.shape, expected="at most one -1")
        case Transpose():
            if sorted(node.permutation) != list(range(len(node.permutation))):
                raise ConversionError(f"{label(node)}: not a permutation", got=node.permutation)
        case Slice():
            _check_sizes(node, "step", (node.step,), 1)
            _check_sizes(node, "begin and end", (node.begin, 0 if node.end is None else node.end), -MAX_SIZE)
        case Pad():
            _check_sizes(node, "padding", tuple(n for pair in node.padding for n in pair), 0)
        case Take():
            _check_sizes(node, "indices", node.indices, 0)
            if not node.indices:
                raise ConversionError(f"{label(node)}: nothing to take")
        case Upsample():
            _check_sizes(node, "factors", node.factors, 1)
        case DepthToSpace():
            _check_sizes(node, "block", node.block, 1)
            if not node.block:
                raise ConversionError(f"{label(node)}: no block", expected="a size for each spatial axis")
        case Concat() if not node.inputs:
            raise ConversionError(f"{label(node)}: nothing to join")
        case _:
            pass


def _check_pool(node: MaxPool | AveragePool) -> None:
    dilations = node.dilation if isinstance(node, MaxPool) else (1,) * len(node.kernel)
    if not len(node.kernel) == len(node.stride) == len(node.padding) == len(dilations) or not 1 <= len(node.kernel) <= 3:
        raise ConversionError(
            f"{label(node)}: kernel, stride, padding and dilation disagree about the number of spatial axes",
            got=f"kernel {node.kernel}, stride {node.stride}, padding {node.padding}, dilation {dilations}",
            expected="1 to 3 axes",
        )
    for name, values, least in (
        ("kernel", node.kernel, 1),
        ("stride", node.stride, 1),
        ("dilation", dilations, 1),
        ("padding", node.padding, 0),
    ):
        _check_sizes(node, name, values, least)
    if sum(node.kernel) > MAX_TAPS:
        raise ConversionError(
            f"{label(node)}: a window too large", got=node.kernel, expected=f"at most {MAX_TAPS} elements an axis"
        )
    for size, dilation, padding in zip(node.kernel, dilations, node.padding, strict=True):
        if 2 * padding > dilation * (size - 1) + 1:
            raise ConversionError(
                f"{label(node)}: padding larger than half the window", got=node.padding, expected=f"half of {node.kernel}"
            )


def _check_sizes(node: Node, what: str, values: tuple[int, ...], least: int) -> None:
    if not all(least <= value <= MAX_SIZE for value in values):
        raise ConversionError(f"{label(node)}: {what} out of range", got=values, expected=f"{least} … {MAX_SIZE}")


def _check_tensor(
    node: Node, field: str, tensor: Tensor, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...] | None
) -> None:
    if tensor.dtype != dtype:
        raise ConversionError(f"{label(node)}: {field} has a wrong dtype", got=tensor.dtype, expected=dtype)
    if shapes is not None and tuple(tensor.shape) not in shapes:
        expected = " or ".join(map(str, dict.fromkeys(shapes)))
        raise ConversionError(f"{label(node)}: {field} of a wrong shape", got=tuple(tensor.shape), expected=expected)
    if tensor.numel() == 0:
        raise ConversionError(f"{label(node)}: {field} is empty", got=tuple(tensor.shape))


def _check_clamp(node: Node, low: int, high: int, target: Edge) -> None:
    if not target.qmin <= low <= high <= target.qmax:
        raise ConversionError(
            f"{label(node)}: clamped to codes that its edge lacks", got=f"{low} … {high}", expected=_codes(target)
        )


def _check_ratios(node: Node, edges: Mapping[str, Edge]) -> None:
    """The ratios of scales that enter the named rules stay finite."""
    target = _float32(edges[node.output].scale)
    scales = [_float32(edges[name].scale) for name in inputs_of(node)]
    product = torch.stack(scales).prod() if isinstance(node, (Mul, MatMul)) else torch.stack(scales).max()
    if not bool(torch.isfinite(product / target)):
        raise ConversionError(
            f"{label(node)}: scales too far apart for float32",
            got=f"inputs {[float(s) for s in scales]}, output {float(target)}",
        )


def _float32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _all_normal(values: Tensor) -> bool:
    return bool((torch.isfinite(values) & (values >= SMALLEST_NORMAL)).all())


def _codes(edge: Edge) -> str:
    return f"{edge.qmin} … {edge.qmax}"
