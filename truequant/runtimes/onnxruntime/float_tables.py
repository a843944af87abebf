"""Tables whose function onnxruntime has a float kernel for, which takes less time than to look the codes up.

The table is what counts: such a kernel runs between DequantizeLinear and QuantizeLinear where no code of the table lies so near
a tie that a few roundings in float32 could move it, on whichever CPU; export then runs all codes through the installed one.
GatherElements reads an index of four bytes for each code, in one thread: on an AMD Zen 4 a table takes 1.05 ns a code, hard
swish 0.73, SiLU 0.63, tanh 0.60, hard sigmoid 0.49; on a Zen 3 hard swish takes 0.95 of the table's time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from truequant.integer import IntegerProgram
from truequant.integer.nodes import Table
from truequant.runtimes.onnx.kernels import MICROSOFT
from truequant.runtimes.onnx.writer import Writer

_ERROR = 2.0**-20
"""Sixteen roundings of float32. The largest error found, of millions of values, is six."""


@dataclass(frozen=True, slots=True)
class FloatKernel:
    """`op`, `times` what it reads where it says so, computes `function`, of float64 here: within `_ERROR` times what it reads,
    or times 1 where it is `bounded`.
    """

    op: str
    function: Callable[[Tensor], Tensor]
    bounded: bool = False
    times: bool = False
    domain: str = ""
    attributes: Mapping[str, float] = field(default_factory=dict)


def _hard_sigmoid(x: Tensor) -> Tensor:
    return (x / 6 + 0.5).clamp(0.0, 1.0)


_SIXTH = {"alpha": 1 / 6, "beta": 0.5}
FLOAT_KERNELS: Mapping[str, FloatKernel] = MappingProxyType({
    "hardswish": FloatKernel("HardSigmoid", lambda x: x * _hard_sigmoid(x), times=True, attributes=_SIXTH),
    "hardsigmoid": FloatKernel("HardSigmoid", _hard_sigmoid, bounded=True, attributes=_SIXTH),
    "silu": FloatKernel("QuickGelu", lambda x: x * torch.sigmoid(x), domain=MICROSOFT, attributes={"alpha": 1.0}),
    "tanh": FloatKernel("Tanh", torch.tanh, bounded=True),
})  # fmt: skip
"""By the function that was tabulated."""


def float_kernel_of(program: IntegerProgram, node: Table) -> FloatKernel | None:
    """The kernel that gives the codes of a table; None where it has to be looked up."""
    kernel, source, target = FLOAT_KERNELS.get(node.function), program.edges[node.input], program.edges[node.output]
    if kernel is None or source.wide or target.wide:
        return None
    x = (torch.arange(source.qmin, source.qmax + 1, dtype=torch.float64) - source.zero_point) * source.scale
    steps = kernel.function(x) / target.scale + target.zero_point
    if not torch.equal(steps.round().clamp(target.qmin, target.qmax), node.entries.cpu().double()):
        return None
    reach = torch.ones_like(x) if kernel.bounded else x.abs()
    near = (steps - steps.floor() - 0.5).abs() <= _ERROR * reach / target.scale
    there = (steps > target.qmin - 1) & (steps < target.qmax + 1)  # far outside, a code is the end of its grid
    return None if bool((near & there).any()) else kernel


def write_float(writer: Writer, node: Table, kernel: FloatKernel) -> None:
    """The function of the values of the codes."""
    name, edge = node.output, writer.edge(node.output)
    source, value = writer.dequantized(node.input, name), writer.fresh(f"{name}.value")
    writer.node(kernel.op, [source], value, name=value, domain=kernel.domain, **kernel.attributes)
    writer.floats[value] = name
    if kernel.times:
        factor, value = value, writer.fresh(f"{name}.product")
        writer.node("Mul", [source, factor], value, name=value)
        writer.floats[value] = name
    writer.kernel("QuantizeLinear", [value, *writer.scale_and_zero(name)], name, edge.qmin, edge.qmax)
