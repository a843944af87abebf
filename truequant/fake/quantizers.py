"""`FakeQuantize` for activations: values on a grid, gradients straight through."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from truequant import kernels, numerics
from truequant.errors import CalibrationError
from truequant.fake.algorithms import fake_of, lsq, lsq_plus
from truequant.fake.clock import Clock, in_backward, is_recomputed, local
from truequant.fake.compiled import compiled_scheme
from truequant.fake.grid import Grid, Shape
from truequant.fake.steps import COMMITS, FIRST, IN_FORCE, OBSERVES, Step, is_hooked
from truequant.fake.streams import Stream
from truequant.fake.unused_scales import with_zero_gradients
from truequant.observers import ActivationObserver, greatest, several
from truequant.planning import WIDE_BITS, is_wide_stream, of_width
from truequant.schemes import Nearest, Percentile, PerChannel, QuantScheme


class FakeQuantize(Grid):
    """Fake-quantize activations: `y = (clamp(rint(x / s) + z, qmin, qmax) - z) * s`, gradient straight through.

    In `train()` it observes what passes (`observing`) and quantizes (`quantizing`); the two switches are independent. The
    first batch sets the range at once, and what later calls of the same step saw is part of that first range; what later steps
    see takes effect one step later. In `eval()` nothing is written, NaN becomes code 0, and the result is float32.

    channels: the number of scales of a per-channel scheme, or the shape of per-group ones.
    Raises `CalibrationError` when it must quantize with a range that was never observed.

    >>> import torch
    >>> from truequant.schemes import LSQ, LSQPlus, Nearest, PerChannel, QuantScheme, uint8
    >>> quantizer = FakeQuantize(QuantScheme(uint8))
    >>> quantizer(torch.tensor([0.0, 0.3, 2.55])).tolist()
    [0.0, 0.29999998211860657, 2.549999952316284]
    """

    stream: Stream | None = None
    """Of a residual stream: what is known of its width."""
    first_scale: Tensor | None = None
    """The scale of the first range, or of the last calibration."""
    counts: bool = True
    """Whether a histogram is counted, beside minimum and maximum."""

    def __init__(self, scheme: QuantScheme, channels: int | Shape | None = None) -> None:
        super().__init__(scheme, channels)
        self.observer = ActivationObserver(scheme, channels)
        known, self.counts = compiled_scheme(scheme), not self.observer.minmax_only
        self.compiled_scheme = known if self.scale.dim() == 0 else None
        self.channel_scheme = known if not self.counts and isinstance(scheme.granularity, PerChannel) else None
        self.searches = self.counts and self.compiled_scheme is not None and not isinstance(scheme.observer, Percentile)
        self.observing = True
        self.clock = Clock()
        self.owns_clock = True
        self._seen_step = -1

    def forward(self, x: Tensor) -> Tensor:
        clock = self.clock
        if not clock.enabled:
            return x
        if self.stream is not None and not self.stream.settled:
            self.settle()
        outermost = self.owns_clock and (self.training or clock.calibrating) and not in_backward()
        if outermost:
            clock.begin()
        y = self._observed_and_quantized(x, self.step())
        if outermost:
            clock.watch(y)
        return y

    def step(self) -> Step:
        """What a call does now beside quantizing."""
        compiling = torch.compiler.is_compiling()
        return self._step(compiling, id(self) in local.committed and not self.owns_clock if compiling else None)

    def _step(self, compiling: bool, committed: bool | None = None) -> Step:
        """committed: while compiling, whether this forward has; else steps are counted."""
        clock = self.clock
        state = clock.state
        if not self.observing or state == "frozen" or not (self.training or state == "calibrating"):
            return IN_FORCE
        if not compiling and is_recomputed():
            return IN_FORCE
        if not self._calibrated:
            return FIRST
        if self.shift is not None and state != "calibrating":  # a learned scale has taken over from what is observed
            return IN_FORCE
        return OBSERVES if (self._seen_step == clock.step if committed is None else committed) else COMMITS

    def _unseen(self) -> bool:
        clock = self.clock
        return (
            self.training and self.quantizing and clock.enabled and clock.state != "calibrating" and not self.owns_clock
            and local.marking is None and local.recorder is None and not torch.compiler.is_compiling() and not is_hooked(self)
        )  # fmt: skip

    def _observed_and_quantized(self, x: Tensor, step: Step) -> Tensor:
        quantizes = self.quantizing and not self.clock.calibrating
        if quantizes and self.training and self._calibrated:
            step = self._searched(step)
            y = self._compiled(x, step)
            if y is not None:
                if step.commits:
                    self._seen_step = self.clock.step
                return y
        if step.observes:
            self._observe(x.detach(), step)
        return self.quantize(x) if quantizes else with_zero_gradients(x, self.learned_parameters())

    def _searched(self, step: Step) -> Step:
        """`step` as kernels take it, which search no histogram: its range is searched here, once a step."""
        if not (step.commits and self.searches):
            return step
        self._seen_step = self.clock.step
        self.commit()
        return OBSERVES

    def _counts_here(self) -> bool:
        """Whether what is counted needs no counts of other processes."""
        return not (self.counts and self.training and several())

    def _compiled(self, x: Tensor, step: Step) -> Tensor | None:
        """Commit, quantize and observe by a compiled kernel; None, and nothing done, where there is none for `x`."""
        if torch.compiler.is_compiling():
            return None
        if self.compiled_scheme is None:
            return self._by_channel(x, step.commits) if step.observes else None
        if step.observes and not self.counts and kernels.on_device(x, self.scale) is not None:
            return self._on_device(x, step.commits)
        if (kernel := kernels.compiled()) is None or (step.observes and not self._counts_here()):
            return None
        y = kernel.quantize(x, None, self.__dict__, step, *kernels.NO_CLIP)
        return None if y is NotImplemented else y

    def _by_channel(self, x: Tensor, commits: bool) -> Tensor | None:
        """Commit, quantize and observe with a scale a channel."""
        scheme, granularity = self.channel_scheme, self.scheme.granularity
        if scheme is None or not isinstance(granularity, PerChannel):
            return None
        return kernels.quantize_channels(x, granularity.axis, self._buffers, self.observer._buffers, scheme, commits=commits)

    def in_pass(self, compute: Callable[[ModuleType, Step], Any]) -> Tensor | None:
        """What `forward` does, by a kernel that computes what is quantized as well; None, and nothing done, without one.

        compute: kernels and step to the result, or to NotImplemented; in the first step it only observes.
        """
        # Asked at every call of every quantizer: nothing here looks a module or buffer up.
        if self.compiled_scheme is None or not self._unseen() or (kernel := kernels.compiled()) is None:
            return None
        if self.counts and not self._counts_here():
            return None
        if self.stream is not None and not (self.stream.chosen or self._calibrated):
            return None
        step = self._step(compiling=False)
        if not self._calibrated:
            if not step.first or compute(kernel, step) is NotImplemented:
                return None
            self._seen_step, step = self.clock.step, IN_FORCE
            self.observer.merge_ranks()
            self._take_effect(first=True)
        if step is COMMITS and self.searches:
            step = self._searched(step)
        y = compute(kernel, step)
        if y is NotImplemented:
            return None
        if step is COMMITS:
            self.__dict__["_seen_step"] = self.clock.step  # as an attribute it would take longer than all questions
        return y  # type: ignore[no-any-return]

    def _on_device(self, x: Tensor, commits: bool) -> Tensor | None:
        """Commit, quantize and observe by the kernels of a GPU, which the host does not wait for."""
        if commits:
            self.commit()
        scheme, identity = self.scheme, self.scheme.gradient == "identity"
        found = kernels.fake_quantize_observed(x, self.scale, self.zero_point, scheme.qmin, scheme.qmax, identity=identity)
        if found is None:
            return None
        self.observer.merge(found[1], found[2])
        return found[0]

    def quantize(self, x: Tensor) -> Tensor:
        """Fake-quantize with the scale in force; observe nothing."""
        if not self.is_calibrated:
            raise CalibrationError(
                f"'{self.name or 'FakeQuantize'}' has no range: it has observed nothing yet",
                fix="tq.calibrate(model, batches), or a forward in train() mode, before evaluating or converting",
            )
        scheme = self.scheme
        if self.shift is not None and torch.is_grad_enabled():
            return self._learned(x if self.training else x.float())
        if self.training and (y := self._compiled(x, IN_FORCE)) is not None:
            return y
        scale, zero_point = self.grid(x)
        fake = fake_of(scheme, self.training)
        if self.training:
            return fake(x, scale, zero_point, scheme)
        if not (torch.is_grad_enabled() and x.requires_grad):
            if scheme.dtype.bits > 1:
                y = kernels.quantized_values(x, scale, zero_point, scheme.qmin, scheme.qmax)
                if y is not None:
                    return y
            return numerics.dequantize(self.codes(x), scale, zero_point)
        y = fake(x.float(), scale, zero_point, scheme)
        return torch.where(torch.isnan(x), numerics.dequantize(self.codes(x), scale, zero_point), y)

    def learned_pass(self, x: Tensor, clip: kernels.Clip) -> Tensor | None:
        """What a clip and `forward` do in training with a learned scale, in one pass; None where they must run apart."""
        fits = self.scheme.scale.takes_clip and isinstance(self.scheme.rounding, Nearest) and self.scheme.dtype.bits > 1
        if not fits or not self._calibrated or not self._unseen() or not torch.is_grad_enabled() or self.scale.dim() > 0:
            return None
        return self._learned(x, clip)

    def _learned(self, x: Tensor, clip: kernels.Clip = kernels.NO_CLIP) -> Tensor:
        """Fake-quantize with gradients to the scale, and to the offset where there is one."""
        features = x.numel() // max(1, x.shape[0] if x.dim() else 1)
        elements = features // max(1, self.scale.numel())
        scale, zero_point = self.grid(x, self._trainable_scale(elements))
        if self.scheme.learns_offset:
            offset = self._like_scale(self.offset)
            beta = lsq_plus.trainable_offset(self.scheme, self.scale, self.initial_zero_point, offset, elements)
            beta = numerics.expand(beta, self.scheme.granularity, tuple(x.shape))
            return lsq_plus.fake_with_offset(x, scale, beta, self.scheme, clip)
        if clip != kernels.NO_CLIP:
            return lsq.fake(x, scale, zero_point, self.scheme, clip)
        return fake_of(self.scheme, self.training)(x, scale, zero_point, self.scheme)

    def codes(self, x: Tensor) -> Tensor:
        """Codes of `x`, float32."""
        if self.scheme.dtype.bits == 1 and self.scheme.dtype.signed:
            return numerics.binarize(x)
        scale, zero_point = self.grid(x)
        return numerics.quantize(x, scale, zero_point, self.scheme.qmin, self.scheme.qmax)

    def grid(self, x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale (the one in force, by default) and zero point in a shape that broadcasts against `x`."""
        scale, zero_point = self.effective_scale() if scale is None else scale, self.zero_point
        if scale.dim() == 0:
            return scale, zero_point
        granularity, shape = self.scheme.granularity, tuple(x.shape)
        return numerics.expand(scale, granularity, shape), numerics.expand(zero_point, granularity, shape)

    def _observe(self, x: Tensor, step: Step) -> None:
        if torch.compiler.is_compiling():
            local.committed.add(id(self))
        else:
            self._seen_step = self.clock.step
        if step.commits:
            self.commit()
        if not self._observe_in_kernel(x):
            self.observer.observe(x)
        undecided = self.stream is not None and not self.stream.chosen and (self.clock.calibrating or not self._calibrated)
        if self.stream is not None and undecided and not torch.compiler.is_compiling():
            self.stream.observe(x)
        if not self._calibrated and x.numel():
            if self.training and not torch.compiler.is_compiling():
                self.observer.merge_ranks()
                self.choose(of_all_ranks=True)
            # Later calls of this step belong to the first range as well, unless a learned scale takes over from here.
            self._take_effect(first=self.shift is None or self.clock.calibrating)

    def _observe_in_kernel(self, x: Tensor) -> bool:
        """`observer.observe` by a compiled kernel; False, and nothing done, where there is none for `x`."""
        if self.scale.dim() or not x.is_cpu or torch.compiler.is_compiling() or not self._counts_here():
            return False
        kernel = kernels.compiled()
        return kernel is not None and kernel.observe(x, self.observer._buffers) is True

    def observed(self, x: Tensor) -> Tensor:
        """Of a tensor that is quantized here, what its range is made of."""
        return x

    def choose(self, *, of_all_ranks: bool = False) -> None:
        """Of a residual stream whose width is open: choose it, once, by what was observed; ranges are found for it then."""
        if (stream := self.stream) is None or stream.chosen or stream.greatest is None:
            return
        seen, stream.greatest, stream.chosen = stream.greatest, None, True
        self._set_width(wide=is_wide_stream(greatest(seen) if of_all_ranks else seen))
        stream.settled = of_all_ranks

    def settle(self) -> None:
        """Of a residual stream: take over a width that another rank or an average of models wrote into the buffers."""
        stream = self.stream
        if stream is None or stream.settled or torch.compiler.is_compiling() or self.clock.calibrating or self.bits.is_meta:
            return
        if self.is_calibrated:
            stream.chosen = stream.settled = True
            self._set_width(wide=int(self.bits) == WIDE_BITS)

    def _set_width(self, *, wide: bool) -> None:
        self.scheme, self.planned = of_width(self.scheme, wide=wide), of_width(self.planned, wide=wide)
        self.observer.scheme = self.scheme
        if self.compiled_scheme is not None:
            self.compiled_scheme = compiled_scheme(self.scheme)
        self.mark_width()

    def mark_width(self) -> None:
        """Write into the state that a stream is wide: a state alone tells then what its codes mean."""
        self.bits.fill_(WIDE_BITS if self.planned.dtype.bits == WIDE_BITS else 0)

    def reset(self) -> None:
        """As constructed: nothing observed, no range."""
        super().reset()
        self.observer.reset()
        self._seen_step = -1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        bits, calibrated = state_dict.get(f"{prefix}bits"), state_dict.get(f"{prefix}calibrated")
        wide = bits is not None and int(bits) == WIDE_BITS
        if self.stream is not None and (wide or (calibrated is not None and bool(calibrated))) and not self.clock.calibrating:
            self.stream.chosen = True
            self._set_width(wide=wide)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.stream is not None and self.stream.chosen:
            self.mark_width()
        self.first_scale = None
        self._seen_step = -1  # what is loaded as pending belongs to a step before the next, whatever the clock says then

    def set_bits(self, bits: int) -> bool:
        """As a grid's; the observer looks for a range of that many codes."""
        changed = super().set_bits(bits)
        self.observer.scheme = self.scheme
        if self.channel_scheme is not None:
            self.channel_scheme = compiled_scheme(self.scheme)
        return changed

    def commit(self) -> None:
        """Let what was observed take effect now."""
        self._take_effect()

    def _take_effect(self, *, first: bool = False) -> None:
        with torch.no_grad():
            if first:
                self.observer.settle()
            else:
                self.observer.commit()
            known = self.observer.known()
            scale, zero_point = self.grid_of(*self.observer.range())
            scale = self.algorithm.activation_scale(scale, self.scheme)
            self._set(torch.where(known, scale, self.scale), torch.where(known, zero_point, self.zero_point))
            for parameter in self.learned_parameters():
                parameter.zero_()
            if first and not torch.compiler.is_compiling():
                self.remember_range()

    def remember_range(self) -> None:
        """Of the range in force: it is the one from which a training starts."""
        self.first_scale = self.effective_scale().detach().clone()

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
        if not mode:
            with torch.no_grad():
                self.initial_zero_point.round_()  # an average of models has that of their zero points
        return super().train(mode)
