"""Run by test_ranks.py in several processes: trains a model on data that differs from rank to rank."""

from __future__ import annotations

import gc
import hashlib
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

import truequant as tq
from truequant.schemes import Percentile


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


def data(rank: int, step: int) -> Tensor:
    """Each rank sees values of its own size."""
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(10 * step + rank)) * (1 + rank)


def main(kind: str, observer: str, rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    train(kind, observer, rank, world, store)
    leave()


def leave() -> None:
    """End the process group with its threads.

    DTensor's cache of shardings holds FSDP's mesh, and the mesh holds the group, so that the group outlives
    `destroy_process_group`. Its threads then run while the interpreter is taken down, and one that comes to need Python's lock
    there, to free a tensor, is ended inside C++ code that must not be left: "terminate called without an active exception".
    """
    _clear_sharding_prop_cache()
    gc.collect()
    dist.destroy_process_group()
    alive = [name for task in Path("/proc/self/task").glob("*/comm") if "gloo" in (name := task.read_text())]
    assert not alive, f"threads that outlive their process group: {alive}"


def train(kind: str, observer: str, rank: int, world: int, store: str) -> None:
    config = tq.QConfig.preset("w8a8")
    if observer == "percentile":
        config = config.with_observer(Percentile())
    qat = tq.prepare(model(), torch.zeros(2, 3, 8, 8), config)
    trained = qat
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(qat, mesh=init_device_mesh("cpu", (world,)))
    elif world > 1:
        trained = nn.parallel.DistributedDataParallel(qat)
    optimizer = torch.optim.SGD(trained.parameters(), 0.05)
    for step in range(4):
        optimizer.zero_grad()
        trained(data(rank, step)).square().mean().backward()
        optimizer.step()
    qat.eval()
    state = hashlib.sha256()
    for name, quantizer in tq.quantizers(qat):
        state.update(f"{name} {quantizer.scale.tolist()} {quantizer.zero_point.tolist()}".encode())
    widest = float(dict(tq.quantizers(qat))["input_0"].scale) * 255
    Path(f"{store}.{rank}").write_text(f"{state.hexdigest()} {widest}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
