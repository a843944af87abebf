"""Ops that make each number of numbers at the same place: rotary products, tokens, tables of positions, factors.

IEEE rounds such an operation in one way, and so does every runtime that computes it alone: no sum has an order here that could
differ. So no quantizer stands between such ops, and they read what a layer sums up before it is rounded to codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from truequant.numerics import Pointwise
from truequant.planning.capture import Call, Constant, Ref
from truequant.planning.flow import Flow
from truequant.planning.ops import Role, writes_in_place
from truequant.planning.values import Values

EACH_NUMBER = "a float32 operation for each number, rounded alike everywhere"
ARITHMETIC: frozenset[str] = frozenset(get_args(Pointwise))
"""The operations, by the name of their op."""


def is_pointwise(index: int, call: Call, values: Values, flow: Flow, *, tables: bool) -> bool:
    """Whether a call reads values that such a call computed for it alone, or, if `tables`, a table of numbers."""
    operands = _operands(call)
    if operands is None:
        return False
    read = [operand for operand in operands if isinstance(operand, Ref)]
    constants = [operand for operand in operands if isinstance(operand, Constant)]
    if not read or not all(values.is_float(values.resolve(r.value)) for r in read) or not all(map(_is_table, constants)):
        return False
    known = [values.resolve(r.value) for r in read]
    if any(values.is_far(v) for v in known) or not any(v in values.on_codes for v in known):
        return False
    own = [v in values.exact and flow.only_read_by(v, index) for v in known]
    if call.op.role is Role.CONCAT:
        return any(own) or (tables and any(c.learned for c in constants))
    return all(own) or (tables and any(c.elements > 1 for c in constants))


def _operands(call: Call) -> Sequence[Any] | None:
    """What a call joins; None where it is another op, or does something else too."""
    if call.op.role is Role.CONCAT:
        tensors = call.args[0] if call.args else call.kwargs.get("tensors")
        return tensors if isinstance(tensors, (list, tuple)) and tensors else None
    if call.op.name not in ARITHMETIC or call.kwargs or len(call.args) != (1 if call.op.name == "neg" else 2):
        return None
    if not isinstance(call.args[0], Ref) and call.function is not None and writes_in_place(call.function):
        return None
    plain = all(isinstance(a, (Ref, Constant, int, float)) and not isinstance(a, bool) for a in call.args)
    return call.args if plain else None


def _is_table(constant: Constant) -> bool:
    """Whether a constant has numbers that are no mask."""
    return constant.dtype.is_floating_point and constant.elements > 0 and not (constant.hides or constant.far)
