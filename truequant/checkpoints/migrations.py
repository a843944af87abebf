"""What brings the contents of an older version of the format up to those of the next: every version stays readable by this."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from truequant.checkpoints.optimizers import LIKE_PARAMETER
from truequant.files import Json

Header = dict[str, Json]
Tensors = dict[str, Tensor]


def _axis_of_learned_scales(header: Header, tensors: Tensors) -> tuple[Header, Tensors]:
    """What is learned of a per-tensor scale had no axis in version 1, and FSDP2 could not shard it; since then it is `(1,)`."""
    tensors = dict(tensors)
    for part in ("model", "ema"):
        record = header.get(part)
        grids = record.get("quantizers") if isinstance(record, dict) else None
        for path in grids if isinstance(grids, dict) else ():
            for learned in (f"{path}.shift", f"{path}.offset"):
                for name in (f"{part}/{learned}", *(f"optimizer/{learned}/{state}" for state in LIKE_PARAMETER)):
                    if name in tensors and tensors[name].dim() == 0:
                        tensors[name] = tensors[name].reshape(1)
    return header, tensors


MIGRATIONS: dict[int, Callable[[Header, Tensors], tuple[Header, Tensors]]] = {1: _axis_of_learned_scales}
"""By version, what turns its header and tensors into those of the next one."""


def migrated(header: Header, tensors: Tensors, version: int) -> tuple[Header, Tensors]:
    """Header and tensors of an older version as `version` writes them."""
    while (present := header["version"]) != version:
        assert isinstance(present, int)
        header, tensors = MIGRATIONS[present](header, tensors)
        header = {**header, "version": present + 1}
    return header, tensors
