"""Whether a plan is about the model that it is to be executed on."""

from __future__ import annotations

from torch import nn

from truequant.errors import PlanError, StateError
from truequant.planning.plan import Plan


def check_plain(model: nn.Module, where: str) -> None:
    """`StateError` for a model that is compiled, or a part of which is, whose calls cannot be seen, and for one that is wrapped
    for training in parallel, whose wrapper counts the parameters that it has by then.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        kind = type(model).__name__
        raise StateError(
            f"{where}: the model is wrapped for training in parallel: what is learned of quantizers would stay on one rank",
            got=kind, expected="the module that was wrapped",
            fix=f"{where}(model.module, …), then {kind}(…) around what it returns",
        )  # fmt: skip
    for name, module in model.named_modules():
        inner = "_orig_mod" if type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules else ""
        if inner or getattr(module, "_compiled_call_impl", None) is not None:
            path = f"model.{name}" if name else "model"
            raise StateError(
                f"{where}: {path} is compiled, and what it calls cannot be seen",
                got=type(module).__name__,
                expected="the module that was compiled",
                fix=f"{where}({path}.{inner}, …), then torch.compile what it returns" if inner and not name
                else f"{path} = {path}.{inner}, and compile after prepare" if inner
                else f"call {path}.compile() after prepare",
            )  # fmt: skip


def check_modules(plan: Plan, module: nn.Module, where: str) -> None:
    """PlanError where the model lacks modules that the plan is about."""
    there = dict(module.named_modules())
    tensors = {name for s in plan.sites if s.affine is not None for name in s.affine.names()}
    held = {n for n, _ in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))}
    if tensors - held:
        raise PlanError(
            f"{where}: its plan does not fit the model: {len(tensors - held)} of its parameters and buffers are not there",
            got=f"a {type(module).__name__} without {_some(sorted(tensors - held))}",
            expected=_some(sorted(tensors)),
            fix="build the model with the class and the arguments that it was planned with",
        )
    needed = {*(o.name for o in plan.owners), *(q.owner for q in plan.quantizers), *plan.uncalled}
    if missing := sorted(needed - set(there)):
        raise PlanError(
            f"{where}: its plan does not fit the model: {len(missing)} of its modules are not there",
            got=f"a {type(module).__name__} without {_some(missing)}",
            expected=_some(sorted(needed)),
            fix="build the model with the class and the arguments that it was planned with",
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name[:80]}'" for name in names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")
