"""Run by test_ranks_saved.py in several processes: a training that is saved on all ranks, resumed, and loaded by one."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import truequant as tq
from tests.parity.ranks import data


class Net(nn.Module):
    """Dropout makes each rank's random state matter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 36, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.flatten(torch.relu(self.norm(self.conv(x))), 1)
        return self.head(nn.functional.dropout(x, 0.3, self.training))


def build(kind: str, world: int, seed: int) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    qat = tq.prepare(Net(), torch.zeros(2, 3, 8, 8), "w8a8")
    trained: nn.Module = qat
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(qat, mesh=init_device_mesh("cpu", (world,)))
    else:
        trained = nn.parallel.DistributedDataParallel(qat)
    return qat, trained, torch.optim.Adam(trained.parameters(), 0.01)


def train(trained: nn.Module, optimizer: torch.optim.Optimizer, rank: int, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        trained(data(rank, step)).square().mean().backward()
        optimizer.step()


def whole(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def digest(qat: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in qat.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            found.update(name.encode() + whole(tensor).detach().numpy().tobytes())
    return found.hexdigest()


def main(kind: str, rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    run(kind, rank, world, folder)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # FSDP keeps the group's threads alive (see ranks.leave); the interpreter is not taken down under them


def run(kind: str, rank: int, world: int, folder: Path) -> None:
    qat, trained, optimizer = build(kind, world, 0)
    torch.manual_seed(rank)
    train(trained, optimizer, rank, range(2))
    with tq.CheckpointManager(folder / "kept") as manager:
        manager.save(2, model=qat, optimizer=optimizer)
    saved = digest(qat)
    train(trained, optimizer, rank, range(2, 4))
    expected = digest(qat)

    qat, trained, optimizer = build(kind, world, 7)
    found = tq.CheckpointManager(folder / "kept").restore(model=qat, optimizer=optimizer)
    assert found is not None
    restored = digest(qat)
    train(trained, optimizer, rank, range(found.step, 4))
    if kind == "fsdp":
        tq.save_checkpoint(folder / "gathered.ckpt", model=qat, optimizer=optimizer, step=4)
    (folder / f"told.{rank}").write_text(f"{saved} {restored} {expected} {digest(qat)}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
