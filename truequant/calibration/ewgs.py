"""EWGS: delta from the curvature of the loss (Lee, Kim and Ham 2021, as `update_grad_scales` of the authors' code has it)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from truequant import numerics
from truequant.calibration.simulation import quantizing, simulated
from truequant.errors import ArgumentError
from truequant.fake import FakeQuantize, WeightQuantizer, has_delta, outermost, quantizers, set_delta
from truequant.planning import arguments_of, takes_of

Quantizer = FakeQuantize | WeightQuantizer


def update_ewgs(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Tensor],
    *,
    inputs: Callable[[Any], Any] | None = None,
    samples: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """Set the delta of every quantizer whose rounding is `EWGS()` from the Hessian of the loss, and return them by name.

        delta = max(0, mean over batches of  (Tr(H) / n) / (3 std(g)))

    of a tensor of n discrete values in units of its whole range, `u = y / (s (qmax - qmin))`: g = dL/du, H = d2L/du2, its
    trace by Hutchinson's estimate, E[v' H v] with v of -1 and +1. The authors' code takes 3 batches, again every 10 epochs
    (CIFAR-10) or every epoch (ImageNet). The model is in evaluation meanwhile, the gradient of every rounding straight through;
    nothing but the deltas is changed, and they are part of the `state_dict`.

    loss: `loss(outputs, item)`, a scalar. inputs: what of an item the model takes; by default the x of an `(x, y)` item.
    samples: how many v a batch. Raises `ArgumentError` for no batches and for a model without EWGS.

    >>> import torch, truequant as tq
    >>> scheme = tq.QuantScheme(tq.types.int4, tq.PerChannel(0), scale=tq.scales.LSQ(), rounding=tq.rounding.EWGS())
    >>> x, y = torch.randn(8, 4), torch.randn(8, 2)
    >>> qat = tq.calibrate(tq.prepare(nn.Sequential(nn.Linear(4, 2)), x, tq.QConfig(weight=scheme)), [x])
    >>> list(update_ewgs(qat, [(x, y)], lambda outputs, item: (outputs - item[1]).square().mean()))
    ['0.weight']
    """
    root = outermost(model)
    takes = takes_of(root.binding.plan)
    found = [(name, q) for name, q in quantizers(model) if has_delta(q)]
    if not found:
        raise ArgumentError("update_ewgs: no quantizer scales gradients", fix="QuantScheme(…, rounding=EWGS())")
    generator = torch.Generator().manual_seed(seed)
    sums, seen = dict.fromkeys((name for name, _ in found), 0.0), 0
    for item in batches:
        args, kwargs = arguments_of(item, takes, inputs)
        with _watched(root, root.binding.clock) as watch:
            value = loss(model(*args, **kwargs), item)
            for name, quantizer in found:
                sums[name] += watch.ratio(value, quantizer, samples, generator)
        seen += 1
    if seen == 0:
        raise ArgumentError("update_ewgs: there were no batches", expected="at least one item")
    deltas = {name: max(0.0, total / seen) for name, total in sums.items()}
    for name, quantizer in found:
        set_delta(quantizer, deltas[name])
    return deltas


@dataclass(eq=False)
class _Watch:
    """What each quantizer returned in one forward, and the range of its codes in values: `s (qmax - qmin)`."""

    results: dict[nn.Module, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def ratio(self, loss: Tensor, quantizer: Quantizer, samples: int, generator: torch.Generator) -> float:
        """`(Tr(H) / n) / (3 std(g))` of one batch; 0 where nothing depends on the quantizer."""
        pairs = self.results.get(quantizer, [])
        values = [y for y, _ in pairs]
        if not values:
            return 0.0
        grads = torch.autograd.grad(loss, values, create_graph=True, allow_unused=True)
        kept = [(y, r, g) for (y, r), g in zip(pairs, grads, strict=True) if g is not None]
        if not kept:
            return 0.0
        spread = torch.cat([(g.detach() * r).flatten() for _, r, g in kept]).double()
        deviation = float(spread.std()) if spread.numel() > 1 else 0.0
        if not deviation > 0:
            return 0.0
        trace = sum(self._sample(kept, generator) for _ in range(samples)) / samples
        return trace / spread.numel() / (3.0 * deviation)

    @staticmethod
    def _sample(kept: list[tuple[Tensor, Tensor, Tensor]], generator: torch.Generator) -> float:
        """`v' H v` for one v."""
        signs = [(torch.randint(0, 2, g.shape, generator=generator) * 2 - 1).to(g) * r for _, r, g in kept]
        product = sum((g * v).sum() for (_, _, g), v in zip(kept, signs, strict=True))
        if not isinstance(product, Tensor) or not product.requires_grad:  # a loss that is linear here has no curvature
            return 0.0
        second = torch.autograd.grad(product, [y for y, _, _ in kept], retain_graph=True, allow_unused=True)
        return sum(float((h.double() * v).sum()) for h, v in zip(second, signs, strict=True) if h is not None)


@contextlib.contextmanager
def _watched(model: nn.Module, clock: Any) -> Iterator[_Watch]:
    """Quantizers whose results can be differentiated twice: their values, with the slope 1 where nothing is clipped."""
    watch = _Watch()
    replaced: dict[nn.Module, Callable[..., Tensor]] = {
        q: _twice(q, watch if has_delta(q) else None) for _, q in quantizers(model)
    }
    with simulated(model, clock, replaced):
        yield watch


def _twice(quantizer: Quantizer, watch: _Watch | None) -> Callable[..., Tensor]:
    quantized = quantizing(quantizer)
    scheme = quantizer.scheme

    def forward(x: Tensor, factor: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            if isinstance(quantizer, WeightQuantizer):
                y, scale = quantized(x.detach(), factor), quantizer.scale_of(x, factor)
            else:
                y, scale = quantized(x.detach()), quantizer.effective_scale()
            scale = numerics.expand(scale, scheme.granularity, tuple(x.shape))
            if factor is not None and isinstance(quantizer, WeightQuantizer) and quantizer.tied:
                size = torch.clamp(factor.abs().float(), min=numerics.MIN_SCALE)
                scale = numerics.along_axis(scale.reshape(-1), 0, x.dim()) / numerics.along_axis(size, 0, x.dim())
            zero = numerics.expand(quantizer.zero_point, scheme.granularity, tuple(x.shape))
            low, high = (scheme.qmin - zero) * scale, (scheme.qmax - zero) * scale
            inside = (x > low) & (x < high)
        result = y.to(x.dtype) + torch.where(inside, x - x.detach(), 0.0)
        if watch is not None:
            if not result.requires_grad:
                result.requires_grad_()
            watch.results.setdefault(quantizer, []).append((result, scale * (scheme.qmax - scheme.qmin)))
        return result

    return forward
