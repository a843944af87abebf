"""What every test shares, doctests too: modules that cannot be imported here, and who has the machine for itself.

`make test` runs as many workers as there are cores (pytest-xdist), with one thread of torch each. A test marked `alone` has
two threads, and while it runs no other worker runs a test: it is about threads, memory or time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

from tests import turns

_TRITON = ["truequant/kernels/device.py", "truequant/kernels/cuda.py", "tests/unit/kernels/cuda_laws.py"]
collect_ignore = [] if find_spec("triton") else _TRITON  # modules that need a package which is not installed hold no doctest

_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
_RUN = os.getppid() if _IS_WORKER else 0


def pytest_configure() -> None:
    torch.set_num_threads(1)  # small tensors: a second thread costs more than it gives, and sums keep one order


def pytest_unconfigure() -> None:
    if not _IS_WORKER:
        turns.end(os.getpid())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the machine come first: behind long ones they would wait for them, one by one."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    alone = item.get_closest_marker("alone") is not None
    if alone:
        torch.set_num_threads(2)
    try:
        with turns.turn(alone, _RUN):
            return (yield)
    finally:
        torch.set_num_threads(1)
