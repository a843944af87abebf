"""All presets by name, each as the fields of its config that are not the default's: those of whole models, and those of linear
layers on activations that stay float between layers.

The a16 in w4a16 is the field's word for activations in the model's own floating point type, whatever its width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from truequant.errors import SchemeError, did_you_mean
from truequant.schemes.defaults import ACTIVATION_8, WEIGHT_8, Ends
from truequant.schemes.dtypes import float_format, int1, int4, int7, int8, integer_type
from truequant.schemes.granularity import PerChannel, PerGroup, PerTensor
from truequant.schemes.scales import LSQ, PowerOfTwoScale
from truequant.schemes.scheme import QuantScheme
from truequant.schemes.strategies import MSE, Dynamic

Fields = Mapping[str, Any]
"""Fields of a `QConfig` by name; those that are left out have its defaults."""

GROUP_4 = QuantScheme(int4, PerGroup(32), observer=MSE())
"""Weights of 4 bits, one scale for 32 of them."""
Q4_0 = QuantScheme(int4, PerGroup(32), observer=MSE(), scale_dtype="float16", full_range=True)
Q8_0 = QuantScheme(int8, PerGroup(32), observer=MSE(), scale_dtype="float16")
"""Weights as GGUF keeps them: a float16 scale for 32 of them, codes -8 … 7, or -127 … 127."""
TOKENS_8 = QuantScheme(int8, observer=Dynamic())


def _eight(**fields: object) -> Fields:
    return {"saturation": "unsigned", **fields}


def _power_of_two() -> Fields:
    weight, activation = replace(WEIGHT_8, scale=PowerOfTwoScale()), replace(ACTIVATION_8, scale=PowerOfTwoScale())
    return _eight(weight=weight, activation=activation, input=activation, output=activation)


def _low(weight_bits: int, activation_bits: int) -> Fields:
    """Learned scales at 4 bits and below, 8 bits in the first and the last layer."""
    weight = QuantScheme(
        int1 if weight_bits == 1 else integer_type(f"int{weight_bits}"), PerChannel(0), observer=MSE(), scale=LSQ()
    )
    activation = ACTIVATION_8
    if activation_bits < 8:
        activation = QuantScheme(integer_type(f"uint{activation_bits}"), observer=MSE(), scale=LSQ())
    return _eight(weight=weight, activation=activation, ends=Ends())


def _linears(weight: QuantScheme, activation: QuantScheme | None) -> Fields:
    return _eight(weight=weight, activation=activation, input=activation, output=activation)


_MODELS: dict[str, Fields] = {
    "int8": {},
    "w8a8": _eight(),
    "w7a8": _eight(weight=QuantScheme(int7, PerChannel(0))),
    "w8a8-per-tensor": _eight(weight=replace(WEIGHT_8, granularity=PerTensor())),
    "w8a8-pow2": _power_of_two(),
    **{f"w{w}a{a}": _low(w, a) for w, a in ((4, 8), (4, 4), (3, 3), (2, 2), (1, 1))},
}
_WHOLE = {f"{name}-all": {**fields, "ends": None} for name, fields in _MODELS.items() if "ends" in fields}
"""The same without ends of their own."""
_LINEARS: dict[str, Fields] = {
    "w8a8-dynamic": _linears(WEIGHT_8, TOKENS_8),
    "w4a8-dynamic": _linears(GROUP_4, TOKENS_8),
    "w8a16": _linears(WEIGHT_8, None),
    "w4a16": _linears(GROUP_4, None),
    "w8a16-gguf": _linears(Q8_0, None),
    "w4a16-gguf": _linears(Q4_0, None),
}
NAMED: dict[str, Fields] = _MODELS | _WHOLE | _LINEARS


def named(name: str) -> Fields:
    """The fields of the preset of a name."""
    if not isinstance(name, str) or name not in NAMED:
        raise SchemeError(
            f"no preset {name!r}",
            got=repr(name),
            expected=", ".join(NAMED),
            fix=float_format(name) or did_you_mean(name, NAMED),
        )
    return NAMED[name]
