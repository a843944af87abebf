"""`detect_anomaly`: where NaN and infinity come up first in training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from truequant.errors import AnomalyError, StateError
from truequant.fake.clock import Clock, in_backward
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.recording import outermost
from truequant.observers import several, total


@contextlib.contextmanager
def detect_anomaly(model: nn.Module) -> Iterator[nn.Module]:
    """In this context a training forward of a prepared model whose activations are not finite raises `AnomalyError`.

    It names the first quantizer, in the order of calls, that NaN or an infinity reached, before anything is learned from that
    forward; on one rank of several, all ranks raise it. Ranges never take in what is not finite, here or elsewhere: after the
    error, or without this context, training goes on with those of before. On one GPU the host does not wait for the figures, so
    that a forward's error may be raised by one of the next, at the latest at the end of the context. It costs a pass over each
    activation, and fused passes run apart (BatchNorm then sums in another order, so that last bits may differ): use it to look
    for a fault. Without it there is no cost. Gradients have `torch.autograd.detect_anomaly`.

    Raises `StateError` for a float model, and for one that `model.compile()` has compiled.

    >>> import truequant as tq
    >>> qat = tq.prepare(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.zeros(1, 2)).train()
    >>> with detect_anomaly(qat):
    ...     y = qat(torch.tensor([[1.0, float("inf")]]))
    Traceback (most recent call last):
    ...
    truequant.errors.AnomalyError: 'input_0': activations that are not finite reached it in training
      got:      0 NaN, 1 infinite of 2 values in step 1
      expected: finite values
      fix:      look at what comes before it: the batch, the layer's weights, the learning rate of the last step
    """
    root = outermost(model)
    if root._compiled_call_impl is not None:
        raise StateError("detect_anomaly: the model is compiled, and its forward calls no hooks", fix="look in eager mode")
    watch = _Watch(root.binding.clock)
    handles = [m.register_forward_pre_hook(watch.look) for m in root.modules() if isinstance(m, FakeQuantize)]
    handles += [root.register_forward_pre_hook(watch.begin), root.register_forward_hook(watch.end)]
    try:
        yield model
        watch.read(wait=True)
    finally:
        for handle in handles:
            handle.remove()


class _Watch:
    """Counts what is not finite, call by call, and reads the counts when they have come."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seen: list[tuple[str, int, Tensor]] = []
        self.coming: list[tuple[int, list[tuple[str, int]], Tensor, torch.cuda.Event | None]] = []

    def begin(self, *_: object) -> None:
        """A forward begins; what an earlier one that failed has left is dropped."""
        if not in_backward():
            self.seen = []

    def look(self, quantizer: FakeQuantize, args: tuple[Tensor, ...]) -> None:
        """What a quantizer is called with."""
        if quantizer.training and not self.clock.calibrating and not in_backward():
            x = args[0].detach()
            self.seen.append((quantizer.name, x.numel(), torch.stack([torch.isnan(x).sum(), torch.isinf(x).sum()])))

    def end(self, *_: Any) -> None:
        """A forward has returned."""
        if self.seen and not in_backward():
            counts = torch.stack([found for _, _, found in self.seen])
            if several():
                counts = total(counts)
            event = None
            if counts.is_cuda:
                counts = counts.to("cpu", non_blocking=True)
                event = torch.cuda.Event()
                event.record()
            self.coming.append((self.clock.step, [(name, size) for name, size, _ in self.seen], counts, event))
            self.seen = []
        self.read(wait=False)

    def read(self, *, wait: bool) -> None:
        """AnomalyError for the first forward whose counts are there and not all zero."""
        while self.coming:
            step, sites, counts, event = self.coming[0]
            if event is not None and not wait and not several() and not event.query():
                return
            if event is not None:
                event.synchronize()
            self.coming.pop(0)
            bad = [(site, found) for site, found in zip(sites, counts.tolist(), strict=True) if any(found)]
            if bad:
                self.coming = []
                (name, size), (nan, infinite) = bad[0]
                behind = f"; {len(bad) - 1} more site{'s'[: len(bad) != 2]} behind it" if len(bad) > 1 else ""
                ranks = " on all ranks" if several() else ""
                raise AnomalyError(
                    f"'{name}': activations that are not finite reached it in training",
                    got=f"{nan} NaN, {infinite} infinite{ranks} of {size} values in step {step}{behind}",
                    expected="finite values",
                    fix="look at what comes before it: the batch, the layer's weights, the learning rate of the last step",
                )
