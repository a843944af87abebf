"""Methods of post-training quantization by the words of a command line."""

from __future__ import annotations

import re

import truequant as tq
from truequant.calibration.method import Method
from truequant.errors import ArgumentError
from truequant.schemes import Entropy, Histogram, MinMax, Observation, Percentile


def methods() -> dict[str, type[Method] | type[Observation]]:
    """What `--method` takes: `CrossLayerEqualization` is cross-layer-equalization, `MSE` is mse."""
    found: dict[str, type[Method] | type[Observation]] = {
        _words(kind.__name__): kind for kind in (MinMax, Percentile, tq.ranges.MSE, Entropy, Histogram)
    }
    public = (getattr(tq.methods, name) for name in tq.methods.__all__)
    return found | {_words(kind.__name__): kind for kind in public if isinstance(kind, type) and issubclass(kind, Method)}


def method_named(name: str) -> Method | Observation:
    """The method of a name, with its defaults."""
    known = methods()
    if name not in known:
        raise ArgumentError("--method: no such method", got=repr(name), expected=", ".join(known))
    return known[name]()


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()
