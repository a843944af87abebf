"""`WeightQuantizer`: a weight on a grid whose scale is read from the weight, or searched and held, or learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from truequant import kernels, numerics
from truequant.fake.algorithms import fake_of
from truequant.fake.algorithms.freezing import Oscillation
from truequant.fake.clock import Clock, in_backward
from truequant.fake.compiled import compiled_scheme
from truequant.fake.grid import Grid, Shape
from truequant.fake.searched import Searched, is_searched
from truequant.fake.steps import IN_FORCE, OBSERVES, Step, is_hooked
from truequant.fake.unused_scales import with_zero_gradients
from truequant.observers import weight_range
from truequant.schemes import Entropy, MinMax, MovingAverage, PerChannel, PerGroup, PerTensor, QuantScheme


class WeightQuantizer(Grid):
    """Fake-quantize a weight whose range is read from the weight itself in every forward, or learned, or held, or frozen.

    A range that is searched (`MSE`, `Histogram`, `Percentile`) is held from the first quantized forward in training on: that of
    a weight that training moves is not searched again until `release` or `reset`. Before, in calibration and evaluation, it is
    that of the weight as it stands. A tied one is searched in every forward: running statistics move it, too.

    tied: the scale belongs to the weight with the factor of its BatchNorm in it; the codes are those of `w * f`.
    """

    held: Tensor

    def __init__(self, scheme: QuantScheme, channels: int | Shape | None = None, *, tied: bool = False) -> None:
        super().__init__(scheme, channels)
        self.tied = tied
        plain = scheme.dtype.bits > 1 and not tied and scheme.granularity in (PerTensor(), PerChannel(0))
        grouped = isinstance(scheme.granularity, PerGroup)
        self.compiled_scheme = compiled_scheme(scheme) if plain or grouped else None
        self.plain_codes = (plain or grouped) and scheme.dtype.bits > 1 and self.algorithm.codes is None
        """Whether codes are those of the values on the grid, row by row or group by group."""
        self.reads_range = isinstance(scheme.observer, (MinMax, MovingAverage, Entropy)) and not scheme.of_file
        """Whether a compiled kernel can read the range from a weight."""
        self.group = scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else 0
        self.sums_codes = True
        """Whether a linear layer may sum codes in integers in training (`Fusions.linear`)."""
        self.clock = Clock()
        self.register_buffer("held", torch.zeros((), dtype=torch.int64))
        self.is_held = False
        """Whether the scale is kept whatever becomes of the weight."""
        self._seen_held = -1
        self.searched = Searched(scheme)
        self.oscillation: Oscillation | None = None
        self._tracked_step = -1

    def track(self, shape: Shape) -> None:
        """Make the state of a scheme that freezes oscillating codes, for a weight of `shape`; nothing for other schemes."""
        if self.scheme.oscillation is not None and self.oscillation is None:
            self.oscillation = Oscillation(tuple(shape), self.scheme.oscillation).to(self.scale.device)

    @property
    def holds_search(self) -> bool:
        """Whether training holds the range: it is searched, and by the weight alone."""
        return self.shift is None and not self.tied and is_searched(self.scheme)

    def _read_held(self) -> None:
        """Buffers may be copied here, by averages of weights and DDP's broadcast: what they say counts."""
        if self.is_held or torch.compiler.is_compiling() or not self.holds_search or type(self.held) is not Tensor:
            return
        version = -1 if self.held.is_inference() or self.held.is_meta else self.held._version
        if version != self._seen_held:
            self._seen_held = version
            self.is_held = bool(self.held)

    def set_bits(self, bits: int) -> bool:
        """As a grid's; another width is searched for anew."""
        changed = super().set_bits(bits)
        if changed:
            self.searched = Searched(self.scheme)
        return changed

    def hold(self, scale: Tensor) -> None:
        """Keep `scale` from now on, so that codes that were chosen for it stay. A learned scale starts there."""
        self._set(numerics.stored_scale(scale, self.scheme), self.zero_point)
        with torch.no_grad():
            for parameter in self.learned_parameters():
                parameter.zero_()
        self.held.fill_(True)
        self.is_held = True

    def release(self) -> None:
        """Let the range be read from the weight again, or searched."""
        self.held.zero_()
        self.is_held = False

    def reset(self) -> None:
        """As constructed: no range, none held, no code frozen."""
        super().reset()
        self.release()
        if self.oscillation is not None:
            self.oscillation.reset()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_held = bool(self.held)

    def scale_of(self, weight: Tensor, factor: Tensor | None = None) -> Tensor:
        """The scale in force for this weight, `(C,)` or `()`: of the folded weight where it is tied."""
        return self._range_scale(weight.detach(), factor) if self.follows_weight() else self.effective_scale()

    def step(self) -> Step | None:
        """What a kernel does in a call that trains, for a scale that is not learned; None where none may take its place."""
        clock = self.clock
        state = clock.state
        if not (self.training and self.quantizing and self._calibrated and clock.enabled) or state == "calibrating":
            return None
        if self.shift is not None or self.compiled_scheme is None or is_hooked(self):
            return None
        if self.is_held or state == "frozen":
            return IN_FORCE
        return OBSERVES if self.reads_range else None

    def follows_weight(self) -> bool:
        """Whether the range is that of the weight as it stands."""
        self._read_held()
        return self.shift is None and not self.is_held and self.clock.state != "frozen"

    def _range_scale(self, weight: Tensor, factor: Tensor | None) -> Tensor:
        values = self._values(weight, factor)
        if is_searched(self.scheme):
            return self.searched.of(values)
        own = self.algorithm.weight_scale(values, self.scheme)
        return self.grid_of(*weight_range(values, self.scheme))[0] if own is None else own

    def _values(self, weight: Tensor, factor: Tensor | None) -> Tensor:
        """What lies on the grid, float32: `w`, or `w * f` where the scale is tied."""
        if self.tied and factor is not None:
            return (weight.double() * numerics.along_axis(factor, 0, weight.dim())).float()
        return weight.float()

    @torch.no_grad()
    def codes(self, weight: Tensor, factor: Tensor | None = None) -> Tensor:
        """Integer codes of `weight` (of `w * f` where the scale is tied), float32."""
        codes = self._nearest(weight, factor)
        if self.oscillation is None:
            return codes
        frozen = self.oscillation.codes * self._sign(factor, weight)
        return torch.where(self.oscillation.frozen, frozen, codes)

    def _nearest(self, weight: Tensor, factor: Tensor | None) -> Tensor:
        values = self._values(weight, factor)
        scale = numerics.expand(self.scale_of(weight, factor), self.scheme.granularity, tuple(weight.shape))
        if self.algorithm.codes is not None:
            return self.algorithm.codes(values, scale, self.scheme)
        if self.scheme.dtype.bits == 1:
            return numerics.binarize(values)
        return numerics.quantize(values, scale, torch.zeros_like(scale), self.scheme.qmin, self.scheme.qmax)

    def _sign(self, factor: Tensor | None, weight: Tensor) -> Tensor | float:
        """The sign of a tied factor: tracked codes are those of the weight without it."""
        if not self.tied or factor is None:
            return 1.0
        return numerics.along_axis(torch.where(factor < 0, -1.0, 1.0).float(), 0, weight.dim())

    def chosen_codes(self, weight: Tensor, factor: Tensor | None = None) -> Tensor | None:
        """Codes where they are not simply those of the values on the grid; None where they are."""
        return self.codes(weight, factor) if self.chooses_codes() else None

    def chooses_codes(self) -> bool:
        """Whether codes are not simply those of the values on the grid."""
        return self.algorithm.codes is not None or self.oscillation is not None

    def _track(self, weight: Tensor, factor: Tensor | None) -> None:
        """Once a step of training: what each code did."""
        if self.oscillation is None or not self.training or in_backward():
            return
        if torch.compiler.is_compiling() or self._tracked_step != self.clock.step:
            self._tracked_step = self.clock.step
            with torch.no_grad():
                self.oscillation.update(self._nearest(weight.detach(), factor) * self._sign(factor, weight))

    def initialize(self, weight: Tensor, factor: Tensor | None = None) -> None:
        """Set the range from the weight."""
        with torch.no_grad():
            self._set(self._range_scale(weight.detach(), factor), self.zero_point)
            for parameter in self.learned_parameters():
                parameter.zero_()

    @torch.no_grad()
    def integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, of int8 where a kernel makes them and float32 elsewhere, and their scale: of a weight that is not tied."""
        scale = self.scale_of(weight).detach().float()
        if self.plain_codes and self.oscillation is None:
            codes = kernels.weight_codes(self._values(weight, None), scale, self.scheme, self.group)
            if codes is not None:
                return codes, scale
        return self.codes(weight), scale

    @torch.no_grad()
    def values(self, weight: Tensor) -> Tensor:
        """What the codes of a weight that is not tied stand for, float32."""
        if self.plain_codes and self.oscillation is None:
            y = kernels.weight_on_grid(self._values(weight, None), self.scale_of(weight), self.scheme, self.group)
            if y is not None:
                return y
        scale = numerics.expand(self.scale_of(weight), self.scheme.granularity, tuple(weight.shape))
        return numerics.dequantize(self.codes(weight), scale, torch.zeros_like(scale))

    def on_grid(self, weight: Tensor) -> Tensor:
        """`weight` on its grid: differentiable, and in evaluation without gradients computed from its codes alone."""
        if self.training or (torch.is_grad_enabled() and weight.requires_grad) or self.clock.calibrating:
            result: Tensor = self(weight)
            return result
        return self.values(weight).to(weight.dtype)

    def forward(self, weight: Tensor, factor: Tensor | None = None) -> Tensor:
        """`weight` on its grid, of its own shape and dtype. `factor`: `gamma / sigma` of a tied scale, float64 `(C,)`."""
        if not self.clock.enabled:
            return weight
        if not self._calibrated:  # the weight of a function call, which is seen for the first time here
            self.initialize(weight, factor)
        if not self.quantizing or self.clock.calibrating:
            return with_zero_gradients(weight, self.learned_parameters())
        if self.training and self.holds_search and self.follows_weight():
            self.hold(self.scale_of(weight, factor))
        if (y := self._compiled(weight)) is not None:
            return y
        scheme = self.scheme
        learning = self.shift is not None and torch.is_grad_enabled()
        scale = (
            self._trainable_scale(weight.numel() // max(1, self.scale.numel())) if learning else self.scale_of(weight, factor)
        )
        if self.training and self.follows_weight():
            with torch.no_grad():
                self.scale.copy_(scale)
        self._track(weight, factor)
        fake, zero = fake_of(scheme, self.training), torch.zeros_like(scale)
        if not self.tied or factor is None:
            scale, zero = (numerics.expand(v, scheme.granularity, tuple(weight.shape)) for v in (scale, zero))
            return self._with_frozen(fake(weight, scale, zero, scheme), scale)
        size = numerics.along_axis(torch.clamp(factor.abs().float(), min=numerics.MIN_SCALE), 0, weight.dim())
        if self.algorithm.codes is not None:
            return (fake(weight * size, scale, zero, scheme) / size).to(weight.dtype)
        # The codes of w * f on the grid `scale` are those of w on the grid scale / |f|; where f vanishes they are all 0.
        scale = numerics.along_axis(scale.reshape(-1), 0, weight.dim()) / size
        y = fake(weight, scale, torch.zeros_like(scale), scheme)
        if self.shift is None and torch.is_grad_enabled() and size.requires_grad:
            y = self._through_size(y, weight, scale, size)
        return self._with_frozen(y, scale)

    def _through_size(self, y: Tensor, weight: Tensor, scale: Tensor, size: Tensor) -> Tensor:
        """`y`, with the straight-through gradient to the factor of `fake(w * |f|) / |f|`: a learned scale brings its own.

        It is 0 where the codes are exact, and reaches gamma from a channel that has no code but 0.
        """
        kept = weight
        if self.scheme.gradient != "identity":
            kept = torch.where(weight.abs() <= (self.scheme.qmax + 0.5) * scale, weight, 0.0)
        return y + ((kept - y).detach() * (size / size.detach() - 1.0)).to(y.dtype)

    def _with_frozen(self, y: Tensor, scale: Tensor) -> Tensor:
        """`y` with frozen codes: no gradient to those weights, the scale still trained."""
        if self.oscillation is None:
            return y
        return torch.where(self.oscillation.frozen, (self.oscillation.codes * scale).to(y.dtype), y)

    def _compiled(self, weight: Tensor) -> Tensor | None:
        """What `forward` does, by a compiled kernel; None, and nothing done, where there is none for `weight`."""
        scheme = self.compiled_scheme
        if scheme is None or torch.compiler.is_compiling() or (kernel := kernels.compiled()) is None:
            return None
        follows = self.follows_weight()
        reads = follows and self.reads_range
        scale = self.scale
        if reads and not self.training:
            scale = torch.empty_like(scale)
        elif follows and not reads:
            scale = self.scale_of(weight)
        y = kernel.fake_quantize_weight(weight, scale, scheme, reads, self.group)
        if y is NotImplemented:
            return None
        if follows and not reads and self.training:
            self._set(scale, self.zero_point)
        return y  # type: ignore[no-any-return]
