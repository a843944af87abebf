"""A file is there whole, or as it was before."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from truequant.errors import FileError

TEMPORARY = ".tmp"
"""The end of a temporary file's name, which begins with "." and the name of the file that it will be."""
Content = bytes | Callable[[BinaryIO], object]


def atomic_write(path: str | os.PathLike[str], content: Content, size: int | None = None) -> int:
    """Write `content`, bytes or a function that writes into the open file, and return the file's size in bytes.

    The bytes go to a sibling file, are flushed to the disk and then take the name, so that a reader, a crash or a kill at
    any moment finds the old file or the new one, never a part. A symbolic link keeps pointing where it did, and a file
    that existed keeps its mode. Where `size` is given, a file of another size takes no name. Several writers of one path
    do not mix: the last one's file stands. What `content` raises is passed on; errors of the file system become FileError.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileError(
            f"'{path}' cannot be written: its folder does not exist", got=str(target.parent), fix="make the folder first"
        )
    if target.is_dir():
        raise FileError(f"'{path}' cannot be written: it is a folder", expected="the path of a file")
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}{TEMPORARY}")
    try:
        written = _write_new(temporary, content)
        if size is not None and written != size:
            raise OSError(errno.EIO, f"{written} of {size} bytes reached the disk")
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise FileError(
            f"'{path}' cannot be written: {error.strerror or error}", fix="check the disk's space and the folder's permissions"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return written


def _write_new(path: Path, content: Content) -> int:
    # Opened by hand: `tempfile` would give the file to its owner alone, whatever the umask says.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with open(descriptor, "wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; where a folder cannot be opened (Windows), the file system does it alone."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
