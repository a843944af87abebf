"""Linear layers on values: integer weights, and tokens that become integers at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from truequant import kernels, numerics
from truequant.errors import ConversionError
from truequant.integer.edge import Edge
from truequant.integer.nodes.base import Shape, Weighted
from truequant.integer.nodes.checks import all_normal, check_tensor


@dataclass(frozen=True, slots=True, eq=False)
class FloatLinear(Weighted):
    """A linear layer of integer weights that reads and writes values.

    weight: int8 `(out, in)`; weight_scale: float32 `(out, groups)`, one for each run of `in / groups` codes of a row.
    """

    bias: Tensor | None
    reading = "values"
    writing = "values"

    def check(self, edges: Mapping[str, Edge]) -> None:
        weight, scale = self.weight, self.weight_scale
        check_tensor(self, "weight", weight, torch.int8, None)
        check_tensor(self, "weight_scale", scale, torch.float32, None)
        rows = weight.shape[0] if weight.dim() == 2 else 0
        if not (rows and scale.dim() == 2 and scale.shape[0] == rows and weight.shape[1] % scale.shape[1] == 0):
            raise ConversionError(
                f"{self.label}: weight and scales do not fit", got=f"{tuple(weight.shape)} and {tuple(scale.shape)}",
                expected="(out, in) and (out, groups), groups of equal length",
            )  # fmt: skip
        if not all_normal(scale.cpu()):
            raise ConversionError(f"{self.label}: weight_scale cannot be", expected="positive, normal float32")
        if self.bias is not None:
            check_tensor(self, "bias", self.bias, torch.float32, ((rows,),))

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        return self.features_of(shapes[0])

    def _bias_on(self, device: torch.device) -> Tensor | None:
        return None if self.bias is None else self.bias.to(device)


@dataclass(frozen=True, slots=True, eq=False)
class WeightOnlyLinear(FloatLinear):
    """`x @ (codes * scale).T + bias` in float32: only the weight is integers."""

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        """`(…, in)` to `(…, out)`, float32 sums."""
        (x,) = inputs
        weight = numerics.weight_values(self.weight.to(x.device).float(), self.weight_scale.to(x.device))
        return F.linear(x.float().contiguous(), weight, self._bias_on(x.device))


@dataclass(frozen=True, slots=True, eq=False)
class DynamicLinear(FloatLinear):
    """A linear layer on tokens quantized at run time: the sums are integers.

    s = clamp(max |x| / qmax, 2^-64, 2^64) over the last axis,  q = clamp(rint(x / s), -qmax, qmax)
    y = float32(sum q * w) * sw * s + bias;  of several groups: float32(sum over groups of their sums * sw) * s + bias
    """

    qmax: int

    def check(self, edges: Mapping[str, Edge]) -> None:
        FloatLinear.check(self, edges)
        if not 1 <= self.qmax <= 127:
            raise ConversionError(f"{self.label}: no such codes", got=f"{-self.qmax} … {self.qmax}", expected="at most 8 bits")

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        """Integer sums of tokens, each on its own grid."""
        (x,) = inputs
        codes, scale = self.weight.to(x.device), self.weight_scale.to(x.device)
        return kernels.dynamic_linear(x.float(), codes, scale, self._bias_on(x.device), self.qmax)
