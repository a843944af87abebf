"""`CheckpointManager`: what is kept, what is passed over, who may write, and that training does not wait for the disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import truequant as tq
from tests.training_runs import fresh, started
from truequant.errors import ArgumentError, FileError, TruequantError
from truequant.files import atomic


def steps_of(manager: tq.CheckpointManager) -> list[int]:
    return [int(path.stem[5:]) for path in manager.checkpoints()]


def model(value: float = 0.0) -> nn.Module:
    made = nn.Linear(3, 2)
    nn.init.constant_(made.weight, value)
    return made


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writes wait until the event is set."""
    go, write_new = threading.Event(), atomic._write_new

    def wait(path: Path, content: atomic.Content) -> int:
        assert go.wait(30)
        return write_new(path, content)

    monkeypatch.setattr(atomic, "_write_new", wait)
    return go


# -- what is kept ------------------------------------------------------------------------------------------------------
def test_the_last_ones_and_the_best_are_kept_also_by_the_next_process(tmp_path: Path) -> None:
    metrics = {1: 0.5, 2: 0.9, 3: 0.1, 4: float("nan"), 5: 0.2, 6: 0.9}
    with tq.CheckpointManager(tmp_path, keep=2, best="max", background=False) as manager:
        for step in range(1, 5):
            manager.save(step, model=model(), metric=metrics[step])
        assert steps_of(manager) == [4, 3, 2]
    with tq.CheckpointManager(tmp_path, keep=2, best="max", background=False) as manager:
        for step in (5, 6):
            manager.save(step, model=model(), metric=metrics[step])
        assert steps_of(manager) == [6, 5, 2]  # of equally good ones the first
        found = manager.restore()
    assert found is not None
    assert (found.step, found.metric) == (6, 0.9)


def test_step_saves_where_it_is_due(tmp_path: Path) -> None:
    with tq.CheckpointManager(tmp_path, keep=9, every=3, background=False) as manager:
        assert [step for step in range(1, 8) if manager.step(step, model=model())] == [3, 6]
        assert steps_of(manager) == [6, 3]


def test_an_empty_folder_restores_nothing_and_a_foreign_file_is_no_checkpoint(tmp_path: Path) -> None:
    manager = tq.CheckpointManager(tmp_path / "deep" / "new")
    assert manager.restore(model=model()) is None
    (manager.folder / "notes.txt").write_text("hello")
    (manager.folder / "step-7.ckpt").write_text("hello")
    assert manager.restore(model=model()) is None


@pytest.mark.parametrize("arguments", [{"keep": 0}, {"every": 0}, {"every": 2.5}, {"best": "least"}])
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="CheckpointManager: "):
        tq.CheckpointManager(tmp_path, **arguments)  # type: ignore[arg-type]


# -- damage ------------------------------------------------------------------------------------------------------------
def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "too short for a container"),
    "cut": (cut, "the file is cut short"),
    "flipped": (flip, "the contents are not those that were written"),
    "foreign": (lambda path: path.write_text("a text that is no checkpoint"), "not a truequant file"),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "has no"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read: Is a directory"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_passed_over_with_a_warning(tmp_path: Path, damage: str) -> None:
    spoil, message = DAMAGES[damage]
    with tq.CheckpointManager(tmp_path, background=False) as manager:
        for step in (1, 2, 3):
            manager.save(step, model=model(step))
        spoil(manager.checkpoints()[0])
        restored = model()
        with pytest.warns(UserWarning, match="passed over for 'step-0000000002.ckpt', the newest intact") as caught:
            found = manager.restore(model=restored)
        assert "step-0000000003.ckpt" in str(caught[0].message)
        if damage != "zeros":
            assert message in str(caught[0].message)
        assert found is not None
        assert found.step == 2
        assert restored.weight[0, 0].item() == 2.0
    if damage != "a folder":
        with tq.CheckpointManager(tmp_path, background=False) as manager:
            manager.save(3, model=model(3))  # takes the damaged one's place
            found = manager.restore(model=restored)
        assert found is not None
        assert found.step == 3


def test_where_all_are_damaged_nothing_starts_anew_by_itself(tmp_path: Path) -> None:
    with tq.CheckpointManager(tmp_path, background=False) as manager:
        manager.save(1, model=model())
        cut(manager.checkpoints()[0])
        with pytest.raises(FileError, match="none of its 1 checkpoints is intact"):
            manager.restore(model=model())


def test_a_model_that_does_not_fit_is_no_damage(tmp_path: Path) -> None:
    with tq.CheckpointManager(tmp_path, background=False) as manager:
        manager.save(1, model=model())
        manager.save(2, model=model())
        with pytest.raises(ArgumentError, match="another shape"):
            manager.restore(model=nn.Linear(3, 5))


# -- who writes --------------------------------------------------------------------------------------------------------
def test_one_writer_at_a_time(tmp_path: Path) -> None:
    first, second = tq.CheckpointManager(tmp_path, background=False), tq.CheckpointManager(tmp_path, background=False)
    first.save(1, model=model())
    with pytest.raises(FileError, match=f"another writer is at work there\n  got:      process {os.getpid()}"):
        second.save(2, model=model())
    assert second.restore(model=model()) is not None  # reading is free
    code = (
        "import sys, torch, truequant as tq\n"
        "try: tq.CheckpointManager(sys.argv[1], background=False).save(3, model=torch.nn.Linear(3, 2))\n"
        "except tq.TruequantError as error: sys.exit(str(error))"
    )
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (child.returncode, f"process {os.getpid()}" in child.stderr) == (1, True), child.stderr
    first.close()
    second.save(2, model=model())
    assert steps_of(second) == [2, 1]
    second.close()


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / ".step-0000000004.ckpt.0123456789abcdef.tmp"
    other = tmp_path / ".mine.tmp"
    for path in (left, other):
        path.write_bytes(b"half")
    with tq.CheckpointManager(tmp_path, background=False) as manager:
        assert left.exists()
        manager.save(1, model=model())
    assert (left.exists(), other.exists()) == (False, True)


# -- the background ----------------------------------------------------------------------------------------------------
def test_training_goes_on_while_the_disk_stands_still(tmp_path: Path, slow: threading.Event) -> None:
    with tq.CheckpointManager(tmp_path, keep=9) as manager:
        trained = model(1.0)
        begin = time.monotonic()
        for step in range(1, 6):
            nn.init.constant_(trained.weight, step)
            manager.save(step, model=trained)
        nn.init.constant_(trained.weight, -1.0)  # the states are copies
        assert time.monotonic() - begin < 20
        assert steps_of(manager) == []
        slow.set()
        manager.wait()
        assert steps_of(manager) == [5, 1]  # 1 was being written; 2 to 4 waited, and gave way
        restored = model()
        manager.restore(model=restored)
        assert restored.weight[0, 0].item() == 5.0


def test_the_best_state_does_not_give_way(tmp_path: Path, slow: threading.Event) -> None:
    with tq.CheckpointManager(tmp_path, keep=1, best="min") as manager:
        for step, metric in enumerate((0.5, 0.1, 0.3, 0.2), 1):
            manager.save(step, model=model(), metric=metric)
        slow.set()
    assert steps_of(manager) == [4, 2]


def test_a_failure_in_the_background_is_raised_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = tq.CheckpointManager(tmp_path)
    manager.save(1, model=model())
    manager.wait()

    def full(path: Path, content: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "_write_new", full)
        manager.save(2, model=model())
        with pytest.raises(FileError, match=r"step-0000000002.ckpt' cannot be written: No space left on device"):
            manager.wait()
    manager.save(3, model=model())
    manager.close()
    assert steps_of(manager) == [3, 1]


def test_a_training_resumed_by_a_manager_has_the_same_bits(tmp_path: Path) -> None:
    whole = started("w4a4")
    with tq.CheckpointManager(tmp_path, every=2) as manager:
        for step in range(1, 5):
            whole.train(1)
            manager.step(step, **whole.parts())
    whole.train(3)
    resumed = fresh()
    found = tq.CheckpointManager(tmp_path).restore(**resumed.parts())
    assert found is not None
    assert found.step == 4
    resumed.train(3)
    state = resumed.model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in whole.model.state_dict().items())


def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with tq.CheckpointManager(tmp_path) as manager, pytest.raises(TruequantError, match="cannot be stored without pickle"):
        manager.save(1, model=model(), extra=object())
    assert list(tmp_path.iterdir()) == []
