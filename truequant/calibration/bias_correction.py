"""Empirical bias correction (Nagel et al. 2019, "Data-Free Quantization", section 4.2 and appendix D)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from truequant.calibration.layers import Layer, layers, warn_left
from truequant.calibration.method import Method, Stage, Work
from truequant.calibration.running import inputs_of


@dataclass(frozen=True, slots=True)
class BiasCorrection(Method):
    """Take out of each layer's bias the mean error that quantization puts on its sums.

        b <- b - (E[W~ x~] - E[W x])            a channel (equation 17), expectations over the batches and all places

    layer by layer from the input, so that each sees the corrected layers before it; x~ are the values that the quantized
    model computes. Where a BatchNorm follows, its running mean takes the correction. A warning names layers without either.
    """

    stage: ClassVar[Stage] = Stage.CORRECT

    def apply(self, work: Work) -> None:
        places, left = [], []
        for layer in layers(work.model, "BiasCorrection"):
            if layer.norm is None and layer.module.bias is None:
                left.append((layer.name, "it has neither a bias nor a BatchNorm"))
            else:
                places.append(layer)
        warn_left("BiasCorrection", left)
        for layer in work.bars.track(places, "bias correction"):
            correct(layer, mean_error(work, layer))


@torch.no_grad()
def mean_error(work: Work, layer: Layer) -> Tensor:
    """`E[W~ x~] - E[W x]`, float64 `(O,)`."""
    twin = layer.twin(work.reference)
    quantized = inputs_of(work.model, layer.module, work.batches, layer.calls)
    floats = inputs_of(work.reference, twin.module, work.batches, layer.calls)
    weight = layer.decoded(layer.codes(), layer.scale())
    return _mean(layer, quantized, weight) - _mean(layer, floats, twin.weight().float())


def _mean(layer: Layer, inputs: list[Tensor], weight: Tensor) -> Tensor:
    sums = [layer.by_channel(layer.linear(x, weight, None)).double() for x in inputs]
    return torch.stack([y.sum(1) for y in sums]).sum(0) / sum(y.shape[1] for y in sums)


@torch.no_grad()
def correct(layer: Layer, error: Tensor) -> None:
    """Subtract a mean error of the sums, `(O,)`."""
    if layer.norm is not None:
        layer.norm.running_mean.add_(error.to(layer.norm.running_mean.dtype))
    else:
        layer.module.bias.sub_(error.to(layer.module.bias.dtype))
