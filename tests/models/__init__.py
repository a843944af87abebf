"""Models of many families, small, to try the library on: none was written to suit it."""

from tests.models.registry import FAMILIES, Family, leaves

__all__ = ["FAMILIES", "Family", "leaves"]
