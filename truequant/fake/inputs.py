"""Quantizers on the inputs of the outermost module."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from truequant.fake import one_pass
from truequant.fake.clock import local
from truequant.fake.marks import mark
from truequant.fake.quantizers import FakeQuantize
from truequant.planning import mapped


@dataclass(eq=False)
class InputQuantizer:
    """The quantizer of the `nth` tensor in argument `where` (a position or a keyword); `name` is the input's edge.

    also: the other way to give that argument, by keyword or by position; None where there is none.
    """

    where: int | str
    nth: int
    name: str
    quantizer: FakeQuantize
    also: int | str | None = None


def quantize_inputs(
    quantizers: tuple[InputQuantizer, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`args, kwargs` with the planned tensors quantized."""
    if len(args) == len(quantizers) == 1 and not kwargs and type(args[0]) is Tensor and quantizers[0].where == 0:
        return (_quantized(quantizers[0], args[0]),), kwargs
    table = {(where, q.nth): q for q in quantizers for where in (q.where, q.also) if where is not None}
    seen: Counter[int | str] = Counter()

    def visit(where: int | str, leaf: Tensor) -> Tensor:
        q = table.get((where, seen[where]))
        seen[where] += 1
        return leaf if q is None else _quantized(q, leaf)

    quantized = tuple(mapped(a, partial(visit, i)) for i, a in enumerate(args))
    return quantized, {k: mapped(v, partial(visit, k)) for k, v in kwargs.items()}


def _quantized(q: InputQuantizer, x: Tensor) -> Tensor:
    y: Tensor = mark(x, f"{q.name}:quantizer") if local.marking else one_pass.called(q.quantizer, x)
    if local.recorder is not None and not local.marking:
        local.recorder(q.name, q.quantizer.codes(y))
    return y
