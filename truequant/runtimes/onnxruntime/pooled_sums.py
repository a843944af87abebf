"""Convolutions of few input channels before a maximum pooling: float32 kernels on the integers themselves, in QDQ layout.

onnxruntime's integer convolution gathers its windows one input channel at a time, so that with a few channels it takes longer
than the float one. Where no sum can reach 2^24, float32 holds every partial sum exactly, whatever the order of its terms, and
the float kernel gives the integers. Requantization never decreases, so that the largest code of a window is the code of the
largest sum: the sums are pooled first, and a fraction of them is requantized.

The codes between the two are in no tensor of the file; `hidden_edges` puts them into a copy of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from truequant.integer import IntegerProgram
from truequant.integer.nodes import Conv, MaxPool
from truequant.numerics import FLOAT32_EXACT, accumulator_bound, multiplier
from truequant.runtimes.onnx.forms import Layout
from truequant.runtimes.onnx.writer import Writer, numpy_of
from truequant.runtimes.targets import runs_here

MAX_CHANNELS, MAX_PRODUCTS = 3, 1600
"""Input channels, and products for each place of the output, up to which the float kernel is the faster one
(docs/performance.md).
"""


def pooling_of(program: IntegerProgram, node: Conv, layout: Layout = "qdq") -> MaxPool | None:
    """The pooling that takes the sums of a convolution in this layout of the file; None where its codes are written."""
    if layout != "qdq" or not runs_here(program):
        return None
    if node.groups > 1 or node.weight.shape[1] > MAX_CHANNELS or node.weight.numel() > MAX_PRODUCTS:
        return None
    source, edge = program.edges[node.input], program.edges.get(node.output)
    if edge is None or edge.wide or source.wide or node.output in program.output_names():
        return None
    readers = program.readers(node.output)
    if len(readers) != 1 or not isinstance(readers[0], MaxPool):
        return None
    pool = readers[0]
    if any(pool.padding) and (pool.ceil_mode or max(pool.dilation) > 1):  # a window may lie in the padding alone
        return None
    zero = torch.tensor(source.zero_point, dtype=torch.float64, device=node.weight.device)
    bound = accumulator_bound(node.weight, node.bias, zero, source.qmin, source.qmax)
    return pool if float(bound) < FLOAT32_EXACT else None


def write_sums(writer: Writer, node: Conv, **attributes: Any) -> None:
    """`sum((xq - zx) * wq) + bq` as float32. The pooling keeps onnxruntime from multiplying the weights by the factors
    behind it, which would round.
    """
    name = node.output
    centred = writer.fresh(f"{name}.{node.input}.centred")
    one, zero = writer.constant("one", np.float32(1)), writer.scale_and_zero(node.input)[1]
    writer.node("DequantizeLinear", [node.input, one, zero], centred, name=centred)
    weight = writer.constant(f"{name}.weight", numpy_of(node.weight).astype(np.float32))
    bias = writer.constant(f"{name}.bias", numpy_of(node.bias).astype(np.float32))
    sums = writer.fresh(f"{name}.sums")
    writer.node("Conv", [centred, weight, bias], sums, name=name, **attributes)
    writer.sums[name] = node, sums
    writer.floats |= {centred: node.input, sums: name}


def write_pooling(writer: Writer, node: MaxPool, **attributes: Any) -> None:
    """The largest sum of each window, requantized."""
    name, (layer, sums) = node.output, writer.sums[node.input]
    pooled, scaled = writer.fresh(f"{name}.sums"), writer.fresh(f"{name}.scaled")
    writer.node("MaxPool", [sums], pooled, name=name, **attributes)
    writer.floats[pooled] = name
    raw = writer.unclipped(name, layer.low, layer.high)
    constants = [writer.constant("one", np.float32(1)), writer.scale_and_zero(name)[1]]
    rows, factor = _rows(writer, node), _factor(writer, layer)
    if rows is None:
        value, factor, codes = pooled, factor.reshape(-1, *(1,) * len(layer.stride)), raw
        writer.floats[scaled] = name
    else:
        height, width, channels = rows
        moved, value, codes, places = (writer.fresh(f"{name}.{part}") for part in ("moved", "rows", "codes", "places"))
        writer.node("Transpose", [pooled], moved, name=moved, perm=[0, 2, 3, 1])
        writer.node("Reshape", [moved, writer.integers(f"{value}.shape", [0, 0, width * channels])], value, name=value)
        factor = np.tile(factor, width)
    writer.node("Mul", [value, writer.constant(f"{layer.output}.multiplier", factor)], scaled, name=scaled)
    writer.node("QuantizeLinear", [scaled, *constants], codes, name=f"{name}.quantize")
    if rows is not None:
        shape = writer.integers(f"{places}.shape", [0, height, width, channels])
        writer.node("Reshape", [codes, shape], places, name=places)
        writer.node("Transpose", [places], raw, name=f"{name}.order", perm=[0, 3, 1, 2])
    writer.clipped(name, layer.low, layer.high)


def _rows(writer: Writer, node: MaxPool) -> tuple[int, int, int] | None:
    """Height, width and channels of what is pooled, where convolutions read it channels-last and the order is worth changing
    on sums: onnxruntime moves floats several times as fast as codes.

    Rows between the two orders keep it from taking both for nothing and moving the codes after all.
    """
    readers = writer.program.readers(node.output)
    shape = writer.shapes[node.output]
    if len(shape) != 4 or not any(isinstance(other, Conv) for other in readers):
        return None
    channels, height, width = shape[1:]
    return None if channels is None or height is None or width is None else (height, width, channels)


def _factor(writer: Writer, node: Conv) -> Any:
    """float32 `(out,)`."""
    source, target = (torch.tensor(writer.edge(n).scale, dtype=torch.float32) for n in (node.input, node.output))
    return numpy_of(multiplier(source, node.weight_scale.cpu().expand(len(node.weight)), target))
