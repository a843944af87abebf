"""Ranks that die, run by test_ranks_lost.py: alone, and under torchrun, which starts all of them again."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import truequant as tq
from tests.parity.ranks import Found, main
from tests.parity.ranks_saved import build, digest, train

STEPS = 6


def died(rank: int, world: int, folder: Path) -> Found:
    """Rank 1 is killed in the middle of a training of DDP, and another time of one that merges ranges alone."""
    kind = (folder / "kind").read_text()
    qat, model, optimizer = build("ddp", world, 0)
    train(model, optimizer, rank, range(2))
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.monotonic()
    try:
        train(model if kind == "ddp" else qat, optimizer, rank, range(2, 50))
    except RuntimeError as error:
        (folder / "told").write_text(f"{time.monotonic() - begin}\n{type(error).__name__}\n{error}")
        os._exit(0)
    return {}


def restarted(folder: Path, dies: bool) -> None:
    """A training under torchrun, whose rank 1 is killed in its first life, behind the checkpoint of step 4."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    qat, model, optimizer = build("fsdp", world, 0)
    torch.manual_seed(rank)
    life = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    with tq.CheckpointManager(folder / "kept", every=2, background=False) as manager:
        found = manager.restore(model=qat, optimizer=optimizer)
        for step in range(0 if found is None else found.step, STEPS):
            train(model, optimizer, rank, range(step, step + 1))
            manager.step(step + 1, model=qat, optimizer=optimizer)
            if dies and life == 0 and step == 4 and rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
    whole = digest(qat, optimizer)
    (folder / f"told.{rank}").write_text(f"{life} {0 if found is None else found.step} {whole}")
    dist.barrier()
    dist.destroy_process_group()
    (folder / f"left.{rank}.{life}").touch()
    ends = time.monotonic() + 60
    while rank == 0 and not all((folder / f"left.{r}.{life}").exists() for r in range(world)) and time.monotonic() < ends:
        time.sleep(0.05)  # its process holds the store that the others still speak to


if __name__ == "__main__":
    if sys.argv[1] == "restarted":
        restarted(Path(sys.argv[2]), sys.argv[3] == "dies")
    else:
        main({"died": died})
