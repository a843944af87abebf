"""Tensors that a forward computes from parameters and buffers alone, as values: what is computed, not by which module.

A map of channels that folds into the layer before it is needed when that layer is called, before the forward has computed it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from truequant.planning.ops import tensors_in, writes_in_place

Argument = int | float | str | tuple[int, ...]
_ELEMENTWISE = frozenset(
    ("add", "sub", "mul", "div", "neg", "abs", "reciprocal", "sqrt", "rsqrt", "square", "pow", "exp", "sigmoid", "tanh", "relu")
)
_RESHAPING = frozenset(("reshape", "view", "unsqueeze", "squeeze", "flatten", "unflatten", "getitem"))
_SAME = frozenset(("contiguous", "clone", "detach", "float"))
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {name: getattr(Tensor, name) for name in (*_ELEMENTWISE, "reshape")} | {
    "rsub": lambda x, y: y - x,
    "rdiv": lambda x, y: y / x,
}
_SPELLED = {"__rtruediv__": "rdiv", "__rdiv__": "rdiv", "__pow__": "pow"}
_LARGEST = 1 << 16
_MOST = 64
"""Elements of a tensor, and steps, that are followed: a vector of channels has few of either."""


@dataclass(frozen=True, slots=True)
class Step:
    """A function of tensors: each a string, the name of a parameter or buffer, or "%n", what step n returned."""

    function: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Formula:
    """A tensor computed in `steps`; without any, the parameter or buffer `result`."""

    steps: tuple[Step, ...]
    result: str

    @staticmethod
    def of(function: str, *operands: Formula | Argument) -> Formula:
        """`function` of formulas and numbers."""
        steps: list[Step] = []
        arguments: list[Argument] = []
        for operand in operands:
            if not isinstance(operand, Formula):
                arguments.append(operand)
                continue
            first = len(steps)
            moved = {f"%{n}": f"%{n + first}" for n in range(len(operand.steps))}

            def renamed(argument: Argument, moved: Mapping[str, str] = moved) -> Argument:
                return moved.get(argument, argument) if isinstance(argument, str) else argument

            steps += [Step(s.function, tuple(map(renamed, s.arguments))) for s in operand.steps]
            arguments.append(renamed(operand.result))
        return Formula((*steps, Step(function, tuple(arguments))), f"%{len(steps)}")

    def flat(self) -> Formula:
        """The same as a vector."""
        return Formula.of("reshape", self, (-1,))

    def names(self) -> set[str]:
        """The parameters and buffers that it reads."""
        found = {a for s in self.steps for a in s.arguments if isinstance(a, str)} | {self.result}
        return {name for name in found if not name.startswith("%")}

    def compute(self, tensor: Callable[[str], Tensor]) -> Tensor:
        """The tensor now. tensor: a parameter or buffer by its name."""
        results: list[Tensor] = []

        def value(argument: Argument) -> Any:
            if not isinstance(argument, str):
                return argument
            return results[int(argument[1:])] if argument.startswith("%") else tensor(argument)

        for step in self.steps:
            results.append(_FUNCTIONS[step.function](*map(value, step.arguments)))
        found: Tensor = value(self.result)
        return found

    def is_sound(self) -> bool:
        """Whether all steps are known functions of what stands before them."""
        for index, step in enumerate((*self.steps, Step("neg", (self.result,)))):
            back = [a[1:] for a in step.arguments if isinstance(a, str) and a.startswith("%")]
            if step.function not in _FUNCTIONS or not all(n.isdecimal() and int(n) < index for n in back):
                return False
        return True


class Formulas:
    """Of one forward: how tensors that no input has a part in are computed. names: of parameters and buffers, by id."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._known: dict[int, tuple[Tensor, Formula]] = {}
        """With the tensor, so that nothing else gets its id meanwhile."""

    def of(self, tensor: Tensor) -> Formula | None:
        """The formula of a tensor; None where it is not known."""
        name = self._names.get(id(tensor))
        if name is not None:
            return Formula((), name)
        known = self._known.get(id(tensor))
        return known[1] if known is not None else None

    def note(self, op: str, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        """`function`, a call of the op, made `result` of these constants."""
        if writes_in_place(function):
            self._known.pop(id(args[0]) if args else 0, None)
        elif isinstance(result, Tensor) and result.numel() <= _LARGEST and not kwargs and args:
            formula = self._made(op, args, result)
            if formula is not None and len(formula.steps) <= _MOST:
                self._known[id(result)] = result, formula

    def _made(self, op: str, args: Sequence[Any], result: Tensor) -> Formula | None:
        operands = [self.of(a) if isinstance(a, Tensor) else a for a in args]
        first = operands[0]
        if not isinstance(first, Formula):
            return None
        if op in _SAME:
            return first
        if op in _RESHAPING:
            whole = result.numel() == args[0].numel() and len(list(tensors_in(args))) == 1
            return Formula.of("reshape", first, tuple(result.shape)) if whole else None
        function, known = _SPELLED.get(op, op), list[Formula | Argument]()
        for operand in operands:
            if isinstance(operand, (Formula, int, float)) and (isinstance(operand, Formula) or math.isfinite(operand)):
                known.append(operand)
        complete = len(known) == len(operands) and function in _FUNCTIONS and function != "reshape"
        return Formula.of(function, *known) if complete else None


@dataclass(frozen=True, slots=True)
class Affine:
    """`factor * x + bias` for each channel, each a vector or None for 1 and 0."""

    factor: Formula | None = None
    bias: Formula | None = None

    def then(self, other: Affine) -> Affine:
        """`other` after this one."""
        factor = _both("mul", self.factor, other.factor)
        bias = self.bias if other.factor is None or self.bias is None else Formula.of("mul", self.bias, other.factor)
        return Affine(factor, _both("add", bias, other.bias))

    def names(self) -> set[str]:
        """The parameters and buffers that it reads."""
        return {name for formula in (self.factor, self.bias) if formula is not None for name in formula.names()}


def _both(function: str, first: Formula | None, second: Formula | None) -> Formula | None:
    if first is None or second is None:
        return first or second
    return Formula.of(function, first, second)
