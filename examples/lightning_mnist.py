"""Lightning: an unchanged float LightningModule, trained quantization-aware by one callback.

pip install 'truequant[lightning]' && python examples/lightning_mnist.py      # about a minute
"""

import argparse

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import truequant as tq
from truequant.demo import lenet, load_mnist
from truequant.integrations.lightning import QATCallback


class Digits(pl.LightningModule):
    """Nothing here knows of quantization."""

    def __init__(self) -> None:
        super().__init__()
        self.net = lenet()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.02, momentum=0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--test", type=int, default=10_000, help="test images to use")
    options = parser.parse_args()

    pl.seed_everything(0)
    mnist = load_mnist()
    loader = DataLoader(TensorDataset(mnist.train_images, mnist.train_labels), 64, shuffle=True)
    digits = Digits()
    schedule = tq.training.QATSchedule(freeze_batchnorm_at=options.steps * 3 // 4)
    callback = QATCallback(mnist.train_images[:8], "int8", module="net", schedule=schedule, log_every=100)
    trainer = pl.Trainer(
        max_steps=options.steps, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False
    )
    trainer.fit(digits, loader)

    int8 = tq.convert(digits.net.eval())
    images, labels = mnist.test_images[: options.test], mnist.test_labels[: options.test]
    right = sum(int((int8(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    print(f"Int8: {100 * right / options.test:.2f} %")
    print(tq.verify(digits.net, int8, images[:1000].split(500)))


if __name__ == "__main__":
    main()
