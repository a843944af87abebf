"""The integers of a layer in evaluation: folded once for its tensors, whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from truequant import kernels
from truequant.numerics import IntegerWeights


class Folded:
    """The last integers, and of which tensors. They travel neither by `copy` nor by `pickle`.

    Of what they are made is known by its bits: nothing that writes into a tensor, or puts another in its place, has to tell.
    """

    def __init__(self) -> None:
        self.key: object = None
        self.weights: IntegerWeights | None = None

    def __reduce__(self) -> tuple[type[Folded], tuple[()]]:
        return Folded, ()

    def of(self, made_of: Sequence[Tensor | None], state: object, make: Callable[[], IntegerWeights]) -> IntegerWeights:
        """`make()`, its weight as int8, which nobody may write into.

        made_of, state: everything that its result depends on.
        """
        if torch.compiler.is_compiling() or not all(t is None or _is_known(t) for t in made_of):
            return make()
        key = (state, tuple(None if t is None else (t.dtype, t.shape, _bits(t)) for t in made_of))
        if self.weights is None or self.key != key:
            found = make()
            self.key, self.weights = key, IntegerWeights(found.weight.to(torch.int8), found.scale, found.bias)
        return self.weights


def _is_known(t: Tensor) -> bool:
    return t.is_cpu and kernels.is_plain(t) and (t.dtype == torch.float32 or t.numel() <= 16)


def _bits(t: Tensor) -> object:
    return kernels.fingerprint(t) if t.dtype == torch.float32 else tuple(t.reshape(-1).tolist())
