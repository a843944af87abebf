"""Layers: convolutions, linear layers, and averages as depthwise layers of ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from truequant.integer.nodes import Conv, GlobalAverage, Linear
from truequant.runtimes.litert.orders import Sizes, channels_last, plain
from truequant.runtimes.litert.writer import Writer, fixed, refuse

SAME, VALID = 0, 1
NONE, RELU, RELU6 = 0, 1, 3


def fused(writer: Writer, node: Any) -> int | None:
    """The activation that clamps to the node's codes as a kernel does it; None where none does."""
    edge = writer.edge(node.output)
    if (node.low, node.high) == (-128, 127):
        return NONE
    if node.low != max(-128, edge.zero_point):
        return None
    if node.high == 127:
        return RELU
    six = int(np.rint(np.float32(6) / np.float32(edge.scale))) + edge.zero_point
    return RELU6 if node.high == six else None


def result(writer: Writer, node: Any, order: tuple[int, ...], sizes: Sizes | None = None) -> tuple[int, int]:
    """The tensor that a kernel writes, and the activation that it fuses. Clamps and sizes of its own follow by `finish`."""
    activation = fused(writer, node)
    if activation is not None and sizes is None:
        return writer.write(node.output, order), activation
    if sizes is None:
        sizes = tuple(writer.shapes[node.output][axis] for axis in order)
    made = writer.tensor(f"{node.output}.whole", sizes, node.output)
    return made, NONE if activation is None else activation


def finish(writer: Writer, node: Any, made: int, order: tuple[int, ...], sizes: Sizes | None = None) -> None:
    """What remains after `result`: another shape, a clamp that is no activation."""
    clamps = fused(writer, node) is None
    if sizes is None and not clamps:
        return
    if clamps:
        made = clamp(
            writer, node.output, made, node.low, node.high, sizes or _sizes(writer, node, order), write=sizes is None and order
        )
    if sizes is not None:
        writer.reshape(made, _sizes(writer, node, order), writer.write(node.output, order), node.output)


def _sizes(writer: Writer, node: Any, order: tuple[int, ...]) -> Sizes:
    return tuple(writer.shapes[node.output][axis] for axis in order)


def clamp(writer: Writer, name: str, source: int, low: int, high: int, sizes: Sizes, write: Any) -> int:
    """Codes between two codes. write: the order of the edge that the last step writes; falsy for a tensor of its own."""
    edge = writer.edge(name)
    steps = [("MAXIMUM", low)] if low > -128 else []
    steps += [("MINIMUM", high)] if high < 127 or not steps else []
    for place, (op, code) in enumerate(steps, 1):
        bound = writer.file.constant(
            writer.fresh(f"{name}.{op.lower()}"), np.array([code], np.int8), np.float32(edge.scale), edge.zero_point
        )
        last = place == len(steps) and write
        made = writer.write(name, write) if last else writer.tensor(f"{name}.{op.lower()}ed", sizes, name)
        source = writer.file.op(op, [source, bound], made, 2, "MaximumMinimumOptions")
    return source


def write_conv(writer: Writer, node: Conv) -> None:
    rank = len(node.stride)
    if node.output not in writer.program.edges:
        raise refuse(node, "a layer whose result is a float", "an output scheme")
    if rank > 2:
        raise refuse(node, "three axes of space")
    x, shape = writer.last(node.input), writer.shapes[node.input]
    n, (channels, *space) = shape[0], fixed(node, shape[1:])
    weight = node.weight.cpu().numpy().astype(np.int8)
    stride, dilation, padding = list(node.stride), list(node.dilation), list(node.padding)
    if rank == 1:  # one row of an image
        flat = writer.tensor(f"{node.input}.row", (n, 1, *space, channels), node.input)
        x = writer.reshape(x, (n, 1, *space, channels), flat, node.output)
        space, weight = [1, *space], weight[:, :, None]
        stride, dilation, padding = [1, *stride], [1, *dilation], [(0, 0), *padding]
    kernel = weight.shape[2:]
    counts = [
        (s + sum(p) - d * (k - 1) - 1) // t + 1 for s, p, d, k, t in zip(space, padding, dilation, kernel, stride, strict=True)
    ]
    same = all(
        _same(s, p, d, k, t, c) for s, p, d, k, t, c in zip(space, padding, dilation, kernel, stride, counts, strict=True)
    )
    padded = any(map(any, padding))
    if padded and not same:
        x = pad(writer, node.input, x, (n, *space, channels), [(0, 0), *padding, (0, 0)])
    order = channels_last(rank + 2)
    sizes: Sizes | None = (n, *counts, len(weight)) if rank == 1 else None
    windows = {
        "padding": SAME if padded and same else VALID, "strideH": stride[0], "strideW": stride[1],
        "dilationHFactor": dilation[0], "dilationWFactor": dilation[1],
    }  # fmt: skip
    made, activation = result(writer, node, order, sizes)
    scales, name = _scales(node), node.output
    if weight.shape[1] == 1 and node.groups == channels and channels > 1:
        taps = weight[:, 0].transpose(1, 2, 0)[None]
        operands = [x, writer.file.constant(writer.fresh(f"{name}.weight"), taps, scales, 0, 3), _bias(writer, node, scales)]
        writer.file.op(
            "DEPTHWISE_CONV_2D", operands, made, 3, "DepthwiseConv2DOptions", depthMultiplier=len(weight) // channels,
            fusedActivationFunction=activation, **windows,
        )  # fmt: skip
    else:
        taps = weight.transpose(0, 2, 3, 1)
        operands = [x, writer.file.constant(writer.fresh(f"{name}.weight"), taps, scales), _bias(writer, node, scales)]
        writer.file.op("CONV_2D", operands, made, 3, "Conv2DOptions", fusedActivationFunction=activation, **windows)
    finish(writer, node, made, order, sizes)


def _same(size: int, pads: tuple[int, int], dilation: int, kernel: int, stride: int, count: int) -> bool:
    """Whether padding SAME, which follows the sizes, reads the same windows: zeros that no window reads do not matter."""
    needed = max((count - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return count == -(-size // stride) and pads[0] == needed // 2 and needed - pads[0] <= pads[1]


def pad(writer: Writer, name: str, x: int, sizes: Sizes, pads: list[tuple[int, int]]) -> int:
    """Real zeros around stored axes."""
    wide = tuple(None if s is None else s + sum(p) for s, p in zip(sizes, pads, strict=True))
    made = writer.tensor(f"{name}.padded", wide, name)
    return writer.file.op("PAD", [x, writer.integers(f"{name}.pads", pads)], made, 2, "PadOptions")


def _scales(node: Conv | Linear) -> Any:
    """A scale for each channel: XNNPACK still has kernels of other rounding for one scale a tensor."""
    scales = node.weight_scale.cpu().numpy().astype(np.float32)
    if int(node.weight.min()) < -127:
        raise refuse(node, "a weight of code -128", "weights of a symmetric scheme: tq.QConfig().for_target('xnnpack')")
    return np.repeat(scales, len(node.weight)) if scales.size == 1 else scales


def _bias(writer: Writer, node: Conv | Linear, scales: Any) -> int:
    product = np.float32(writer.edge(node.input).scale) * scales
    return writer.file.constant(writer.fresh(f"{node.output}.bias"), node.bias.cpu().numpy().astype(np.int32), product)


def write_linear(writer: Writer, node: Linear) -> None:
    if node.output not in writer.program.edges:
        raise refuse(node, "a layer whose result is a float", "an output scheme")
    weight = node.weight.cpu().numpy().astype(np.int8)
    rank = len(writer.shapes[node.input])
    if node.input in writer.flat:  # the columns follow the stored order of the plane
        sizes = fixed(node, writer.flat[node.input])
        weight = np.moveaxis(weight.reshape(len(weight), *sizes), 1, -1).reshape(len(weight), -1)
    order = writer.order[node.input] if writer.order[node.input][-1] == rank - 1 else plain(rank)
    scales, name = _scales(node), node.output
    operands = [
        writer.read(node.input, order), writer.file.constant(writer.fresh(f"{name}.weight"), weight, scales),
        _bias(writer, node, scales),
    ]  # fmt: skip
    made, activation = result(writer, node, order)
    writer.file.op(
        "FULLY_CONNECTED", operands, made, 5, "FullyConnectedOptions", fusedActivationFunction=activation, keepNumDims=rank != 2
    )
    finish(writer, node, made, order)


def write_average(writer: Writer, node: GlobalAverage) -> None:
    """`sw = float32(1 / n)`, as rule "xnnpack" has it: kernels of means differ between releases of LiteRT."""
    shape = writer.shapes[node.input]
    rank = len(shape)
    axes = sorted(axis % rank for axis in node.axes)
    if 0 in axes:
        raise refuse(node, "a mean over the batch")
    kept = [axis for axis in range(1, rank) if axis not in axes]
    order = (0, *axes, *kept)
    sizes = fixed(node, shape[1:])
    count, channels = math.prod(sizes[a - 1] for a in axes), math.prod(sizes[a - 1] for a in kept)
    high = sizes[axes[0] - 1]
    image: Sizes = (shape[0], high, count // high, channels)
    x = writer.read(node.input, order)
    if len(axes) != 2 or len(kept) != 1:
        x = writer.reshape(x, image, writer.tensor(f"{node.input}.plane", image, node.input), node.output)
    scales = np.full(channels, np.float32(1.0 / count), np.float32)
    ones = writer.file.constant(
        writer.fresh(f"{node.output}.ones"), np.ones((1, high, count // high, channels), np.int8), scales, 0, 3
    )
    product = np.float32(writer.edge(node.input).scale) * scales
    none = writer.file.constant(writer.fresh(f"{node.output}.bias"), np.zeros(channels, np.int32), product)
    after = writer.shapes[node.output]
    written = order if node.keepdim else plain(len(after))
    whole: Sizes = (shape[0], 1, 1, channels)
    own = None if tuple(after[axis] for axis in written) == whole else whole
    made, activation = result(writer, node, written, own)
    writer.file.op(
        "DEPTHWISE_CONV_2D", [x, ones, none], made, 3, "DepthwiseConv2DOptions", padding=VALID, strideW=1, strideH=1,
        depthMultiplier=1, fusedActivationFunction=activation, dilationWFactor=1, dilationHFactor=1,
    )  # fmt: skip
    finish(writer, node, made, written, own)
