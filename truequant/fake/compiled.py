"""Schemes as the compiled kernels read them."""

from __future__ import annotations

from truequant.schemes import MovingAverage, Nearest, Percentile, QuantScheme

CompiledScheme = tuple[float | bool, ...]


def compiled_scheme(scheme: QuantScheme) -> CompiledScheme | None:
    """(qmin, qmax, symmetric, signed, power of two, identity gradient, momentum or -1, percent or -1).

    None for what no kernel computes.
    """
    plain = scheme.scale.of_range and isinstance(scheme.rounding, Nearest)
    binary = scheme.dtype.bits == 1 and scheme.dtype.signed  # codes -1 and +1: no affine grid
    if not plain or binary or scheme.oscillation is not None:
        return None
    momentum = scheme.observer.momentum if isinstance(scheme.observer, MovingAverage) else -1.0
    percent = scheme.observer.percent if isinstance(scheme.observer, Percentile) else -1.0
    return (
        float(scheme.qmin), float(scheme.qmax), scheme.is_symmetric, scheme.dtype.signed, scheme.power_of_two,
        scheme.gradient == "identity", float(momentum), float(percent),
    )  # fmt: skip
