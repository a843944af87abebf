"""What a config is made of where nothing else is said: the parts that its presets and its text need too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from truequant.schemes.dtypes import int8, uint8
from truequant.schemes.granularity import PerChannel
from truequant.schemes.scheme import QuantScheme

Saturation = Literal["narrow", "unsigned"]
WEIGHT_8 = QuantScheme(int8, PerChannel(0))
ACTIVATION_8 = QuantScheme(uint8)


@dataclass(frozen=True, slots=True)
class Ends:
    """Schemes of the layers that read the model's inputs and write its outputs, where they differ from the rest."""

    weight: QuantScheme = WEIGHT_8
    activation: QuantScheme = ACTIVATION_8
