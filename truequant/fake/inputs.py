"""Quantizers on the inputs of the outermost module."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from truequant.fake.clock import local
from truequant.fake.marks import mark
from truequant.fake.quantizers import FakeQuantize


@dataclass(eq=False)
class InputQuantizer:
    """The quantizer of the `nth` tensor in argument `where` (a position or a keyword); `name` is the input's edge."""

    where: int | str
    nth: int
    name: str
    quantizer: FakeQuantize


def quantize_inputs(
    quantizers: tuple[InputQuantizer, ...], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`args, kwargs` with the planned tensors quantized."""
    table = {(q.where, q.nth): q for q in quantizers}
    seen: Counter[int | str] = Counter()

    def visit(where: int | str, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        q = table.get((where, seen[where]))
        seen[where] += 1
        if q is None:
            return leaf
        if local.marking:
            return mark(leaf, f"{q.name}:quantizer")
        y = q.quantizer(leaf)
        if local.recorder is not None:
            local.recorder(q.name, q.quantizer.codes(y))
        return y

    quantized = tuple(pytree.tree_map(lambda leaf, i=i: visit(i, leaf), a) for i, a in enumerate(args))
    return quantized, {k: pytree.tree_map(lambda leaf, k=k: visit(k, leaf), v) for k, v in kwargs.items()}
