"""`ActivationObserver`: the range of what passes, by the strategy of its scheme."""

from __future__ import annotations

import torch
from torch import Tensor

from truequant import numerics
from truequant.errors import ArgumentError
from truequant.observers import histogram, ranks, search
from truequant.observers.minmax import finite_range, grouped, moved
from truequant.observers.precision import Float32State
from truequant.schemes import MSE, Dynamic, Entropy, Histogram, MinMax, MovingAverage, Percentile, PerTensor, QuantScheme


class ActivationObserver(Float32State):
    """Observes in two steps: `observe` merges into what is pending, `commit` lets it take effect.

    scheme: its `observer` is the strategy, its granularity the shape of the state: `()`, `(channels,)`, or that of groups.
    channels: the number of scales of a per-channel scheme, or the shape of per-group ones.

    Where several processes train together, a histogram counts what all of them saw, and `merge_ranks` widens what is pending
    to the ranges of all. Non-finite values never enter the state. Buffers have their final shape from construction on.
    """

    minimum: Tensor
    maximum: Tensor
    pending_minimum: Tensor
    pending_maximum: Tensor
    updates: Tensor
    counts: Tensor
    exponent: Tensor

    def __init__(self, scheme: QuantScheme, channels: int | tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.scheme = scheme
        if isinstance(scheme.observer, Dynamic):
            raise ArgumentError(
                "a range found anew for each token is not observed", got=str(scheme.observer), expected="another strategy",
                fix="tq.prepare with QConfig.preset('w8a8-dynamic'), which quantizes what linear layers read",
            )  # fmt: skip
        if isinstance(scheme.granularity, PerTensor):
            shape: tuple[int, ...] = ()
        elif channels is None:
            raise ArgumentError(
                f"{scheme.granularity} needs to know how many scales there are",
                got="channels=None",
                expected="the number of channels",
                fix="channels=…",
            )
        else:
            shape = (channels,) if isinstance(channels, int) else tuple(channels)
        self.register_buffer("minimum", torch.zeros(shape))
        self.register_buffer("maximum", torch.zeros(shape))
        self.register_buffer("pending_minimum", torch.full(shape, torch.inf))
        self.register_buffer("pending_maximum", torch.full(shape, -torch.inf))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        if not self.minmax_only:
            rows, bins = self.minimum.numel(), self._bins()
            self.register_buffer("counts", torch.zeros(rows, 2 * bins, dtype=torch.int64))
            self.register_buffer("exponent", torch.full((rows,), histogram.LOWEST_EXPONENT, dtype=torch.int64))

    @property
    def minmax_only(self) -> bool:
        """Whether minimum and maximum are all that the strategy needs."""
        return isinstance(self.scheme.observer, (MinMax, MovingAverage))

    def _bins(self) -> int:
        strategy = self.scheme.observer
        assert isinstance(strategy, (Histogram, Percentile, MSE, Entropy))
        return strategy.bins

    def forward(self, x: Tensor) -> Tensor:
        """Observe in training; `x` itself."""
        if self.training:
            self.observe(x)
        return x

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Merge `x` into what is pending."""
        if not self.minmax_only:
            rows = grouped(x.detach(), self.scheme.granularity).float()
            rows = torch.where(torch.isfinite(rows), rows, torch.nan)
            self._observe_histogram(rows.reshape(self.minimum.numel(), -1))
            x = torch.nan_to_num(x.detach().float(), 0.0, 0.0, 0.0)
        self.merge(*finite_range(x.detach(), self.scheme.granularity))

    def _observe_histogram(self, rows: Tensor) -> None:
        if rows.shape[1] == 0:
            return
        bins = self._bins()
        reach = torch.nan_to_num(rows, 0.0).abs().amax(1)
        if self.training:
            reach = ranks.greatest(reach)
        wider = torch.maximum(self.exponent, histogram.exponent_for(reach, bins))
        counts = histogram.widened(self.counts, self.exponent, wider)
        seen = histogram.count(rows, wider, bins)
        self.counts.copy_(counts + (ranks.total(seen) if self.training else seen))
        self.exponent.copy_(wider)

    @torch.no_grad()
    def merge(self, minimum: Tensor, maximum: Tensor) -> None:
        """What `observe` does, from a minimum and a maximum that a fused kernel found; `+inf, -inf` for none."""
        self.pending_minimum.copy_(torch.minimum(self.pending_minimum, minimum))
        self.pending_maximum.copy_(torch.maximum(self.pending_maximum, maximum))

    def merge_ranks(self) -> None:
        """Widen what is pending to what all ranks have pending."""
        ranks.widest([self.pending_minimum], [self.pending_maximum])

    @torch.no_grad()
    def settle(self) -> None:
        """Let what is pending be the range for now, and stay pending: the step that sets the first range is not over."""
        there = self.pending_minimum <= self.pending_maximum
        self.minimum.copy_(torch.where(there, self.pending_minimum, self.minimum))
        self.maximum.copy_(torch.where(there, self.pending_maximum, self.maximum))

    def known(self) -> Tensor:
        """Where there is a range, bool of the shape of the scales."""
        return (self.updates > 0) | (self.pending_minimum <= self.pending_maximum)

    @torch.no_grad()
    def commit(self) -> None:
        """Fold what is pending into the state; nothing pending changes nothing."""
        low, high = self.pending_minimum, self.pending_maximum
        there = low <= high
        first = (self.updates == 0) | (self.minimum > self.maximum)
        strategy = self.scheme.observer
        if isinstance(strategy, MovingAverage):
            new_low = moved(strategy.momentum, self.minimum, low, first)
            new_high = moved(strategy.momentum, self.maximum, high, first)
        else:
            new_low = torch.where(first, low, torch.minimum(self.minimum, low))
            new_high = torch.where(first, high, torch.maximum(self.maximum, high))
        self.minimum.copy_(torch.where(there, new_low, self.minimum))
        self.maximum.copy_(torch.where(there, new_high, self.maximum))
        self.updates.add_(there.any())
        self.pending_minimum.fill_(torch.inf)
        self.pending_maximum.fill_(-torch.inf)

    @torch.no_grad()
    def range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of the range that the strategy chooses, float32."""
        if self.minmax_only:
            return self.minimum, self.maximum
        middle = histogram.centers(self.exponent, self._bins())
        low, high = self.minimum.reshape(-1), self.maximum.reshape(-1)
        match self.scheme.observer:
            case Percentile(percent):
                found = search.percentile(self.counts, middle, low, high, percent)
            case MSE(_, candidates):
                found = search.least_error(self.counts, middle, low, high, self.scheme, candidates)
            case Entropy():
                found = search.least_divergence(self.counts, middle, low, high, self.scheme)
            case _:
                found = search.least_error(self.counts, middle, low, high, self.scheme, 64)
        return found[0].reshape(self.minimum.shape), found[1].reshape(self.maximum.shape)

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the range, float32."""
        return numerics.scale_and_zero_point(*self.range(), self.scheme)

    @torch.no_grad()
    def reset(self) -> None:
        """Forget everything."""
        for buffer in (self.minimum, self.maximum, self.updates):
            buffer.zero_()
        self.pending_minimum.fill_(torch.inf)
        self.pending_maximum.fill_(-torch.inf)
        if not self.minmax_only:
            self.counts.zero_()
            self.exponent.fill_(histogram.LOWEST_EXPONENT)
