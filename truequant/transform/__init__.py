"""Plans executed: `prepare`, `convert`, `restore_float`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from truequant.transform.prepare import prepare, restore_float

if TYPE_CHECKING:
    from truequant.transform.conversion import convert
    from truequant.transform.preparer import QATPreparer

__all__ = ["QATPreparer", "convert", "prepare", "restore_float"]

_LATER = {"QATPreparer": "preparer", "convert": "conversion"}
"""Loaded when first used: who prepares a model and trains it needs no integer program."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'", name=name)
    globals()[name] = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    return globals()[name]
