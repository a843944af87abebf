"""AdaRound (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from truequant.calibration.layers import Layer, roundable
from truequant.calibration.method import Method, Stage, Work
from truequant.calibration.rounding import SoftRounding, sharpness
from truequant.calibration.running import inputs_of
from truequant.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class AdaRound(Method):
    """Choose for each weight whether it is rounded up or down, so that each layer's results stay close to the float ones.

        argmin_V  || f_a(W x) - f_a(W~ x~) ||^2 + lambda f_reg(V)                     (equation 25)

    layer by layer from the input. W~ is the softly rounded weight (equations 22 and 23), x~ the values that the quantized
    model computes in front of the layer, x the float ones; f_a is the BatchNorm and the clamp that belong to the layer. The
    first term is divided by what nearest rounding leaves of it, so that lambda does not depend on the layer's scale. Scales
    stay as they are: set them by least squared error first (the presets below 8 bits do). With a float activation function
    in place of ReLU, f_a is the identity. Nothing is worse than nearest rounding on the batches: where it were, it stays.

    iterations: steps of Adam for each layer, on batch_size of the samples of all batches (inputs, not places).
    regularization: lambda; warmup: the share of steps without it; then beta falls from 20 to 2.
    """

    iterations: int = 10_000
    learning_rate: float = 1e-2
    batch_size: int = 32
    regularization: float = 0.01
    warmup: float = 0.2
    seed: int = 0
    stage: ClassVar[Stage] = Stage.CORRECT

    def __post_init__(self) -> None:
        check_recipe("AdaRound", self.iterations, self.learning_rate, self.batch_size, self.warmup)

    def apply(self, work: Work) -> None:
        for layer in work.bars.track(roundable(work.model, "AdaRound"), "AdaRound"):
            twin = layer.twin(work.reference)
            x = layer.samples(inputs_of(work.model, layer.module, work.batches, layer.calls))
            floats = twin.samples(inputs_of(work.reference, twin.module, work.batches, layer.calls))
            with torch.no_grad():
                original, bias = twin.weight().float(), twin.bias()
                target = torch.cat([twin.finished(twin.linear(part, original, bias)) for part in floats.split(256)])
            self._round(work, layer, x, target)

    def _round(self, work: Work, layer: Layer, x: Tensor, target: Tensor) -> None:
        scale, scheme = layer.scale(), layer.quantizer.scheme
        nearest = layer.codes()
        rounding = SoftRounding(layer.coded() / scale, scheme.qmin, scheme.qmax)
        unit = self._error(layer, layer.decoded(nearest, scale), x, target)
        if unit <= 0.0:
            layer.write(nearest)
            return
        optimizer = torch.optim.Adam([rounding.v], self.learning_rate)
        chance = torch.Generator().manual_seed(self.seed)
        for step in work.bars.track(range(self.iterations), layer.name):
            rows = torch.randint(0, len(x), (min(self.batch_size, len(x)),), generator=chance)
            optimizer.zero_grad()
            with torch.enable_grad():
                y = layer.finished(layer.linear(x[rows], layer.decoded(rounding.soft(), scale), layer.bias()))
                loss = (y - target[rows]).square().sum() / len(rows) / unit
                beta = sharpness(step, self.iterations, self.warmup)
                if beta is not None:
                    loss = loss + self.regularization * rounding.undecided(beta)
                loss.backward()
            optimizer.step()
            work.bars.loss(loss.detach())
        chosen = rounding.hard()
        better = self._error(layer, layer.decoded(chosen, scale), x, target) < unit
        layer.write(chosen if better else nearest)

    @torch.no_grad()
    def _error(self, layer: Layer, weight: Tensor, x: Tensor, target: Tensor) -> float:
        """Squared error of a sample, summed over its results."""
        total = 0.0
        for part, wanted in zip(x.split(256), target.split(256), strict=True):
            total += float((layer.finished(layer.linear(part, weight, layer.bias())) - wanted).double().square().sum())
        return total / len(x)


def check_recipe(name: str, iterations: int, learning_rate: float, batch_size: int, warmup: float) -> None:
    """`ArgumentError` for a number that cannot be."""
    for what, value, fine, expected in (
        ("iterations", iterations, isinstance(iterations, int) and iterations >= 0, "an int from 0 on"),
        ("learning_rate", learning_rate, learning_rate > 0, "more than 0"),
        ("batch_size", batch_size, isinstance(batch_size, int) and batch_size >= 1, "an int from 1 on"),
        ("warmup", warmup, 0 <= warmup <= 1, "0 <= warmup <= 1"),
    ):
        if not fine:
            raise ArgumentError(f"{name}: {what} out of range", got=repr(value), expected=expected)
