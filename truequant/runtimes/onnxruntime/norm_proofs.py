"""Proofs of norms: every norm of a program over awkward rows, through the installed runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from truequant.errors import ExportError
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Edge, Normalize
from truequant.runtimes.onnx.shapes import dynamic_shapes
from truequant.runtimes.onnxruntime.trials import Trial, Write, first_difference

ROWS = 12
"""Rows that are tried of each norm: of equal codes, of one that differs, of the lowest and highest, narrow and random ones."""
_MOST = 2**22
"""Elements of all rows of one norm: of larger images the norm is tried on a part."""


def require_exact_norms(program: IntegerProgram, write: Write) -> int:
    """How many codes were computed. write: the serialized model of a program, its edges shown.

    `ExportError` naming the first norm of which onnxruntime gives other codes or, where it writes none, another value.
    """
    norms = [node for node in program.nodes if isinstance(node, Normalize)]
    shapes = dynamic_shapes(program)[0] if norms else {}
    trial = Trial(program)
    for norm in norms:
        read, shape = program.edges[norm.input], shapes[norm.input]
        outer = _outer(norm, shape)
        trial.add(norm, input=trial.input(read, awkward(read, _sizes(norm, shape)), (*(None,) * outer, *shape[outer:])))
    compared = 0
    for node, found, expected in trial.results(write):
        assert isinstance(node, Normalize)
        if (differ := first_difference(found, expected)) is not None:
            at, count = differ
            raise ExportError(
                f"'{node.output}': onnxruntime computes another {node.kind} norm",
                got=f"{found[at].item()} at {at}, one of {count} that differ", expected=expected[at].item(),
                fix=f"Rule({node.output!r}, None) leaves it to the runtime's own kernel; please report it",
            )  # fmt: skip
        compared += expected.numel()
    return compared


def _sizes(norm: Normalize, shape: Sequence[int | None]) -> tuple[int, ...]:
    """Rows of the norm's own length; what is dynamic, and images too large to be tried whole, in small sizes."""
    sizes = [ROWS, *(5 if n is None else n for n in shape[1:])]
    outer = _outer(norm, shape)
    sizes[1:outer] = [1] * (outer - 1)
    if math.prod(sizes) > _MOST:
        sizes[0] = max(2, _MOST // math.prod(sizes[1:]))
    return tuple(sizes)


def _outer(norm: Normalize, shape: Sequence[int | None]) -> int:
    """How many axes stand before those of a row."""
    return 1 if norm.kind == "group" else len(shape) + min(norm.axes)


def awkward(edge: Edge, sizes: tuple[int, ...]) -> Tensor:
    """Codes in rows, one on each place of axis 0, each awkward in its way; the same for the same edge and sizes."""
    generator = torch.Generator().manual_seed(0)
    low, high, zero = edge.qmin, edge.qmax, edge.zero_point
    made = torch.randint(low, high + 1, sizes, generator=generator)
    rows = made.reshape(sizes[0], math.prod(sizes[1:]))
    middle = (low + high) // 2
    narrow = (middle + torch.randn(rows.shape[1:], generator=generator) * 3).round().clamp(low, high).to(rows.dtype)
    one_apart, lowest_last = torch.full_like(rows[0], zero), torch.full_like(rows[0], high)
    one_apart[:1], lowest_last[-1:] = min(zero + 1, high), low
    ends = torch.where(rows[0] % 2 == 0, low, high)
    fixed = [torch.full_like(rows[0], code) for code in (low, high, zero, middle)]
    for place, row in enumerate([narrow, ends, one_apart, lowest_last, *fixed][: max(0, sizes[0] - 1)]):
        rows[place] = row
    return rows.reshape(sizes)
