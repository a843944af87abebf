"""Calls that multiply each channel by a constant or add one to it: layer scale, frozen statistics, a bias of its own.

What computes them does not matter: `x * gamma`, `x + beta.reshape(1, -1, 1, 1)`, `torch.addcmul(beta, gamma, x)` and a
BatchNorm written out are one kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from truequant.planning.capture import Call, Constant, Ref
from truequant.planning.formulas import Affine, Formula
from truequant.planning.ops import Role


@dataclass(frozen=True, slots=True)
class OfChannels:
    """A call that is such a map: along `axis` of its activation, its positional argument `operand`."""

    affine: Affine
    axis: int
    operand: int


def of_channels(call: Call, shape: Sequence[int]) -> OfChannels | None:
    """The map that a call on one activation of this shape is; None where it is none."""
    if call.op.role not in (Role.ADD, Role.MUL, Role.SUB) and call.op.name not in ("rsub", "div", "addcmul"):
        return None
    operands = [i for i, a in enumerate(call.args) if isinstance(a, Ref)]
    if len(operands) != 1 or len(call.inputs) != 1 or call.kwargs:
        return None
    constants = [a for i, a in enumerate(call.args) if i != operands[0]]
    found = _terms(call.op.name, operands[0], constants)
    if found is None:
        return None
    axes = {_axis(c.shape, shape) for c in constants if isinstance(c, Constant)}
    if len(axes) != 1 or None in axes:
        return None
    (axis,) = axes
    assert axis is not None
    return OfChannels(found, axis, operands[0])


def _terms(op: str, operand: int, constants: Sequence[Any]) -> Affine | None:
    formulas = [c.formula.flat() if isinstance(c, Constant) and c.formula is not None else None for c in constants]
    if any(f is None for f in formulas):
        return None
    match op, operand, formulas:
        case "mul", _, [factor]:
            return Affine(factor)
        case "add", _, [bias]:
            return Affine(None, bias)
        case ("sub", 0, [bias]) | ("rsub", 1, [bias]) if bias is not None:
            return Affine(None, Formula.of("neg", bias))
        case ("sub", 1, [bias]) | ("rsub", 0, [bias]) if bias is not None:
            return Affine(Formula.of("sub", Formula.of("mul", bias, 0.0), 1.0), bias)
        case "div", 0, [divisor] if divisor is not None:
            return Affine(Formula.of("reciprocal", divisor))
        case "addcmul", 1 | 2, [bias, factor]:
            return Affine(factor, bias)
        case _:
            return None


def _axis(constant: Sequence[int], shape: Sequence[int]) -> int | None:
    """The one axis of an activation along which a constant of that shape varies; None where it varies along several or none."""
    behind = len(shape) - len(constant)
    if behind < 0:
        return None
    varies = [axis + behind for axis, n in enumerate(constant) if n != 1]
    return varies[0] if len(varies) == 1 and shape[varies[0]] == constant[varies[0] - behind] else None
