"""What a scale may be, and whether training learns it: `QuantScheme(…, scale=tq.scales.LSQ())`."""

from truequant.schemes import scales as _rules
from truequant.schemes.scales import *  # noqa: F403

__all__: list[str] = []
__all__ += _rules.__all__
