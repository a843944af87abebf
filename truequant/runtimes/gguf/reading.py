"""Codes and floats of a GGUF file, read by the package gguf: for comparisons with what was trained."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truequant.runtimes.gguf.blocks import Coded, from_blocks
from truequant.runtimes.packages import package

_CODED = ("Q4_0", "Q8_0")


def coded_tensors(path: str | os.PathLike[str]) -> dict[str, Coded]:
    """The tensors of type Q4_0 and Q8_0 by their names in the file."""
    return {t.name: from_blocks(np.asarray(t.data), t.tensor_type.name) for t in _tensors(path) if _is_coded(t)}


def float_tensors(path: str | os.PathLike[str]) -> dict[str, NDArray[np.uint8]]:
    """The bytes of all others."""
    return {t.name: np.asarray(t.data).reshape(-1).view(np.uint8) for t in _tensors(path) if not _is_coded(t)}


def _tensors(path: str | os.PathLike[str]) -> list[Any]:
    return list(package("gguf", "gguf").GGUFReader(path).tensors)


def _is_coded(tensor: Any) -> bool:
    return tensor.tensor_type.name in _CODED
