"""Choosing the kernels: by name, by environment, and without any."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from truequant import kernels
from truequant.errors import ArgumentError


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_compiled_kernels_are_there() -> None:
    """`make setup` builds them; a machine without a compiler runs the reference and fails here, nowhere else."""
    assert kernels.levels()[-2:] == ("portable", "reference")
    assert kernels.compiled() is not None


def test_a_level_is_chosen_for_a_while() -> None:
    before = kernels.level()
    for name in kernels.levels():
        with kernels.using(name):
            assert kernels.level() == name
            assert kernels.describe().startswith(name)
            assert (kernels.compiled() is None) == (name == "reference")
    assert kernels.level() == before


def test_a_level_that_is_not_there() -> None:
    with pytest.raises(
        ArgumentError, match="no kernels 'neon' on this machine\n  got:      neon\n  expected: .*portable, reference"
    ):
        kernels.use("neon")


@pytest.mark.slow
def test_the_environment_chooses() -> None:
    code = "from truequant import kernels; print(kernels.level())"
    for name in ("portable", "reference"):
        assert run(code, TRUEQUANT_KERNELS=name).stdout.strip() == name
    assert "no kernels 'neon'" in run(code, TRUEQUANT_KERNELS="neon").stderr


@pytest.mark.slow
def test_without_the_extension_everything_works_after_one_warning() -> None:
    code = """
import sys
sys.modules["truequant.kernels._native"] = None
import torch, truequant as tq
from truequant import kernels
quantizer = tq.FakeQuantize(tq.QuantScheme(tq.types.uint8))
for _ in range(3):
    quantizer(torch.randn(5, requires_grad=True)).sum().backward()
print(kernels.level(), kernels.describe())
"""
    result = run(code)
    assert result.stdout.startswith("reference reference; no compiled kernels"), result.stderr
    assert result.stderr.count("runs its reference") == 1, result.stderr
    assert "runs its reference" not in run(code, TRUEQUANT_KERNELS="reference").stderr
