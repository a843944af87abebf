"""Activation ranges from the batches, as the float model produces them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from truequant.calibration.finite import NotFinite
from truequant.calibration.method import Inputs
from truequant.calibration.progress import Bars
from truequant.calibration.running import evaluating
from truequant.fake import FakeQuantize, FakeQuantizeScores, QATModuleWrapper, quantizers
from truequant.observers import ActivationObserver
from truequant.schemes import MinMax, MovingAverage, Observation


def set_ranges(
    model: QATModuleWrapper, batches: Iterable[Inputs], strategy: Observation | None, bars: Bars, count: int | None = None
) -> None:
    """Observe all batches and let what was observed take effect.

    strategy: how each quantizer chooses its range; None leaves it to its scheme. Another one than the scheme's sets the range
    once, and what training observes later follows the scheme, from that range where it keeps a minimum and a maximum.
    count: of the batches, for the bar.
    """
    activations = [q for _, q in quantizers(model) if isinstance(q, FakeQuantize)]
    free = [q for q in activations if not isinstance(q, FakeQuantizeScores)]  # those keep their largest value, always
    others = {} if strategy is None else {q: _observer(q, strategy) for q in free if q.scheme.observer != strategy}
    clock = model.binding.clock
    not_finite = NotFinite()
    handles = [q.register_forward_pre_hook(_watch(observer)) for q, observer in others.items()] + not_finite.hooks(model)
    before = {q: {name: value.clone() for name, value in q.state_dict().items()} for q in activations}
    for quantizer in activations:
        quantizer.observer.reset()
        if quantizer.stream is not None:
            quantizer.stream.greatest = None
    try:
        clock.state = "calibrating"
        with evaluating(model), torch.no_grad():
            for args, kwargs in bars.track(batches, "ranges", count):
                model(*args, **kwargs)
        not_finite.tell()
    except BaseException:
        for quantizer, state in before.items():
            quantizer.load_state_dict(state)
        raise
    finally:
        clock.state = "training"
        for handle in handles:
            handle.remove()
    for quantizer in activations:
        if quantizer.is_calibrated:
            quantizer.choose()
            quantizer.commit()
    for quantizer, observer in others.items():
        if quantizer.is_calibrated:
            _impose(quantizer, observer)
    for quantizer in activations:
        quantizer.remember_range()


def _observer(quantizer: FakeQuantize, strategy: Observation) -> ActivationObserver:
    shape = tuple(quantizer.scale.shape)
    observer = ActivationObserver(replace(quantizer.scheme, observer=strategy), shape or None)
    return observer.to(quantizer.scale.device).eval()


def _watch(observer: ActivationObserver) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        observer.observe(args[0].detach())
        observer.commit()

    return look


@torch.no_grad()
def _impose(quantizer: FakeQuantize, observer: ActivationObserver) -> None:
    """The range that another observer chose, where the quantizer's own must not overwrite it at the next commit."""
    observer.scheme = replace(quantizer.scheme, observer=observer.scheme.observer)  # its width may have been chosen since
    low, high = observer.range()
    own = quantizer.observer
    own.reset()
    own.minimum.copy_(low)
    own.maximum.copy_(high)
    if isinstance(quantizer.scheme.observer, (MinMax, MovingAverage)):
        own.updates.fill_(1)
    scale, zero_point = observer.qparams()
    quantizer.scale.copy_(scale)
    quantizer.zero_point.copy_(zero_point)
