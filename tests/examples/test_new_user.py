"""A new user's path: a float training script of theirs becomes a trained Int8 model by five lines of the README's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import truequant as tq

FLOAT = """\
import argparse

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.second(F.relu(self.norm(self.first(x)))))


class Net(nn.Module):
    def __init__(self, width=8, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.body = nn.Sequential(Residual(width), nn.Dropout(0.1), Residual(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.body(F.relu(self.stem(x)))
        return self.head(x.mean(dim=(2, 3)))


def bars(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    images = 0.5 * torch.rand(count, 1, 16, 16, generator=generator)
    for image, label in zip(images, labels):
        image[0, 4 * label : 4 * label + 3] += 0.5
    return TensorDataset(images, labels)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    loader = DataLoader(bars(512, seed=1), batch_size=32, shuffle=True)
    test = DataLoader(bars(256, seed=2), batch_size=64)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(options.epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum((model(x).argmax(1) == y).sum().item() for x, y in test)
        print(f"epoch {epoch}: {right / 256:.3f}")


main()
"""
ADDED = {
    "import argparse\n": "import truequant as tq\n",
    "    model = Net()\n": "    model = tq.prepare(model, next(iter(loader))[0])\n    tq.calibrate(model, test)\n",
    '        print(f"epoch {epoch}: {right / 256:.3f}")\n': (
        "    int8 = tq.convert(model.eval())\n    print(int8.save('model.tq'), tq.verify(model, int8, test))\n"
    ),
}


def test_five_lines_make_a_trained_int8_model(tmp_path: Path) -> None:
    assert len([line for line in FLOAT.splitlines() if line]) <= 60
    script = FLOAT
    for before, lines in ADDED.items():
        assert script.count(before) == 1
        script = script.replace(before, before + lines)
    assert sum(lines.count("\n") for lines in ADDED.values()) <= 5
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for name in ("prepare", "calibrate", "convert", "verify", "save"):
        assert f"{name}(" in readme
    (tmp_path / "train.py").write_text(script)
    command, environment = [sys.executable, "train.py", "--epochs", "10"], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (last,) = re.findall(r"epoch 9: (\S+)", done.stdout)
    assert float(last) > 0.9
    assert len(re.findall(r"(?:reference|onnxruntime) +EXACT", done.stdout)) == 2
    assert "DIFFERENT" not in done.stdout
    assert tq.load(tmp_path / "model.tq").ops()["Conv"] == 5
