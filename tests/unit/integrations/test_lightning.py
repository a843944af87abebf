"""Lightning's real Trainer: a float LightningModule trains quantization-aware and ships."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import truequant as tq
from truequant.errors import ArgumentError
from truequant.integrations.lightning import QATCallback


class Lit(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(48, 1, 8, 8, generator=generator), torch.arange(48) % 3), 8)


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **options})


@pytest.fixture(autouse=True)
def _lightning_warns_of_other_things() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers, old interfaces of torch: nothing of ours
        yield


def test_a_module_is_trained_resumed_and_shipped(tmp_path: Path) -> None:
    schedule = tq.training.QATSchedule(freeze_ranges_at=4)
    lit, callback = Lit(), QATCallback(torch.zeros(8, 1, 8, 8), "w4a8-all", module="net", schedule=schedule, log_every=2)
    first = trainer(tmp_path, callback, max_steps=3, enable_checkpointing=False)
    first.fit(lit, loader())
    assert isinstance(lit.net, tq.QATModuleWrapper)
    assert all(q.is_calibrated for _, q in tq.quantizers(lit.net))
    assert (schedule.steps, tq.statistics(lit.net).state) == (3, "training")
    assert {name.split("/")[1] for name in first.logged_metrics} >= {"scale", "weight_error"}
    first.save_checkpoint(tmp_path / "lit.ckpt")

    again, resumed = (
        Lit(),
        QATCallback(torch.zeros(8, 1, 8, 8), "w4a8-all", module="net", schedule=tq.training.QATSchedule(freeze_ranges_at=4)),
    )
    second = trainer(tmp_path, resumed, max_steps=6, enable_checkpointing=False)
    second.fit(again, loader(), ckpt_path=tmp_path / "lit.ckpt", weights_only=False)
    assert (resumed.calibrated, resumed.schedule.steps, tq.statistics(again.net).state) == (True, 6, "frozen")

    images = torch.randn(16, 1, 8, 8)
    report = tq.verify(again.net.eval(), tq.convert(again.net), [images])
    assert (report.codes_different, report.outputs_different) == (0, 0)


def test_the_schedule_counts_optimizer_steps_not_batches(tmp_path: Path) -> None:
    callback = QATCallback(torch.zeros(8, 1, 8, 8), module="net", calibration=0)
    trainer(tmp_path, callback, max_epochs=1, accumulate_grad_batches=3, enable_checkpointing=False).fit(Lit(), loader())
    assert callback.schedule.steps == 2


def test_a_wrong_module_is_named(tmp_path: Path) -> None:
    callback = QATCallback(torch.zeros(8, 1, 8, 8))
    with pytest.raises(
        ArgumentError, match=r"Lit has no module 'model'\n  expected: net\n  fix:      QATCallback\(…, module=\"net\"\)"
    ):
        trainer(tmp_path, callback, max_steps=1, enable_checkpointing=False).fit(Lit(), loader())
