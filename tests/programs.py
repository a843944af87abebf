"""Small integer programs for tests: codes are put in through a Quantize whose scale makes values and codes coincide."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from truequant.integer import IntegerProgram, ProgramInput
from truequant.integer.nodes import Add, Conv, Dequantize, Edge, GlobalAverage, Linear, MaxPool, Node, Quantize, Reshape
from truequant.runtimes.onnxruntime.channels_last import readers_of
from truequant.runtimes.onnxruntime.pooled_sums import pooling_of

U8 = (0, 255)
S8 = (-128, 127)


def f32(value: float) -> float:
    return float(np.float32(value))


def edge(scale: float = 1.0, zero_point: int = 0, codes: tuple[int, int] = U8) -> Edge:
    return Edge(f32(scale), zero_point, *codes)


def codes_in(*names: str, rank: int = 4) -> tuple[tuple[ProgramInput, ...], tuple[Node, ...]]:
    """Inputs 'NAME.value' of any shape and the nodes that quantize them to edges 'NAME'."""
    inputs = tuple(ProgramInput(f"{name}.value", "float32", (None,) * rank) for name in names)
    return inputs, tuple(Quantize(f"{name}.value", name) for name in names)


def program(node: Node, edges: dict[str, Edge], *names: str, rank: int = 4) -> IntegerProgram:
    """One node between Quantize and, where it writes codes, Dequantize."""
    inputs, quantizers = codes_in(*names, rank=rank)
    last = (Dequantize(node.output, "y.value"),) if node.output in edges else ()
    return IntegerProgram(inputs, (*quantizers, node, *last), edges, "y.value" if last else node.output, "onnxruntime")


def hidden(of: IntegerProgram) -> set[str]:
    """The edges that a file in QDQ form may do without."""
    pooled = {n.output for n in of.nodes if isinstance(n, Conv) and pooling_of(of, n)}
    return pooled | {n.output for n in of.nodes if isinstance(n, Reshape) and readers_of(of, n)}


def values_of(codes: Tensor, of: Edge) -> Tensor:
    """float32 values that quantize to exactly these codes."""
    return (codes.to(torch.float32) - of.zero_point) * of.scale


def random_codes(shape: tuple[int, ...], of: Edge, generator: torch.Generator) -> Tensor:
    return torch.randint(of.qmin, of.qmax + 1, shape, generator=generator)


def random_conv(
    generator: torch.Generator, source: str, output: str, weight_shape: tuple[int, ...], *, scale: float = 0.01,
    stride: int = 1, padding: int | tuple[tuple[int, int], ...] = 0, dilation: int = 1, groups: int = 1,
    low: int = 0, high: int = 255, per_tensor: bool = False,
) -> Conv:  # fmt: skip
    rank, channels = len(weight_shape) - 2, weight_shape[0]
    return Conv(
        source,
        output,
        torch.randint(-127, 128, weight_shape, generator=generator).to(torch.int8),
        (torch.rand(1 if per_tensor else channels, generator=generator) + 0.5) * scale,
        torch.randint(-5000, 5001, (channels,), generator=generator).to(torch.int32),
        (stride,) * rank,
        ((padding, padding),) * rank if isinstance(padding, int) else padding,
        (dilation,) * rank,
        groups,
        low,
        high,
    )


def random_linear(
    generator: torch.Generator, source: str, output: str, outputs: int, inputs: int, *, scale: float = 0.01,
    low: int = 0, high: int = 255,
) -> Linear:  # fmt: skip
    return Linear(
        source,
        output,
        torch.randint(-127, 128, (outputs, inputs), generator=generator).to(torch.int8),
        (torch.rand(outputs, generator=generator) + 0.5) * scale,
        torch.randint(-5000, 5001, (outputs,), generator=generator).to(torch.int32),
        low,
        high,
    )


def residual_net(seed: int = 0, *, size: int = 8, width: int = 4, power_of_two: bool = False) -> IntegerProgram:
    """Quantize, conv, two residual blocks (the second down-samples), max-pool, mean, linear: every scale its own."""
    generator = torch.Generator().manual_seed(seed)
    edges: dict[str, Edge] = {}
    nodes: list[Node] = [Quantize("x", "x.q")]

    def new(name: str, scale: float, zero_point: int) -> str:
        edges[name] = edge(2.0 ** round(np.log2(scale)) if power_of_two else scale, zero_point)
        return name

    def conv(source: str, name: str, outputs: int, inputs: int, kernel: int, stride: int, relu: bool) -> str:
        zero_point = 0 if relu else 117
        sw = 0.02 / (edges[source].scale * 60 * 90 * (inputs * kernel**2) ** 0.5)
        new(name, 0.02, zero_point)
        nodes.append(
            random_conv(
                generator, source, name, (outputs, inputs, kernel, kernel), scale=sw * 60, stride=stride, padding=kernel // 2
            )
        )
        return name

    def add(left: str, right: str, name: str) -> str:
        nodes.append(Add(left, right, new(name, 0.031, 64), "onnxruntime", 64, 255))
        return name

    new("x.q", 1 / 64, 128)
    stem = conv("x.q", "stem", width, 2, 3, 1, True)
    one = add(conv(conv(stem, "a1", width, width, 3, 1, True), "a2", width, width, 3, 1, False), stem, "sum1")
    down = conv(one, "down", 2 * width, width, 1, 2, False)
    two = add(conv(conv(one, "b1", 2 * width, width, 3, 2, True), "b2", 2 * width, 2 * width, 3, 1, False), down, "sum2")
    edges["pool"] = edges[two]
    nodes.append(MaxPool(two, "pool", (2, 2), (2, 2), (0, 0), (1, 1), False))
    nodes.append(GlobalAverage("pool", new("mean", 0.017, 3), (-2, -1), False, 0, 255))
    nodes.append(random_linear(generator, "mean", new("y.q", 0.09, 101), 5, 2 * width, scale=0.05))
    nodes.append(Dequantize("y.q", "y"))
    inputs = (ProgramInput("x", "float32", (None, 2, size, size)),)
    return IntegerProgram(inputs, tuple(nodes), edges, "y", "onnxruntime")
