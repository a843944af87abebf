"""Workers of one run of the tests take turns with a test that needs the machine for itself."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(alone: bool, run: int) -> Iterator[None]:
    """Waits until no other worker of `run` is inside, or none that must be alone, and is inside itself.

    run: the number of the process whose workers take turns; 0 where there are none.
    """
    if run == 0:
        yield
        return
    door, room = _files(run)
    with door.open("w") as waiting, room.open("w") as inside:
        fcntl.flock(waiting, fcntl.LOCK_EX)  # held while one waits to be alone, so that nobody new gets in
        fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(waiting, fcntl.LOCK_UN)
        yield  # closing the files gives both back


def end(run: int) -> None:
    """Removes what the turns of `run` left behind, once all its workers have ended."""
    for path in _files(run):
        path.unlink(missing_ok=True)


def _files(run: int) -> tuple[Path, Path]:
    folder = Path(tempfile.gettempdir())
    return folder / f"truequant-tests-{run}.door", folder / f"truequant-tests-{run}.room"
