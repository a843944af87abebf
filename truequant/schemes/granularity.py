"""How many elements of a tensor share one scale."""

from __future__ import annotations

from dataclasses import dataclass

from truequant.errors import SchemeError


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each index of `axis`: shape `(C, K)` with axis 0 has scales of shape `(C,)`."""

    axis: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.axis, int) or isinstance(self.axis, bool):
            raise SchemeError("PerChannel: the axis is an integer", got=repr(self.axis), fix="PerChannel(0)")


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One scale for each run of `size` elements along the last axis of the tensor seen as `(shape[0], -1)`."""

    size: int

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise SchemeError("PerGroup: the size is a positive integer", got=repr(self.size), fix="PerGroup(32)")


Granularity = PerTensor | PerChannel | PerGroup
