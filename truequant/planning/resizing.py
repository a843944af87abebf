"""Linear interpolation by whole factors, as sums of neighbours with integer weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MODES = {"linear": 1, "bilinear": 2, "trilinear": 3}
LARGEST_WEIGHT = 127


def linear_factors(args: Sequence[Any], kwargs: Mapping[str, Any], shape: Sequence[int]) -> tuple[int, ...] | None:
    """The whole factors by which `F.interpolate(*args, **kwargs)` of an input of `shape` enlarges it, linearly and with
    `align_corners=False`; None for any other interpolation.
    """
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
    found = dict(zip(names, args, strict=False)) | dict(kwargs)
    axes = MODES.get(found.get("mode", "nearest"))
    if axes is None or len(shape) != axes + 2 or found.get("align_corners") or found.get("antialias"):
        return None
    given, before = found.get("scale_factor"), shape[-axes:]
    if given is not None:
        factors = [float(given)] * axes if isinstance(given, (int, float)) else [float(f) for f in given]
    else:
        size = found["size"]
        sizes = [size] * axes if isinstance(size, int) else list(size)
        factors = [wanted / length for wanted, length in zip(sizes, before, strict=True)]
    return whole(factors)


def whole(factors: Sequence[float]) -> tuple[int, ...] | None:
    """Factors as integers; None where one is not whole, or where weights would leave 8 bits."""
    if not all(float(f).is_integer() and f >= 1 for f in factors):
        return None
    found = tuple(int(f) for f in factors)
    largest = math.prod(max(max(row) for row in phase_weights(f)) for f in found)
    return found if largest <= LARGEST_WEIGHT else None


def phase_weights(factor: int) -> tuple[tuple[int, int, int], ...]:
    """For each place p between two elements of the input, the weights of the element before, its own and the one behind,
    in units of `1 / (2 factor)`: place p lies at `(2 p + 1 - factor) / (2 factor)` of an element's own.
    """
    offsets = [2 * p + 1 - factor for p in range(factor)]
    return tuple((max(0, -o), 2 * factor - abs(o), max(0, o)) for o in offsets)
