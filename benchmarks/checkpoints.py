"""What docs/checkpoints.md shows: times and sizes beside `torch.save`, faults of writing, ranks; kills and fuzzing as recorded.

    python benchmarks/checkpoints.py [--quick] [--part times faults ranks] [--record]

Times are of a prepared model and its Adam, in turns, in one folder. `torch.save, durable` is torch.save to a temporary file
that is flushed and renamed, as `save_checkpoint` does; only the latter also computes a SHA-256. `blocked` is how long
`CheckpointManager.save` holds a training up while a thread writes; `copy`, the time to copy the same tensors and do no more.
Tables of kills and of fuzzing come from what `tests.attacks.kills`, `tests.attacks.fuzz` and `tests.attacks.guided` wrote.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import harness
import torch
from harness import RESULTS, ROOT, Row, Timing, milliseconds
from subjects import TextEncoder, residual_network
from torch import Tensor, nn

import truequant as tq
from tests.attacks.test_faults import FAULTS, save
from tests.parity.ranks import CONFIGS, KINDS, run
from truequant.errors import FileError

PAGE = ROOT / "docs" / "checkpoints.md"
MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "ResNet-20": lambda: (residual_network(3), torch.randn(2, 3, 32, 32)),
    "ResNet-20, 4x as wide": lambda: (residual_network(3, (64, 128, 256)), torch.randn(2, 3, 32, 32)),
    "encoder, 2 blocks of 768": lambda: (TextEncoder(depth=2, words=2000), torch.randint(0, 2000, (2, 8))),
}


# -- times -------------------------------------------------------------------------------------------------------------
def trained(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A prepared model and its Adam, one step on."""
    torch.manual_seed(0)
    model, x = MODELS[name]()
    qat = tq.prepare(model, x).train()
    optimizer = torch.optim.Adam(qat.parameters(), 1e-4)
    qat(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    return qat, optimizer


def durable(state: dict[str, Any], path: Path) -> None:
    """torch.save, so that a crash leaves the file of before or the new one."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def blocked(qat: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, rounds: int) -> list[float]:
    """Seconds of `CheckpointManager.save` in the background, each when the one before is on the disk."""
    taken = []
    with tq.CheckpointManager(folder / "kept", keep=1) as manager:
        for step in range(1, rounds + 2):
            started = time.perf_counter()
            manager.save(step, model=qat, optimizer=optimizer)
            taken.append(time.perf_counter() - started)
            manager.wait()
    return sorted(taken[1:])


def times(name: str, seconds: float) -> Row:
    """One model."""
    qat, optimizer = trained(name)
    folder = Path(tempfile.mkdtemp(dir=ROOT / "out"))
    ours, theirs, safe = folder / "ours.ckpt", folder / "theirs.pt", folder / "safe.pt"

    def state() -> dict[str, Any]:
        return {"model": qat.state_dict(), "optimizer": optimizer.state_dict()}

    def load() -> None:
        found = torch.load(theirs, weights_only=True)
        qat.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])

    def copy() -> list[Tensor]:
        tensors = [*qat.state_dict().values(), *(v for s in optimizer.state.values() for v in s.values())]
        return [t.clone() for t in tensors if isinstance(t, Tensor)]

    try:
        found = harness.interleaved(
            {
                "torch.save": lambda: torch.save(state(), theirs),
                "durable": lambda: durable(state(), safe),
                "save": lambda: tq.save_checkpoint(ours, model=qat, optimizer=optimizer),
                "torch.load": load,
                "load": lambda: tq.load_checkpoint(ours, model=qat, optimizer=optimizer),
                "copy": copy,
            },
            seconds=seconds, warmup=1,
        )  # fmt: skip
        held = blocked(qat, optimizer, folder, max(5, found["save"].rounds // 2))
        sizes = {"torch_bytes": theirs.stat().st_size, "bytes": ours.stat().st_size}
    finally:
        shutil.rmtree(folder)
    seconds_of: dict[str, Timing] = found
    parameters = sum(p.numel() for p in qat.parameters())
    medians = {call: timing.median for call, timing in seconds_of.items()}
    rest = {"blocked": statistics.median(held), "blocked_most": held[-1], "rounds": found["save"].rounds}
    return {"model": name, "parameters": parameters, **medians, **rest, **sizes}


def megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


TIMES: harness.Columns = {
    "model": lambda r: r["model"],
    "size: torch.save": lambda r: megabytes(r["torch_bytes"]),
    "ours": lambda r: megabytes(r["bytes"]),
    "save: torch.save": lambda r: milliseconds(r["torch.save"]),
    "durable": lambda r: milliseconds(r["durable"]),
    "ours ": lambda r: milliseconds(r["save"]),
    "load: torch.load": lambda r: milliseconds(r["torch.load"]),
    "ours  ": lambda r: milliseconds(r["load"]),
    "copy": lambda r: milliseconds(r["copy"]),
    "blocked": lambda r: milliseconds(r["blocked"]),
    "at most": lambda r: milliseconds(r["blocked_most"]),
}


# -- faults ------------------------------------------------------------------------------------------------------------
def fault(name: str) -> Row:
    """One fault in a write: what the error says, and whether the file of before is as it was, alone in its folder."""
    inject, _ = FAULTS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.ckpt"
        save(path, 1)
        before = path.read_bytes()
        said = "nothing"
        with inject():
            try:
                save(path, 2)
            except FileError as error:
                said = error.what.split("cannot be written: ")[-1]
        intact, alone = path.read_bytes() == before, len(list(Path(folder).iterdir())) == 1
    return {"fault": name, "said": said, "previous": "intact" if intact else "LOST", "left": "nothing" if alone else "LITTER"}


WRITES: harness.Columns = {
    "fault": lambda r: r["fault"],
    "the error says": lambda r: r["said"],
    "the file of before": lambda r: r["previous"],
    "what is left behind": lambda r: r["left"],
}


# -- ranks -------------------------------------------------------------------------------------------------------------
def ranks(worlds: tuple[int, ...]) -> list[Row]:
    """For each observer: quantizers of which all ranks hold the same scale and zero point, and those of which they do not."""
    with tempfile.TemporaryDirectory() as folder:
        found = run("tests.parity.ranks", "matrix", worlds, Path(folder))
    rows = []
    for observer in CONFIGS:
        row: Row = {"observer": observer}
        for kind in KINDS:
            for world in worlds:
                of_ranks = [rank[f"{kind}, {observer}"]["scales"] for rank in found[world]]
                equal = [all(other[name] == scale for other in of_ranks) for name, scale in of_ranks[0].items()]
                row[f"{kind} {world}"] = [sum(equal), len(equal)]
        rows.append(row)
    return rows


def rank_columns(worlds: tuple[int, ...]) -> harness.Columns:
    names = {"ddp": "DDP", "fsdp": "FSDP2"}
    columns: dict[str, Callable[[Row], str]] = {"observer": lambda r: r["observer"]}
    for kind in KINDS:
        for world in worlds:
            heading = f"{names[kind]}, {world} rank{'s'[: world > 1]}"
            columns[heading] = lambda r, cell=f"{kind} {world}": f"{r[cell][0]} of {r[cell][1]}"  # type: ignore[misc]
    return columns


# -- recorded by others ------------------------------------------------------------------------------------------------
def fuzz_lines() -> list[str]:
    """Inputs by reader: drawn at random, and led by coverage."""
    drawn, guided = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("fuzz", "fuzz_guided"))
    lines = ["| reader | inputs | read | refused | escapes | led by coverage | escapes |", f"|---|{'---:|' * 6}"]
    for reader, counts in drawn["readers"].items():
        others = guided["readers"][reader]
        inputs, read, escaped = sum(counts.values()), counts.get("read", 0), counts.get("escape", 0)
        cells = (inputs, read, inputs - read - escaped, escaped, sum(others.values()), others.get("escape", 0))
        lines.append(f"| {reader} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    totals = f"{drawn['inputs']:,} inputs at random, {drawn['escapes']} escapes; {guided['inputs']:,} led by coverage,"
    return [*lines, "", f"{totals} {guided['escapes']} escapes. The slowest took {drawn['slowest_seconds']:.2f} s."]


def kill_lines() -> list[str]:
    """The log of the kill test."""
    found = json.loads((RESULTS / "kills.json").read_text())
    cells = [str(found[key]) for key in ("kills", "kills_in_a_write", "trainings", "digests", "differences")]
    return [
        "| kills | in a write | trainings | digests of each | different |", f"|{'---:|' * 5}", f"| {' | '.join(cells)} |",
        "", f"{found['steps']} steps of `{found['preset']}`, a checkpoint every {found['every']}, seed {found['seed']}.",
    ]  # fmt: skip


def main() -> None:
    arguments = harness.parser(__doc__)
    parts = ("times", "faults", "ranks")
    arguments.add_argument("--part", nargs="*", choices=parts, default=parts, help="what to measure; all by default")
    given = harness.options(arguments)
    warnings.simplefilter("ignore")
    (ROOT / "out").mkdir(exist_ok=True)
    if "times" in given.part:
        rows = [times(name, 1.0 if given.quick else 15.0) for name in list(MODELS)[: 2 if given.quick else None]]
        harness.publish("checkpoints", given, rows, ("model",), TIMES, "Saving and loading", page=PAGE)
    if "faults" in given.part:
        rows = [fault(name) for name in FAULTS]
        harness.publish("write_faults", given, rows, ("fault",), WRITES, "Writes that go wrong", page=PAGE)
    if "ranks" in given.part:
        worlds = (1, 2) if given.quick else (1, 2, 4)
        title = "Quantizers whose scale and zero point are equal on every rank"
        harness.publish("ranks", given, ranks(worlds), ("observer",), rank_columns(worlds), title, page=PAGE)
    if given.record:
        harness.section("fuzz", fuzz_lines(), PAGE)
        harness.section("kills", kill_lines(), PAGE)


if __name__ == "__main__":
    main()
