"""A folder that one process writes into."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from truequant.errors import FileError
from truequant.files.atomic import TEMPORARY

_LOCK = ".lock"
_held: dict[str, int] = {}
"""Folders that are locked, with the process that did: one that was forked has inherited the entry and not the lock."""


def lock_folder(folder: str | os.PathLike[str]) -> Callable[[], None]:
    """Be the only writer of a folder until the returned function is called or this process ends, however it ends.

    FileError where another one is, or where the folder cannot be written. Processes on other machines are seen as far as the
    file system knows of locks; where it knows none (Windows), only this process is.
    """
    place = os.path.realpath(folder)
    if _held.get(place) == os.getpid():
        raise _taken(folder, os.getpid())
    try:
        descriptor = os.open(Path(place) / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise FileError(
            f"'{folder}' cannot be written: {error.strerror}", fix="check the disk's space and the folder's permissions"
        ) from error
    try:
        # A record lock: it ends with this process, and children that outlive it do not hold it.
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except ImportError:
        pass
    except BlockingIOError:
        writer = os.pread(descriptor, 20, 0).decode(errors="replace")
        os.close(descriptor)
        raise _taken(folder, writer) from None
    except OSError as error:
        os.close(descriptor)
        raise FileError(f"'{folder}' cannot be written: {error.strerror}") from error
    _held[place] = os.getpid()

    def release() -> None:
        _held.pop(place, None)
        os.close(descriptor)

    return release


def remove_temporary(folder: str | os.PathLike[str], names: re.Pattern[str]) -> None:
    """Remove what writers that were killed have left of files whose names match; the caller holds the folder's lock."""
    for path in Path(folder).glob(f".*{TEMPORARY}"):
        if names.fullmatch(path.name[1:].rsplit(".", 2)[0]):
            with contextlib.suppress(OSError):
                path.unlink()


def _taken(folder: object, writer: object) -> FileError:
    return FileError(
        f"'{folder}': another writer is at work there", got=f"process {writer}", expected="one writer",
        fix="wait until it has ended, or give each training a folder of its own",
    )  # fmt: skip
