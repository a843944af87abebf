"""Several processes that train together (gloo): scales are equal on every rank, and what any rank saw counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.parity.ranks import data

ROOT = Path(__file__).resolve().parents[2]


def run(kind: str, observer: str, world: int, folder: Path) -> list[tuple[str, float]]:
    store = folder / "store"
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.parity.ranks", kind, observer, str(rank), str(world), str(store)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(world)
    ]  # fmt: skip
    said = [child.communicate(timeout=240)[0].decode() for child in children]
    assert [child.returncode for child in children] == [0] * world, said
    found = [Path(f"{store}.{rank}").read_text().split() for rank in range(world)]
    return [(digest, float(widest)) for digest, widest in found]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "observer"), [("ddp", "default"), ("ddp", "percentile"), ("fsdp", "default")])
def test_scales_are_equal_on_every_rank(kind: str, observer: str, tmp_path: Path) -> None:
    found = run(kind, observer, 2, tmp_path)
    assert len({digest for digest, _ in found}) == 1


@pytest.mark.slow
def test_the_range_is_that_of_all_ranks(tmp_path: Path) -> None:
    """The moving average of the range over both ranks, which rank 1 alone stretches."""
    low = high = None
    for step in range(4):
        both = [data(rank, step) for rank in range(2)]
        least, most = min(float(x.min()) for x in both), max(float(x.max()) for x in both)
        low = least if low is None else 0.9 * low + 0.1 * least
        high = most if high is None else 0.9 * high + 0.1 * most
    assert low is not None
    assert high is not None
    (_, widest), _ = run("ddp", "default", 2, tmp_path)
    assert widest == pytest.approx(high - low, rel=1e-3)
