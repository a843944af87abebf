"""A stricter world than users live in: fixed seeds, one thread, warnings are errors (pyproject.toml)."""

from __future__ import annotations

import random

import numpy
import pytest
import torch


def pytest_configure() -> None:
    torch.set_num_threads(1)  # small tensors: a second thread costs more than it gives, and sums keep one order


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
