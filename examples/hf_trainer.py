"""transformers' Trainer: a BERT classifies real sentences (see transformer_text.py), trained quantization-aware.

pip install 'truequant[huggingface]' && python examples/hf_trainer.py      # a minute or two
"""

import argparse
import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformer_text import LENGTH, PACKAGES, WORDS, load
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import truequant as tq
from truequant.integrations.huggingface import QATCallback


class Sentences(Dataset):
    def __init__(self, ids: Tensor, labels: Tensor) -> None:
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {**inputs(self.ids[index]), "labels": self.labels[index]}


def inputs(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def loss(outputs, labels: Tensor, num_items_in_batch=None) -> Tensor:
    """Given to the Trainer, so that the model itself is called without labels, as it will be deployed."""
    return F.cross_entropy(outputs.logits, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--limit", type=int, default=2500, help="sentences of each package")
    options = parser.parse_args()

    torch.manual_seed(0)
    ids, labels = load(options.limit)
    held = len(ids) // 5
    config = BertConfig(
        vocab_size=WORDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=LENGTH, num_labels=len(PACKAGES),
    )  # fmt: skip
    qat = tq.prepare(
        BertForSequenceClassification(config), inputs(ids[:8]), "int8"
    )  # before the Trainer: it makes the optimizer
    callback = QATCallback(calibration=[inputs(batch) for batch in ids[held : held + 512].split(64)])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=options.steps, per_device_train_batch_size=64, learning_rate=1e-3, use_cpu=True,
            save_strategy="no", report_to=[], logging_steps=100,
        )  # fmt: skip
        data = Sentences(ids[held:], labels[held:])
        Trainer(qat, arguments, train_dataset=data, compute_loss_func=loss, callbacks=[callback]).train()

    qat.eval()
    int8 = tq.convert(qat)
    answers = int8(**inputs(ids[:held]))["logits"]
    print(f"Int8: {100 * (answers.argmax(1) == labels[:held]).double().mean():.2f} % of {held}")
    print(tq.verify(qat, int8, [inputs(batch) for batch in ids[:held].split(64)], runtimes=("reference", "onnxruntime")))


if __name__ == "__main__":
    main()
