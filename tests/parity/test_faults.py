"""Every single fault is caught, and found at its edge."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import FAULTS, MANY, Fault, found, net, pairs
from truequant import assert_exact


def cost(fault: Fault) -> pytest.ParameterSet:
    marks = [pytest.mark.slow] if fault.images == MANY else []
    return pytest.param(fault, id=f"{fault.place}: {fault.name}", marks=marks)


@pytest.mark.parametrize("fault", [cost(f) for f in FAULTS])
def test_a_fault_is_caught_and_located(fault: Fault, tmp_path: Path) -> None:
    seen = found(fault, tmp_path)
    assert seen.grade != "EXACT"
    assert seen.edge == fault.edge


def test_without_a_fault_nothing_is_found(tmp_path: Path) -> None:
    qat, program, images = net()
    assert_exact(qat, program, [images[:8]])
    _, program, inputs = pairs()
    assert_exact(None, program, [inputs])


def test_enough_of_them() -> None:
    assert len({(f.name, f.place) for f in FAULTS}) == len(FAULTS) >= 20
    assert {f.place for f in FAULTS} == {"file", "program"}
