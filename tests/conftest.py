"""A stricter world than users live in: fixed seeds, warnings are errors (pyproject.toml)."""

from __future__ import annotations

import random

import numpy
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
