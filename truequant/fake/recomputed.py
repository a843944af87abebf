"""Activation checkpointing of a part of a forward: its functions would be recomputed without their quantizers.

A module that is checkpointed as a whole runs its own forward again, which finds its sites. What `torch.utils.checkpoint` is
given inside a forward, a method or a closure, runs again outside of it, where no call of a function leads to a site: gradients
would be those of other values.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from truequant.errors import PlanError


def checkpoint_around() -> object:
    """What tells one surrounding `torch.utils.checkpoint` from another, or from none; of those that recompute by hooks."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks[0] if hooks and hooks[0].__qualname__.startswith("_checkpoint_hook") else None


def refuse_part(name: str, op: str, around: object, had_gradients: bool) -> None:
    """PlanError where a checkpoint began in this forward, at whose start `around` and `had_gradients` were as they are here."""
    begun = checkpoint_around()
    if (begun is not None and begun is not around) or (had_gradients and not torch.is_grad_enabled() and _reentrant()):
        where = f"'{name}'" if name else "the model"
        raise PlanError(
            f"{where}: torch.utils.checkpoint is given a part of its forward, which would be recomputed without quantizers",
            got=f"a call of '{op}' in a method or closure that is checkpointed",
            expected="modules that are checkpointed as a whole",
            fix="move that part into an nn.Module of its own, prepare, and checkpoint the module",
        )


def _reentrant() -> bool:
    """Whether a reentrant checkpoint runs this: gradients may be off for reasons of the user's own."""
    code = torch.utils.checkpoint.CheckpointFunction.forward.__code__ if "torch.utils.checkpoint" in sys.modules else None
    frame: Any = sys._getframe(1)
    while code is not None and frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False
