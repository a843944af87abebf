"""The modules of a prepared model that its plan is about: whoever puts others in their places has a model without a plan.

A module may be wrapped (adapters, FSDP, activation checkpointing, a compiler): what was planned then still is in the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from truequant.errors import PlanError
from truequant.fake.containers import QUANTIZERS
from truequant.planning import Plan

Children = tuple[nn.Module | None, ...]


@dataclass(eq=False)
class Parts:
    """What stood where when the model was prepared.

    at: each module by its path; planned: the paths of those that a plan decides about; children: each module with children, and
    these as they were when the model was last found to fit.
    """

    at: dict[str, nn.Module]
    planned: tuple[str, ...]
    children: list[tuple[nn.Module, Children]]

    @staticmethod
    def of(model: nn.Module, plan: Plan) -> Parts:
        """Of a model that has just been prepared."""
        at = dict(model.named_modules(remove_duplicate=False))
        planned = {s.owner for s in plan.sites} | {o.name for o in plan.owners if o.calls}
        return Parts(at, tuple(name for name in at if name in planned), _children(model))

    def check(self, model: nn.Module) -> None:
        """`PlanError` where a planned module is gone from the model, where a sequence has one more that was never planned, and
        where one now stands in another, beside layers that were never planned: an adapter.
        """
        for module, children in self.children:
            if tuple(module._modules.values()) != children:
                break
        else:
            return
        there = {id(m) for m in model.modules()}
        known = {id(m) for m in self.at.values()}
        for path in self.planned:
            if id(self.at[path]) not in there:
                raise self._replaced(path, model, known)
        for name, module in model.named_modules():
            if isinstance(module, (nn.Sequential, nn.ModuleList)) and _any(module, known):
                for key, child in module._modules.items():
                    if child is not None and key != QUANTIZERS and not _any(child, known):
                        raise _error(f"{name}.{key}" if name else key, "added", _kind(child), "the modules that were planned")
        for path, name, layer in _beside(model, known):
            raise _error(
                path, "wrapped", f"a {_kind(layer)} beside it, '{name}'", "the modules that were planned",
                "adapters go in before: model = peft.get_peft_model(model, …), then tq.prepare(model, …)",
            )  # fmt: skip
        self.children = _children(model)

    def _replaced(self, path: str, model: nn.Module, known: set[int]) -> PlanError:
        """Named is the topmost module on the way to the planned one that is another one now."""
        parts = path.split(".")
        now: nn.Module | None = model
        for depth, part in enumerate(parts, start=1):
            path = ".".join(parts[:depth])
            now = None if now is None else now._modules.get(part)
            if now is not self.at[path]:
                break
        removed = now is None or id(now) in known  # what is behind it in a sequence moves up
        return _error(
            path, "removed" if removed else "replaced", "no module" if now is None or removed else _kind(now),
            f"the {_kind(self.at[path])} that was planned",
        )  # fmt: skip


_ANEW = "tq.restore_float(model), then tq.prepare(model, example_inputs) plans the model as it is now; calibrate again"


def _error(path: str, what: str, now: str, planned: str, fix: str = _ANEW) -> PlanError:
    return PlanError(
        f"'{path}': the module was {what} after the model was prepared",
        got=now if now == "no module" else f"{now}, which no plan knows",
        expected=planned,
        fix=fix,
    )


def _beside(model: nn.Module, known: set[int]) -> Iterator[tuple[str, str, nn.Module]]:
    """Of modules that were put around known ones: their paths, and the layers with parameters that they brought."""
    for path, module in model.named_modules():
        if id(module) in known or not _any(module, known):
            continue
        for name, layer in module.named_modules():
            if id(layer) not in known and not layer._modules and any(True for _ in layer.parameters(recurse=False)):
                yield path, name, layer


def _any(module: nn.Module, known: set[int]) -> bool:
    return any(id(m) in known for m in module.modules())


def _children(model: nn.Module) -> list[tuple[nn.Module, Children]]:
    found: list[tuple[nn.Module, Children]] = []
    own = {model: None}  # in order, each once; and not the quantizers and what is in them
    waiting = [model]
    while waiting:
        module = waiting.pop()
        below = [m for key, m in module._modules.items() if m is not None and key != QUANTIZERS]
        waiting += [m for m in dict.fromkeys(below) if m not in own]
        own.update(dict.fromkeys(below))
        if below:
            found.append((module, tuple(module._modules.values())))
    return found


def _kind(module: nn.Module) -> str:
    name = type(module).__name__
    return name.removeprefix("QAT") if getattr(type(module), "__truequant__", False) else name
