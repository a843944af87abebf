"""Parameter groups: learned scales without weight decay."""

from __future__ import annotations

from typing import Any

from torch import nn

from truequant.fake import outermost, quantizers


def parameter_groups(model: nn.Module, weight_decay: float = 0.0, **options: Any) -> list[dict[str, Any]]:
    """Two groups for an optimizer: all parameters but learned scales, and learned scales with `weight_decay=0`.

    options: what else the first group gets, such as `lr`. The second group is left out where no scale is learned.
    """
    outermost(model)
    scales = {id(p): p for _, q in quantizers(model) for p in q.learned_parameters()}
    rest = [p for p in model.parameters() if id(p) not in scales]
    groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": weight_decay, **options}]
    if scales:
        groups.append({"params": list(scales.values()), "weight_decay": 0.0, **options})
    return groups
