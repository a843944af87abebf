"""`sensitivity`: what quantizing each tensor alone costs, and what leaving it alone in float gains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from truequant.calibration import Bars, quantizing, simulated
from truequant.errors import ArgumentError, CalibrationError
from truequant.fake import FakeQuantize, WeightQuantizer, outermost, quantizers
from truequant.planning import arguments_of, items_of, takes_of, tensors_of

Metric = Callable[[Any, Any], float]
"""From what the model returned and the item of the batches it belongs to, to a loss: lower is better."""
Quantizer = FakeQuantize | WeightQuantizer


@dataclass(frozen=True, slots=True)
class SiteSensitivity:
    """One quantizer. only: the loss with it alone; all_but: the loss with all others."""

    name: str
    kind: str
    scheme: str
    only: float
    all_but: float


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Losses of the float model, of the quantized one, and of each quantizer alone and left out."""

    floating: float
    quantized: float
    sites: tuple[SiteSensitivity, ...]

    def __getitem__(self, name: str) -> SiteSensitivity:
        return next(site for site in self.sites if site.name == name)

    def ranking(self) -> tuple[SiteSensitivity, ...]:
        """The sites, the most sensitive first: by the loss with each alone."""
        return tuple(sorted(self.sites, key=lambda site: -site.only))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [("quantizer", "kind", "scheme", "only this", "all but this")]
        rows += [(s.name, s.kind, s.scheme, f"{s.only:.4g}", f"{s.all_but:.4g}") for s in self.ranking()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, f"float {self.floating:.4g}, quantized {self.quantized:.4g}"])


def sensitivity(
    model: nn.Module,
    batches: Iterable[Any],
    metric: Metric | None = None,
    *,
    inputs: Callable[[Any], Any] | None = None,
    progress: bool | None = None,
) -> Sensitivity:
    """Measure each quantizer of a prepared, calibrated model alone, and all others without it. The model stays as it is.

    Runs on floats with fake quantization, in evaluation of BatchNorm and dropout: 2 passes over `batches` for each quantizer.

    batches: items as `calibrate` takes them. metric: `metric(outputs, item)`, a loss, averaged over the items; left out, the
        squared difference from the float model's outputs relative to their squares, which needs no labels.
    progress: a bar on stderr; by default where that is a terminal.
    Raises `CalibrationError` for a range never observed, `ArgumentError` for no batches or a metric that is no number.

    >>> import truequant as tq
    >>> x = torch.randn(8, 4)
    >>> qat = tq.calibrate(tq.prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), x, "w2a2-all"), [x])
    >>> found = sensitivity(qat, [x])
    >>> len(found.sites), found.floating
    (5, 0.0)
    """
    measure = Measurement(model, batches, metric, inputs)
    sites = []
    with Bars(progress) as bars:
        for quantizer in bars.track(measure.quantizers, "sensitivity"):
            kind = "weight" if isinstance(quantizer, WeightQuantizer) else "activation"
            only = measure.loss([quantizer])
            all_but = measure.loss([q for q in measure.quantizers if q is not quantizer])
            sites.append(SiteSensitivity(quantizer.name, kind, str(quantizer.scheme), only, all_but))
    return Sensitivity(measure.loss([]), measure.loss(measure.quantizers), tuple(sites))


class Measurement:
    """Losses of a prepared model with some of its quantizers on."""

    def __init__(
        self, model: nn.Module, batches: Iterable[Any], metric: Metric | None, inputs: Callable[[Any], Any] | None
    ) -> None:
        self.model: Any = outermost(model)
        self.metric = metric
        plan = self.model.binding.plan
        takes = takes_of(plan)
        self.items = [(item, *arguments_of(item, takes, inputs)) for item in items_of(batches, "sensitivity")]
        if not self.items:
            raise ArgumentError(
                "sensitivity: there were no batches", expected="at least one item", fix="pass a list, or a fresh loader"
            )
        self.quantizers: list[Quantizer] = [q for _, q in quantizers(model)]
        for quantizer in self.quantizers:
            if isinstance(quantizer, FakeQuantize) and not quantizer.is_calibrated:
                raise CalibrationError(f"'{quantizer.name}' has no range", fix="tq.calibrate(model, batches) comes first")
        self._values = {quantizer: quantizing(quantizer) for quantizer in self.quantizers}
        self._floats = [self._outputs(args, kwargs, []) for _, args, kwargs in self.items] if metric is None else []

    @torch.no_grad()
    def _outputs(self, args: Any, kwargs: Any, on: Sequence[Quantizer]) -> Any:
        with simulated(self.model, self.model.binding.clock, {q: self._values[q] for q in on}):
            return self.model(*args, **kwargs)

    def loss(self, on: Sequence[Quantizer]) -> float:
        """The metric with these quantizers on, averaged over the items."""
        total = 0.0
        for position, (item, args, kwargs) in enumerate(self.items):
            outputs = self._outputs(args, kwargs, on)
            if self.metric is None:
                total += relative_error(tensors_of(outputs), tensors_of(self._floats[position]))
            else:
                total += _number(self.metric(outputs, item))
        return total / len(self.items)


def relative_error(outputs: Sequence[Tensor], floats: Sequence[Tensor]) -> float:
    """`sum (y - f)^2 / sum f^2` over all outputs, float64."""
    error = sum(float((y.double() - f.double()).square().sum()) for y, f in zip(outputs, floats, strict=True))
    power = sum(float(f.double().square().sum()) for f in floats)
    return error / power if power > 0 else error


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError("metric: not a number", got=repr(value)[:200], expected="a float, lower being better") from error
    if number != number:
        raise ArgumentError("metric: not a number", got="nan", expected="a float, lower being better")
    return number
