"""All presets by name: those of whole models, and those of linear layers on activations that stay float between layers.

The a16 in w4a16 is the field's word for activations in the model's own floating point type, whatever its width.
"""

from __future__ import annotations

from truequant.errors import SchemeError
from truequant.schemes.config import WEIGHT_8, QConfig
from truequant.schemes.dtypes import int4, int8
from truequant.schemes.granularity import PerGroup
from truequant.schemes.presets import PRESETS as MODELS
from truequant.schemes.scheme import QuantScheme
from truequant.schemes.strategies import MSE, Dynamic

GROUP_4 = QuantScheme(int4, PerGroup(32), observer=MSE())
"""Weights of 4 bits, one scale for 32 of them."""
TOKENS_8 = QuantScheme(int8, observer=Dynamic())


def _linears(weight: QuantScheme, activation: QuantScheme | None) -> QConfig:
    return QConfig(weight, activation, activation, activation, saturation="unsigned")


LINEARS: dict[str, QConfig] = {
    "w8a8-dynamic": _linears(WEIGHT_8, TOKENS_8),
    "w4a8-dynamic": _linears(GROUP_4, TOKENS_8),
    "w8a16": _linears(WEIGHT_8, None),
    "w4a16": _linears(GROUP_4, None),
}
PRESETS: dict[str, QConfig] = MODELS | LINEARS


def preset(name: str) -> QConfig:
    """The config of a name."""
    if not isinstance(name, str) or name not in PRESETS:
        raise SchemeError(f"no preset {name!r}", got=repr(name), expected=", ".join(PRESETS))
    return PRESETS[name]
