"""`Grid`: the state that quantizers of activations and of weights share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from truequant import numerics
from truequant.errors import ArgumentError
from truequant.fake.algorithms import algorithm_of, lsq_plus, stored_scale
from truequant.fake.compiled import CompiledScheme, compiled_scheme
from truequant.observers import Float32State, whole
from truequant.schemes import FloatScale, PerTensor, QuantScheme, integer_type

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


class Grid(Float32State):
    """Scale and zero point: float32 whatever the model's dtype, of final shape from construction on.

    A learned scale is the initial `scale`, moved by a parameter `shift` that starts at 0 in the way of its algorithm; a
    learned offset (LSQ+) moves the zero point. Weight decay only pulls both back to where they started.
    """

    scale: Tensor
    calibrated: Tensor
    bits: Tensor
    """Of the codes now, where a schedule has them wider than planned; else 0."""
    compiled_scheme: CompiledScheme | None = None
    """What a compiled kernel needs to know; None where none computes this grid."""
    _calibrated: bool

    def __init__(self, scheme: QuantScheme, channels: int | Shape | None) -> None:
        super().__init__()
        self.scheme = self.planned = scheme
        self.name = ""
        shape = _shape(scheme, channels)
        self.register_buffer("scale", torch.ones(shape))
        self._buffers["zero_point"] = torch.zeros(shape)  # register_buffer refuses a name that a property has
        # numbers for yes and no, as in BatchNorm's count: averages of models subtract buffers
        self.register_buffer("calibrated", torch.zeros((), dtype=torch.int64))
        self.register_buffer("bits", torch.zeros((), dtype=torch.int64))
        self._calibrated = False
        self.algorithm = algorithm_of(scheme)
        learned = shape or (1,)  # FSDP2 shards no parameter without an axis
        self.shift = nn.Parameter(torch.zeros(learned)) if scheme.learned else None
        if scheme.learns_offset:
            self.offset = nn.Parameter(torch.zeros(learned))
        self.quantizing = True

    def effective_scale(self) -> Tensor:
        """The scale in force, float32."""
        if self.shift is None:
            return self.scale
        return numerics.stored_scale(self.algorithm.force(self.scale, self._like_scale(self.shift)), self.scheme)

    def _like_scale(self, learned: Tensor) -> Tensor:
        """A learned parameter in the shape of the scale; whole, where FSDP2 has spread it and its layer is not running."""
        return whole(learned).reshape(self.scale.shape)

    @property
    def zero_point(self) -> Tensor:
        """The zero point in force, an integer carried by float32: the buffer of this name, moved by a learned offset."""
        if not self.scheme.learns_offset:
            return self.initial_zero_point
        beta = lsq_plus.offset_in_force(self.scale, self.initial_zero_point, self._like_scale(self.offset.detach()))
        return lsq_plus.zero_point_of(beta, self.effective_scale().detach(), self.scheme)

    @property
    def initial_zero_point(self) -> Tensor:
        """The buffer: the zero point that a learned offset starts from."""
        buffer = self._buffers["zero_point"]
        assert buffer is not None
        return buffer

    def set_bits(self, bits: int) -> bool:
        """Codes of `bits` bits, or as planned where that is more. Whether this changed anything: the range is lost then."""
        planned = self.planned.dtype
        wider = bits > planned.bits and self.planned.scale.any_width
        name = f"{'int' if planned.signed else 'uint'}{bits}"
        scheme = self.planned.with_(dtype=integer_type(name)) if wider else self.planned
        if scheme == self.scheme:
            return False
        self.scheme = scheme
        if self.compiled_scheme is not None:
            self.compiled_scheme = compiled_scheme(scheme)
        self.reset()
        self.bits.fill_(bits if wider else 0)
        return True

    def grid_of(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of a range. A learned power of two keeps the threshold that will be rounded."""
        scheme = self.scheme
        free = scheme.with_(scale=FloatScale()) if scheme.learned and scheme.power_of_two else scheme
        return numerics.scale_and_zero_point(low, high, free)

    def learned_parameters(self) -> list[nn.Parameter]:
        """The parameters of the grid itself: they want no weight decay."""
        return [p for p in (self.shift, getattr(self, "offset", None)) if p is not None]

    @property
    def is_calibrated(self) -> bool:
        """Whether the range was ever set."""
        if not self._calibrated and not self.calibrated.is_meta:
            self._calibrated = bool(self.calibrated)  # buffers may be copied here: averaged weights, DDP's broadcast
        return self._calibrated

    def _set(self, scale: Tensor, zero_point: Tensor) -> None:
        with torch.no_grad():
            self.scale.copy_(scale)
            self.initial_zero_point.copy_(zero_point)
            if not self._calibrated:
                self.calibrated.fill_(True)
                self._calibrated = True

    def _trainable_scale(self, elements: int) -> Tensor:
        """The scale in force, with the gradient that its algorithm gives it; `elements` share a scale."""
        assert self.shift is not None
        assert self.algorithm.trainable is not None
        scale = self.algorithm.trainable(self.scheme, self.scale, self._like_scale(self.shift), elements)
        return stored_scale(scale, self.scheme)

    def reset(self) -> None:
        """As constructed: no range."""
        with torch.no_grad():
            self.scale.fill_(1.0)
            for tensor in (self.initial_zero_point, self.calibrated, *self.learned_parameters()):
                tensor.zero_()
        self._calibrated = False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        bits = state_dict.get(f"{prefix}bits")
        if bits is not None:
            self.set_bits(int(bits))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._calibrated = bool(self.calibrated)

    def extra_repr(self) -> str:
        return f"{self.scheme}" + ("" if self._calibrated else ", not calibrated")
