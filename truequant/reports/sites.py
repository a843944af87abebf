"""What a report shows of every quantizer: its values against its grid, its channels, its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from truequant.fake import FakeQuantize, WeightQuantizer, outermost, quantized_weights, quantizers, statistics, watching
from truequant.fake.statistics import QuantizerStatistics
from truequant.planning import arguments_of, takes_of

BINS = 128
BEYOND = 0.25
"""How far a histogram reaches beyond the range on either side, as a share of the range; what lies farther is in its ends."""
CHANNELS = 256
"""Channels that are drawn one by one; of more, every n-th."""


class _Counts:
    """A histogram over fixed edges around a quantizer's range."""

    def __init__(self, low: float, high: float) -> None:
        reach = max(high - low, 1e-30)
        self.low, self.high = low - BEYOND * reach, high + BEYOND * reach
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        values = x.detach().float().reshape(-1)
        values = values[torch.isfinite(values)].clamp(self.low, self.high)
        self.counts += torch.histc(values, BINS, self.low, self.high).double().cpu()

    def to_dict(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "counts": [int(c) for c in self.counts]}


@torch.no_grad()
def site_pages(
    model: nn.Module, batches: Iterable[Any] | None, inputs: Callable[[Any], Any] | None = None
) -> list[dict[str, Any]]:
    """One record a quantizer, in order of the model. `batches` are evaluated once more than their number; None draws weights
    alone.
    """
    root = outermost(model)
    items = None if batches is None else list(batches)
    figures = {q.name: q for q in statistics(root, items, inputs=inputs).quantizers}
    counts = _observed(root, items, inputs, figures) if items else {}
    weights = quantized_weights(root)
    pages = []
    for name, quantizer in quantizers(root):
        page = _page(figures[name], quantizer)
        if name in counts:
            page["histogram"] = counts[name].to_dict()
        if isinstance(quantizer, WeightQuantizer) and id(quantizer) in weights:
            page |= _weight(figures[name], weights[id(quantizer)][0])
        pages.append(page)
    return pages


def _page(figures: QuantizerStatistics, quantizer: FakeQuantize | WeightQuantizer) -> dict[str, Any]:
    scheme = quantizer.scheme
    return {
        "name": figures.name, "kind": figures.kind, "scheme": figures.scheme, "state": figures.state,
        "scale": _few(figures.scale), "zero_point": _few(figures.zero_point), "minimum": min(figures.minimum, default=None),
        "maximum": max(figures.maximum, default=None), "qmin": scheme.qmin, "qmax": scheme.qmax, "bits": scheme.dtype.bits,
        "clipped": figures.clipped, "sqnr": figures.sqnr, "error": figures.weight_error, "updates": figures.updates,
    }  # fmt: skip


def _few(values: tuple[Any, ...]) -> list[Any]:
    step = max(1, -(-len(values) // CHANNELS))
    return list(values[::step])


def _weight(figures: QuantizerStatistics, weight: Tensor) -> dict[str, Any]:
    """Histogram of all values, smallest and largest of each channel."""
    counts = _Counts(min(figures.minimum), max(figures.maximum))
    counts.add(weight)
    rows = weight.detach().float().flatten(1) if weight.dim() > 1 else weight.detach().float()[:, None]
    rows = rows[:: max(1, -(-len(rows) // CHANNELS))]
    low, high = torch.aminmax(rows, dim=1)
    return {"histogram": counts.to_dict(), "channels": {"low": low.tolist(), "high": high.tolist()}}


def _observed(
    root: Any, items: list[Any], inputs: Callable[[Any], Any] | None, figures: dict[str, QuantizerStatistics]
) -> dict[str, _Counts]:
    """Histograms of what reaches each activation quantizer, with weights quantized and activations in float."""
    names = {id(q): name for name, q in quantizers(root)}
    counts: dict[str, _Counts] = {}

    def look(quantizer: FakeQuantize, args: tuple[Tensor, ...]) -> None:
        name = names[id(quantizer)]
        if name not in counts:
            counts[name] = _Counts(min(figures[name].minimum), max(figures[name].maximum))
        counts[name].add(args[0])

    takes = takes_of(root.binding.plan)
    with watching(root, look):
        for item in items:
            args, kwargs = arguments_of(item, takes, inputs)
            root(*args, **kwargs)
    return counts
