"""Several processes that train together: started by test_ranks*.py as `python -m tests.parity.ranks SCENARIO WORLDS FOLDER`.

The ranks are forked when everything is imported, so that each costs no start of its own. Each writes what it found to
FOLDER/WORLD.RANK.json.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import truequant as tq
from truequant.schemes import Entropy, Histogram, MinMax, MovingAverage, Percentile

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("ddp", "fsdp")
STEPS = 3
BASE = tq.QConfig.preset("w8a8")
CONFIGS = {
    "min-max": BASE.with_observer(MinMax()),
    "moving average": BASE.with_observer(MovingAverage(0.75)),
    "histogram": BASE.with_observer(Histogram(256)),
    "percentile": BASE.with_observer(Percentile(99.0, 256)),
    "MSE": BASE.with_observer(tq.ranges.MSE(256, 20)),
    "entropy": BASE.with_observer(Entropy(256)),
    "learned": tq.QConfig.preset("w4a4-all"),
}
Found = dict[str, Any]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + x)


class Net(nn.Module):
    """A residual net: BatchNorm that folds, a sum, functional and module ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.act = nn.Conv2d(3, 8, 3), nn.ReLU()
        self.block, self.head = Block(), nn.Linear(8 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.block(self.act(self.stem(x))), 1))


def data(rank: int, step: int) -> Tensor:
    """Each rank sees values of its own size."""
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(10 * step + rank)) * (1 + rank)


def shared(kind: str, qat: nn.Module, world: int, units: str = "root") -> nn.Module:
    """The module to train with. units: what FSDP2 shards apart: the whole, or the block, or each layer, before the whole."""
    if kind == "ddp":
        return nn.parallel.DistributedDataParallel(qat)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    apart: dict[str, tuple[type[nn.Module], ...]] = {"root": (), "blocks": (Block,), "layers": (nn.Conv2d, nn.Linear)}
    for module in list(qat.modules()):
        if isinstance(module, apart[units]):
            fully_shard(module, mesh=mesh)
    sharded: nn.Module = fully_shard(qat, mesh=mesh)
    return sharded


def scales(qat: nn.Module) -> Found:
    """Scale and zero point of each quantizer in evaluation."""
    found = {}
    for name, quantizer in tq.quantizers(qat.eval()):
        found[name] = [quantizer.effective_scale().flatten().tolist(), quantizer.zero_point.flatten().tolist()]
    return found


def trained(kind: str, config: tq.QConfig, rank: int, world: int, units: str = "root") -> nn.Module:
    qat = tq.prepare(Net(), torch.zeros(2, 3, 8, 8), config)
    model = shared(kind, qat, world, units)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(data(rank, step)).square().mean().backward()
        optimizer.step()
    return qat


def matrix(rank: int, world: int, folder: Path) -> Found:
    """Scales of every kind and observer, and how far what is learned has moved."""
    found: Found = {}
    for kind in KINDS:
        for name, config in CONFIGS.items():
            qat = trained(kind, config, rank, world)
            found[f"{kind}, {name}"] = {"scales": scales(qat), "moved": moved(qat)}
    return found


def moved(qat: nn.Module) -> float:
    """The sum of what learned scales have moved by, of which a rank may hold a part."""
    learned = [p for n, p in qat.named_parameters() if n.endswith(".shift")]
    return sum(float(whole(p).detach().abs().sum()) for p in learned)


def whole(tensor: Any) -> Tensor:
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


# -- starting ----------------------------------------------------------------------------------------------------------
def _rank(scenario: Callable[[int, int, Path], Found], rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store.{world}", rank=rank, world_size=world)
    found = scenario(rank, world, folder)
    (folder / f"{world}.{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def fork(scenario: Callable[[int, int, Path], Found], world: int, folder: Path, seconds: float = 240) -> None:
    """Run `scenario(rank, world, folder)` on every rank; SystemExit where one fails or takes too long.

    Where one has failed, the others have a minute to notice it and to end by themselves.
    """
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(scenario, rank, world, folder)) for rank in range(world)]
    for rank in ranks:
        rank.start()
    end = time.monotonic() + seconds
    noticed = False
    while (alive := [rank for rank in ranks if rank.exitcode is None]) and time.monotonic() < end:
        if not noticed and any(rank.exitcode for rank in ranks):
            noticed, end = True, min(end, time.monotonic() + 60)
        alive[0].join(0.05)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
        rank.join()
    if codes != [0] * world:
        raise SystemExit(f"{scenario.__name__} on {world} ranks: exit codes {codes}")


def run(module: str, scenario: str, worlds: tuple[int, ...], folder: Path) -> dict[int, list[Found]]:
    """Start `module` and return what each rank found, by the number of ranks."""
    command = [sys.executable, "-m", module, scenario, ",".join(map(str, worlds)), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {w: [json.loads((folder / f"{w}.{rank}.json").read_text()) for rank in range(w)] for w in worlds}


def main(scenarios: dict[str, Callable[[int, int, Path], Found]]) -> None:
    for world in map(int, sys.argv[2].split(",")):
        fork(scenarios[sys.argv[1]], world, Path(sys.argv[3]))


if __name__ == "__main__":
    main({"matrix": matrix})
