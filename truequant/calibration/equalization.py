"""Cross-layer equalization with bias absorption (Nagel et al. 2019, "Data-Free Quantization", section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from truequant.calibration.layers import Layer, layers, warn_left
from truequant.calibration.method import Method, Stage, Work
from truequant.calibration.pairs import Pair, by_input, divide_outputs, multiply_inputs, pairs, times_inputs
from truequant.calibration.running import evaluating, float_outputs
from truequant.errors import ArgumentError
from truequant.fake import quantizers_off

CONVERGED, ROUNDS = 1e-4, 100


@dataclass(frozen=True, slots=True)
class CrossLayerEqualization(Method):
    """Give the channels between two layers equal ranges in both, by gains that the float function does not see.

        s_i = sqrt(r1_i / r2_i),  W1[i] / s_i,  b1[i] / s_i,  W2[:, i] * s_i          (equations 9 to 11)

    with r1_i, r2_i the largest |w| of output and input channel i, BatchNorm folded in; over all pairs until no gain changes
    by more than 1e-4, so that the three ranges of a depthwise triple become their geometric mean. A pair needs one reader
    and only what commutes with a positive gain in between (ReLU, PReLU, pooling, movement), which is proved by trial.
    A ReLU6 does not commute: `replace_relu6(model)` before `prepare`, else a warning names the layers in front of one.

    absorb_bias: move what is always above 0 in front of a ReLU, c_i = max(0, beta_i - 3 |gamma_i|), into the next bias
        (equations 12 to 15); no more than what was positive throughout the batches, so that their results stay.
    keep_sizes: divide the gains of a pair by their geometric mean. What is left equals channel with channel as well, because a
        scale takes up a common factor, and layers keep the size that the learning rate was chosen for. Before QAT use
        `CrossLayerEqualization(absorb_bias=False, keep_sizes=True)`: what training will find by itself need not be absorbed.
    """

    absorb_bias: bool = True
    keep_sizes: bool = False
    stage: ClassVar[Stage] = Stage.EQUALIZE

    def apply(self, work: Work) -> None:
        found = layers(work.model, "CrossLayerEqualization")
        chain, clamped = pairs(work, found)
        warn_left(
            "CrossLayerEqualization",
            [(n, "an upper clamp follows it; tq.methods.replace_relu6(model) comes first") for n in clamped],
        )
        gains = equalizing_gains(chain)
        if self.keep_sizes:
            gains = [gain / gain.log().mean().exp() for gain in gains]
        for pair, gain in zip(chain, gains, strict=True):
            divide_outputs(pair.first, gain)
            multiply_inputs(pair.second, gain)
        if self.absorb_bias:
            for pair in chain:
                _absorb(work, pair)
        for layer in {id(one): one for pair in chain for one in (pair.first, pair.second)}.values():
            layer.read_range_again()


@torch.no_grad()
def equalizing_gains(chain: Sequence[Pair]) -> list[Tensor]:
    """For each pair the gain `(C,)`, float64, that the first layer is divided by and the second multiplied with."""
    size = {id(one): one.folded().abs() for pair in chain for one in (pair.first, pair.second)}
    total = [torch.ones(pair.channels, dtype=torch.float64, device=pair.first.weight().device) for pair in chain]
    for _ in range(ROUNDS):
        change = 0.0
        for pair, sum_of_gains in zip(chain, total, strict=True):
            first, second = size[id(pair.first)], size[id(pair.second)]
            r1 = first.flatten(1).amax(1)
            r2 = _input_ranges(second, pair)
            gain = torch.where((r1 > 0) & (r2 > 0), torch.sqrt(r1 / r2), 1.0)  # a dead channel has no range to share
            size[id(pair.first)] = first / gain.reshape(-1, *[1] * (first.dim() - 1))
            size[id(pair.second)] = times_inputs(second, gain, pair.second.groups)
            sum_of_gains.mul_(gain)
            change = max(change, float((gain - 1).abs().max()))
        if change < CONVERGED:
            break
    return total


def _input_ranges(weight: Tensor, pair: Pair) -> Tensor:
    return by_input(weight, pair.channels, pair.second.groups).amax((1, 3)).reshape(-1)


# -- bias absorption -----------------------------------------------------------------------------------------------------
@torch.no_grad()
def _absorb(work: Work, pair: Pair) -> None:
    """Take `c` out of the first layer's bias and put `W2 c` into what follows the second's sums."""
    first, second = pair.first, pair.second
    has_place = second.module.bias is not None or second.norm is not None
    shifted: Any = first.norm.bias if first.norm is not None else first.module.bias
    padded = any(getattr(second.module, "_reversed_padding_repeated_twice", ()))  # a padded 0 would not be shifted
    if not (pair.direct and first.site.plan.minimum == 0.0 and has_place and shifted is not None) or padded:
        return
    height = _always_above_zero(work, first)
    if first.norm is not None:
        height = torch.minimum(height, first.norm.bias.double() - 3 * first.norm.weight.double().abs())
    height = height.clamp(min=0.0)
    if not bool((height > 0).any()):
        return
    before = [float_outputs(work.model, batch) for batch in work.batches]
    kept = {t: t.clone() for t in (shifted, second.norm.running_mean if second.module.bias is None else second.module.bias)}
    rows = times_inputs(second.weight().double(), height, second.groups).flatten(1).sum(1)
    shifted.sub_(height.to(shifted.dtype))
    if second.module.bias is not None:
        second.module.bias.add_(rows.to(second.module.bias.dtype))
    else:
        second.norm.running_mean.sub_(rows.to(second.norm.running_mean.dtype))
    after = [float_outputs(work.model, batch) for batch in work.batches]
    if not _same(before, after):
        for tensor, value in kept.items():
            tensor.copy_(value)


def _same(before: list[list[Tensor]], after: list[list[Tensor]]) -> bool:
    """Equal up to rounding: what pads or reorders in between shows here."""
    for a, b in zip((t for ts in before for t in ts), (t for ts in after for t in ts), strict=True):
        if not bool((a - b).abs().max() <= 1e-4 * a.abs().max()):
            return False
    return True


def _always_above_zero(work: Work, layer: Layer) -> Tensor:
    """The smallest value of each channel in front of the ReLU over all batches, float64 `(O,)`."""
    lowest: list[Tensor] = []
    module = layer.module if layer.norm is None else layer.norm

    def look(_: nn.Module, args: Any, y: Tensor) -> None:
        lowest.append(layer.by_channel(y).double().amin(1))

    handle = module.register_forward_hook(look)
    try:
        with evaluating(work.model), quantizers_off(work.model):
            for args, kwargs in work.batches:
                work.model(*args, **kwargs)
    finally:
        handle.remove()
    return torch.stack(lowest).amin(0)


def replace_relu6(model: nn.Module) -> tuple[str, ...]:
    """Replace every `nn.ReLU6` of a float model by an `nn.ReLU`, in place, and return their names.

    The function changes where a value exceeds 6. A ReLU commutes with positive gains, so that `CrossLayerEqualization` can
    act across it (Nagel et al. 2019, section 5.1.1). `F.relu6` in a forward stays. Raises `ArgumentError` where there is none.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU6())
    >>> replace_relu6(model)
    ('1',)
    """
    names = tuple(name for name, m in model.named_modules(remove_duplicate=False) if type(m) is nn.ReLU6 and name)
    if not names:
        raise ArgumentError(
            "replace_relu6: the model has no nn.ReLU6", got=type(model).__name__, expected="a float model, not yet prepared"
        )
    for name in names:
        parent, _, attribute = name.rpartition(".")
        old: Any = model.get_submodule(name)
        setattr(model.get_submodule(parent), attribute, nn.ReLU(inplace=old.inplace).train(old.training))
    return names
