"""Hooks that are registered on a prepared model: what they call is no call of the forward around their module.

Hooks from before `prepare` are part of the forward that was planned. Those from after it look on (statistics, features for a
loss) or do a trainer's work (FSDP gathers parameters); counted, they would move the sites of the calls behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from truequant.errors import PlanError
from truequant.fake.call_sites import compiling, resume, suspend
from truequant.fake.clock import local
from truequant.fake.frames import Frame


class UncountedHook:
    """A hook during which the forward around its module looks away.

    Raises `PlanError` where it returns other numbers than it was given: they would be quantized by no plan.
    """

    def __init__(self, hook: Callable[..., Any], name: str, kind: str) -> None:
        self.hook, self.name, self.kind = hook, name, kind

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outer = local.frame
        if outer is None:
            return self.hook(*args, **kwargs)
        counting = not compiling() and local.calls is not None and local.calls.frame is outer
        suspended, frame = suspend(), Frame(outer.key, outer.name)
        frame.calls, local.frame = outer.calls, frame
        try:
            result = self.hook(*args, **kwargs)
        finally:
            local.frame = outer
            resume(suspended)
        if counting and result is not None:
            self._check(args[1:], result)
        return result

    def _check(self, given: Any, result: Any) -> None:
        """A view of what was given is the same numbers, and a cast or another kind of tensor belongs to a trainer."""
        before = [t for t in pytree.tree_leaves(given) if isinstance(t, Tensor)]
        for tensor in pytree.tree_leaves(result):
            if not isinstance(tensor, Tensor) or not any(type(t) is type(tensor) and t.dtype == tensor.dtype for t in before):
                continue
            if not any(t is tensor or _share(t, tensor) for t in before):
                raise PlanError(
                    f"'{self.name}': a {self.kind} that was registered after the model was prepared returns other values",
                    got=f"a new tensor of shape {tuple(tensor.shape)} from {self.hook!r}",
                    expected="None, or what it was given",
                    fix="register the hook first, then prepare: what it computes is then planned, quantized and converted",
                )


def _share(first: Tensor, second: Tensor) -> bool:
    try:
        return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # tensors without storage: nothing is known of them
        return True


class _OfTorch(UncountedHook):
    """A hook of pruning or of a norm of weights, which torch finds by its class when it is to be removed."""

    def __getattribute__(self, name: str) -> Any:
        return type(self.hook) if name == "__class__" else super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        if name == "hook":  # while it is copied or loaded
            raise AttributeError(name)
        return getattr(self.hook, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _OfTorch, (self.hook, self.name, self.kind)


def uncounted(hook: Callable[..., Any], name: str, kind: str) -> UncountedHook:
    """A hook that is registered now on the module `name`. kind: "forward hook" or "forward pre-hook"."""
    of_torch = any(k.__module__.startswith("torch.nn.utils.") for k in type(hook).__mro__)
    return (_OfTorch if of_torch else UncountedHook)(hook, name, kind)


__all__ = ["uncounted"]
