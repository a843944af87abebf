"""`FakeQuantize` for activations and `WeightQuantizer` for weights: values on a grid, gradients straight through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from truequant import kernels, numerics
from truequant.errors import ArgumentError, CalibrationError
from truequant.fake.clock import Clock, in_backward, local
from truequant.observers import ActivationObserver, weight_range
from truequant.schemes import LSQ, PerTensor, QuantScheme

Shape = tuple[int, ...]


def _shape(scheme: QuantScheme, channels: int | Shape | None) -> Shape:
    if isinstance(scheme.granularity, PerTensor):
        return ()
    if channels is None:
        raise ArgumentError(
            f"{scheme.granularity} needs to know how many scales there are",
            got="channels=None",
            expected="the number of channels",
            fix="channels=…",
        )
    return (channels,) if isinstance(channels, int) else tuple(channels)


class _Grid(nn.Module):
    """Scale and zero point: float32 whatever the model's dtype, of final shape from construction on.

    A learned scale is `scale * f(shift)` with a parameter `shift` that starts at 0, f(t) = 1 + t for t >= 0 and exp(t) below:
    positive by construction, LSQ's own update where it starts, and weight decay only pulls it back to its initial value.
    """

    scale: Tensor
    zero_point: Tensor
    calibrated: Tensor
    _calibrated: bool

    def __init__(self, scheme: QuantScheme, channels: int | Shape | None) -> None:
        super().__init__()
        self.scheme = scheme
        self.name = ""
        shape = _shape(scheme, channels)
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("zero_point", torch.zeros(shape))
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))
        self._calibrated = False
        self.shift = nn.Parameter(torch.zeros(shape)) if scheme.learned else None
        self.quantizing = True

    def effective_scale(self) -> Tensor:
        """The scale in force, float32."""
        if self.shift is None:
            return self.scale
        t = self.shift.float()
        return torch.clamp(
            self.scale * torch.where(t < 0, torch.exp(torch.clamp(t, max=0.0)), 1.0 + t), numerics.MIN_SCALE, numerics.MAX_SCALE
        )

    @property
    def is_calibrated(self) -> bool:
        """Whether the range was ever set."""
        if not self._calibrated and not self.calibrated.is_meta:
            self._calibrated = bool(self.calibrated)  # buffers may be copied here: averaged weights, DDP's broadcast
        return self._calibrated

    def _set(self, scale: Tensor, zero_point: Tensor) -> None:
        with torch.no_grad():
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)
            if not self._calibrated:
                self.calibrated.fill_(True)
                self._calibrated = True

    def _trainable_scale(self, elements: int) -> Tensor:
        """The scale in force, whose gradient is LSQ's: times 1 / sqrt(N * qmax), N the elements that share a scale.

        A step of `shift` moves the scale by `initial * step`: dividing by the initial scale twice makes it LSQ's own step.
        """
        rule = self.scheme.scale
        assert isinstance(rule, LSQ)
        factor = rule.gradient_scale / float(max(1, elements) * max(1, self.scheme.qmax)) ** 0.5
        gain = factor / (self.scale * self.scale)
        result: Tensor = _ScaleGradient.apply(self.effective_scale(), gain)  # type: ignore[no-untyped-call]
        return result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {k: b for k, b in self._buffers.items() if b is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for key, buffer in before.items():
            moved = self._buffers[key]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[key] = buffer.to(moved.device)
        return self

    def reset(self) -> None:
        """As constructed: no range."""
        with torch.no_grad():
            self.scale.fill_(1.0)
            for tensor in (self.zero_point, self.calibrated, self.shift):
                if tensor is not None:
                    tensor.zero_()
        self._calibrated = False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._calibrated = bool(self.calibrated)

    def extra_repr(self) -> str:
        return f"{self.scheme}" + ("" if self._calibrated else ", not calibrated")


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return scale.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None


class FakeQuantize(_Grid):
    """Fake-quantize activations: `y = (clamp(rint(x / s) + z, qmin, qmax) - z) * s`, gradient straight through.

    In `train()` it observes what passes (`observing`) and quantizes (`quantizing`); the two switches are independent. The
    first batch sets the range at once, later ones take effect at the next step. In `eval()` nothing is written, NaN becomes
    code 0, and the result is float32.

    channels: the number of scales of a per-channel scheme, or the shape of per-group ones.
    Raises `CalibrationError` when it must quantize with a range that was never observed.

    >>> import torch
    >>> from truequant.schemes import QuantScheme, uint8
    >>> quantizer = FakeQuantize(QuantScheme(uint8))
    >>> quantizer(torch.tensor([0.0, 0.3, 2.55])).tolist()
    [0.0, 0.29999998211860657, 2.549999952316284]
    """

    def __init__(self, scheme: QuantScheme, channels: int | Shape | None = None) -> None:
        super().__init__(scheme, channels)
        self.observer = ActivationObserver(scheme, channels)
        self.observing = True
        self.clock = Clock()
        self.owns_clock = True
        self._seen_step = -1

    def forward(self, x: Tensor) -> Tensor:
        clock = self.clock
        if not clock.enabled:
            return x
        observes = (self.training or clock.calibrating) and not in_backward()
        if observes:
            if self.owns_clock:
                clock.begin()
            self._observe(x.detach())
        if clock.calibrating or not self.quantizing:
            return x
        y = self.quantize(x)
        if observes and self.owns_clock:
            clock.watch(y)
        return y

    def quantize(self, x: Tensor) -> Tensor:
        """Fake-quantize with the scale in force; observe nothing."""
        if not self.is_calibrated:
            raise CalibrationError(
                f"'{self.name or 'FakeQuantize'}' has no range: it has observed nothing yet",
                fix="tq.calibrate(model, batches), or a forward in train() mode, before evaluating or converting",
            )
        scheme, identity = self.scheme, self.scheme.gradient == "identity"
        if self.shift is not None and torch.is_grad_enabled():
            features = x.numel() // max(1, x.shape[0] if x.dim() else 1)
            scale, zero_point = self.grid(x, self._trainable_scale(features // max(1, self.scale.numel())))
            return kernels.fake_quantize_learned(
                x if self.training else x.float(), scale, zero_point, scheme.qmin, scheme.qmax, factor=1.0
            )
        scale, zero_point = self.grid(x)
        if self.training:
            return kernels.fake_quantize(x, scale, zero_point, scheme.qmin, scheme.qmax, identity=identity)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return numerics.dequantize(self.codes(x), scale, zero_point)
        y = kernels.fake_quantize(x.float(), scale, zero_point, scheme.qmin, scheme.qmax, identity=identity)
        return torch.where(torch.isnan(x), numerics.dequantize(self.codes(x), scale, zero_point), y)

    def codes(self, x: Tensor) -> Tensor:
        """Codes of `x`, float32."""
        scale, zero_point = self.grid(x)
        return numerics.quantize(x, scale, zero_point, self.scheme.qmin, self.scheme.qmax)

    def grid(self, x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale (the one in force, by default) and zero point in a shape that broadcasts against `x`."""
        scale = self.effective_scale() if scale is None else scale
        if scale.dim() == 0:
            return scale, self.zero_point
        granularity, shape = self.scheme.granularity, tuple(x.shape)
        return numerics.expand(scale, granularity, shape), numerics.expand(self.zero_point, granularity, shape)

    def _observe(self, x: Tensor) -> None:
        learned = self.shift is not None and self._calibrated and not self.clock.calibrating
        if not self.observing or self.clock.state == "frozen" or learned:
            return
        if torch.compiler.is_compiling():
            if self._calibrated and (self.owns_clock or id(self) not in local.committed):
                self.commit()
            local.committed.add(id(self))
        elif self._seen_step != self.clock.step:
            self._seen_step = self.clock.step
            if self._calibrated:
                self.commit()
        self.observer.observe(x)
        if not self._calibrated and x.numel():
            if self.training and not torch.compiler.is_compiling():
                self.observer.merge_ranks()
            self.commit()

    def reset(self) -> None:
        """As constructed: nothing observed, no range."""
        super().reset()
        self.observer.reset()
        self._seen_step = -1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._seen_step = -1  # what is loaded as pending belongs to a step before the next, whatever the clock says then

    def commit(self) -> None:
        """Let what was observed take effect now."""
        with torch.no_grad():
            self.observer.commit()
            known = self.observer.updates > 0
            scale, zero_point = self.observer.qparams()
            self._set(torch.where(known, scale, self.scale), torch.where(known, zero_point, self.zero_point))
            if self.shift is not None:
                self.shift.zero_()

    def train(self, mode: bool = True) -> FakeQuantize:
        """`eval()` commits what is pending."""
        if (
            not mode
            and self.training
            and self._calibrated
            and self.clock.state == "training"
            and self.shift is None
            and self.observing
        ):
            self.commit()
        return super().train(mode)


class WeightQuantizer(_Grid):
    """Fake-quantize a weight whose range is read from the weight itself in every forward, or learned, or held, or frozen.

    tied: the scale belongs to the weight with the factor of its BatchNorm in it; the codes are those of `w * f`.
    """

    held: Tensor

    def __init__(self, scheme: QuantScheme, channels: int | Shape | None = None, *, tied: bool = False) -> None:
        super().__init__(scheme, channels)
        self.tied = tied
        self.clock = Clock()
        self.register_buffer("held", torch.zeros((), dtype=torch.bool))
        self.is_held = False

    def hold(self, scale: Tensor) -> None:
        """Keep `scale` from now on, so that codes that were chosen for it stay. A learned scale starts there."""
        self._set(scale, self.zero_point)
        if self.shift is not None:
            with torch.no_grad():
                self.shift.zero_()
        self.held.fill_(True)
        self.is_held = True

    def release(self) -> None:
        """Let the range be read from the weight again."""
        self.held.zero_()
        self.is_held = False

    def reset(self) -> None:
        """As constructed: no range, none held."""
        super().reset()
        self.release()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_held = bool(self.held)

    def scale_of(self, weight: Tensor, factor: Tensor | None = None) -> Tensor:
        """The scale in force for this weight, `(C,)` or `()`: of the folded weight where it is tied."""
        if self.shift is not None or self.is_held or self.clock.state == "frozen":
            return self.effective_scale()
        return self._range_scale(weight.detach(), factor)

    def _range_scale(self, weight: Tensor, factor: Tensor | None) -> Tensor:
        if self.tied and factor is not None:
            weight = weight.double() * numerics.along_axis(factor, 0, weight.dim())
        low, high = weight_range(weight.float(), self.scheme)
        return numerics.scale_and_zero_point(low, high, self.scheme)[0]

    @torch.no_grad()
    def codes(self, weight: Tensor, factor: Tensor | None = None) -> Tensor:
        """Integer codes of `weight` (of `w * f` where the scale is tied), float32."""
        scale = numerics.expand(self.scale_of(weight, factor), self.scheme.granularity, tuple(weight.shape))
        values = weight.float()
        if self.tied and factor is not None:
            values = (weight.double() * numerics.along_axis(factor, 0, weight.dim())).float()
        if self.scheme.dtype.bits == 1:
            return numerics.binarize(values)
        return numerics.quantize(values, scale, torch.zeros_like(scale), self.scheme.qmin, self.scheme.qmax)

    def initialize(self, weight: Tensor, factor: Tensor | None = None) -> None:
        """Set the range from the weight."""
        with torch.no_grad():
            self._set(self._range_scale(weight.detach(), factor), self.zero_point)
            if self.shift is not None:
                self.shift.zero_()

    def forward(self, weight: Tensor, factor: Tensor | None = None) -> Tensor:
        """`weight` on its grid, of its own shape and dtype. `factor`: `gamma / sigma` of a tied scale, float64 `(C,)`."""
        if not self.clock.enabled:
            return weight
        if not self._calibrated:  # the weight of a function call, which is seen for the first time here
            self.initialize(weight, factor)
        if not self.quantizing or self.clock.calibrating:
            return weight
        scheme, identity = self.scheme, self.scheme.gradient == "identity"
        learning = self.shift is not None and torch.is_grad_enabled()
        scale = (
            self._trainable_scale(weight.numel() // max(1, self.scale.numel())) if learning else self.scale_of(weight, factor)
        )
        if self.shift is None and self.training and not self.is_held and self.clock.state != "frozen":
            self._set(scale.detach(), self.zero_point)
        if self.tied and factor is not None:
            # The codes of w * f on the grid `scale` are those of w on the grid scale / |f|; where f vanishes they are all 0.
            scale = scale / torch.clamp(factor.abs().float(), min=numerics.MIN_SCALE)
            scale = numerics.along_axis(scale, 0, weight.dim())
        else:
            scale = numerics.expand(scale, scheme.granularity, tuple(weight.shape))
        if scheme.dtype.bits == 1:
            return kernels.fake_binarize(weight, scale, identity=identity)
        zero = torch.zeros_like(scale)
        if learning:
            return kernels.fake_quantize_learned(weight, scale, zero, scheme.qmin, scheme.qmax, factor=1.0)
        return kernels.fake_quantize(weight, scale, zero, scheme.qmin, scheme.qmax, identity=identity)
