"""What becomes of a call: the names of all actions that a plan may give a site."""

from __future__ import annotations

from typing import Literal

Action = Literal[
    "layer", "norm", "affine", "product", "add", "sub", "mul", "table", "lookup", "average", "pool", "clamp", "concat",
    "movement", "resize", "identity", "float", "weighted", "weight_only", "dynamic",
]  # fmt: skip
FLOAT: frozenset[str] = frozenset(("float", "weight_only", "dynamic"))
"""Actions whose result is a float that a quantizer may follow."""
