"""One function for each kind of program node: float ops of torch, from values to a value, between the quantizing ops."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from truequant.integer import nodes as program_nodes
from truequant.integer.nodes import Node
from truequant.integer.nodes.movement import padded
from truequant.numerics.norms import over_rows

_POOLS: dict[str, tuple[Callable[..., Tensor], ...]] = {
    "max": (F.max_pool1d, F.max_pool2d, F.max_pool3d), "average": (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
}  # fmt: skip
_CONVS: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)


def conv(node: program_nodes.Conv, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Padding that is the same on both sides goes into the convolution, where runtimes look for it."""
    padding: Any = [begin for begin, _ in node.padding]
    if any(begin != end for begin, end in node.padding):
        x, padding = padded(node.padding, x), 0
    return _CONVS[len(node.stride) - 1](x, weight, bias, list(node.stride), padding, list(node.dilation), node.groups)


def linear(node: program_nodes.Linear, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def _max_pool(node: program_nodes.MaxPool, x: Tensor) -> Tensor:
    windows = list(node.kernel), list(node.stride), list(node.padding), list(node.dilation)
    return _POOLS["max"][len(node.kernel) - 1](x, *windows, ceil_mode=node.ceil_mode)


def _average_pool(node: program_nodes.AveragePool, x: Tensor) -> Tensor:
    windows = list(node.kernel), list(node.stride), list(node.padding)
    return _POOLS["average"][len(node.kernel) - 1](x, *windows, ceil_mode=node.ceil_mode, count_include_pad=False)


def _reshape(node: program_nodes.Reshape, x: Tensor) -> Tensor:
    return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(node.shape)])


def _slice(node: program_nodes.Slice, x: Tensor) -> Tensor:
    end = 2**63 - 1 if node.end is None else node.end
    return torch.ops.aten.slice.Tensor(x, node.axis, node.begin, end, node.step)  # type: ignore[no-any-return]


def _upsample(node: program_nodes.Upsample, x: Tensor) -> Tensor:
    if x.dim() == len(node.factors) + 2 and x.dim() <= 5:
        return F.interpolate(x, scale_factor=[float(factor) for factor in node.factors], mode="nearest")
    return node.moved(x)


def _normalize(node: program_nodes.Normalize, x: Tensor) -> Tensor:
    """torch's own op where it has one, else its formula."""
    gain, bias = node.gain, node.bias
    if node.kind == "group":
        return F.group_norm(x, node.groups, gain, bias, node.eps)
    if node.kind == "l2":
        length: Tensor = torch.linalg.vector_norm(x, 2, node.axes, True)
        return x / length.clamp_min(node.eps)
    sizes = [x.shape[axis] for axis in node.axes]
    if list(node.axes) == list(range(-len(node.axes), 0)) and not (node.outside or node.correction):
        return F.layer_norm(x, sizes, gain, bias, node.eps) if node.kind == "layer" else F.rms_norm(x, sizes, gain, node.eps)
    if node.kind == "layer":
        variance = x.var(node.axes, correction=node.correction, keepdim=True)
        x = x - x.mean(node.axes, keepdim=True)
    else:
        variance = x.square().mean(node.axes, keepdim=True)
    x = x / (variance.sqrt() + node.eps if node.outside else (variance + node.eps).sqrt())
    x = x if gain is None else x * over_rows(gain, node.axes)
    return x if bias is None else x + over_rows(bias, node.axes)


def _weights(node: program_nodes.Softmax | program_nodes.Attend, scores: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Softmax in float; a row that sees nothing gives zeros."""
    scores = scores * node.factor
    shown = [mask > 0.5 for mask in masks] + ([] if node.shown is None else [node.shown > 0])
    if node.causal:
        shown.append(torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril())
    if not shown:
        return torch.softmax(scores, -1)
    seen = functools.reduce(torch.logical_and, shown)
    return torch.softmax(torch.where(seen, scores, -1e9), -1) * seen


VALUES: dict[type[Node], Callable[..., Tensor]] = {
    program_nodes.MatMul: lambda node, a, b: a @ b,
    program_nodes.Add: lambda node, a, b: a + b,
    program_nodes.Sub: lambda node, a, b: a - b,
    program_nodes.Mul: lambda node, a, b: a * b,
    program_nodes.GlobalAverage: lambda node, x: x.mean(node.axes, node.keepdim),
    program_nodes.AveragePool: _average_pool,
    program_nodes.MaxPool: _max_pool,
    program_nodes.Normalize: _normalize,
    program_nodes.Clamp: lambda node, x: x,  # by what quantizes its result
    program_nodes.Reshape: _reshape,
    program_nodes.Transpose: lambda node, x: x.permute(node.permutation),
    program_nodes.Slice: _slice,
    program_nodes.Take: lambda node, x: node.moved(x),
    program_nodes.Upsample: _upsample,
    program_nodes.DepthToSpace: lambda node, x: node.moved(x),
    program_nodes.Pad: lambda node, x: padded(node.padding, x),
    program_nodes.PadRepeated: lambda node, x: node.moved(x),
    program_nodes.Concat: lambda node, *parts: torch.cat(parts, node.axis),
    program_nodes.Softmax: lambda node, x, *masks: _weights(node, x, masks),
    program_nodes.Attend: lambda node, x, v, *masks: _weights(node, x, masks) @ v,
    program_nodes.Island: lambda node, *inputs: node.run({}, inputs),
}
"""`value(node, *values)`. Layers with weights, tables and rows by number are `torch_program`'s."""
