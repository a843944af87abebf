"""From a float model to a verified Int8 file: train, prepare, train on, convert, verify, export.

python examples/mnist.py            # about a minute
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import truequant as tq
from truequant.demo import load_mnist


def train(model: nn.Module, loader: DataLoader, learning_rate: float, steps: int) -> None:
    """An ordinary loop: the same one trains the float model and the prepared one."""
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9)
    model.train()
    for _, (x, y) in zip(range(steps), loader, strict=False):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="of float training, and of quantization-aware training")
    parser.add_argument("--test", type=int, default=10_000, help="test images to use")
    options = parser.parse_args()

    torch.manual_seed(0)
    mnist = load_mnist()
    loader = DataLoader(TensorDataset(mnist.train_images, mnist.train_labels), 64, shuffle=True)
    test = list(zip(mnist.test_images[: options.test].split(500), mnist.test_labels[: options.test].split(500), strict=True))
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    train(model, loader, 0.05, options.steps)

    qat = tq.prepare(model, mnist.train_images[:8], "int8")
    tq.calibrate(qat, mnist.train_images[:1000].split(100))
    train(qat, loader, 0.005, options.steps)
    int8 = tq.convert(qat.eval())

    for name, form in (("float", model.eval()), ("quantization-aware", qat), ("Int8", int8)):
        with torch.no_grad():
            right = sum(int((form(x).argmax(1) == y).sum()) for x, y in test)
        print(f"{name:<20} {100 * right / options.test:.2f} %")
    print(tq.verify(qat, int8, test[:4], runtimes=("reference", "onnxruntime")))
    print(f"model.tq {int8.save('model.tq'):,} bytes, model.onnx {tq.export_onnx(int8, 'model.onnx'):,} bytes")


if __name__ == "__main__":
    main()
