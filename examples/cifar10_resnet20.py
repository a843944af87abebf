"""ResNet-20 on CIFAR-10 with learned scales, 4, then 3, then 2 bits (Esser et al. 2020 and Li et al. 2020, "APoT", table 1).

    python examples/cifar10_resnet20.py --data DIR [--bits 2] [--device cuda] [--out out]

DIR holds the Python or the binary version of CIFAR-10; nothing is downloaded. Trains the float model (He et al. 2016, section
4.2, options A to B: a 1 x 1 convolution where a shortcut changes its shape), then quantization-aware from it: a third of the
epochs at 4 bits, a third at 3, the rest at 2; first and last layers keep 8 bits. Ends with the Int8 model, its ONNX file, and
the accuracy of both after the last epoch, which are one number. A run that was stopped goes on where its checkpoint stands.
Published for 2 bits: LSQ 90.08, LLT 90.63, APoT 90.96 from a float model of 92.96 (best epoch of 200 to 300).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

from cifar10 import Cifar10, load_cifar10

import truequant as tq

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != channels:
            self.shortcut.extend([nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)])

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    """Three stages of three blocks, 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = nn.Sequential(*(Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)))
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.conv(x))))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


@dataclass(frozen=True)
class Phase:
    """One training: its name, its length, and the published learning rates and decay."""

    name: str
    epochs: int
    learning_rate: float
    weight_decay: float = 1e-4


def normalized(images: Tensor) -> Tensor:
    """uint8 pixels as floats of mean 0 and deviation 1 a channel."""
    mean, deviation = (torch.tensor(v, device=images.device).reshape(3, 1, 1) for v in (MEAN, DEVIATION))
    return (images.float() / 255 - mean) / deviation


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """The usual: padded by 4, cropped at random, mirrored at random, image by image."""
    n = len(images)
    padded = F.pad(images, (4, 4, 4, 4))
    down, right = torch.randint(0, 9, (2, n, 1), generator=generator).to(images.device)
    rows, columns = (torch.arange(32, device=images.device) + d for d in (down, right))
    mirror = (torch.rand(n, 1, generator=generator) < 0.5).to(images.device)
    columns = torch.where(mirror, columns.flip(1), columns)
    index = torch.arange(n, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def train(
    model: nn.Module, data: Cifar10, phase: Phase, options: argparse.Namespace, schedule: tq.training.QATSchedule | None = None
) -> nn.Module:
    """SGD along half a cosine, from the phase's checkpoint where there is one. Writes one behind each epoch."""
    size = min(options.batch, len(data.train_images))
    a_epoch = len(data.train_images) // size
    prepared = isinstance(model, tq.QATModuleWrapper)
    groups = tq.training.parameter_groups(model, phase.weight_decay) if prepared else model.parameters()
    optimizer = torch.optim.SGD(groups, phase.learning_rate, 0.9, weight_decay=phase.weight_decay, nesterov=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, phase.epochs * a_epoch)
    path, done = options.out / f"{phase.name}.safetensors", 0
    if path.is_file():
        done = int(tq.load_checkpoint(path, model=model, optimizer=optimizer, scheduler=rate).step)
        print(f"{phase.name}: goes on behind epoch {done}")
    if schedule is not None:
        schedule.steps = done * a_epoch
    for epoch in range(done, phase.epochs):
        model.train()
        generator = torch.Generator().manual_seed(options.seed * 1000 + epoch)
        for batch in torch.randperm(len(data.train_images), generator=generator)[: a_epoch * size].split(size):
            if schedule is not None:
                schedule.step(model)
            images, labels = data.train_images[batch].to(options.device), data.train_labels[batch].to(options.device)
            optimizer.zero_grad()
            F.cross_entropy(model(normalized(augmented(images, generator))), labels).backward()
            optimizer.step()
            rate.step()
        print(
            f"{phase.name}, epoch {epoch + 1} of {phase.epochs}: {accuracy(model.eval(), data, options.device):.2f} %",
            flush=True,
        )
        tq.save_checkpoint(path, model=model, optimizer=optimizer, scheduler=rate, step=epoch + 1)
    return model.eval()


@torch.no_grad()
def accuracy(model: object, data: Cifar10, device: str) -> float:
    """Top-1 in percent on the test images."""
    assert callable(model)
    right = 0
    for images, labels in zip(data.test_images.split(500), data.test_labels.split(500), strict=True):
        right += int((model(normalized(images.to(device))).argmax(1).cpu() == labels).sum())
    return 100 * right / len(data.test_labels)


def widths(bits: int, steps: int) -> dict[int, int]:
    """4, 3, then 2 bits, as far as the planned ones, for equal parts of the steps."""
    stages = [b for b in (4, 3, 2) if b >= bits] or [bits]
    return {i * steps // len(stages): b for i, b in enumerate(stages)}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("out/cifar10"))
    parser.add_argument("--bits", type=int, choices=(2, 3, 4), default=2)
    parser.add_argument("--float-epochs", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=300, help="of quantization-aware training, all widths together")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    data = load_cifar10(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)

    model = train(ResNet20().to(options.device), data, Phase("float", options.float_epochs, 0.1), options)
    results = {"float": accuracy(model, data, options.device)}

    example = normalized(data.train_images[:8].to(options.device))
    qat = tq.prepare(model, example, f"w{options.bits}a{options.bits}")
    schedule = tq.training.QATSchedule(
        bits=widths(options.bits, options.epochs * (len(data.train_images) // min(options.batch, len(data.train_images))))
    )
    schedule.step(qat)
    tq.calibrate(qat, [normalized(images.to(options.device)) for images in data.train_images[:2048].split(256)])
    decay = {4: 1e-4, 3: 5e-5, 2: 3e-5}[options.bits]
    qat = train(qat, data, Phase(f"qat-{options.bits}", options.epochs, 0.01, decay), options, schedule)
    results["qat"] = accuracy(qat, data, options.device)

    int8 = tq.convert(qat.cpu())
    int8.save(options.out / "resnet20.tq")
    tq.export_onnx(int8, options.out / "resnet20.onnx")
    results["onnxruntime"] = accuracy(tq.compile(int8, "onnxruntime"), data, "cpu")
    print(", ".join(f"{name} {value:.2f} %" for name, value in results.items()))
    print(tq.verify(qat, int8, normalized(data.test_images[:500]).split(250), runtimes=("reference", "onnxruntime")))
    return results


if __name__ == "__main__":
    main()
