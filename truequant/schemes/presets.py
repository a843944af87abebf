"""Configs of whole models by name."""

from __future__ import annotations

from dataclasses import replace

from truequant.schemes.config import ACTIVATION_8, WEIGHT_8, Ends, QConfig
from truequant.schemes.dtypes import int1, int7, integer_type
from truequant.schemes.granularity import PerChannel, PerTensor
from truequant.schemes.scales import LSQ, PowerOfTwoScale
from truequant.schemes.scheme import QuantScheme
from truequant.schemes.strategies import MSE


def _pow2(scheme: QuantScheme) -> QuantScheme:
    return replace(scheme, scale=PowerOfTwoScale())


_EIGHT = QConfig(saturation="unsigned")


def _low(weight_bits: int, activation_bits: int) -> QConfig:
    """Learned scales at 4 bits and below, 8 bits in the first and the last layer."""
    weight = QuantScheme(
        int1 if weight_bits == 1 else integer_type(f"int{weight_bits}"), PerChannel(0), observer=MSE(), scale=LSQ()
    )
    activation = ACTIVATION_8
    if activation_bits < 8:
        activation = QuantScheme(integer_type(f"uint{activation_bits}"), observer=MSE(), scale=LSQ())
    return replace(_EIGHT, weight=weight, activation=activation, ends=Ends())


PRESETS: dict[str, QConfig] = {
    "int8": QConfig(),
    "w8a8": _EIGHT,
    "w7a8": replace(_EIGHT, weight=QuantScheme(int7, PerChannel(0))),
    "w8a8-per-tensor": replace(_EIGHT, weight=replace(WEIGHT_8, granularity=PerTensor())),
    "w8a8-pow2": QConfig(_pow2(WEIGHT_8), _pow2(ACTIVATION_8), _pow2(ACTIVATION_8), _pow2(ACTIVATION_8), saturation="unsigned"),
    **{f"w{w}a{a}": _low(w, a) for w, a in ((4, 8), (4, 4), (3, 3), (2, 2), (1, 1))},
}
PRESETS |= {f"{name}-all": replace(config, ends=None) for name, config in PRESETS.items() if config.ends is not None}
