"""What weight-only and dynamic schemes cost a small transformer on MNIST: the table of docs/ptq.md.

    python benchmarks/linears.py [--seeds 0] [--markdown docs/ptq.md]

The rows of an image are its tokens. The float model trains for two epochs of 24,000 images; further training, float or QAT,
lasts one epoch more with the same batches and learning rate, and only its last step counts. GPTQ sees 512 training images and
no label. Rows that the results hold already are not computed again. Every figure is the reference program's, onnxruntime's
answers are counted beside it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.demo import Mnist, load_mnist
from truequant.files import atomic_write
from truequant.reports import cpu, versions

TRAINED, BATCH, IMAGES = 24_000, 128, 512
RESULTS = Path(__file__).resolve().parent / "results" / "linears.json"
BEGIN, END = "<!-- figures: benchmarks/linears.py -->", "<!-- end of figures of linear layers -->"


class Block(nn.Module):
    """Attention with layers of its own, which GPTQ can reach, and two layers behind it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Rows of 28 pixels as tokens."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(28, width), nn.Parameter(0.02 * torch.randn(28, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x.squeeze(1)) + self.places).mean(1))


def train(model: nn.Module, data: Mnist, epochs: int, rate: float, seed: int) -> nn.Module:
    """AdamW along half a cosine, the same for float and QAT."""
    generator = torch.Generator().manual_seed(seed)
    groups: Any = tq.training.parameter_groups(model, 0.01) if isinstance(model, tq.QATModuleWrapper) else model.parameters()
    optimizer = torch.optim.AdamW(groups, rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (TRAINED // BATCH))
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(TRAINED, generator=generator)[: TRAINED // BATCH * BATCH].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_images[rows]), data.train_labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def config(dtype: tq.schemes.IntegerType, group: int | None, tokens: bool, learned: bool = False) -> tq.QConfig:
    """Weights of one type, one scale a channel or for `group` of them; the embedding's rows of 28 have one scale each."""
    scheme = tq.QuantScheme(
        dtype, tq.PerChannel(0), observer=tq.ranges.MSE(), scale=tq.scales.LSQ() if learned else tq.scales.FloatScale()
    )
    activation = tq.QuantScheme(tq.types.int8, observer=tq.ranges.Dynamic()) if tokens else None
    grouped = scheme if group is None else replace(scheme, granularity=tq.PerGroup(group))
    return tq.QConfig(grouped, activation, activation, None).with_rules(tq.Rule("embed", weight=scheme))


@dataclass(frozen=True)
class Contender:
    """A scheme and what is done beside rounding to nearest. trained: by QAT, for as long as the float model."""

    name: str
    config: tq.QConfig
    methods: tuple[Any, ...] = ()
    trained: bool = False


def contenders() -> list[Contender]:
    found = [
        Contender("w8a16, nearest", config(tq.types.int8, None, False)),
        Contender("w8a8-dynamic, nearest", config(tq.types.int8, None, True)),
    ]
    for bits, dtype in ((4, tq.types.int4), (3, tq.types.int3), (2, tq.types.int2)):
        for group in (None, 32):
            scheme = f"w{bits}a16, {'channels' if group is None else f'groups of {group}'}"
            found += [
                Contender(f"{scheme}, nearest", config(dtype, group, False)),
                Contender(f"{scheme}, GPTQ", config(dtype, group, False), (tq.methods.GPTQ(),)),
            ]
        found += [
            Contender(f"w{bits}a16, groups of 32, QAT", config(dtype, 32, False, True), (), True),
            Contender(f"w{bits}a8-dynamic, groups of 32, GPTQ", config(dtype, 32, True), (tq.methods.GPTQ(),)),
            Contender(f"w{bits}a8-dynamic, groups of 32, QAT", config(dtype, 32, True, True), (), True),
        ]
    return found


@torch.no_grad()
def logits(model: Callable[[Tensor], Tensor], data: Mnist) -> Tensor:
    return torch.cat([model(part) for part in data.test_images.split(500)])


def measured(model: nn.Module, data: Mnist, reference: Tensor) -> dict[str, float]:
    """Top-1 of the program, how far its logits lie from the float model's, its size, and what onnxruntime answers."""
    int8 = tq.convert(model)
    found = logits(int8, data)
    deployed = logits(tq.compile(int8), data)
    return {
        "top1": 100 * float((found.argmax(1) == data.test_labels).double().mean()),
        "onnxruntime": 100 * float((deployed.argmax(1) == data.test_labels).double().mean()),
        "changed": int((deployed.argmax(1) != found.argmax(1)).sum()),
        "error": float((found - reference).square().sum() / reference.square().sum()),
        "kilobytes": int8.size_bytes / 1000,
    }


def floats(seed: int, data: Mnist) -> tuple[nn.Module, nn.Module]:
    """The model that QAT starts from, and the one that trained on instead; kept in `out/`."""
    path = Path("out/linears") / f"{seed}.pt"
    torch.manual_seed(seed)
    start = Transformer()
    further = copy.deepcopy(start)
    if path.exists():
        for model, state in zip((start, further), torch.load(path, weights_only=True), strict=True):
            model.load_state_dict(state)
        return start.eval(), further.eval()
    train(start, data, 2, 2e-3, seed)
    further.load_state_dict(start.state_dict())
    train(further, data, 1, 5e-4, seed + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save((start.state_dict(), further.state_dict()), path)
    return start, further


def run(seed: int, data: Mnist, rows: dict[str, dict[str, float]], keep: Callable[[], None]) -> None:
    """Fill in the rows that are not there, and `keep` them one by one."""
    start, further = floats(seed, data)
    reference = logits(further, data)
    rows["float"] = {"top1": 100 * float((reference.argmax(1) == data.test_labels).double().mean()), "error": 0.0}
    for one in contenders():
        if one.name in rows:
            continue
        model = tq.prepare(start if one.trained else further, data.train_images[:8], one.config)
        if one.methods:
            tq.calibrate(model, data.train_images[:IMAGES].split(128), list(one.methods))
        if one.trained:
            train(model, data, 1, 5e-4, seed + 1)
        rows[one.name] = measured(model.eval(), data, reference)
        print(seed, one.name, rows[one.name], flush=True)
        keep()


def write(known: dict[str, Any]) -> None:
    atomic_write(RESULTS, (json.dumps(known, indent=1) + "\n").encode())


def table(seeds: dict[str, dict[str, dict[str, float]]]) -> str:
    """Means over seeds, the worst beside them."""
    lines = [
        "| scheme, method | top-1 | error of the logits | onnxruntime: top-1, predictions changed | kilobytes |",
        "|---|---|---|---|---|",
    ]
    for name in ["float", *(one.name for one in contenders())]:
        rows = [found[name] for found in seeds.values() if name in found]
        if not rows:
            continue
        top = [row["top1"] for row in rows]
        shown = f"{statistics.mean(top):.2f}" + (f" (worst {min(top):.2f})" if len(top) > 1 else " (1 seed)")
        if name == "float":
            lines.append(f"| float | {shown} | – | – | – |")
            continue
        error, size = statistics.mean(r["error"] for r in rows), statistics.mean(r["kilobytes"] for r in rows)
        deployed = f"{statistics.mean(r['onnxruntime'] for r in rows):.2f}, {sum(int(r['changed']) for r in rows)}"
        trained = "–" if name.endswith("QAT") else f"{error:.1e}"
        lines.append(f"| {name} | {shown} | {trained} | {deployed} | {size:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"seeds": {}}
    for seed in options.seeds:
        known |= {"versions": versions(), "cpu": str(cpu())}
        rows = known["seeds"].setdefault(str(seed), {})
        run(seed, load_mnist(), rows, partial(write, known))
    if options.markdown is not None:
        before, _, rest = options.markdown.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        atomic_write(options.markdown, f"{before}{BEGIN}\n{table(known['seeds'])}\n{END}{after}".encode())


if __name__ == "__main__":
    main()
