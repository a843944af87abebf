"""Named rules of add, mul and tables. Codes are float32 tensors of integers, scales and zero points float32 tensors.

Rule "onnxruntime" states what QLinearAdd and QLinearMul compute on x86 CPUs with FMA (measured over all 65,536 pairs of
codes). Rule "portable" is dequantize, float32 op, quantize. Rule "xnnpack" is what XNNPACK computes on signed codes: sums and
differences in fixed point, products as on x86 (64-bit Arm rounds them in fixed point: other codes at ties).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from truequant.errors import ArgumentError
from truequant.numerics.affine import Bound, clamp, dequantize, quantize
from truequant.schemes import RULES, ArithmeticRule

Qparams = tuple[Tensor, Tensor]
"""Scale and zero point of an edge."""


Pointwise = Literal["add", "sub", "mul", "div", "neg"]
"""Operations that IEEE rounds once, in one way."""


def pointwise(function: Pointwise, *operands: Tensor) -> Tensor:
    """One float32 operation for each number: `a + b`, `a - b`, `a * b`, `a / b`, `-a`. Two operands are broadcast."""
    left, right = operands if len(operands) == 2 else (operands[0], operands[0])
    match function:
        case "add":
            return left + right
        case "sub":
            return left - right
        case "mul":
            return left * right
        case "div":
            return left / right
        case "neg":
            return -left


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`float32(a * b + c)` with one rounding, of float32 operands: float64 holds the product exactly, and the sum unless its
    terms are more than 2^20 apart.
    """
    return (a.double() * b.double() + c.double()).float()


def add(
    a: Tensor, b: Tensor, a_params: Qparams, b_params: Qparams, y_params: Qparams, low: Bound, high: Bound,
    rule: ArithmeticRule, fused: bool = True,
) -> Tensor:  # fmt: skip
    """Codes of the sum. The order of the operands matters.

    onnxruntime: ra = sa / sy, rb = sb / sy, C = zy - fma(ra, za, rb * zb), q = clamp(rint(fma(ra, a, fma(rb, b, C)))).
    fused False: what its kernels compute on x86 CPUs without FMA (0 of 6,291,456 pairs of codes differ on two of them):
    C = zy - (ra * za + rb * zb), q = clamp(rint(rb * b + (ra * a + C))).
    xnnpack: ra and rb as above, h = 20 - floor(log2(max(ra, rb))), A = rint(ra * 2^h), B = rint(rb * 2^h),
    q = clamp(((2^(h - 1) + A * (a - za) + B * (b - zb)) >> h) + zy).
    """
    (sa, za), (sb, zb), (sy, zy) = a_params, b_params, y_params
    if rule == "portable":
        return quantize(dequantize(a, sa, za) + dequantize(b, sb, zb), sy, zy, low, high)
    if rule == "xnnpack":
        return _in_fixed_point(a, b, a_params, b_params, y_params, low, high, 1.0)
    _known(rule)
    ra, rb = sa / sy, sb / sy
    if not fused:
        return clamp(torch.round(b * rb + (a * ra + (zy - (ra * za + rb * zb)))), low, high)
    constant = zy - fma(ra, za, rb * zb)
    return clamp(torch.round(fma(ra, a, fma(rb, b, constant))), low, high)


def add_on_arm(
    a: Tensor, b: Tensor, a_params: Qparams, b_params: Qparams, y_params: Qparams, low: Bound, high: Bound
) -> Tensor | None:
    """Codes of the sum by onnxruntime's kernel on 64-bit Arm, in fixed point; None where its scales are too far apart for that.

    With 2^e the largest power of two within max(ra, rb): A = rint(ra * 2^(21 - e)), B likewise,
    q = clamp((A * (a - za) + B * (b - zb)) / 2^(21 - e) + zy), rounded half away from zero. (0 of 2,621,440 pairs of codes
    differ on an emulated Cortex-A76.)
    """
    (sa, za), (sb, zb), (sy, zy) = ((s.float().cpu(), z.long().cpu()) for s, z in (a_params, b_params, y_params))
    ratios = torch.stack([sa / sy, sb / sy])
    shift = 21 - (int(torch.frexp(ratios.max())[1]) - 1)
    left, right = (int(m) for m in torch.round(ratios * 2.0**shift))
    if not (
        float(ratios.min()) >= 2.0**-14 and float(ratios.max()) < 256.0 and 13 <= shift <= 31 and max(left, right) < 1 << 22
    ):
        return None
    sums = left * (a.cpu().long() - za) + right * (b.cpu().long() - zb)
    rounded = (sums - (sums < 0).long() + (1 << (shift - 1))) >> shift
    return clamp((rounded + zy).float(), low, high).to(a.device)


def _in_fixed_point(
    a: Tensor, b: Tensor, a_params: Qparams, b_params: Qparams, y_params: Qparams, low: Bound, high: Bound, sign: float
) -> Tensor:
    """`a + sign * b` by rule "xnnpack". float64 holds all of its integers, and a product with a power of two."""
    (sa, za), (sb, zb), (sy, zy) = a_params, b_params, y_params
    ratios = torch.stack(torch.broadcast_tensors(sa / sy, sb / sy))
    shift = (21 - torch.frexp(ratios.amax(0))[1]).double()
    left, right = torch.round(ratios.double() * torch.exp2(shift))
    sums = left * (a.double() - za) + sign * right * (b.double() - zb)
    return clamp((torch.floor(sums * torch.exp2(-shift) + 0.5) + zy).float(), low, high)


def sub(
    a: Tensor, b: Tensor, a_params: Qparams, b_params: Qparams, y_params: Qparams, low: Bound, high: Bound,
    rule: ArithmeticRule = "portable",
) -> Tensor:  # fmt: skip
    """Codes of the difference. xnnpack: as its sum, with `- B`. Other rules: dequantize, float32 op, quantize, since their
    runtimes have no integer kernel for it.
    """
    (sa, za), (sb, zb), (sy, zy) = a_params, b_params, y_params
    if rule == "xnnpack":
        return _in_fixed_point(a, b, a_params, b_params, y_params, low, high, -1.0)
    return quantize(dequantize(a, sa, za) - dequantize(b, sb, zb), sy, zy, low, high)


def mul(
    a: Tensor, b: Tensor, a_params: Qparams, b_params: Qparams, y_params: Qparams, low: Bound, high: Bound, rule: ArithmeticRule
) -> Tensor:
    """Codes of the product.

    onnxruntime: M = float32(float32(sa * sb) / sy), p = (a - za) * (b - zb) in integers,
    q = clamp(rint(float32(float32(M * p) + zy))). xnnpack: the same M and p, q = clamp(rint(float32(M * p)) + zy).
    """
    (sa, za), (sb, zb), (sy, zy) = a_params, b_params, y_params
    if rule == "portable":
        return quantize(dequantize(a, sa, za) * dequantize(b, sb, zb), sy, zy, low, high)
    if rule == "xnnpack":
        return clamp(torch.round(((sa * sb) / sy) * ((a - za) * (b - zb))) + zy, low, high)
    _known(rule)
    return clamp(torch.round(((sa * sb) / sy) * ((a - za) * (b - zb)) + zy), low, high)


def table(
    function: Callable[[Tensor], Tensor],
    x_params: Qparams,
    x_range: tuple[int, int],
    y_params: Qparams,
    low: Bound,
    high: Bound,
) -> Tensor:
    """Codes of `function` for each input code `qmin … qmax`, float32: computed once in float64, then stored.

    q = clamp(rint(function((code - zx) * sx) / sy) + zy); a NaN gives code 0.
    """
    codes = torch.arange(x_range[0], x_range[1] + 1, dtype=torch.float64)
    values = function((codes - x_params[1].double().cpu()) * x_params[0].double().cpu())
    result = torch.round(values / y_params[0].double().cpu()) + y_params[1].double().cpu()
    return clamp(torch.where(torch.isnan(result), 0.0, result), low, high).float()


def _known(rule: str) -> None:
    if rule not in RULES:
        raise ArgumentError(f"no arithmetic rule {rule!r}", got=rule, expected=" or ".join(map(repr, RULES)))
