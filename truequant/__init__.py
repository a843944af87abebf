"""truequant: quantization-aware training whose Int8 model is, bit for bit, the model you validated.

The public names stand in `truequant/api.py`. They are loaded, and torch with them, when the first of them is used, so that the
command line completes words and prints its help without.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truequant.api import *  # noqa: F403
    from truequant.api import __all__ as __all__


def __getattr__(name: str) -> Any:
    if name.startswith("__") and name != "__all__":  # what Python itself asks a package for
        raise AttributeError(f"module 'truequant' has no attribute '{name}'")
    if find_spec(f"truequant.{name}") is not None:  # a room
        return import_module(f"truequant.{name}")
    api = import_module("truequant.api")
    globals().update({public: getattr(api, public) for public in api.__all__}, __all__=api.__all__)
    if name not in globals():
        raise AttributeError(f"module 'truequant' has no attribute '{name}'", name=name)
    return globals()[name]


def __dir__() -> list[str]:
    __getattr__("__all__")
    return sorted(globals())
