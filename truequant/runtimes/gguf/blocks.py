"""GGUF's blocks of 32 weights, from codes and scales and back: nothing is rounded.

Q4_0: d float16, then 16 bytes; byte i holds code i + 8 in its low half and code i + 16 + 8 in its high half.
Q8_0: d float16, then 32 codes of int8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from truequant.errors import ExportError

BLOCK = 32
"""Weights that share a scale."""
_SCALE_BYTES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """A matrix as it was trained: int8 codes `(rows, columns)` and the scales of their groups, float32 `(rows, groups)`."""

    codes: NDArray[np.int8]
    scale: NDArray[np.float32]


def kind_of(coded: Coded, where: str) -> str:
    """The type of block that holds these codes: "Q4_0" or "Q8_0". `ExportError` where none holds codes or scales."""
    rows, columns = coded.codes.shape
    if coded.scale.shape != (rows, columns // BLOCK) or columns % BLOCK:
        raise ExportError(
            f"'{where}': GGUF has no block for these groups",
            got=f"a weight of shape {rows} x {columns} with {coded.scale.shape[1]} scales a row",
            expected=f"a scale for each {BLOCK} weights of a row",
            fix="QConfig.preset('w4a16-gguf') or 'w8a16-gguf', before training",
        )
    with np.errstate(over="ignore"):
        changed = int((coded.scale.astype(np.float16).astype(np.float32) != coded.scale).sum())
    if changed:
        raise ExportError(
            f"'{where}': GGUF keeps scales in float16, and these were trained in more",
            got=f"{changed} of {coded.scale.size} scales that float16 does not hold",
            expected="scales in float16",
            fix="scale_dtype='float16' in the weight's QuantScheme, as in QConfig.preset('w4a16-gguf'), before training",
        )
    return "Q4_0" if coded.codes.min(initial=0) >= -8 and coded.codes.max(initial=0) <= 7 else "Q8_0"


def to_blocks(coded: Coded, kind: str) -> NDArray[np.uint8]:
    """The bytes of each row, `(rows, bytes)`."""
    rows = len(coded.codes)
    codes = coded.codes.reshape(rows, -1, BLOCK)
    scale = np.ascontiguousarray(coded.scale.astype("<f2")[..., None]).view(np.uint8)
    if kind == "Q4_0":
        shifted = (codes.astype(np.int16) + 8).astype(np.uint8)
        body = shifted[..., : BLOCK // 2] | shifted[..., BLOCK // 2 :] << 4
    else:
        body = np.ascontiguousarray(codes).view(np.uint8)
    return np.concatenate([scale, body], axis=-1).reshape(rows, -1)


def from_blocks(data: NDArray[np.uint8], kind: str) -> Coded:
    """What `to_blocks` was given."""
    rows = len(data)
    size = _SCALE_BYTES + (BLOCK // 2 if kind == "Q4_0" else BLOCK)
    blocks = np.ascontiguousarray(data).reshape(rows, -1, size)
    scale = np.ascontiguousarray(blocks[..., :_SCALE_BYTES]).view("<f2")[..., 0].astype(np.float32)
    body = np.ascontiguousarray(blocks[..., _SCALE_BYTES:])
    if kind == "Q4_0":
        codes = np.concatenate([body & 15, body >> 4], axis=-1).astype(np.int8) - np.int8(8)
    else:
        codes = body.view(np.int8)
    return Coded(codes.reshape(rows, -1), scale)
