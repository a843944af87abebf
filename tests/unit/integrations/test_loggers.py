"""Figures in TensorBoard's and Weights & Biases' real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import truequant as tq
from truequant.integrations.tensorboard import write_figures


@pytest.fixture
def qat() -> nn.Module:
    x = torch.randn(16, 6)
    model = tq.prepare(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), x)
    return tq.calibrate(model, [x])


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_was_written(qat: nn.Module, tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        for step in (0, 5):
            write_figures(writer, qat, step, [torch.randn(8, 6)], histograms=True)
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    expected = tq.training.figures(qat)
    assert set(read.Tags()["scalars"]) >= set(expected) | {"qat/sqnr", "qat/clipped"}
    for name in ("qat/weight_error", "qat/scale/0.weight"):
        assert [event.step for event in read.Scalars(name)] == [0, 5]
        assert read.Scalars(name)[1].value == pytest.approx(expected[name], rel=1e-6)
    assert "qat/codes/0.weight" in read.Tags()["histograms"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_an_offline_run(qat: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    import wandb

    from truequant.integrations.wandb import log_figures, log_statistics_table

    with wandb.init(project="truequant", dir=tmp_path, mode="offline") as run:
        log_figures(run, qat, 3, loss=0.25)
        log_statistics_table(run, qat)
        assert run.summary["qat/weight_error"] == tq.training.figures(qat)["qat/weight_error"]
        assert run.summary["loss"] == 0.25
    wandb.teardown()  # the service that writes the file ends
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"qat/weight_error/0.weight" in written.read_bytes()
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/qat/*.json")
    assert [row[0] for row in json.loads(table.read_text())["data"]] == [name for name, _ in tq.quantizers(qat)]
