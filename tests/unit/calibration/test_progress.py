"""Bars: what is done of how much, how fast, how long it takes still, and the loss where there is one."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import nn

import truequant as tq
from truequant.calibration import Bars, progress_bars
from truequant.calibration.progress import _rate


def test_a_bar_shows_rate_time_left_and_loss() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    with progress_bars(console) as bars:
        task = bars.add_task("training", total=40)
        plain = bars.add_task("calibrating", total=3)
        bars.update(plain, completed=3)
        for step in range(1, 21):
            bars.update(task, completed=step, loss=1 / step)
    assert isinstance(console.file, io.StringIO)
    training, calibrating = console.file.getvalue().splitlines()
    assert "20/40" in training
    assert "/s" in training
    assert training.rstrip().endswith("loss 0.0500")
    assert "3/3" in calibrating
    assert "loss" not in calibrating


@pytest.mark.parametrize(
    ("rate", "text"), [(None, "–/s"), (1234.5, "1234/s"), (12.0, "12/s"), (2.34, "2.3/s"), (0.1, "10.0 s each")]
)
def test_rates(rate: float | None, text: str) -> None:
    assert _rate(rate) == text


def test_an_iterator_gets_the_total_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars(True) as bars:
        assert list(bars.track(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert "/3" in capsys.readouterr().err


def test_rounding_shows_its_loss(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(16, 4)
    qat = tq.prepare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), x, "w4a8-all")
    tq.calibrate(qat, [x], tq.methods.AdaRound(iterations=400), progress=True)
    shown = capsys.readouterr().err
    assert "loss 0." in shown
    assert "AdaRound" in shown
