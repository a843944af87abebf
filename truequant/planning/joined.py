"""Constants that an op joins to an activation: positions that are added, a class token. They are quantized once.

Each is a value of the graph with no writer, on a grid of its own, or on that of what it is concatenated with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from truequant.planning.actions import Action
from truequant.planning.capture import Call, Constant, Ref
from truequant.planning.ops import Role, writes_in_place
from truequant.planning.values import Values

CONSTANTS: dict[Role, tuple[Action, str]] = {
    Role.ADD: ("add", "integer add of a constant"),
    Role.SUB: ("sub", "integer sub with a constant"),
    Role.CONCAT: ("concat", "one grid for all parts, a constant among them"),
}
"""What such an op is."""


def joined(call: Call, values: Values) -> Sequence[Ref | Constant] | None:
    """The tensors that a call joins, in order, where constants are among them that can be quantized; else None."""
    given = _given(call)
    if not given or not all(isinstance(leaf, (Ref, Constant)) for leaf in given):
        return None
    if isinstance(given[0], Constant) and call.function is not None and writes_in_place(call.function):
        return None
    constants = [leaf for leaf in given if isinstance(leaf, Constant)]
    read = [values.resolve(leaf.value) for leaf in given if isinstance(leaf, Ref)]
    if not constants or not all(map(_is_quantized, constants)):
        return None
    if not any(v in values.on_codes for v in read) or not all(values.is_float(v) and not values.is_far(v) for v in read):
        return None
    return given


def _given(call: Call) -> Sequence[Any] | None:
    """What an op of `CONSTANTS` is given to join; None where it does something else too."""
    match call.op.role:
        case Role.ADD | Role.SUB if len(call.args) == 2 and not call.kwargs and call.op.name == call.op.role.value:
            return call.args
        case Role.CONCAT:
            tensors = call.args[0] if call.args else call.kwargs.get("tensors")
            return tensors if isinstance(tensors, (list, tuple)) else None
        case _:
            return None


def _is_quantized(constant: Constant) -> bool:
    """Whether a constant has values that a grid of activations holds."""
    return constant.dtype.is_floating_point and constant.elements > 0 and not (constant.hides or constant.far)
