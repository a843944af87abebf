"""Inputs of a model outside the range that calibration found: another normalization, or another order of the channels."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from truequant.numerics.affine import outside

MUCH = 0.1
"""The share of an input's values outside its range from which on it is said. Ranges that leave out outliers clip far less."""


@dataclass(slots=True)
class InputClipping:
    """Counts, input by input, values that have no code of their own and become the lowest or the highest one."""

    outside: dict[str, int] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, name: str, x: Tensor, scale: Tensor, zero_point: Tensor, limits: tuple[int, int]) -> None:
        """Values of the input `name`, on the grid of `scale` and `zero_point` with codes between the limits."""
        self.outside[name] = self.outside.get(name, 0) + int(outside(x, scale, zero_point, *limits).sum())
        self.elements[name] = self.elements.get(name, 0) + x.numel()
        low, high = ((limit - zero_point.double()) * scale.double() for limit in limits)
        self.ranges[name] = float(low.min()), float(high.max())

    @property
    def shares(self) -> dict[str, float]:
        """The share of values outside, by input."""
        return {name: count / max(1, self.elements[name]) for name, count in self.outside.items()}

    def remarks(self) -> list[str]:
        """A sentence for each input of which more than a tenth lies outside."""
        return [
            f"{share:.0%} of the values of '{name}' lie outside the range of calibration, {self.ranges[name][0]:.4g} to "
            f"{self.ranges[name][1]:.4g}: are inputs normalized, and channels ordered, as they were in calibration?"
            for name, share in self.shares.items()
            if share > MUCH
        ]
