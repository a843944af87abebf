"""How fast fake quantization moves bytes, as a share of what a plain copy of the same tensor moves.

    python benchmarks/fake_quantize.py [--megabytes N …] [--places N] [--quick] [--record]

forward: a quantizer in training, which commits, observes and quantizes, reads each element once and writes it once, and a bit
for its gradient; backward, the node that autograd's engine calls, reads the gradient and the bit and writes the gradient; that
of a learned scale reads the input in place of the bit. A weight with one scale is read twice, since its extremes come first.
`clone` reads and writes each element. The share is (bytes moved / seconds) over the same of `clone`, measured in turns; that of
the kernel is the same less what the call costs on a few elements, in the same turns, of either. The C library is told to keep
freed memory, or both would mostly wait for fresh pages, which is none of a kernel's doing. Where tensors lie in memory changes
a share by a third: each row is the median of several places.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator

import harness
import torch
from harness import Row
from torch import Tensor

import truequant as tq
from truequant.fake import FakeQuantize, WeightQuantizer
from truequant.schemes import PerChannel, QuantScheme, int8, uint8

SHAPE = (64, 32, 32)
"""Channels, height and width of an image."""

FEATURES = 4096
"""What a linear layer reads."""

STILL = "activation, not observing"
LEARNED = "activation, learned scale"
WHOLE = "weight, per tensor"

Pass = tuple[str, Callable[[], object], float]
"""Name, call, and bytes moved in units of the tensor's bytes."""


def passes(quantizer: Callable[[Tensor], Tensor], x: Tensor, kind: str) -> Iterator[Pass]:
    """Forward and backward of one quantizer."""
    y = quantizer(x)
    gradient = torch.randn_like(y)
    bits = 0.0 if kind == LEARNED else 1 / (8 * x.element_size())  # of the mask
    yield "forward", lambda: quantizer(x), 3.0 if kind == WHOLE else 2.0 + bits
    backward = y.grad_fn
    assert backward is not None
    yield "backward", lambda: backward(gradient), 3.0 if kind == LEARNED else 2.0 + bits


def quantizers(rows: int) -> dict[str, Callable[[], torch.nn.Module]]:
    """Every kind of quantizer that training runs; `rows` of a weight."""
    return {
        "activation": lambda: FakeQuantize(QuantScheme(uint8)),
        STILL: lambda: FakeQuantize(QuantScheme(uint8)),
        "activation, per channel": lambda: FakeQuantize(QuantScheme(uint8, PerChannel(1)), SHAPE[0]),
        LEARNED: lambda: FakeQuantize(QuantScheme(uint8, scale=tq.scales.LSQ())),
        "weight, per channel": lambda: WeightQuantizer(QuantScheme(int8, PerChannel(0)), rows),
        WHOLE: lambda: WeightQuantizer(QuantScheme(int8)),
    }


def tensor_of(kind: str, megabytes: float, dtype: torch.dtype, layout: str) -> Tensor:
    """A tensor of about that size: images, or the weight of a linear layer."""
    elements = int(megabytes * 1e6 / torch.empty(0, dtype=dtype).element_size())
    plane = SHAPE[0] * SHAPE[1] * SHAPE[2]
    if kind.startswith("weight"):
        return torch.randn(max(1, elements // FEATURES), FEATURES).to(dtype).requires_grad_()
    x = torch.randn(max(1, elements // plane), *SHAPE).to(dtype)
    return (x.contiguous(memory_format=torch.channels_last) if layout == "channels-last" else x).requires_grad_()


def ready(kind: str, x: Tensor) -> list[Pass]:
    """`clone` and the passes of a quantizer that has its range."""
    x = x.detach().requires_grad_()
    quantizer = quantizers(len(x))[kind]().train()
    # The first batch sets the range: one that clips a little, as in training, so that there is something to mask.
    quantizer(x.detach() * 0.9 if kind.startswith("activation") else x)
    if kind == STILL:
        quantizer.observing = False
    own = x.detach().clone()  # each call reads memory that no other call of its round has just brought into the caches
    return [("clone", own.clone, 2.0), *passes(quantizer, x, kind)]


def rows_of(kind: str, megabytes: float, dtype: torch.dtype, layout: str, given: argparse.Namespace) -> Iterator[Row]:
    """A row a pass."""
    x = tensor_of(kind, megabytes, dtype, layout)
    size = x.numel() * x.element_size()
    few = x.detach()[..., :1] if kind.startswith("weight") else x.detach()[:1, :, :1, :1]
    measured = ready(kind, x)
    calls = {name: call for name, call, _ in measured} | {f"{name} of few": c for name, c, _ in ready(kind, few.clone())}
    timings = harness.interleaved(calls, seconds=given.seconds, fewest=10)
    kernels = {name: timings[name].median - timings[f"{name} of few"].median for name, _, _ in measured}
    copied = 2 * size / timings["clone"].median
    for name, _, moved in measured[1:]:
        bandwidth = moved * size / timings[name].median
        works = kernels[name] > 0.1 * kernels["clone"]  # a gradient that is handed on as it is takes no kernel
        yield {
            "quantizer": kind, "pass": name, "dtype": str(dtype).removeprefix("torch."), "layout": layout,
            "megabytes": megabytes, "seconds": timings[name].median, "clone_seconds": timings["clone"].median,
            "bandwidth": bandwidth, "share": bandwidth / copied, "rounds": timings[name].rounds,
            "kernel_share": moved / 2 * kernels["clone"] / kernels[name] if works else None,
        }  # fmt: skip


def medians(kind: str, megabytes: float, dtype: torch.dtype, layout: str, given: argparse.Namespace) -> Iterator[Row]:
    """Of each pass the row of the median share, of tensors at several places."""
    taken, found = [], []
    for _ in range(given.places):
        found.append(list(rows_of(kind, megabytes, dtype, layout, given)))
        taken.append(torch.empty(int(megabytes * 1e6), dtype=torch.uint8))  # the next ones lie elsewhere
    for same in zip(*found, strict=True):
        yield sorted(same, key=lambda row: row["share"])[len(same) // 2]


COLUMNS: harness.Columns = {
    "quantizer": lambda r: r["quantizer"],
    "pass": lambda r: r["pass"],
    "dtype": lambda r: r["dtype"],
    "layout": lambda r: r["layout"],
    "size": lambda r: f"{r['megabytes']:g} MB",
    "time": lambda r: harness.milliseconds(r["seconds"]),
    "clone": lambda r: harness.milliseconds(r["clone_seconds"]),
    "bandwidth": lambda r: f"{r['bandwidth'] / 1e9:.1f} GB/s",
    "share of clone": lambda r: f"{100 * r['share']:.0f} %",
    "kernel alone": lambda r: "–" if r["kernel_share"] is None else f"{100 * r['kernel_share']:.0f} %",
}


def main() -> None:
    arguments = harness.parser(__doc__)
    arguments.add_argument("--megabytes", type=float, nargs="*", default=[8.4, 67.1], help="sizes of the tensor")
    arguments.add_argument("--seconds", type=float, default=1.5, help="how long to measure a quantizer")
    arguments.add_argument("--places", type=int, default=5, help="how many places in memory to measure it at")
    given = harness.options(arguments)
    if given.quick:
        given.megabytes, given.seconds, given.places = [8.4], 0.5, 1
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    harness.keep_pages()
    rows: list[Row] = []
    for megabytes in given.megabytes:
        for kind in quantizers(1):
            rows += medians(kind, megabytes, torch.float32, "contiguous", given)
        if not given.quick:
            for dtype, layout in (
                (torch.float32, "channels-last"),
                (torch.bfloat16, "contiguous"),
                (torch.float16, "contiguous"),
            ):
                rows += medians("activation", megabytes, dtype, layout, given)
    key = ("quantizer", "pass", "dtype", "layout", "megabytes")
    harness.publish("fake_quantize", given, rows, key, COLUMNS, "Bandwidth of fake quantization")


if __name__ == "__main__":
    main()
