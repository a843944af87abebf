"""Checkpoints of the main job: a folder for each of its trainings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from truequant.checkpoints import CheckpointManager
from truequant.errors import ArgumentError

_PHASES = ("float", "float-continued", "quantization-aware")


class PhaseSaving:
    """One training's checkpoints. `losses` and `accuracies`, by step, are kept with them.

    job: what the checkpoints belong to. ArgumentError where those in the folder belong to another job.
    """

    def __init__(self, folder: Path, every: int, job: Mapping[str, Any]) -> None:
        self.manager = CheckpointManager(folder, keep=2, every=every)
        self.job = dict(job)
        self.losses: list[float] = []
        self.accuracies: dict[int, float] = {}

    def restore(self, **parts: Any) -> int:
        """Restore what was kept last; the step that it was kept behind, 0 where there is nothing."""
        restored = self.manager.restore()
        if restored is None:
            return 0
        kept = restored.extra if isinstance(restored.extra, dict) else {}
        if kept.get("job") != self.job:
            raise ArgumentError(
                f"'{self.manager.folder}' holds checkpoints of another job", got=kept.get("job"), expected=self.job,
                fix="give the options that they were written with, or another --checkpoint-dir",
            )  # fmt: skip
        found = self.manager.restore(**parts)
        assert found is not None
        self.losses[:] = kept["losses"]
        self.accuracies.clear()
        self.accuracies.update(kept["accuracies"])
        return found.step

    def step(self, step: int, *, last: bool, **parts: Any) -> None:
        """Keep the state where it is due, and behind the last step in any case."""
        extra = {"job": self.job, "losses": self.losses, "accuracies": self.accuracies}
        if last or step % self.manager.every == 0:
            self.manager.save(step, **parts, extra=extra)
        if last:
            self.manager.wait()


@contextmanager
def job_saving(
    folder: Path | None, every: int, resume: bool, job: Mapping[str, Any]
) -> Iterator[tuple[PhaseSaving | None, ...]]:
    """The checkpoints of the three trainings; none where there is no folder.

    ArgumentError for a folder that holds something without `resume`, and for `resume` without a folder.
    """
    if folder is None:
        if resume:
            raise ArgumentError("nothing to resume from", expected="the folder of the checkpoints", fix="--checkpoint-dir DIR")
        yield (None,) * len(_PHASES)
        return
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise ArgumentError(
            f"'{folder}' is not empty", got=f"{sum(1 for _ in folder.iterdir())} entries", expected="an empty or a new folder",
            fix="--resume to go on from its checkpoints, or another --checkpoint-dir",
        )  # fmt: skip
    phases = tuple(PhaseSaving(folder / phase, every, job) for phase in _PHASES)
    try:
        yield phases
    finally:
        for phase in phases:
            phase.manager.close()
