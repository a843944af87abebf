"""State that stays float32 whatever `.half()` or `.to(bfloat16)` say of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class Float32State(nn.Module):
    """A module whose buffers follow to another device but keep their dtype. Abstract."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {key: buffer for key, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for key, buffer in before.items():
            moved = self._buffers[key]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[key] = buffer.to(moved.device)
        return self
