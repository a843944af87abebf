"""Proofs of softmax and attention: random and extreme rows of each of them through the installed runtime."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from truequant.errors import ExportError
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Attend, Shape, Softmax
from truequant.runtimes.onnx.shapes import dynamic_shapes
from truequant.runtimes.onnxruntime.trials import Trial, Write, first_difference

_ROWS, _LENGTH = 16, 40
"""Rows of scores that are tried where a program has no fixed number of them, and places of a row."""


def require_exact_attention(program: IntegerProgram, write: Write) -> int:
    """How many codes were compared. write: the serialized model of a program, its edges shown.

    `ExportError` naming the first softmax or attention of which onnxruntime computes another code.
    """
    nodes = [node for node in program.nodes if isinstance(node, (Softmax, Attend)) and node.output in program.edges]
    trial = Trial(program)
    if nodes:
        rows = _Rows(program)
        for node in nodes:
            rows.feed(trial, node)
    compared = 0
    for tried, found, expected in trial.results(write):
        if (differ := first_difference(found, expected)) is not None:
            at, count = differ
            raise ExportError(
                f"'{tried.output}': onnxruntime computes another code of this {type(tried).__name__}",
                got=f"{int(found[at])}, {count} of {found.numel()} differ", expected=int(expected[at]),
                fix="leave it in float by a rule, and please report it",
            )  # fmt: skip
        compared += expected.numel()
    return compared


class _Rows:
    """What softmax and attention of a program are fed with."""

    def __init__(self, program: IntegerProgram) -> None:
        self.program, (self.shapes, _) = program, dynamic_shapes(program)
        self.generator = torch.Generator().manual_seed(0)

    def feed(self, trial: Trial, node: Softmax | Attend) -> None:
        planned, edges = self.shapes[node.scores], self.program.edges
        leading = [1] * (len(planned) - 2) if node.shown is None else [n or 1 for n in planned[:-2]]
        fixed = node.shown is not None or node.causal
        rows = (planned[-2] or _LENGTH) if fixed else _ROWS
        shape = (*leading, rows, planned[-1] or _LENGTH) if len(planned) > 1 else (planned[-1] or _LENGTH,)
        reads: dict[str, Any] = {"scores": trial.input(edges[node.scores], self._rows(shape, node))}
        reads["masks"] = tuple(trial.input(edges[source], self._mask(shape)) for source in node.masks)
        if isinstance(node, Attend):
            features, edge = self.shapes[node.output][-1] or _ROWS, edges[node.values]
            size = (*shape[:-2], shape[-1], features)
            codes = torch.randint(edge.qmin, edge.qmax + 1, size, generator=self.generator)
            codes[..., 0] = edge.qmax
            reads["values"] = trial.input(edge, codes)
        trial.add(node, **reads)

    def _mask(self, shape: Shape) -> Tensor:
        """Places hidden at random, and a row of which all are."""
        shown = (torch.rand(shape, generator=self.generator) < 0.7).int() * 255
        shown[..., -1:, :] = 0
        return shown

    def _rows(self, shape: Shape, node: Softmax | Attend) -> Tensor:
        """Random rows of several widths, and rows of one code."""
        top = self.program.edges[node.scores].qmax
        codes = torch.randint(0, top + 1, shape, generator=self.generator)
        spread = torch.tensor([1, 8, 64, top])[torch.arange(shape[-2] if len(shape) > 1 else 1) % 4]
        codes = (top - codes * spread.reshape(-1, 1) // top).reshape(shape)
        if len(shape) > 1:
            codes[..., -1, :], codes[..., 0, :] = top, 0
            codes[..., 0, -1:] = top
        return codes
