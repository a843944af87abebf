"""Block reconstruction (Li et al. 2021, "BRECQ") with random dropping of quantization (Wei et al. 2022, "QDrop")."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from truequant.calibration.adaround import check_recipe
from truequant.calibration.blocks import Block, Sample, blocks_of, outputs_of, samples_of
from truequant.calibration.layers import roundable
from truequant.calibration.method import Method, Stage, Work
from truequant.calibration.rounding import SoftRounding, sharpness
from truequant.calibration.simulation import quantizing, simulated
from truequant.errors import ArgumentError
from truequant.fake import FakeQuantize, WeightQuantizer


@dataclass(frozen=True, slots=True)
class BlockReconstruction(Method):
    """Round the weights of a whole block together, so that the block's results stay close to the float ones.

        argmin_V  E || B(x) - B~(x~) ||^2 + lambda f_reg(V)                  (BRECQ, equation 10, with the identity for the
                                                                              Fisher information, as QDrop does)

    with AdaRound's soft rounding, block by block from the input. In each step every activation inside the block, and every
    element of the block's input, stays unquantized with probability `drop` (QDrop): drop=0 is BRECQ.

    blocks: names of modules, each called once in a forward, that are blocks; what lies outside of them is rounded layer by
        layer. Left out, the smallest modules of a class of your own that hold several layers (residual blocks, encoder layers).
    iterations, learning_rate, batch_size, regularization, warmup: as in `AdaRound`; a step takes its samples from one batch.
    """

    blocks: tuple[str, ...] = ()
    iterations: int = 20_000
    learning_rate: float = 1e-2
    batch_size: int = 32
    regularization: float = 0.01
    warmup: float = 0.2
    drop: float = 0.5
    seed: int = 0
    stage: ClassVar[Stage] = Stage.CORRECT

    def __post_init__(self) -> None:
        check_recipe("BlockReconstruction", self.iterations, self.learning_rate, self.batch_size, self.warmup)
        if not 0.0 <= self.drop <= 1.0:
            raise ArgumentError("BlockReconstruction: drop out of range", got=repr(self.drop), expected="0 <= drop <= 1")

    def apply(self, work: Work) -> None:
        found = roundable(work.model, "BlockReconstruction")
        for block in work.bars.track(blocks_of(work.model, found, self.blocks), "block reconstruction"):
            twin = block.twin(work.reference)
            samples = [
                Sample(quantized, floats, outputs)
                for quantized, (floats, outputs) in zip(
                    samples_of(work.model, block, work.batches), outputs_of(work.reference, twin, work.batches), strict=True
                )
            ]
            self._round(work, block, samples)

    def _round(self, work: Work, block: Block, samples: list[Sample]) -> None:
        chance = torch.Generator().manual_seed(self.seed)
        nearest = [layer.codes() for layer in block.layers]
        scales = [layer.scale() for layer in block.layers]
        for layer in block.layers:
            layer.quantizer.hold(layer.quantizer.scale_of(layer.weight(), layer.factor()).detach().clone())
        roundings = [
            SoftRounding(layer.coded() / scale, layer.quantizer.scheme.qmin, layer.quantizer.scheme.qmax)
            for layer, scale in zip(block.layers, scales, strict=True)
        ]

        def decoded(codes: list[Tensor]) -> list[Tensor]:
            return [one.decoded(c, s) for one, c, s in zip(block.layers, codes, scales, strict=True)]

        unit = _error(block, decoded(nearest), samples)
        chosen = nearest
        if unit > 0.0:
            parameters = [rounding.v for rounding in roundings]
            optimizer = torch.optim.Adam(parameters, self.learning_rate)
            for step in work.bars.track(range(self.iterations), block.name):
                sample = samples[int(torch.randint(0, len(samples), (), generator=chance))]
                rows = torch.randint(0, sample.size, (min(self.batch_size, sample.size),), generator=chance)
                inputs, wanted = sample.dropped(rows, self.drop, chance)
                with torch.enable_grad(), _simulated(block, decoded([r.soft() for r in roundings]), self.drop, chance):
                    loss = _distance(block.run(inputs), wanted) / len(rows) / unit
                beta = sharpness(step, self.iterations, self.warmup)
                if beta is not None:
                    loss = loss + self.regularization * torch.stack([r.undecided(beta) for r in roundings]).sum()
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter.grad = gradient
                optimizer.step()
                work.bars.loss(loss.detach())
            hard = [rounding.hard() for rounding in roundings]
            chosen = hard if _error(block, decoded(hard), samples) < unit else nearest
        for layer, codes in zip(block.layers, chosen, strict=True):
            layer.write(codes)


@torch.no_grad()
def _error(block: Block, weights: list[Tensor], samples: list[Sample]) -> float:
    """Squared error of a sample, summed over its results, with all activations quantized."""
    total = 0.0
    with _simulated(block, weights, 0.0, None):
        for sample in samples:
            total += float(_distance(block.run(sample.quantized), sample.outputs))
    return total / sum(sample.size for sample in samples)


def _distance(outputs: list[Tensor], wanted: list[Tensor]) -> Tensor:
    return torch.stack([(y - t).square().sum() for y, t in zip(outputs, wanted, strict=True)]).sum()


def _simulated(
    block: Block, weights: list[Tensor], drop: float, chance: torch.Generator | None
) -> contextlib.AbstractContextManager[None]:
    """A context in which the block computes with these weights and quantizes activations with probability `1 - drop`."""
    activations = [m for m in block.module.modules() if isinstance(m, FakeQuantize)]
    replacements: dict[nn.Module, Callable[..., Tensor]] = {q: _dropping(q, drop, chance) for q in activations}
    for layer, weight in zip(block.layers, weights, strict=True):
        replacements[layer.quantizer] = lambda w, f=None, weight=weight: weight.to(w.dtype)
    others = [m for m in block.module.modules() if isinstance(m, WeightQuantizer) and m not in replacements]
    replacements |= {quantizer: quantizing(quantizer) for quantizer in others}
    return simulated(block.module, block.layers[0].quantizer.clock, replacements)


def _dropping(quantizer: FakeQuantize, drop: float, chance: torch.Generator | None) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        y = quantizer.quantize(x)
        if chance is None or drop == 0.0:
            return y
        keeps = torch.rand(x.shape, generator=chance).to(x.device) < drop
        return torch.where(keeps, x, y)

    return forward
