"""Which layers can exchange a gain channel by channel: found in the plan, then proved by trial.

The trial multiplies each channel by a power of two of its own and takes it back behind. Floating-point products and sums
scale by powers of two exactly, so that the float model's outputs are the same bits where all between commutes with a gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from truequant.calibration.layers import Layer
from truequant.calibration.method import Work
from truequant.calibration.running import float_outputs
from truequant.fake import TRANSPOSED
from truequant.planning import Plan, Site
from truequant.planning.actions import HOMOGENEOUS

_HOMOGENEOUS = frozenset(("leaky_relu", "prelu", "abs"))


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """`second` alone reads what `first` writes, and a positive gain passes all that is between. direct: ReLU at most."""

    first: Layer
    second: Layer
    direct: bool

    @property
    def channels(self) -> int:
        return int(self.first.weight().shape[0])


def pairs(work: Work, found: Sequence[Layer]) -> tuple[list[Pair], list[str]]:
    """The pairs among these layers, in order, and the names of the layers whose upper clamp (ReLU6) stands in the way."""
    plan = work.model.binding.plan
    assert plan is not None
    by_site = {layer.site.plan.name: layer for layer in found if layer.calls == 1 and not layer.site.plan.frame}
    proved, clamped = [], []
    baseline = None
    for layer in by_site.values():
        reader = _only_reader(plan, layer.site.plan)
        second = by_site.get(reader[0].name) if reader is not None else None
        if reader is None or second is None or (layer.norm is not None and not _has_gain(layer)):
            continue
        if second.site.plan.op in TRANSPOSED or layer.site.plan.op in TRANSPOSED:
            continue
        if layer.site.plan.maximum is not None:
            clamped.append(layer.name)
            continue
        pair = Pair(layer, second, reader[1])
        baseline = float_outputs(work.model, work.batches[0]) if baseline is None else baseline
        if _commutes(pair, lambda: float_outputs(work.model, work.batches[0]), baseline):
            proved.append(pair)
    return proved, clamped


def _has_gain(layer: Layer) -> bool:
    return layer.norm.weight is not None and layer.norm.bias is not None


def _positive(site: Site) -> bool:
    return site.minimum in (None, 0.0)


def _only_reader(plan: Plan, site: Site) -> tuple[Site, bool] | None:
    """The one layer that reads what `site` writes, and whether it reads it directly."""
    grid = site.emits
    if grid is None or not _positive(site) or plan.quantizer(grid).kind != "activation":
        return None
    writers = [s for s in plan.sites if s.emits == grid and s.action not in ("movement", "clamp") and s.fused_into is None]
    readers = [s for s in plan.sites if grid in s.reads and s.fused_into is None]
    behind = [s for s in readers if s.action not in ("movement", "identity")]
    if len(writers) != 1 or len(behind) != 1:
        return None
    (reader,) = behind
    if reader.action == "layer":
        return reader, True
    if reader.action in HOMOGENEOUS or (reader.action == "table" and reader.op in _HOMOGENEOUS):
        if reader.maximum is not None:
            return None
        further = _only_reader(plan, reader)
        return None if further is None else (further[0], False)
    return None


# -- a gain, moved from one layer to the next ----------------------------------------------------------------------------
@torch.no_grad()
def divide_outputs(layer: Layer, gain: Tensor) -> None:
    """Divide what a layer writes by `gain`, `(O,)` float64: in its BatchNorm where it has one, else in weight and bias."""
    if layer.norm is not None:
        for parameter in (layer.norm.weight, layer.norm.bias):
            parameter.copy_(parameter.double() / gain)
        return
    weight = layer.weight().double()
    layer.set_weight(weight / gain.reshape(-1, *[1] * (weight.dim() - 1)))
    if layer.module.bias is not None:
        layer.module.bias.copy_(layer.module.bias.double() / gain)


@torch.no_grad()
def multiply_inputs(layer: Layer, gain: Tensor) -> None:
    """Multiply the weights that meet each input channel by its `gain`, `(C,)` float64."""
    layer.set_weight(times_inputs(layer.weight().double(), gain, layer.groups))


def by_input(weight: Tensor, channels: int, groups: int) -> Tensor:
    """`(O, I / groups, *kernel)` as `(groups, O / groups, channels / groups, weights that meet one channel)`.

    A linear layer behind a flatten has several input features for each channel, side by side.
    """
    return weight.reshape(groups, weight.shape[0] // groups, channels // groups, -1)


def times_inputs(weight: Tensor, gain: Tensor, groups: int) -> Tensor:
    """`weight` with what meets input channel `i` multiplied by `gain[i]`."""
    return (by_input(weight, len(gain), groups) * gain.reshape(groups, 1, -1, 1)).reshape(weight.shape)


def _commutes(pair: Pair, outputs: Callable[[], list[Tensor]], baseline: list[Tensor]) -> bool:
    """Whether a gain between the two leaves the outputs of the float model as they are, bit for bit."""
    width = pair.second.weight().shape[1] * pair.second.groups
    if width % pair.channels or pair.channels % pair.second.groups:
        return False
    exponents = torch.randperm(pair.channels, generator=torch.Generator().manual_seed(0)) % 25 - 12  # no two near ones alike
    gain = torch.pow(2.0, exponents.double()).to(pair.first.weight().device)
    divide_outputs(pair.first, gain)
    multiply_inputs(pair.second, gain)
    try:
        return all(torch.equal(a, b) for a, b in zip(outputs(), baseline, strict=True))
    finally:
        divide_outputs(pair.first, 1 / gain)
        multiply_inputs(pair.second, 1 / gain)
