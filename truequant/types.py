"""Integer types of weights and activations.

`int1` … `int16` are signed and symmetric about 0 (`int7` is stored in 8 bits and reaches from -64 to 64); `uint1` … `uint16`
start at 0 and come with a zero point. `QuantScheme(tq.types.int4)` is a scheme of one.
"""

from truequant.schemes import int1, int2, int3, int4, int7, int8, int16, uint1, uint2, uint3, uint4, uint8, uint16

__all__ = [
    "int1", "int2", "int3", "int4", "int7", "int8", "int16", "uint1", "uint2", "uint3", "uint4", "uint8", "uint16",
]  # fmt: skip
