"""Modules that make one call, and what a call is named by."""

from __future__ import annotations

from torch import nn

from truequant.planning.capture import Call
from truequant.planning.repeats import Key


def is_leaf(module: nn.Module) -> bool:
    """A module without children whose forward, and all that it calls and reads, is torch's own: it makes one call, so that its
    name names the call.

    A subclass of torch's class that overrides none of that (`class Norm(nn.BatchNorm2d): pass`) is one too.
    """
    kind = type(module)
    if any(True for _ in module.children()):
        return False
    if getattr(module, "parametrizations", None) is not None:
        kind = kind.__mro__[1]
    own = next(k for k in kind.__mro__ if k.__module__.startswith("torch.nn.modules"))
    if own is nn.Module:
        return False
    return all(getattr(kind, name, None) is getattr(own, name, None) for name in _CALLED)


_CALLED = ("__call__", "__getattr__", "_call_impl", "forward", "_conv_forward", "_check_input_dim", "weight", "bias")
"""Of a class of torch's: what its one call comes from, and where a subclass could hide another."""


def site_name(call: Call, key: Key, place: str | None, leaf: bool) -> str:
    """`conv1`, `relu#1` for the second call of a module, `block.add_0` for a function call.

    A module that several others hold goes by each of its names: `block2.act`, where `block1.act` is the same module.
    """
    owner = f"{call.owner}#{'.'.join(map(str, key))}" if place is None else place
    if leaf and owner:
        return owner
    op = f"{call.op.name}_{call.ordinal}"
    return f"{owner}.{op}" if owner else op
