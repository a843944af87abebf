"""A training that is killed again and again ends with the bits of one that was never interrupted.

    python -m tests.attacks.kills --kills 100 --out benchmarks/results/kills.json

A child trains a small quantized model from every kind of state that a checkpoint holds and saves every few steps in the
background, through writes that are slowed down. SIGKILL meets it at a random moment, or a moment after a temporary file has
appeared; another child goes on from the folder. A training that ends is compared and followed by another one, until enough
kills are done. Children are forked from a process that has imported everything and computed nothing.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import truequant as tq
from tests.training_runs import Run, fresh, started
from truequant.files import atomic, atomic_write

STEPS, EVERY, PRESET = 120, 4, "w4a4"


class _Slow:
    """A file that takes its time for one write in sixteen."""

    def __init__(self, file: Any, seconds: float) -> None:
        self.file, self.seconds, self.writes = file, seconds, 0

    def __enter__(self) -> _Slow:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        self.writes += 1
        if self.writes % 16 == 0:
            time.sleep(self.seconds)
            self.file.flush()  # what was written reaches the disk on its own
        return int(self.file.write(data))


def slow_down(seconds: float) -> None:
    """Every write and fsync of `atomic_write` in this process from now on."""
    fsync = os.fsync
    atomic.open = lambda *args: _Slow(builtins.open(*args), seconds)  # type: ignore[attr-defined]  # noqa: SIM115

    def slow(descriptor: int) -> None:
        time.sleep(2 * seconds)
        fsync(descriptor)

    atomic.os = type("os", (), {**vars(os), "fsync": staticmethod(slow)})  # type: ignore[attr-defined]


def train(folder: Path, result: Path, seconds: float) -> None:
    """Train to the end from whatever the folder holds, and tell what came out."""
    slow_down(seconds)
    with tq.CheckpointManager(folder, keep=3, every=EVERY) as manager:
        run = fresh("adam")
        found = manager.restore(**run.parts())
        if found is None:
            run = started(PRESET, "adam")
        for step in range(1 if found is None else found.step + 1, STEPS + 1):
            run.train(1)
            manager.step(step, **run.parts())
    atomic_write(result, outcome(run, folder).encode())


def outcome(run: Run, folder: Path) -> str:
    """Digests of all that came out: of each tensor of the model and the optimizer, and of the Int8 model's file."""
    tensors: dict[str, torch.Tensor] = dict(run.model.state_dict())
    for index, state in run.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    found = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in tensors.items()}
    tq.convert(run.model.eval()).save(folder / "model.tq")
    return json.dumps(found | {"model.tq": hashlib.sha256((folder / "model.tq").read_bytes()).hexdigest()})


def fork(work: Callable[[], None]) -> int:
    """A child that does the work and ends without the ceremonies of an interpreter."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        warnings.simplefilter("error")
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int | None:
    """The child's exit status once it has ended."""
    done, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def temporary(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(".*.tmp")}


def computed(child: int) -> float:
    """Seconds of a processor that the child has had: other work on the machine does not change when it is killed."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def kill_somewhen(child: int, folder: Path, source: random.Random, life: float) -> int | None:
    """Kill the child at a random moment, or in the middle of a write; its exit status where it had ended before."""
    in_write, before = source.random() < 0.5, temporary(folder)
    until = source.uniform(0, life)
    while (code := ended(child)) is None:
        now = computed(child)
        if in_write and temporary(folder) - before and now > until:
            time.sleep(source.uniform(0, 0.02))
            break
        if not in_write and now > until:
            break
        time.sleep(0.002)
    if code is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code


def kill_and_compare(kills: int, seed: int, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Kill and restart until `kills` are done and the training that was killed last has ended."""
    torch.set_num_threads(1)
    source, place = random.Random(seed), Path(tempfile.mkdtemp())
    begin = time.monotonic()
    (place / "whole").mkdir()
    child = fork(lambda: train(place / "whole", place / "expected", seconds))
    _, status, used = os.wait4(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    life = used.ru_utime + used.ru_stime
    expected = json.loads((place / "expected").read_text())
    say(f"uninterrupted: {STEPS} steps, a checkpoint every {EVERY}, {len(expected)} digests, {life:.1f} s of a processor")
    done = torn = runs = different = 0
    while done < kills:
        folder, result = place / f"run{runs}", place / f"result{runs}"
        folder.mkdir()
        code: int | None = None
        while not result.exists():
            child = fork(lambda folder=folder, result=result: train(folder, result, seconds))  # type: ignore[misc]
            if done < kills:
                code = kill_somewhen(child, folder, source, 0.9 * life)
            else:
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code is None:
                done += 1
                left, found = len(temporary(folder)), sorted(folder.glob("step-*.ckpt"))
                torn += left > 0
                newest = int(found[-1].stem[5:]) if found else 0
                say(f"kill {done}: training {runs}, newest checkpoint of step {newest}, {left} unfinished files")
            elif code:
                raise AssertionError(f"a child ended with exit status {code}")
        got = json.loads(result.read_text())
        wrong = [name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)]
        different += len(wrong)
        say(f"training {runs} ended: {len(wrong)} of {len(expected)} digests differ {wrong[:3] or ''}")
        runs += 1
    shutil.rmtree(place)
    return {
        "kills": done, "kills_in_a_write": torn, "trainings": runs, "differences": different, "digests": len(expected),
        "steps": STEPS, "every": EVERY, "preset": PRESET, "seed": seed, "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slow", type=float, default=0.01, help="seconds that one write in sixteen takes longer")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    log: list[str] = []

    def say(line: str) -> None:
        log.append(line)
        print(line, flush=True)

    result = kill_and_compare(options.kills, options.seed, options.slow, say)
    say(f"{result['kills']} kills, {result['kills_in_a_write']} of them in a write, {result['differences']} differences")
    if options.out is not None:
        atomic_write(options.out, (json.dumps(result, indent=2) + "\n").encode())
        atomic_write(options.out.with_suffix(".log"), ("\n".join(log) + "\n").encode())
    raise SystemExit(1 if result["differences"] else 0)


if __name__ == "__main__":
    main()
