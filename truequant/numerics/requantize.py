"""From int32 accumulators to the codes of the next edge.

    M  = float32(float32(sx * sw) / sy)                    a channel
    yq = clamp(rint(float32(acc) * M) + zy, lo, hi)

The zero point is added after rounding; a fused ReLU or clip moves `lo` and `hi` only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from truequant.numerics.affine import Bound, along_axis, clamp
from truequant.schemes import ArithmeticRule


def multiplier(input_scale: Tensor, weight_scale: Tensor, output_scale: Tensor) -> Tensor:
    """`float32(float32(sx * sw) / sy)`, of the shape of `weight_scale`."""
    return (input_scale.float() * weight_scale.float()) / output_scale.float()


def requantize(acc: Tensor, factor: Tensor, zero_point: Tensor, low: Bound, high: Bound) -> Tensor:
    """Codes, float32, of accumulators: integers carried by int32, float32 or float64. `factor` broadcasts against `acc`."""
    return clamp(torch.round(acc.to(torch.float32) * factor) + zero_point, low, high)


def product_values(acc: Tensor, left_scale: Tensor, right_scale: Tensor, factor: float = 1.0) -> Tensor:
    """`float32(acc) * float32(float32(sa * sb) * factor)`: the values of a product of two edges that no quantizer follows."""
    return acc.to(torch.float32) * ((left_scale.float() * right_scale.float()) * torch.full_like(left_scale.float(), factor))


def channel_axis(values: Tensor, rank: int, axis: int) -> Tensor:
    """One value a channel, or one for all, in a shape that broadcasts against a tensor of `rank`."""
    return values if values.numel() == 1 else along_axis(values, axis, rank)


def clamp_codes(
    minimum: float | None, maximum: float | None, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> tuple[Tensor, Tensor]:
    """`lo, hi` of a fused clamp to `[minimum, maximum]` in values: the codes of its two ends, 0-d float32."""

    def code(value: float) -> Tensor:
        # A tensor over a tensor: torch computes number / tensor as number * reciprocal, which rounds twice.
        return clamp(torch.round(torch.full_like(scale, value) / scale) + zero_point, qmin, qmax)

    low = torch.full_like(zero_point, qmin) if minimum is None else code(minimum)
    high = torch.full_like(zero_point, qmax) if maximum is None else code(maximum)
    return low, high


def global_average_factor(
    input_scale: Tensor, output_scale: Tensor, count: int, rule: ArithmeticRule = "onnxruntime"
) -> Tensor:
    """`float32(sx / float32(sy * n))`: the multiplier of a mean over n elements, as GlobalAveragePool computes it.

    xnnpack: `float32(float32(sx * float32(1 / n)) / sy)`, that of a depthwise layer of ones.
    """
    if rule == "xnnpack":
        return multiplier(input_scale, torch.full_like(input_scale, 1.0 / count), output_scale)
    return input_scale.float() / (output_scale.float() * float(count))
