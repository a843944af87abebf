"""Normalize: layer, RMS, group and L2 norm of codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from truequant.errors import ConversionError
from truequant.integer.edge import Edge
from truequant.integer.nodes.base import Shape, Unary
from truequant.integer.nodes.checks import check_clamp, check_tensor
from truequant.integer.storage import CHUNK, scale_of, storage, zero_point_of
from truequant.numerics import MAX_SCALE, MIN_SCALE, NormKind, NormRule, norm_codes, norm_constants, normalized, too_long

_LARGEST = 2.0**100
"""Bound of what codes are multiplied with: no row makes an infinity of which another is taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Normalize(Unary):
    """Rows of codes less their mean, over their deviation, times a gain, plus a bias: a rule of `truequant.numerics.norms`.

    kind, axes, groups, eps, outside, correction: those of `NormRule`. gain, bias: float32, of the sizes of `axes`, or `(C,)`
    of a group norm; None for 1 and 0; an L2 norm has neither, an RMS norm no bias. Where `output` is a value, the result is not
    rounded, and `low` and `high` say nothing.
    """

    kind: NormKind
    axes: tuple[int, ...]
    groups: int
    eps: float
    outside: bool
    correction: int
    gain: Tensor | None
    bias: Tensor | None
    low: int
    high: int
    writing = "either"

    @property
    def rule(self) -> NormRule:
        """What it computes, apart from gain and bias."""
        return NormRule(self.kind, self.axes, self.groups, self.eps, self.outside, self.correction)

    def check(self, edges: Mapping[str, Edge]) -> None:
        self._check_rule()
        grouped = self.kind == "group"
        for field, tensor, allowed in (
            ("gain", self.gain, self.kind != "l2"), ("bias", self.bias, self.kind in ("layer", "group")),
        ):  # fmt: skip
            if tensor is None:
                continue
            check_tensor(self, field, tensor, torch.float32, None)
            rank = 1 if grouped else len(self.axes)
            if not allowed or tensor.dim() != rank or (grouped and tensor.shape[0] % self.groups):
                expected = f"{rank} axes" + (f", {self.groups} groups of channels" if grouped else "") if allowed else "None"
                raise ConversionError(f"{self.label}: {field} of a wrong shape", got=tuple(tensor.shape), expected=expected)
        if self.gain is not None and self.bias is not None and self.gain.shape != self.bias.shape:
            raise ConversionError(
                f"{self.label}: bias of a wrong shape", got=tuple(self.bias.shape), expected=str(tuple(self.gain.shape))
            )
        target = edges.get(self.output)
        if target is not None:
            check_clamp(self, self.low, self.high, target)
        scales = [edges[self.input].scale, *([] if target is None else [target.scale])]
        if not all(MIN_SCALE <= scale <= MAX_SCALE for scale in scales):
            raise ConversionError(f"{self.label}: scales out of range", got=scales, expected="2^-64 … 2^64")
        largest = self._largest(edges)
        if not largest <= _LARGEST:
            raise ConversionError(f"{self.label}: gain or bias too large for float32", got=largest, expected="at most 2^100")

    def _check_rule(self) -> None:
        grouped = self.kind == "group"
        if self.kind not in get_args(NormKind):
            raise ConversionError(f"{self.label}: no such norm", got=repr(self.kind), expected=", ".join(get_args(NormKind)))
        ascending = list(self.axes) == sorted(set(self.axes)) and all(axis < 0 for axis in self.axes)
        if not ascending or bool(self.axes) == grouped or (self.groups >= 1) != grouped or (self.groups != 0 and not grouped):
            raise ConversionError(
                f"{self.label}: impossible axes or groups", got=f"axes {self.axes}, {self.groups} groups",
                expected="groups of channels" if grouped else "ascending axes, counted from the end, and 0 groups",
            )  # fmt: skip
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ConversionError(f"{self.label}: impossible eps", got=self.eps, expected="a finite number, 0 or more")
        if self.correction not in (0, 1) or ((self.outside or self.correction) and self.kind != "layer"):
            raise ConversionError(
                f"{self.label}: impossible deviation", got=f"outside {self.outside}, correction {self.correction}",
                expected="of a layer norm, a correction of 0 or 1",
            )  # fmt: skip

    def _largest(self, edges: Mapping[str, Edge]) -> float:
        """The largest number that a code may be multiplied with, or that is added to it."""
        known = norm_constants(self.rule, 2, self.gain, self.bias, *self._scales(edges, torch.zeros(())))
        found = [0.0] + [float(t.abs().max()) for t in (known.gain, known.bias) if t is not None]
        if self.kind == "group":  # a row of equal codes has nothing but eps under its root
            found.append(max(found) / min(1.0, math.sqrt(self.eps / edges[self.input].scale ** 2) or 2.0**-61))
        return math.inf if any(math.isnan(n) for n in found) else max(found)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        shape = shapes[0]
        if self.kind == "group":
            channels = [len(t) for t in (self.gain, self.bias) if t is not None]
            if len(shape) < 2 or shape[1] % self.groups or shape[1] == 0 or any(n != shape[1] for n in channels):
                of = f"{channels[0]} channels" if channels else f"a multiple of {self.groups} channels"
                raise self.misfit(shape, f"{of} on axis 1")
            rows = 0 not in shape[1:]
        else:
            if len(shape) < -min(self.axes):
                raise self.misfit(shape, f"axes {self.axes}")
            sizes = tuple(shape[axis] for axis in self.axes)
            for tensor in (self.gain, self.bias):
                if tensor is not None and tuple(tensor.shape) != sizes:
                    raise self.misfit(shape, f"{tuple(tensor.shape)} on the axes {self.axes}")
            rows = 0 not in sizes
        if not rows or self.rule.count(shape) <= self.correction:
            raise self.misfit(shape, "something to normalize")
        return shape

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        """Codes, or values where no edge is written, piece by piece. ConversionError for rows too long to be summed exactly."""
        (x,), source, target = inputs, edges[self.input], edges.get(self.output)
        if too_long(self.rule.count(x.shape), source.reach):
            raise ConversionError(
                f"{self.label}: sums of a row may leave int64", got=f"{self.rule.count(x.shape)} codes up to {source.reach}"
            )
        gain, bias = (None if t is None else t.to(x.device) for t in (self.gain, self.bias))
        scales = self._scales(edges, x)

        def codes(piece: Tensor) -> Tensor:
            centred = piece.float() - source.zero_point
            y = normalized(centred, self.rule, gain, bias, *scales, source.reach)
            return y if target is None else norm_codes(y, zero_point_of(target, x), self.low, self.high)

        inner = 1 if self.kind == "group" else x.dim() + min(self.axes)
        rows = x.reshape(math.prod(x.shape[:inner]), *x.shape[inner:])
        dtype = torch.float32 if target is None else storage(target)
        return by_pieces(codes, rows, dtype).reshape(x.shape)

    def _scales(self, edges: Mapping[str, Edge], like: Tensor) -> tuple[Tensor, Tensor]:
        target = edges.get(self.output)
        return scale_of(edges[self.input], like), like.new_ones((), dtype=torch.float32) if target is None else scale_of(
            target, like
        )


def by_pieces(function: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    """`function` of some rows of axis 0 at a time, stored as `dtype`: it must act on each row alone."""
    result = torch.empty(x.shape, dtype=dtype, device=x.device)
    step = max(1, CHUNK // max(1, math.prod(x.shape[1:])))
    for begin in range(0, x.shape[0], step):
        result[begin : begin + step] = function(x[begin : begin + step])
    return result
