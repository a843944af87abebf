"""What one op costs a deployed model: the default Int8 file against the float one, both in onnxruntime.

    python benchmarks/nodes.py [NAME …] [--sizes 16 32 64] [--batches 1 8] [--threads 2]

Each op stands alone between two quantized layers, a 3x3 convolution of 3 to 32 channels and a 1x1 one (linear layers where it
works on tokens), so that it reads and writes codes as in a model, in the order that the runtime keeps them. The figure is the
time of the whole file in float times; the row *no op* shows what the two layers alone do.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from benchmarks import harness
from truequant.runtimes import onnx_bytes
from truequant.runtimes.onnxruntime.session import onnxruntime

CHANNELS = 32


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(CHANNELS, 8, 1), nn.Conv2d(8, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Two(nn.Module):
    """An op of two results of a layer."""

    def __init__(self, op: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.other, self.op = nn.Conv2d(CHANNELS, CHANNELS, 1), op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x, self.other(x))


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, op: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


IMAGES: dict[str, Callable[[], nn.Module]] = {
    "no op": nn.Identity,
    "ReLU6": nn.ReLU6,
    "SiLU": nn.SiLU,
    "hard swish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "GELU": nn.GELU,
    "add": lambda: Two(torch.add),
    "product of activations": lambda: Two(torch.mul),
    "concatenation": lambda: Two(lambda a, b: torch.cat([a, b], 1)[:, :CHANNELS]),
    "SE gate": Gate,
    "max pooling": lambda: nn.MaxPool2d(2),
    "average pooling": lambda: nn.AvgPool2d(2),
    "nearest, factor 2": lambda: nn.Upsample(scale_factor=2),
    "bilinear, factor 2": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "transposed convolution": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2),
    "transposed, depthwise": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 4, 2, 1, groups=CHANNELS),
    "pixel shuffle": lambda: nn.Sequential(nn.Conv2d(CHANNELS, 4 * CHANNELS, 1), nn.PixelShuffle(2)),
    "padding by reflection": lambda: nn.ReflectionPad2d(1),
    "padding by replication": lambda: nn.ReplicationPad2d(1),
    "channel shuffle": lambda: Of(lambda x: x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)),
    "depthwise convolution": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
    "grouped convolution": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=4),
    "group norm": lambda: nn.GroupNorm(4, CHANNELS),
    "softmax over channels": lambda: nn.Softmax(1),
}
"""Ops between convolutions."""


class Between(nn.Module):
    """An op between two convolutions."""

    def __init__(self, op: nn.Module) -> None:
        super().__init__()
        self.first, self.op, self.last = nn.Conv2d(3, CHANNELS, 3, padding=1), op, nn.Conv2d(CHANNELS, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.op(F.relu(self.first(x))))


def files(name: str, size: int) -> tuple[bytes, bytes]:
    """The float file, and the Int8 file of the default config."""
    torch.manual_seed(0)
    model, x = Between(IMAGES[name]()).eval(), torch.randn(2, 3, size, size)
    buffer = io.BytesIO()
    torch.onnx.export(
        model, (x,), buffer, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "N"}, "y": {0: "N"}}
    )
    int8 = tq.convert(tq.calibrate(tq.prepare(model, x), [x]).eval())
    return buffer.getvalue(), onnx_bytes(int8.program)


def call(data: bytes, x: Tensor, threads: int) -> Callable[[], object]:
    """One inference."""
    chosen = onnxruntime().SessionOptions()
    chosen.intra_op_num_threads, chosen.log_severity_level = threads, 3
    session = onnxruntime().InferenceSession(data, chosen, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feeds)


def row(name: str, sizes: Sequence[int], batches: Sequence[int], threads: int, seconds: float) -> dict[str, Any]:
    """Int8 in float times, by size and batch."""
    found: dict[str, Any] = {"op": name}
    for size in sizes:
        float_file, int8_file = files(name, size)
        for batch in batches:
            x = torch.randn(batch, 3, size, size)
            calls = {"float": call(float_file, x, threads), "int8": call(int8_file, x, threads)}
            taken = harness.interleaved(calls, seconds=seconds)
            found[f"{size} px, batch {batch}"] = taken["int8"].times_ours(taken["float"])
    return found


def main() -> None:
    """Measure and publish."""
    arguments = harness.parser(__doc__)
    arguments.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(IMAGES)}; all by default")
    arguments.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64])
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    arguments.add_argument("--seconds", type=float, default=1.5, help="for each figure")
    given = harness.options(arguments)
    if unknown := set(given.names) - set(IMAGES):
        raise SystemExit(f"no op {', '.join(sorted(unknown))}; there are {', '.join(IMAGES)}")
    sizes, batches = ([16], [1]) if given.quick else (given.sizes, given.batches)
    warnings.simplefilter("ignore")
    rows = [row(name, sizes, batches, given.threads, given.seconds) for name in given.names or IMAGES]
    cells = [key for key in rows[0] if key != "op"]
    columns: dict[str, Callable[[harness.Row], str]] = {
        "op": lambda r: str(r["op"]), **{key: lambda r, key=key: harness.ratio(r[key]) for key in cells},  # type: ignore[misc]
    }  # fmt: skip
    harness.publish("nodes", given, rows, ["op"], columns, "One op between two layers: Int8 in float times, in onnxruntime")


if __name__ == "__main__":
    main()
