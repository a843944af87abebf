"""Weights that a float op reads, by their codes: recurrent layers and embeddings read values that lie on a grid."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from truequant.fake import RuntimeSite
from truequant.fake.weights import WeightQuantizer
from truequant.numerics import stored_values
from truequant.schemes import PerGroup


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """int8 codes and their float32 scale, `()`, `(C, 1, …)` or, for groups of the second of two axes, `(C, groups)`."""

    codes: Tensor
    scale: Tensor


class StoredWeights:
    """Codes of such weights, found by the values that their float op reads."""

    def __init__(self, sites: Iterable[RuntimeSite]) -> None:
        self._weights = [(quantizer, getattr(site.owner, name)) for site in sites for name, quantizer in site.weights.items()]
        self._found: dict[tuple[object, ...], StoredWeight] | None = None

    def of(self, values: Tensor) -> StoredWeight | None:
        """None for values that are those of no such weight, bit for bit."""
        if not self._weights:
            return None
        if self._found is None:
            stored = [_stored(quantizer, weight) for quantizer, weight in self._weights]
            self._found = {_key(stored_values(found.codes, found.scale)): found for found in stored if found is not None}
        return self._found.get(_key(values))


def _key(values: Tensor) -> tuple[object, ...]:
    array = values.detach().cpu().contiguous().numpy()
    return array.dtype.name, array.shape, hashlib.sha256(array.tobytes()).digest()


@torch.no_grad()
def _stored(quantizer: WeightQuantizer, weight: Tensor) -> StoredWeight | None:
    codes, scale = quantizer.integers(weight)
    if isinstance(quantizer.scheme.granularity, PerGroup):
        return StoredWeight(codes.to(torch.int8).contiguous(), scale.contiguous())
    if scale.numel() not in (1, weight.shape[0]):
        return None
    scale = scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, *[1] * (weight.dim() - 1))
    return StoredWeight(codes.to(torch.int8).contiguous(), scale.contiguous())
