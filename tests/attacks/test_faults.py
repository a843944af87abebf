"""Writes that go wrong at each place where they can: a clear error, the file of before untouched, no litter."""

from __future__ import annotations

import errno
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import truequant as tq
from truequant.errors import FileError
from truequant.files import atomic


class Faulty:
    """`os` with other functions."""

    def __init__(self, **functions: Callable[..., Any]) -> None:
        self.__dict__.update(vars(os), **functions)


def raising(number: int) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@contextmanager
def limited(size: int) -> Iterator[None]:
    """The kernel writes files up to `size` bytes: the last write is a short one, the next fails."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def patched(**functions: Callable[..., Any]) -> Iterator[None]:
    atomic.os = Faulty(**functions)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        atomic.os = os  # type: ignore[attr-defined]


def full_disk(path: str, flags: int, mode: int = 0o777) -> int:
    """What would be a new file is the kernel's full disk."""
    return os.open("/dev/full", os.O_WRONLY) if flags & os.O_CREAT else os.open(path, flags, mode)


def second_fsync(descriptor: int) -> None:
    """Of the file it works, of the folder it does not."""
    if os.fstat(descriptor).st_mode & 0o040000:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def swallowed(descriptor: int) -> None:
    """A file system that loses the end of the file and tells nobody."""
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)


FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "short write, then no space": (lambda: limited(700), "File too large"),
    "no space from the first byte (ENOSPC)": (lambda: patched(open=full_disk), "No space left on device"),
    "no new file (EROFS)": (lambda: patched(open=raising(errno.EROFS)), "Read-only file system"),
    "no permission (EACCES)": (lambda: patched(open=raising(errno.EACCES)), "Permission denied"),
    "too many open files (EMFILE)": (lambda: patched(open=raising(errno.EMFILE)), "Too many open files"),
    "EIO on fsync of the file": (lambda: patched(fsync=raising(errno.EIO)), "Input/output error"),
    "quota at fsync (EDQUOT)": (lambda: patched(fsync=raising(errno.EDQUOT)), "Disk quota exceeded"),
    "bytes lost without an error": (lambda: patched(fsync=swallowed), "bytes reached the disk"),
    "rename fails (EIO)": (lambda: patched(replace=raising(errno.EIO)), "Input/output error"),
    "rename across devices (EXDEV)": (lambda: patched(replace=raising(errno.EXDEV)), "cross-device"),
}


def save(path: Path, value: float) -> None:
    model = nn.Linear(20, 20)
    nn.init.constant_(model.weight, value)
    tq.save_checkpoint(path, model=model, step=int(value))


@pytest.mark.parametrize("fault", FAULTS)
def test_the_previous_checkpoint_stays_and_the_error_is_clear(tmp_path: Path, fault: str) -> None:
    inject, message = FAULTS[fault]
    path = tmp_path / "run.ckpt"
    save(path, 1)
    before = path.read_bytes()
    with inject(), pytest.raises(FileError, match=message) as caught:
        save(path, 2)
    assert f"'{path}' cannot be written: " in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]
    save(path, 3)  # when the fault is gone
    assert tq.load_checkpoint(path).step == 3


def test_an_fsync_of_the_folder_that_fails_is_an_error_and_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    save(path, 1)
    with patched(fsync=second_fsync), pytest.raises(FileError, match="Input/output error"):
        save(path, 2)
    assert tq.load_checkpoint(path).step == 2  # renamed, though perhaps not for ever
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_manager_goes_on_when_the_fault_is_gone(tmp_path: Path, fault: str) -> None:
    with tq.CheckpointManager(tmp_path) as manager:
        manager.save(1, model=nn.Linear(20, 20))
        manager.wait()
        with FAULTS[fault][0]():
            manager.save(2, model=nn.Linear(20, 20))
            with pytest.raises(FileError, match=FAULTS[fault][1]):
                manager.wait()
        manager.save(3, model=nn.Linear(20, 20))
    assert [path.name for path in manager.checkpoints()] == ["step-0000000003.ckpt", "step-0000000001.ckpt"]
    assert list(tmp_path.glob(".*.tmp")) == []


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(FileError, match="cannot be a folder of checkpoints: "):
        tq.CheckpointManager(blocked)
    with pytest.raises(FileError, match="cannot be a folder of checkpoints: "):
        tq.CheckpointManager("/proc/nothing")
    with pytest.raises(FileError, match="cannot be written: "):
        tq.save_checkpoint("/proc/self/run.ckpt", model=nn.Linear(1, 1))


def test_writers_of_one_path_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    models = [nn.Linear(64, 64) for _ in range(4)]
    for value, model in enumerate(models):
        nn.init.constant_(model.weight, value)
    threads = [
        threading.Thread(target=lambda m=m: [tq.save_checkpoint(path, model=m) for _ in range(10)])  # type: ignore[misc]
        for m in models
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            loaded = nn.Linear(64, 64)
            tq.load_checkpoint(path, model=loaded, restore_random=False)
            assert torch.equal(loaded.weight, torch.full_like(loaded.weight, loaded.weight[0, 0].item()))
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]
