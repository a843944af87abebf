"""Checkpoints of `truequant train`: the newest ones and the best, written in the background."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from truequant.checkpoints import Checkpoint, CheckpointManager
from truequant.cli.recipe import OutputSection
from truequant.errors import ArgumentError
from truequant.training.loop import Position


class Saving:
    """The folder of checkpoints of one training.

    parts: model, optimizer and scheduler, as `CheckpointManager.save` takes them. fixed: what may not change between a
    checkpoint and its resumption, tables of the recipe.
    """

    def __init__(self, output: OutputSection, parts: dict[str, Any], fixed: dict[str, Any]) -> None:
        self.folder = Path(output.folder) / "checkpoints"
        best: Literal["min"] | None = None if output.best == "none" else "min"
        self.manager = CheckpointManager(self.folder, keep=output.keep, every=output.checkpoint_every, best=best)
        self.parts, self.fixed = parts, fixed
        self._last = -1

    def begin(self) -> None:
        """`ArgumentError` where the folder holds another training."""
        if self.manager.checkpoints():
            raise ArgumentError(
                f"'{self.folder}' holds checkpoints already",
                expected="an empty folder",
                fix="--resume goes on from the newest; another output.folder, or removing it, starts anew",
            )

    def save(self, position: Position, metric: float | None, extra: dict[str, Any], *, wait: bool = False) -> None:
        """Keep the state behind a step. wait: until it is on the disk."""
        kept = extra | {"position": asdict(position), "recipe": self.fixed}
        self.manager.save(position.step, **self.parts, metric=metric, extra=kept)
        self._last = position.step
        if wait:
            self.manager.wait()

    def resume(self, recipe: Path, console: Console) -> Checkpoint:
        """Restore the newest intact checkpoint; damaged ones are named. `ArgumentError` where there is none, or another's."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            restored = self.manager.restore(restore_random=False)
        for warning in caught:
            console.print(str(warning.message), style="yellow", highlight=False)
        if restored is None:
            raise ArgumentError(f"'{self.folder}' holds nothing to resume from", fix="leave --resume out to start")
        changed = _changed(restored.extra["recipe"], self.fixed)
        if changed:
            raise ArgumentError(
                f"{recipe} changed since the checkpoint: {', '.join(changed)}", fix="undo that, or start in another folder"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.manager.restore(**self.parts)
        assert found is not None
        self._last = found.step
        return found

    def kept(self, position: Position) -> bool:
        """Whether the state behind that step was saved, or is being saved."""
        return position.step == self._last

    def newest(self) -> Path:
        """The newest checkpoint."""
        return self.manager.checkpoints()[0]


def _changed(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return [
        f"{table}.{key}"
        for table in now
        for key in {**(then.get(table) or {}), **(now[table] or {})}
        if (then.get(table) or {}).get(key) != (now[table] or {}).get(key)
    ]
