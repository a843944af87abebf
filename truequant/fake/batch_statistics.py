"""BatchNorm in training behind a layer whose channels share one scale: its statistics are those of the float weights.

The codes of such a weight are those of `w * gamma / sigma_running`, on one grid for all channels. Were the running statistics
those of the quantized products, each would depend on the other: a channel that is small on the grid has few codes or none, its
variance falls, its factor grows until it has codes again, its variance leaps, and training never comes to rest; nor do the
running statistics ever describe the weights that evaluation makes of them. The statistics of `w * x` with the float `w` depend
on no grid (Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference", section 3.2.2; Jacob et al.
2018, figure C.8). They cost the products once more, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from truequant.fake.planned import PlannedSite
from truequant.observers import ranks
from truequant.schemes import PerTensor


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Mean and biased variance of a batch, `(C,)`, of `count` values each, on all ranks of `group` where it is not None."""

    mean: Tensor
    variance: Tensor
    count: int | Tensor
    group: Any | None = None


def reads_float_statistics(site: PlannedSite) -> bool:
    """Whether the BatchNorm behind the layer at `site` takes the statistics of the float weights in this forward.

    A binary code is a sign, which no factor moves.
    """
    quantizer, norm = site.weight, site.norm
    if quantizer is None or norm is None or not (norm.training and site.owner.training):
        return False
    if not quantizer.tied or quantizer.scheme.granularity != PerTensor() or quantizer.scheme.dtype.bits == 1:
        return False
    return quantizer.quantizing and not site.clock.calibrating


@torch.no_grad()
def float_statistics(
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    channels: int,
    norm: nn.Module | None = None,
) -> BatchStatistics:
    """Those of `linear(x, weight, bias)`, whose channels are the axis `channels`: of all ranks behind an `nn.SyncBatchNorm`."""
    y = linear(x, weight, bias).float()
    axes = [axis for axis in range(y.dim()) if axis != channels % y.dim()]
    variance, mean = torch.var_mean(y, axes, correction=0)
    count = y.numel() // y.shape[channels]
    if not isinstance(norm, nn.SyncBatchNorm) or not ranks.several(norm.process_group):
        return BatchStatistics(mean, variance, count)
    sums = ranks.total(torch.cat([mean * count, mean.new_tensor([count])]), norm.process_group)
    mean_of_all, count_of_all = sums[:-1] / sums[-1], sums[-1]
    spread = ranks.total((variance + (mean - mean_of_all).square()) * count, norm.process_group)
    return BatchStatistics(mean_of_all, spread / count_of_all, count_of_all, norm.process_group or ranks.everyone())


@dataclass(frozen=True, slots=True)
class NormCall:
    """A BatchNorm of `x` in training: running statistics, factor and bias, `(C,)`, and the share of the batch in the former."""

    x: Tensor
    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    share: float | Tensor
    eps: float

    @staticmethod
    def of_module(module: Any, x: Tensor, bias: Tensor | None) -> NormCall:
        """The call that `module`, a BatchNorm of torch's in training, makes of `x`, with `bias` in the place of its own.

        It is for before the batch is counted.
        """
        module._check_input_dim(x)
        share: Any = 1.0 / (module.num_batches_tracked + 1) if module.momentum is None else module.momentum
        return NormCall(x, module.running_mean, module.running_var, module.weight, bias, share, module.eps)

    def result(self) -> Tensor:
        """What torch makes of it."""
        share: Any = self.share
        return F.batch_norm(self.x, self.mean, self.var, self.weight, self.bias, True, share, self.eps)


def normalized(call: NormCall, batch: BatchStatistics) -> Tensor:
    """What a BatchNorm makes of `call.x` with the statistics `batch`, which its running ones then follow."""
    y: Tensor = _Normalized.apply(call.x, batch, call.eps, call.weight, call.bias)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        unbiased = batch.variance * (batch.count / max(1, batch.count - 1))
        for running, now in ((call.mean, batch.mean), (call.var, unbiased)):
            running.copy_(running + call.share * (now.to(running.dtype) - running))
    return y


class _Normalized(torch.autograd.Function):
    """`gamma * (x - mean) / sqrt(variance) + beta`, with the gradient of a BatchNorm whose statistics are those of `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, batch: BatchStatistics, eps: float, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        ctx.batch = batch
        ctx.save_for_backward(x, batch.mean, torch.rsqrt(batch.variance + eps), gamma)
        return F.batch_norm(x, batch.mean, batch.variance, gamma, beta, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, gamma = ctx.saved_tensors
        if ctx.batch.group is not None:
            dx, dgamma, dbeta = _gradient_of_all_ranks(grad, x, mean, inverse, gamma, ctx.batch)
            return dx, None, None, dgamma if ctx.needs_input_grad[3] else None, dbeta if ctx.needs_input_grad[4] else None
        wanted = [ctx.needs_input_grad[i] for i in (0, 3, 4)]
        dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
            grad, x, gamma, None, None, mean, inverse, True, 0.0, wanted
        )
        return dx, None, None, dgamma, dbeta


def _gradient_of_all_ranks(
    grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, gamma: Tensor | None, batch: BatchStatistics
) -> tuple[Tensor, Tensor, Tensor]:
    """As `nn.SyncBatchNorm`: x's gradient sees the sums of all ranks, those of gamma and beta are of this rank alone."""
    shape = [1, -1] + [1] * (x.dim() - 2)
    axes = [axis for axis in range(x.dim()) if axis != 1]
    direction = (x.float() - mean.view(shape)) * inverse.view(shape)
    up = grad.float()
    dbeta, dgamma = up.sum(axes), (up * direction).sum(axes)
    mean_up, mean_along = (ranks.total(torch.stack([dbeta, dgamma]), batch.group) / batch.count).unbind()
    factor = inverse if gamma is None else inverse * gamma
    dx = (up - mean_up.view(shape) - direction * mean_along.view(shape)) * factor.view(shape)
    return dx.to(x.dtype), dgamma, dbeta
