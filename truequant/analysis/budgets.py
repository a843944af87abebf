"""What a model with mixed bits may cost, as values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from truequant.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """A layer as a budget sees it. weights: how many; multiply_accumulates: of one sample of the example inputs."""

    name: str
    op: str
    weights: int
    multiply_accumulates: int


class Budget(ABC):
    """A limit and what each layer takes of it."""

    limit: float

    @abstractmethod
    def cost(self, layer: LayerFacts, weight_bits: int, activation_bits: int) -> float:
        """What `layer` costs with these widths of its weight and of the activation that it reads."""


def _positive(what: str, value: float) -> None:
    if not value > 0:
        raise ArgumentError(f"{what}: the limit is not positive", got=repr(value), expected="more than 0")


@dataclass(frozen=True, slots=True)
class Size(Budget):
    """Bytes of all weights, packed: `sum weights * bits / 8`."""

    limit: float

    def __post_init__(self) -> None:
        _positive("Size", self.limit)

    def cost(self, layer: LayerFacts, weight_bits: int, activation_bits: int) -> float:
        return layer.weights * weight_bits / 8


@dataclass(frozen=True, slots=True)
class MultiplyAccumulates(Budget):
    """Multiply-accumulates of one sample in units of 8 x 8 bits: `sum count * weight_bits * activation_bits / 64`."""

    limit: float

    def __post_init__(self) -> None:
        _positive("MultiplyAccumulates", self.limit)

    def cost(self, layer: LayerFacts, weight_bits: int, activation_bits: int) -> float:
        return layer.multiply_accumulates * weight_bits * activation_bits / 64


@dataclass(frozen=True, slots=True)
class Latency(Budget):
    """Seconds, as `seconds(layer, weight_bits, activation_bits)` tells them of your hardware.

    Kernels for 8 bits take the same time for narrower codes: only a target with narrower kernels has something to gain here.
    """

    limit: float
    seconds: Callable[[LayerFacts, int, int], float]

    def __post_init__(self) -> None:
        _positive("Latency", self.limit)

    def cost(self, layer: LayerFacts, weight_bits: int, activation_bits: int) -> float:
        return float(self.seconds(layer, weight_bits, activation_bits))
