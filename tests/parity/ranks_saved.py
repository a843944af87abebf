"""Trainings on several ranks that are saved, resumed, and loaded on another number of ranks, run by test_ranks_saved.py."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import truequant as tq
from tests.parity.ranks import KINDS, Found, data, main, shared, whole

FORMS = ("file", "folder", "sharded")


class Net(nn.Module):
    """Dropout makes each rank's random state matter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(torch.relu(self.norm(self.conv(x))), 1)
        return self.head(nn.functional.dropout(x, 0.3, self.training))


def build(kind: str, world: int, seed: int) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    qat = tq.prepare(Net(), torch.zeros(2, 3, 8, 8), "w4a4-all")  # whose scales are learned
    trained = shared(kind, qat, world)
    return qat, trained, torch.optim.Adam(trained.parameters(), 0.01)


def train(trained: nn.Module, optimizer: torch.optim.Optimizer, rank: int, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        trained(data(rank, step)).square().mean().backward()
        optimizer.step()


def digest(qat: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, own: bool = True) -> str:
    """Of all tensors of model and optimizer; without BatchNorm's running statistics, which are a rank's own, unless `own`."""
    found = hashlib.sha256()
    for name, tensor in qat.state_dict().items():
        if isinstance(tensor, Tensor) and (own or ".running_" not in f".{name}"):
            found.update(name.encode() + whole(tensor).detach().numpy().tobytes())
    for name, parameter in qat.named_parameters() if optimizer is not None else ():
        for key, value in sorted(optimizer.state[parameter].items()):  # type: ignore[union-attr]
            found.update(f"{name} {key}".encode() + whole(value).detach().numpy().tobytes())
    return found.hexdigest()


def resumed(rank: int, world: int, folder: Path) -> Found:
    """Saved in the middle on all ranks, and resumed by as many."""
    found: Found = {}
    for kind in KINDS:
        qat, trained, optimizer = build(kind, world, 0)
        torch.manual_seed(rank)
        train(trained, optimizer, rank, range(2))
        with tq.CheckpointManager(folder / kind) as manager:
            manager.save(2, model=qat, optimizer=optimizer)
        saved = digest(qat, optimizer)
        train(trained, optimizer, rank, range(2, 4))
        expected = digest(qat, optimizer)
        qat, trained, optimizer = build(kind, world, 7)
        checkpoint = tq.CheckpointManager(folder / kind).restore(model=qat, optimizer=optimizer)
        assert checkpoint is not None
        restored = digest(qat, optimizer)
        train(trained, optimizer, rank, range(checkpoint.step, 4))
        model = digest(qat)  # of all ranks, so that all of them call it
        found[kind] = {
            "saved": saved, "restored": restored, "expected": expected, "resumed": digest(qat, optimizer), "model": model,
        }  # fmt: skip
        dist.barrier()
    return found


def saved(rank: int, world: int, folder: Path) -> Found:
    """Saved in each form."""
    found: Found = {}
    for kind in KINDS:
        qat, trained, optimizer = build(kind, world, 0)
        train(trained, optimizer, rank, range(2))
        if kind == "fsdp" or rank == 0:
            tq.save_checkpoint(folder / f"{kind}.file", model=qat, optimizer=optimizer, step=2)
        with tq.CheckpointManager(folder / f"{kind}.folder") as manager:
            manager.save(2, model=qat, optimizer=optimizer)
        model, state = get_state_dict(trained, optimizer)
        dcp.save({"model": model, "optimizer": state}, checkpoint_id=str(folder / f"{kind}.sharded"))
        found[kind] = digest(qat, optimizer, own=False)
    return found


def loaded(rank: int, world: int, folder: Path) -> Found:
    """What `saved` wrote, on another number of ranks, and trained on there."""
    found: Found = {}
    for kind in KINDS:
        for form in FORMS:
            qat, trained, optimizer = build(kind, world, 7)
            path = folder / f"{kind}.{form}"
            if form == "file":
                tq.load_checkpoint(path, model=qat, optimizer=optimizer)
            elif form == "folder":
                tq.CheckpointManager(path).restore(model=qat, optimizer=optimizer)
            else:
                model, state = get_state_dict(trained, optimizer)
                parts: dict[str, Any] = {"model": model, "optimizer": state}
                dcp.load(parts, checkpoint_id=str(path))
                set_state_dict(trained, optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])
            found[f"{kind} {form}"] = digest(qat, optimizer, own=False)
            train(trained, optimizer, rank, range(2, 4))
            found[f"{kind} {form}, trained"] = digest(qat, own=False)
    return found


if __name__ == "__main__":
    main({"resumed": resumed, "saved": saved, "loaded": loaded})
