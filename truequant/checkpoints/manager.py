"""`CheckpointManager`: the checkpoints of one training in one folder, written while it goes on."""

from __future__ import annotations

import math
import os
import re
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from torch import nn
from torch.optim import Optimizer

from truequant.checkpoints.checkpoint import Checkpoint, restored
from truequant.checkpoints.ranks import world
from truequant.checkpoints.restoring import Live
from truequant.checkpoints.shared_file import agreed
from truequant.checkpoints.snapshot import Snapshot, snapshot
from truequant.checkpoints.stored import Stored, metric_of, read_stored
from truequant.errors import ArgumentError, FileError
from truequant.files import lock_folder, read_header, remove_temporary

_NAME = re.compile(r"step-(\d{10,})\.ckpt")


class CheckpointManager:
    """Keeps the last `keep` checkpoints of a training in `folder`, and the best one where it is told a metric.

    every: `step` saves where the step is a multiple of it. best: "min" or "max" of the metric that `save` is given is kept
    beside the last ones. background: a thread writes, and `save` returns when the state is copied; a state that is saved
    while another one waits for its turn takes that one's place, unless that is better. What goes wrong in the thread is
    raised by the next `save`, `wait` or `close`. The folder belongs to one writing manager at a time, on one machine.

    With several ranks (DDP, FSDP2) every rank builds a manager of the same folder and calls `save` and `restore`; rank 0
    writes. Raises `ArgumentError` for counts that cannot be, `FileError` for a folder that cannot be made, or that another
    process writes into.

    >>> import tempfile, torch
    >>> model = torch.nn.Linear(2, 2)
    >>> with CheckpointManager(tempfile.mkdtemp(), keep=2, every=10, background=False) as manager:
    ...     saved = [manager.step(step, model=model) for step in range(1, 41)]
    >>> sum(saved), [path.name for path in manager.checkpoints()]
    (4, ['step-0000000040.ckpt', 'step-0000000030.ckpt'])
    >>> manager.restore(model=torch.nn.Linear(2, 2)).step
    40
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 3,
        every: int = 1,
        best: Literal["min", "max"] | None = None,
        background: bool = True,
    ) -> None:
        for name, value in (("keep", keep), ("every", every)):
            if type(value) is not int or value < 1:
                raise ArgumentError(f"CheckpointManager: '{name}' is no count", got=repr(value), expected="an int from 1 on")
        if best not in (None, "min", "max"):
            raise ArgumentError("CheckpointManager: 'best' cannot be", got=repr(best), expected="'min', 'max' or None")
        self.folder, self.keep, self.every, self.best = Path(folder), keep, every, best
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"'{folder}' cannot be a folder of checkpoints: {error.strerror}") from error
        self._pool = ThreadPoolExecutor(1, "checkpoints") if background else None
        self._waiting: list[tuple[Future[None], float | None]] = []
        self._metrics: dict[int, float | None] | None = None  # of the steps whose files are whole, once this manager writes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- writing -------------------------------------------------------------------------------------------------------
    def step(self, step: int, **parts: Any) -> bool:
        """`save`, where `step` is a multiple of `every`; whether it did."""
        if step % self.every:
            return False
        self.save(step, **parts)
        return True

    def save(
        self,
        step: int,
        *,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        scheduler: Any = None,
        scaler: Any = None,
        loader: Any = None,
        ema: Any = None,
        extra: Any = None,
        metric: float | None = None,
    ) -> None:
        """Save this state, as `save_checkpoint` does, under the step's own name.

        metric: a number that tells how good this state is. Raises what `save_checkpoint` raises, and `FileError` for an
        earlier state that could not be written in the background; what was written before is as it was.
        """
        self._raise_failures()
        taken = snapshot(
            "CheckpointManager.save", model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler, loader=loader,
            ema=ema, step=step, extra=extra, metric=metric, every_rank=True,
        )  # fmt: skip
        if world()[0] != 0:
            return
        if self._metrics is None:
            self._metrics = self._begin()
        if self._pool is None:
            self._write(step, metric, taken)
            return
        taken = taken.copied()
        self._waiting = [(future, figure) for future, figure in self._waiting if not self._replaced(future, figure, metric)]
        self._waiting.append((self._pool.submit(self._write, step, metric, taken), metric))

    def wait(self) -> None:
        """Return when everything saved is on the disk. Raises what writing raised."""
        for future, _ in self._waiting:
            future.exception()
        self._raise_failures()

    def close(self) -> None:
        """`wait`, and let another manager write into the folder."""
        try:
            self.wait()
        finally:
            if self._metrics is not None:
                self._metrics = None
                self._release()

    def _begin(self) -> dict[int, float | None]:
        """Take the folder: no other process writes there now, so that temporary files are those of writers that died."""
        self._release = lock_folder(self.folder)
        remove_temporary(self.folder, _NAME)
        found: dict[int, float | None] = {}
        for path in self.checkpoints():
            try:
                found[_step(path)] = metric_of(read_header(path), f"'{path}'")
            except FileError:  # stays where it is; `restore` names it
                continue
        return found

    def _write(self, step: int, metric: float | None, taken: Snapshot) -> None:
        taken.write(self.folder / f"step-{step:010d}.ckpt")
        assert self._metrics is not None
        self._metrics[step] = metric
        kept = set(sorted(self._metrics)[-self.keep :]) | {self._best_step()}
        for old in [step for step in self._metrics if step not in kept]:
            try:
                (self.folder / f"step-{old:010d}.ckpt").unlink(missing_ok=True)
            except OSError as error:
                raise FileError(f"'{self.folder}': an old checkpoint cannot be removed: {error.strerror}") from error
            del self._metrics[old]

    def _best_step(self) -> int | None:
        measured = [(m, s) for s, m in (self._metrics or {}).items() if m is not None and not math.isnan(m)]
        if self.best is None or not measured:
            return None
        return min(measured)[1] if self.best == "min" else max(measured, key=lambda pair: (pair[0], -pair[1]))[1]

    def _replaced(self, future: Future[None], figure: float | None, metric: float | None) -> bool:
        """Whether a state that waits need not be written any more: the new one is later and no worse."""
        if self.best is not None and figure is not None and not math.isnan(figure):
            better = metric is not None and (metric <= figure if self.best == "min" else metric >= figure)
            if not better:
                return False
        return future.cancel()

    def _raise_failures(self) -> None:
        done = [future for future, _ in self._waiting if future.done()]
        self._waiting = [(future, figure) for future, figure in self._waiting if future not in done]
        for future in done:
            if not future.cancelled():
                future.result()

    # -- reading -------------------------------------------------------------------------------------------------------
    def checkpoints(self) -> tuple[Path, ...]:
        """The checkpoints that lie in the folder, newest first, damaged ones too."""
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return tuple(sorted(found, key=_step, reverse=True))

    def restore(
        self,
        *,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        scheduler: Any = None,
        scaler: Any = None,
        ema: Any = None,
        loader: Any = None,
        restore_random: bool = True,
    ) -> Checkpoint | None:
        """Restore the newest intact checkpoint as `load_checkpoint` does, with a warning for each damaged one; None where
        the folder holds none. `FileError` where all are damaged."""
        found = agreed(self._newest)
        if found is None:
            return None
        live = Live(model, optimizer, ema, {"scheduler": scheduler, "scaler": scaler, "loader": loader})
        path, stored = found
        return restored(stored if stored is not None else read_stored(path), live, f"'{path}'", restore_random)

    def _newest(self) -> tuple[Path, Stored | None] | None:
        failures: list[FileError] = []
        for path in self.checkpoints():
            try:
                stored = read_stored(path)
            except FileError as error:
                failures.append(error)
                continue
            for failure in failures:
                warnings.warn(f"{failure}\nIt is passed over for '{path.name}', the newest intact checkpoint.", stacklevel=4)
            return path, stored
        if failures:
            raise FileError(
                f"'{self.folder}': none of its {len(failures)} checkpoints is intact", got=failures[0].what,
                fix="bring back a copy of one of them, or start anew in another folder",
            ) from failures[0]  # fmt: skip
        return None


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])
