"""Plans executed: `prepare`, `convert`, `restore_float`."""

from truequant.transform.convert import convert
from truequant.transform.prepare import prepare, restore_float

__all__ = ["convert", "prepare", "restore_float"]
