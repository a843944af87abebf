"""From what a file holds to what is alive: everything is checked, then everything is written, and a failure is undone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from truequant.checkpoints.foreign import without_prefix
from truequant.checkpoints.modules import ModuleRecord, check_module, fit, write
from truequant.checkpoints.optimizers import bind, match, remembered
from truequant.checkpoints.stateful import StatefulRecord, load_stateful, match_stateful
from truequant.checkpoints.stored import Stored
from truequant.errors import ArgumentError, ArgumentTypeError, FileError


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """What a caller wants restored; None for what is not asked for."""

    model: nn.Module | None
    optimizer: Optimizer | None
    ema: Any
    stateful: Mapping[str, Any]

    def asked(self) -> set[str]:
        """The names of the parts beside the model."""
        parts = {"optimizer": self.optimizer, "ema": self.ema, **self.stateful}
        return {name for name, value in parts.items() if value is not None}


def check_parts(stored: Stored, live: Live, where: str) -> None:
    """FileError for a part that the file lacks; ArgumentTypeError for one that cannot be restored into."""
    for part in sorted(live.asked() - _parts(stored)):
        raise FileError(
            f"{where}: it holds no state of the {part}", got=", ".join(["a model", *sorted(_parts(stored))]),
            fix=f"leave {part}= out and start it anew",
        )  # fmt: skip
    if live.optimizer is not None and not isinstance(live.optimizer, Optimizer):
        raise ArgumentTypeError(
            "load_checkpoint: the optimizer is none of torch",
            got=type(live.optimizer).__name__,
            expected="torch.optim.Optimizer",
        )
    if live.optimizer is not None and live.model is None:
        raise ArgumentError("load_checkpoint: an optimizer without its model", fix="pass model= too")
    if live.ema is not None and isinstance(stored.ema, ModuleRecord) != isinstance(live.ema, nn.Module):
        raise ArgumentTypeError(
            f"{where}: ema is of another kind", got=type(live.ema).__name__,
            expected="an nn.Module" if isinstance(stored.ema, ModuleRecord) else "an object with load_state_dict, no nn.Module",
        )  # fmt: skip


def unasked(stored: Stored, live: Live) -> list[str]:
    """The parts of the file that the caller did not ask for."""
    return sorted(_parts(stored) - live.asked())


def restore(stored: Stored, live: Live, where: str) -> tuple[str, ...]:
    """Restore what is asked for; the names that the file lacks of the model."""
    modules: list[tuple[nn.Module, ModuleRecord, tuple[str, ...]]] = []
    objects: list[tuple[Any, StatefulRecord, str]] = []
    with ExitStack() as undo:
        # -- everything is checked; preparing is all that happens, and is undone
        if live.model is not None and stored.model is not None:
            modules.append(_fitted(live.model, stored.model, "load_checkpoint: the model", where, undo))
        if live.ema is not None and isinstance(stored.ema, ModuleRecord):
            modules.append(_fitted(live.ema, stored.ema, "load_checkpoint: ema", f"{where}: ema", undo))
        elif live.ema is not None and isinstance(stored.ema, StatefulRecord):
            objects.append((live.ema, stored.ema, "ema"))
        objects += [(v, stored.stateful[part], part) for part, v in live.stateful.items() if v is not None]
        for value, record, part in objects:
            match_stateful(value, record, part, where)
        groups = []
        if live.optimizer is not None and stored.optimizer is not None:
            groups = match(live.optimizer, stored.optimizer, modules[0][0], where)
        # -- everything is written, last what cannot fail any more
        for value, record, part in objects:
            load_stateful(value, record, part, where, undo)
        if live.optimizer is not None and stored.optimizer is not None:
            undo.callback(remembered(live.optimizer))
            bind(live.optimizer, stored.optimizer, groups, where)
        for module, state, missing in modules:
            write(module, state, missing)
        undo.pop_all()
    return modules[0][2] if live.model is not None and modules else ()


def _fitted(
    module: object, record: ModuleRecord, called: str, where: str, undo: ExitStack
) -> tuple[nn.Module, ModuleRecord, tuple[str, ...]]:
    plain = check_module(module, called)
    if record.training is None:  # not written here
        record = replace(record, state=without_prefix(record.state, plain.state_dict()))
    return plain, record, fit(plain, record, where, undo)


def _parts(stored: Stored) -> set[str]:
    own = {"optimizer": stored.optimizer, "ema": stored.ema}
    return {name for name, value in own.items() if value is not None} | set(stored.stateful)
