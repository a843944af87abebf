"""Yes-and-no tensors that modules hold: `x[:, self.mask]` takes places that are known before anything runs."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn


def masks_held(model: nn.Module) -> dict[str, Tensor]:
    """Buffers and attributes of dtype bool and of an axis or more, by their paths in the model."""
    return {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in chain(module._buffers.items(), vars(module).items())
        if isinstance(value, Tensor) and value.dtype == torch.bool and value.dim()
    }
