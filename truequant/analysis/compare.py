"""Batch after batch of codes and outputs, counted into a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from truequant.analysis.cases import Case
from truequant.analysis.origins import Origins, unequal
from truequant.analysis.report import Difference, RuntimeReport
from truequant.errors import ArgumentError

Codes = Mapping[str, Tensor]


def first_difference(order: Sequence[str], wanted: Codes, found: Codes, batch: int) -> Difference | None:
    """The first code that differs, in the order of the edges."""
    for edge in order:
        wrong = wanted[edge].int() != found[edge].int()
        if wrong.any():
            position = tuple(int(i) for i in wrong.nonzero()[0])
            return Difference(edge, batch, position, int(wanted[edge][position]), int(found[edge][position]))
    return None


@dataclass
class Tally:
    """What one runtime has shown so far. order: the edges as they are computed."""

    runtime: str
    order: Sequence[str]
    compared: int = 0
    different: int = 0
    largest: int = 0
    changed: int = 0
    outputs: int = 0
    behind: int = 0
    outputs_behind: int = 0
    float_layers: int = 0
    error: float = 0.0
    first: Difference | None = None
    case: Case | None = None
    by_edge: dict[str, int] = field(default_factory=dict)
    origins: dict[str, int] = field(default_factory=dict)
    islands: dict[str, int] = field(default_factory=dict)
    metric: float = 0.0

    def codes(self, batch: int, wanted: Codes, found: Codes) -> bool:
        """Count every edge of one batch; whether one differs."""
        differs = False
        for edge in self.order:
            want, have = wanted[edge], found[edge]
            if have.shape != want.shape:
                raise ArgumentError(
                    f"edge '{edge}' has another shape in {self.runtime}", got=tuple(have.shape), expected=tuple(want.shape)
                )
            self.compared += want.numel()
            if torch.equal(have, want) if have.dtype == want.dtype else torch.equal(have.int(), want.int()):
                continue
            distance = (have.int() - want.int()).abs()
            wrong, differs = int((distance != 0).sum()), True
            self.by_edge[edge] = self.by_edge.get(edge, 0) + wrong
            self.different, self.largest = self.different + wrong, max(self.largest, int(distance.max()))
        if differs and self.first is None:
            self.first = first_difference(self.order, wanted, found, batch)
        return differs

    def values(self, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
        """Count the model's outputs, bit by bit, and the predictions of the first one; whether one differs."""
        different = 0
        for position, (want, have) in enumerate(zip(wanted, found, strict=True)):
            different += unequal(want, have)
            self.error = max(self.error, _relative(want, have))
            if position == 0 and want.dim() >= 2 and want.shape[-1]:
                self.changed += int((want.argmax(-1) != have.argmax(-1)).sum())
        self.outputs += different
        return different > 0

    def explain(self, found: Origins) -> None:
        """Count where the differences of one batch begin."""
        for counts, more in ((self.origins, found.integers), (self.islands, found.islands)):
            for edge, count in more.items():
                counts[edge] = counts.get(edge, 0) + count
        self.behind += found.codes_behind_islands
        self.outputs_behind += found.outputs_behind_islands

    def report(self, examples: int, measured: bool, floats: tuple[str, ...] = ()) -> RuntimeReport:
        """All of it, as a value."""
        return RuntimeReport(
            codes_compared=self.compared, codes_different=self.different, max_difference=self.largest,
            argmax_changed=self.changed, outputs_different=self.outputs, first_difference=self.first, by_edge=self.by_edge,
            origins=self.origins, island_origins=self.islands, codes_behind_islands=self.behind,
            outputs_behind_islands=self.outputs_behind, float_layers=self.float_layers, output_error=self.error,
            metric=self.metric / max(1, examples) if measured else None,
            case=self.case, float_sums=floats,
        )  # fmt: skip


def _relative(want: Tensor, have: Tensor) -> float:
    """The largest difference as a part of the largest expected number; infinite where only one of two is a number."""
    if not want.numel() or not unequal(want, have):
        return 0.0
    a, b = want.double(), have.double()
    finite = torch.isfinite(a)
    if unequal(a[~finite], b[~finite]) or not bool(torch.isfinite(b[finite]).all()):
        return float("inf")
    return float((a[finite] - b[finite]).abs().max() / a[finite].abs().max().clamp(min=1e-30))
