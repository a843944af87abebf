"""A new user's path, timed: clone, `make setup`, and a float training script of their own that becomes an Int8 model by five
lines of the README's. Nothing of what this repository has set up is used; pip may find packages in its cache.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

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


def quantized_script() -> str:
    """The float script with the added lines."""
    script = FLOAT
    for before, lines in ADDED.items():
        assert script.count(before) == 1
        script = script.replace(before, before + lines)
    return script


def timed(command: list[str], where: Path) -> tuple[float, float, str]:
    """How long a command takes, the CPU time of it and its children, and what it prints. SystemExit where it fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    before, start = _cpu(), time.perf_counter()
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return time.perf_counter() - start, _cpu() - before, done.stdout


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    given = harness.options(harness.parser(__doc__))
    rows: list[harness.Row] = []

    def step(name: str, command: list[str], where: Path) -> str:
        took, busy, printed = timed(command, where)
        rows.append({"step": name, "seconds": took, "cpu_seconds": busy})
        print(f"{name}: {took:.1f} s", file=sys.stderr, flush=True)
        return printed

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        clone, own = home / "truequant", home / "own"
        own.mkdir()
        (own / "train.py").write_text(FLOAT)
        (own / "train_int8.py").write_text(quantized_script())
        step("git clone", ["git", "clone", "--quiet", str(harness.ROOT), str(clone)], home)
        step("make setup", ["make", "setup"], clone)
        python = str(clone / ".venv" / "bin" / "python")
        epochs = ["--epochs", "1"] if given.quick else []
        step("their script, float", [python, "train.py", *epochs], own)
        added = sum(lines.count("\n") for lines in ADDED.values())
        printed = step(
            f"their script with {added} lines more, to the verified Int8 model", [python, "train_int8.py", *epochs], own
        )
        if printed.count(" EXACT") < 2 or not (own / "model.tq").is_file():
            raise SystemExit(f"no verified Int8 model came out:\n{printed}")
    rows.append({"step": "in all"} | {kind: sum(row[kind] for row in rows) for kind in ("seconds", "cpu_seconds")})
    columns: harness.Columns = {
        "step": lambda r: r["step"],
        "time": lambda r: f"{r['seconds']:.0f} s",
        "CPU time": lambda r: f"{r['cpu_seconds']:.0f} s",
    }
    harness.publish("new_user", given, rows, ("step",), columns, "From a clone to the Int8 model of one's own script")


if __name__ == "__main__":
    main()
