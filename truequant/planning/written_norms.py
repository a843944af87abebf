"""Norms written out by hand, recognised by what they compute: `x * rsqrt((x * x).mean(-1) + eps)`, `(x - mean) / (std + eps)`.

The last product or quotient of one becomes the norm, on the codes of x. What leads to it is computed with it: the differences
and gains before it hand x on in evaluation, and nothing reads what the other steps compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from truequant.numerics import NormRule
from truequant.planning.affine import of_channels
from truequant.planning.capture import Call, Ref
from truequant.planning.formulas import Affine
from truequant.planning.pooling import average_axes

Axes = tuple[int, ...]
_POWERS = ("pow", "__pow__")
_DIVIDES = ("__rtruediv__", "__rdiv__")
"""`1 / x`, by torch's names for it."""


@dataclass(slots=True)
class Written:
    """A norm that `call` completes. operand: its positional argument that is the activation, or made of it.

    steps, passed: values that are computed on the way; the latter, in their order, hand the activation on. gain: the map of
    channels that those before the division make.
    """

    rule: NormRule
    source: int
    operand: int
    steps: set[int] = field(default_factory=set)
    passed: tuple[int, ...] = ()
    gain: Affine | None = None


@dataclass(frozen=True, slots=True)
class _Spread:
    """What a norm divides by: the root of the mean square of `source`, less its mean where `centred`, over `axes`."""

    source: int
    axes: Axes
    centred: bool
    eps: float = 0.0
    outside: bool = False
    correction: int = 0
    length: bool = False
    """Whether the squares are summed, not averaged."""


class Finder:
    """Looks back from a call. made: the call that computed a value, seen through ops that do nothing; None of an input."""

    def __init__(
        self, made: Callable[[int], Call | None], resolve: Callable[[int], int], shape: Callable[[int], tuple[int, ...]]
    ) -> None:
        self._made, self._resolve, self._shape = made, resolve, shape
        self._steps: set[int] = set()

    def find(self, call: Call) -> Written | None:
        """The norm that a call completes; None where it completes none."""
        if call.op.name not in ("mul", "div") or len(call.args) != 2 or call.kwargs:
            return None
        for operand in (0, 1) if call.op.name == "mul" else (0,):
            self._steps = set()
            top, bottom = call.args[operand], call.args[1 - operand]
            if not isinstance(top, Ref) or not isinstance(bottom, Ref):
                continue
            spread = self._inverse(bottom) if call.op.name == "mul" else self._deviation(bottom)
            if spread is not None and (found := self._written(self._resolve(top.value), operand, spread)) is not None:
                return found
        return None

    def _written(self, top: int, operand: int, spread: _Spread) -> Written | None:
        rank = len(self._shape(spread.source))
        if -rank in spread.axes:
            return None
        if not spread.centred:
            kind = "l2" if spread.length else "rms"
            rule = NormRule(kind, spread.axes, 0, spread.eps)  # type: ignore[arg-type]
            return Written(rule, top, operand, self._steps) if top == spread.source and not spread.outside else None
        gain, passed = Affine(), list[int]()
        while (call := self._made(top)) is not None:
            passed.insert(0, top)
            step = of_channels(call, self._shape(top))
            if step is None or step.affine.bias is not None or len(spread.axes) != 1 or step.axis != spread.axes[0] + rank:
                break
            gain = step.affine.then(gain)
            top = self._resolve(_ref(call.args[step.operand]))
        centred = self._centred(top)
        if centred != (spread.source, spread.axes):
            return None
        rule = NormRule("layer", spread.axes, 0, spread.eps, spread.outside, spread.correction)
        own = gain if gain.factor is not None else None
        return Written(rule, spread.source, operand, self._steps - set(passed), tuple(passed), own)

    # -- what stands under a line --------------------------------------------------------------------------------------
    def _inverse(self, value: Any) -> _Spread | None:
        """Of `1 / deviation`."""
        call = self._step(value)
        match call:
            case Call(op=op, args=(Ref() as under,)) if op.name == "rsqrt":
                return self._under_root(under)
            case Call(op=op, args=(Ref() as under,)) if op.name == "reciprocal":
                return self._deviation(under)
            case Call(op=op, args=(Ref() as under, 1 | 1.0)) if op.name in _DIVIDES:
                return self._deviation(under)
            case Call(op=op, args=(1 | 1.0, Ref() as under)) if op.name == "div":
                return self._deviation(under)
            case Call(op=op, args=(Ref() as under, -0.5)) if op.name in _POWERS:
                return self._under_root(under)
        return None

    def _deviation(self, value: Any) -> _Spread | None:
        found = self._with_eps(value, self._root)
        if found is None:
            return None
        spread, eps = found
        if eps == 0.0:
            return spread
        if spread.eps != 0.0 or spread.length:
            return None
        return _Spread(spread.source, spread.axes, spread.centred, eps, True, spread.correction)

    def _root(self, value: Any) -> _Spread | None:
        call = self._step(value)
        if call is None:
            return None
        match call:
            case Call(op=op, args=(Ref() as under,)) if op.name == "sqrt":
                return self._under_root(under) or self._summed(under)
            case Call(op=op, args=(Ref() as under, 0.5)) if op.name in _POWERS:
                return self._under_root(under) or self._summed(under)
            case Call(op=op, args=(Ref() as under, *_)) if op.name == "clamp" and _least(call) is not None:
                found = self._length(under)
                least = _least(call)
                assert least is not None
                return None if found is None else _Spread(found.source, found.axes, False, least, length=True)
        if call.op.name in ("norm", "vector_norm", "linalg_vector_norm"):
            return self._length(value)
        return self._variance(call, "std") if call.op.name == "std" else None

    def _under_root(self, value: Any) -> _Spread | None:
        found = self._with_eps(value, self._mean_square)
        if found is None:
            return None
        spread, eps = found
        return _Spread(spread.source, spread.axes, spread.centred, eps, False, spread.correction)

    def _with_eps(self, value: Any, of: Callable[[Any], _Spread | None]) -> tuple[_Spread, float] | None:
        """`of` a value, or of one to which a number is added."""
        call = self._step(value)
        if call is not None and call.op.name == "add" and len(call.args) == 2 and not call.kwargs:
            for term, number in (call.args, call.args[::-1]):
                if isinstance(term, Ref) and isinstance(number, (int, float)) and 0 <= number < math.inf:
                    found = of(term)
                    return None if found is None else (found, float(number))
            return None
        found = of(value)
        return None if found is None else (found, 0.0)

    def _mean_square(self, value: Any) -> _Spread | None:
        call = self._step(value)
        if call is None:
            return None
        if call.op.name == "var":
            return self._variance(call, "var")
        mean = self._mean(call)
        squared = None if mean is None else self._squared(mean[0])
        if mean is None or squared is None:
            return None
        centred = self._centred(squared)
        if centred is not None and centred[1] == mean[1]:
            return _Spread(*centred, True)
        return _Spread(squared, mean[1], False)

    def _variance(self, call: Call, name: str) -> _Spread | None:
        """`x.var(…)` or `x.std(…)`, which know a mean of their own, of x or of x less its mean."""
        given = dict(zip(("input", "dim", "unbiased", "keepdim"), call.args, strict=False)) | dict(call.kwargs)
        axes = self._axes(given.get("input"), given.get("dim"))
        if axes is None or not given.get("keepdim") or call.op.name != name:
            return None
        correction = given.get("correction", int(bool(given.get("unbiased", True))))
        source = self._resolve(_ref(given["input"]))
        centred = self._centred(source)
        if correction not in (0, 1):
            return None
        source = centred[0] if centred is not None and centred[1] == axes else source
        return _Spread(source, axes, True, correction=int(correction))

    def _length(self, value: Any) -> _Spread | None:
        """`x.norm(dim=-1, keepdim=True)`."""
        call = self._step(value)
        if call is None or call.op.name not in ("norm", "vector_norm", "linalg_vector_norm"):
            return None
        names = ("input", "p", "dim", "keepdim") if call.op.name == "norm" else ("input", "ord", "dim", "keepdim")
        given = dict(zip(names, call.args, strict=False)) | dict(call.kwargs)
        axes, order = self._axes(given.get("input"), given.get("dim")), given.get("p", given.get("ord", 2))
        if axes is None or not given.get("keepdim") or order not in (2, 2.0, "fro"):
            return None
        return _Spread(self._resolve(_ref(given["input"])), axes, False, length=True)

    def _summed(self, value: Any) -> _Spread | None:
        """`x.square().sum(-1, keepdim=True)`, whose root is a length."""
        call = self._step(value)
        if call is None or call.op.name != "sum":
            return None
        given = dict(zip(("input", "dim", "keepdim"), call.args, strict=False)) | dict(call.kwargs)
        squares = given.get("input")
        axes = self._axes(squares, given.get("dim"))
        source = self._squared(self._resolve(_ref(squares))) if axes is not None and given.get("keepdim") else None
        known = given.keys() <= {"input", "dim", "keepdim"}
        return _Spread(source, axes, False, length=True) if source is not None and axes is not None and known else None

    # -- parts ---------------------------------------------------------------------------------------------------------
    def _centred(self, value: int) -> tuple[int, Axes] | None:
        """`x - x.mean(axes, keepdim=True)`: x and the axes."""
        call = self._made(value)
        if call is None or call.op.name != "sub" or len(call.args) != 2 or call.kwargs:
            return None
        x, subtracted = call.args
        if not isinstance(x, Ref) or not isinstance(subtracted, Ref):
            return None
        below = self._made(self._resolve(subtracted.value))
        mean = None if below is None else self._mean(below)
        if mean is None or mean[0] != self._resolve(x.value):
            return None
        self._steps |= {value, self._resolve(subtracted.value)}
        return mean

    def _mean(self, call: Call) -> tuple[int, Axes] | None:
        """`x.mean(axes, keepdim=True)`: x and the axes."""
        if call.op.name != "mean" or not call.args or not isinstance(call.args[0], Ref):
            return None
        keeps = call.args[2] if len(call.args) > 2 else call.kwargs.get("keepdim", False)
        if not keeps or not call.kwargs.keys() <= {"dim", "axis", "keepdim"}:
            return None
        value = self._resolve(call.args[0].value)
        axes = average_axes("mean", call.args, call.kwargs, len(self._shape(value)))
        return None if axes is None else (value, axes)

    def _squared(self, value: int) -> int | None:
        call = self._made(value)
        if call is None:
            return None
        match call:
            case Call(op=op, args=(Ref() as x, 2 | 2.0)) if op.name in _POWERS:
                found = x
            case Call(op=op, args=(Ref() as x,)) if op.name == "square":
                found = x
            case Call(op=op, args=(Ref() as x, Ref() as y)) if op.name == "mul" and x.value == y.value:
                found = x
            case _:
                return None
        self._steps.add(value)
        return self._resolve(found.value)

    def _axes(self, x: Any, axes: Any) -> Axes | None:
        if not isinstance(x, Ref) or axes is None:
            return None
        rank = len(self._shape(self._resolve(x.value)))
        named: Sequence[int] = (axes,) if isinstance(axes, int) else tuple(axes)
        return tuple(sorted(a % rank - rank for a in named))

    def _step(self, value: Any) -> Call | None:
        """The call that made a value, which is a step of the norm."""
        if not isinstance(value, Ref):
            return None
        resolved = self._resolve(value.value)
        call = self._made(resolved)
        if call is not None:
            self._steps.add(resolved)
        return call


def _ref(argument: Any) -> int:
    assert isinstance(argument, Ref)
    return argument.value


def _least(call: Call) -> float | None:
    """The lower bound of a clamp that has no upper one."""
    kwargs: Mapping[str, Any] = call.kwargs
    given = dict(zip(("input", "min", "max"), call.args, strict=False)) | dict(kwargs)
    least = given.get("min")
    return float(least) if isinstance(least, (int, float)) and given.get("max") is None and least >= 0 else None
