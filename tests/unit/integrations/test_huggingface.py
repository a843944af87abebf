"""The real Trainer of transformers, and accelerate: a BERT trains quantization-aware and ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import truequant as tq
from truequant.integrations.huggingface import QATCallback

CONFIG = BertConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=16, num_labels=2,
)  # fmt: skip


class Words(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        self.ids = torch.randint(0, 50, (32, 8), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.ids[index]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": (ids.sum() % 2).long()}


def inputs() -> dict[str, Tensor]:
    ids = Words().ids[:8]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return F.cross_entropy(outputs.logits, labels)


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    common = {"report_to": [], "use_cpu": True, "logging_steps": 1, "disable_tqdm": True, "learning_rate": 1e-3}
    return TrainingArguments(output_dir=str(folder), per_device_train_batch_size=8, **{**common, **options})


@pytest.mark.filterwarnings("ignore")  # of transformers, accelerate and torch themselves
def test_a_bert_is_trained_resumed_and_shipped(tmp_path: Path) -> None:
    qat = tq.prepare(BertForSequenceClassification(CONFIG), inputs(), "w8a8")
    callback = QATCallback(tq.training.QATSchedule(freeze_ranges_at=3), calibration=[inputs()])
    trainer = Trainer(
        qat, arguments(tmp_path, max_steps=2, save_steps=2), train_dataset=Words(), compute_loss_func=loss, callbacks=[callback]
    )
    trainer.train()
    assert all(q.is_calibrated for _, q in tq.quantizers(qat))
    assert (callback.schedule.steps, tq.statistics(qat).state) == (2, "training")
    assert "qat/weight_error" in trainer.state.log_history[0]

    again = tq.prepare(BertForSequenceClassification(CONFIG), inputs(), "w8a8")
    resumed = QATCallback(tq.training.QATSchedule(freeze_ranges_at=3), calibration=[inputs()])
    trainer = Trainer(
        again,
        arguments(tmp_path, max_steps=4, save_strategy="no"),
        train_dataset=Words(),
        compute_loss_func=loss,
        callbacks=[resumed],
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (resumed.schedule.steps, tq.statistics(again).state) == (4, "frozen")
    again.eval()
    report = tq.verify(again, tq.convert(again), [inputs()], runtimes=("reference",))
    assert report.codes_different == 0


@pytest.mark.filterwarnings("ignore")
def test_accelerate_prepares_a_prepared_model() -> None:
    qat = tq.prepare(BertForSequenceClassification(CONFIG), inputs(), "w8a8")
    tq.calibrate(qat, [inputs()])
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(qat.parameters(), 1e-3)
    model, optimizer, loader = accelerator.prepare(qat, optimizer, DataLoader(Words(), 8))
    before = qat.classifier.weight.detach().clone()
    model.train()
    for batch in loader:
        labels = batch.pop("labels")
        accelerator.backward(loss(model(**batch), labels))
        optimizer.step()
        optimizer.zero_grad()
    trained = accelerator.unwrap_model(model).eval()
    assert trained is qat
    assert not torch.equal(before, qat.classifier.weight)
    assert tq.verify(trained, tq.convert(trained), [inputs()], runtimes=("reference",)).codes_different == 0
