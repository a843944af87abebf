"""Softmax of scores, as an edge or as weights, and weights times values: see `truequant.numerics.attention`.

Masks are bytes, 255 where a place is seen and 0 where it is hidden, as edges or stored; a place is seen that all of them show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from truequant import numerics
from truequant.errors import ConversionError
from truequant.integer.edge import Edge
from truequant.integer.nodes.base import Node, Shape, broadcast
from truequant.integer.nodes.checks import check_clamp, check_tensor, float32
from truequant.integer.storage import scale_of, storage, zero_point_of
from truequant.kernels import products_of_codes
from truequant.numerics import FLOAT32_EXACT, INT32_MAX

WIDEST = 2**16
"""The largest entry of a table of exponentials."""


@dataclass(frozen=True, slots=True, eq=False)
class _OfScores(Node):
    """What reads scores on unsigned codes of at most 8 bits, and looks up an exponential for each.

    shown: a stored mask, uint8. causal: row i sees the places 0 … i alone. table: `(levels,)`, the exponential of each distance
    from the row's largest code. factor: by what the values of the scores are multiplied in its exponents.
    """

    scores: str
    masks: tuple[str, ...]
    shown: Tensor | None
    causal: bool
    output: str
    table: Tensor
    factor: float
    sums = True

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.scores, *self.masks)

    def _check_scores(self, edges: Mapping[str, Edge], dtype: torch.dtype) -> None:
        for name in (self.scores, *self.masks):
            if edges[name].signed or edges[name].wide:
                raise ConversionError(
                    f"{self.label}: scores and masks are unsigned codes of at most 8 bits", got=edges[name].codes
                )
        if not 2.0**-64 <= self.factor <= 2.0**64:
            raise ConversionError(f"{self.label}: a factor that cannot be", got=self.factor, expected="2^-64 … 2^64")
        if self.shown is not None:
            check_tensor(self, "shown", self.shown, torch.uint8, None)
        check_tensor(self, "table", self.table, dtype, ((edges[self.scores].qmax + 1,),))
        first, rest = int(self.table[0]), self.table[1:]
        falls = bool((self.table[1:].int() <= self.table[:-1].int()).all())
        if not (0 < first <= WIDEST and falls) or (rest.numel() and int(rest.min()) < 0):
            raise ConversionError(
                f"{self.label}: its table is none of exponentials", got=f"{first} … {int(self.table[-1])}",
                expected=f"numbers of 0 … {WIDEST} that never rise, the first above 0",
            )  # fmt: skip

    def _check_masks(self, scores: Shape, masks: Sequence[Shape]) -> None:
        if len(scores) < (2 if self.causal else 1):
            raise self.misfit(scores, "rows of scores")
        for mask in (*masks, *([tuple(self.shown.shape)] if self.shown is not None else [])):
            if len(mask) > len(scores) or broadcast(self, scores, mask) != scores:
                raise self.misfit(mask, f"a mask of scores {scores}")

    def _raised(self, scores: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """The exponentials of all codes."""
        shown = None
        if self.shown is not None:
            masks = [*masks, self.shown.to(scores.device)]
        if self.causal:
            masks = [*masks, numerics.causal(scores.shape[-2], scores.shape[-1], scores.device)]
        for mask in masks:
            shown = mask if shown is None else shown & mask
        return numerics.raised(scores, shown, self.table)

    @property
    def largest(self) -> int:
        """The largest exponential."""
        return int(self.table[0])


@dataclass(frozen=True, slots=True, eq=False)
class Softmax(_OfScores):
    """Softmax over the last axis: an edge of codes, or where its output is a value the weights `e / float32(S)`.

    table: int32. Between a row's largest code and code 0 lie at most as many steps as it has entries.
    """

    low: int
    high: int
    writing = "either"

    def check(self, edges: Mapping[str, Edge]) -> None:
        self._check_scores(edges, torch.int32)
        if self.output not in edges:
            return
        target = edges[self.output]
        check_clamp(self, self.low, self.high, target)
        if not bool(torch.isfinite(float32(2.0**53) * float32(target.scale))):
            raise ConversionError(f"{self.label}: a scale too large for float32", got=target.scale)

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        scores, *masks = shapes
        self._check_masks(scores, masks)
        return scores

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        scores, *masks = inputs
        raised = self._raised(scores, masks)
        sums = numerics.row_sums(raised, self.largest)
        target = edges.get(self.output)
        if target is None:
            return raised.float() / sums
        codes = numerics.softmax(raised, sums, scale_of(target, scores), zero_point_of(target, scores), self.low, self.high)
        return codes.to(storage(target))


@dataclass(frozen=True, slots=True, eq=False)
class Attend(_OfScores):
    """Softmax of scores `(…, rows, places)` times values `(…, places, features)`. table: uint8.

    The sums `acc` must fit int32, as in kernels.
    """

    values: str
    low: int
    high: int

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.scores, self.values, *self.masks)

    def check(self, edges: Mapping[str, Edge]) -> None:
        self._check_scores(edges, torch.uint8)
        values, target = edges[self.values], edges[self.output]
        if values.signed or values.wide:
            raise ConversionError(f"{self.label}: values are unsigned codes of at most 8 bits", got=values.codes)
        check_clamp(self, self.low, self.high, target)
        ratio = float32(target.scale) / float32(values.scale)
        if not (bool(torch.isfinite(ratio * FLOAT32_EXACT)) and float(ratio) >= 2.0**-100):
            raise ConversionError(
                f"{self.label}: scales too far apart for float32", got=f"values {values.scale}, output {target.scale}"
            )

    def output_shape(self, shapes: Sequence[Shape]) -> Shape:
        scores, values, *masks = shapes
        if min(len(scores), len(values)) < 2 or scores[-1] != values[-2] or scores[:-2] != values[:-2]:
            raise ConversionError(
                f"{self.label} cannot multiply its inputs", got=f"shapes {scores} and {values}",
                expected="(…, a, b) and (…, b, c), the axes before them alike",
            )  # fmt: skip
        self._check_masks(scores, masks)
        return (*scores[:-1], values[-1])

    def run(self, edges: Mapping[str, Edge], inputs: Sequence[Tensor]) -> Tensor:
        """ConversionError where a sum could leave int32: kernels would wrap."""
        scores, values, *masks = inputs
        source, target = edges[self.values], edges[self.output]
        bound = scores.shape[-1] * self.largest * source.reach
        if bound > INT32_MAX:
            raise ConversionError(
                f"{self.label}: an accumulator may leave int32",
                got=f"sums of {scores.shape[-1]} products up to {self.largest * source.reach}", expected=f"at most {INT32_MAX}",
                fix="fewer places to look at, or leave it in float",
            )  # fmt: skip
        raised = self._raised(scores, masks)
        acc = products_of_codes(raised, values.float() - source.zero_point)
        if acc is None:
            carrier = torch.float32 if bound < FLOAT32_EXACT else torch.float64
            acc = raised.to(carrier) @ (values.to(carrier) - source.zero_point)
        ratio = scale_of(source, scores), scale_of(target, scores)
        sums = numerics.row_sums(raised, self.largest)
        codes = numerics.attended(acc, sums, *ratio, zero_point_of(target, scores), self.low, self.high)
        return codes.to(storage(target))
