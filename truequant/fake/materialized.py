"""What compiled code writes to memory before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from truequant.fake.clock import local

if TYPE_CHECKING:
    from truequant.fake.sites import RuntimeSite

_RESHAPES = frozenset(("flatten", "reshape", "reshape_as", "unflatten", "view", "view_as"))


class _Materialized(torch.autograd.Function):
    """The tensor itself. Inductor stores what `as_strided` reads, as it lies in eager mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.as_strided(x.shape, x.stride())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def read_by_view(site: RuntimeSite, args: Sequence[Any]) -> Sequence[Any]:
    """Arguments of the op at a site: while compiling, in memory where a quantizer reads a view of them.

    Inductor would compute them again, element by element through the index of the view, for each end of the range, for the
    codes and for the mask: for a pooling in channels-last that is flattened, in code without vectors.
    """
    if site.quantizer is None or site.plan.op not in _RESHAPES or not torch.compiler.is_compiling() or local.marking:
        return args
    if not args or not isinstance(args[0], Tensor):
        return args
    return (_Materialized.apply(args[0]), *args[1:])  # type: ignore[no-untyped-call]
