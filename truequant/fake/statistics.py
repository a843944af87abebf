"""`statistics`: what every quantizer of a prepared model does, as a value, a table or JSON.

Figures that need values to pass (clipped share and SQNR of activations) come from the batches given. Without batches the
share that was clipped is read from the last observed step, whose extremes are known without another pass; what extremes
cannot tell is None.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from truequant import numerics
from truequant.fake.control import quantizers
from truequant.fake.quantizers import FakeQuantize
from truequant.fake.recording import outermost
from truequant.fake.weights import WeightQuantizer
from truequant.fake.wrapper import QATModuleWrapper
from truequant.planning import arguments_of, items_of, takes_of


@dataclass(frozen=True, slots=True)
class QuantizerStatistics:
    """One quantizer. Lists hold one number for each scale.

    clipped: the share of elements outside the range; sqnr: signal over quantization noise in decibels; weight_error: root
    mean squared error of a weight relative to its root mean square; updates: how often the observed range was committed.
    """

    name: str
    kind: str
    scheme: str
    state: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    updates: int
    clipped: float | None = None
    sqnr: float | None = None
    weight_error: float | None = None


@dataclass(frozen=True, slots=True)
class Statistics:
    """All quantizers of a model, and what stays float with its reason."""

    state: str
    quantizers: tuple[QuantizerStatistics, ...]
    in_float: tuple[tuple[str, str], ...]

    def __getitem__(self, name: str) -> QuantizerStatistics:
        return next(q for q in self.quantizers if q.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        found: dict[str, Any] = json.loads(self.to_json())
        return found

    def to_json(self) -> str:
        """JSON text; numbers that are not finite become null."""
        return json.dumps(_finite(asdict(self)))

    def table(self) -> str:
        """Aligned columns, one row a quantizer."""
        rows = [("quantizer", "scheme", "scale", "zero", "range", "updates", "clipped", "SQNR dB", "weight error")]
        for q in self.quantizers:
            span = f"{min(q.minimum):.4g} … {max(q.maximum):.4g}"
            figures = (_cell(q.clipped, "{:.2%}"), _cell(q.sqnr, "{:.1f}"), _cell(q.weight_error, "{:.2%}"))
            zero = str(q.zero_point[0]) if len(q.zero_point) == 1 else "0"
            rows.append((q.name, q.scheme, _span(q.scale), zero, span, str(q.updates), *figures))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"{name} stays float: {reason}" for name, reason in self.in_float)])

    __str__ = table


@torch.no_grad()
def statistics(
    model: nn.Module, batches: Iterable[Any] | None = None, *, inputs: Callable[[Any], Any] | None = None
) -> Statistics:
    """Statistics of a prepared model, which is left as it was; `StateError` for a float one.

    batches: items as `calibrate` takes them, evaluated once to measure activations; None costs no pass.
    """
    root = outermost(model)
    measured = _measured(root, batches, inputs) if batches is not None else {}
    weights = quantized_weights(root)
    found = []
    for name, quantizer in quantizers(root):
        if isinstance(quantizer, WeightQuantizer):
            found.append(_of_weight(quantizer, weights.get(id(quantizer))))
        else:
            found.append(_of_activation(name, quantizer, measured.get(id(quantizer))))
    plan = root.binding.plan
    left = tuple((s.name, s.reason) for s in plan.in_float()) if plan is not None else ()
    return Statistics(root.binding.clock.state, tuple(found), left)


class _Meter:
    """Sums over what a quantizer sees."""

    def __init__(self) -> None:
        self.elements = self.clipped = 0
        self.signal = self.noise = 0.0

    def add(self, quantizer: FakeQuantize, x: Tensor) -> None:
        scale, zero_point = quantizer.grid(x)
        self.elements += x.numel()
        self.clipped += int(numerics.outside(x, scale, zero_point, quantizer.scheme.qmin, quantizer.scheme.qmax).sum())
        y = numerics.dequantize(quantizer.codes(x), scale, zero_point)
        self.signal += float(x.double().square().sum())
        self.noise += float((x.double() - y.double()).square().sum())

    @property
    def sqnr(self) -> float | None:
        if not self.noise or not self.signal:
            return None
        return float(10 * torch.log10(torch.tensor(self.signal / self.noise, dtype=torch.float64)))


def _measured(root: QATModuleWrapper, batches: Iterable[Any], inputs: Callable[[Any], Any] | None) -> dict[int, _Meter]:
    """Run the batches with weights quantized and activations in float, and measure what reaches each quantizer."""
    meters: dict[int, _Meter] = {}
    takes = takes_of(root.binding.plan)

    def measure(quantizer: FakeQuantize, args: tuple[Tensor, ...]) -> None:
        meters.setdefault(id(quantizer), _Meter()).add(quantizer, args[0])

    with watching(root, measure):
        for item in items_of(batches, "statistics"):
            args, kwargs = arguments_of(item, takes, inputs)
            root(*args, **kwargs)
    return meters


@contextlib.contextmanager
def watching(root: QATModuleWrapper, look: Callable[[FakeQuantize, tuple[Tensor, ...]], None]) -> Iterator[None]:
    """Forwards in evaluation with activations in float: `look` sees what reaches each quantizer, and nothing is observed."""
    handles = []
    modes = {m: m.training for m in root.modules()}
    clock = root.binding.clock
    state = clock.state
    try:
        for module in modes:
            module.training = False
            if isinstance(module, FakeQuantize):
                observing, module.observing = module.observing, False
                handles.append((module, observing, module.register_forward_pre_hook(look)))
        clock.state = "calibrating"
        yield
    finally:
        clock.state = state
        for quantizer, observing, handle in handles:
            quantizer.observing = observing
            handle.remove()
        for module, mode in modes.items():
            module.training = mode


def quantized_weights(root: QATModuleWrapper) -> dict[int, tuple[Tensor, Tensor | None]]:
    """The weight of each weight quantizer, and the factor of its BatchNorm."""
    found: dict[int, tuple[Tensor, Tensor | None]] = {}
    for module in root.modules():
        if not isinstance(module, QATModuleWrapper) or module.binding.leaf is None:
            continue
        for site in module.binding.leaf.values():
            weight = site.own_weight()
            if site.weight is not None and weight is not None:
                found[id(site.weight)] = (weight, site.normalization().factor() if site.folds else None)
    return found


def _of_activation(name: str, q: FakeQuantize, meter: _Meter | None) -> QuantizerStatistics:
    scale, zero_point = q.effective_scale(), q.zero_point
    low, high = numerics.range_of(scale, zero_point, q.scheme)
    clipped = meter.clipped / max(1, meter.elements) if meter is not None else _nothing_clipped(q, low, high)
    return QuantizerStatistics(
        name, "activation", str(q.scheme), _state(q), _floats(scale), tuple(int(z) for z in zero_point.reshape(-1)),
        _floats(low), _floats(high), int(q.observer.updates), clipped, meter.sqnr if meter is not None else None,
    )  # fmt: skip


def _nothing_clipped(q: FakeQuantize, low: Tensor, high: Tensor) -> float | None:
    """0 where the extremes of the last observed step lie inside the range; unknown otherwise."""
    seen_low, seen_high = q.observer.pending_minimum, q.observer.pending_maximum
    if not bool((seen_low <= seen_high).all()):
        return None
    half = q.effective_scale() / 2
    inside = (seen_low >= low - half).all() & (seen_high <= high + half).all()
    return 0.0 if bool(inside) else None


def _of_weight(q: WeightQuantizer, found: tuple[Tensor, Tensor | None] | None) -> QuantizerStatistics:
    error = sqnr = clipped = None
    scale = q.effective_scale()
    if found is not None:
        weight, factor = found
        scale = q.scale_of(weight, factor)
        values = weight.double()
        if q.tied and factor is not None:
            values = values * numerics.along_axis(factor, 0, weight.dim())
        grid = numerics.expand(scale, q.scheme.granularity, tuple(weight.shape)).double()
        codes = torch.round(values / grid)
        if q.scheme.dtype.bits == 1:
            quantized = numerics.binarize(values).double() * grid
        else:
            quantized = torch.clamp(codes, q.scheme.qmin, q.scheme.qmax) * grid
            clipped = float((codes.abs() > q.scheme.qmax).double().mean())
        noise, signal = (values - quantized).square().sum(), values.square().sum()
        error = float((noise / signal).sqrt()) if bool(signal > 0) else 0.0
        sqnr = float(10 * torch.log10(signal / noise)) if bool((noise > 0) & (signal > 0)) else None
    low, high = numerics.range_of(scale, q.zero_point, q.scheme)
    return QuantizerStatistics(
        q.name, "weight", str(q.scheme), _state(q), _floats(scale), (0,), _floats(low), _floats(high), 0, clipped, sqnr, error
    )


def _state(q: FakeQuantize | WeightQuantizer) -> str:
    if not q.is_calibrated:
        return "uncalibrated"
    return "learned" if q.shift is not None else q.clock.state


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(float(v) for v in values.detach().reshape(-1))


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _span(values: tuple[float, ...]) -> str:
    return f"{values[0]:.4g}" if len(values) == 1 else f"{min(values):.4g} … {max(values):.4g}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if (isinstance(value, float) and value != value) or value in (float("inf"), float("-inf")):
        return None
    return value
