"""What every test shares, doctests too: modules that cannot be imported here, and who has the machine for itself.

`make test` runs as many workers as there are cores (pytest-xdist), with one thread of torch each. A test marked `alone` has
two threads, and while it runs no other worker runs a test: it is about threads, memory or time.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

_TRITON = ["truequant/kernels/device.py", "truequant/kernels/cuda.py", "tests/unit/kernels/cuda_laws.py"]
collect_ignore = [] if find_spec("triton") else _TRITON  # modules that need a package which is not installed hold no doctest


def pytest_configure() -> None:
    torch.set_num_threads(1)  # small tensors: a second thread costs more than it gives, and sums keep one order


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the machine come first: behind long ones they would wait for them, one by one."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    alone = item.get_closest_marker("alone") is not None
    if alone:
        torch.set_num_threads(2)
    try:
        with _turn(alone):
            return (yield)
    finally:
        torch.set_num_threads(1)


@contextmanager
def _turn(alone: bool) -> Iterator[None]:
    """Waits until no other worker runs a test, or none that must be alone, and holds that."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        yield
        return
    folder = Path(tempfile.gettempdir())
    with (folder / f"truequant-{run}.door").open("w") as door, (folder / f"truequant-{run}.room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)  # held while one waits to be alone, so that nobody new gets in
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield  # closing the files gives both back
