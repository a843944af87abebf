"""Optional packages, imported when they are needed."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from truequant.errors import ExportError


@cache
def package(name: str, extra: str) -> Any:
    """A package that an extra of truequant brings. `ExportError` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(
            f"the package '{name}' is not installed", got=str(error), fix=f"pip install 'truequant[{extra}]'"
        ) from error


def onnx() -> Any:
    """The package onnx."""
    return package("onnx", "onnxruntime")
