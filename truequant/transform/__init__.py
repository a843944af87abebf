"""Plans executed: `prepare`, `convert`, `restore_float`."""

from truequant.transform.convert import convert
from truequant.transform.prepare import prepare, restore_float
from truequant.transform.preparer import QATPreparer

__all__ = ["QATPreparer", "convert", "prepare", "restore_float"]
