"""Hostile input for every reader of files: only our own exceptions come out, in bounded time and memory.

    python -m tests.attacks.fuzz --inputs 1000000 --out benchmarks/results/fuzz.json

Inputs are honest files that are changed (`tests/attacks/changes.py`), and bytes at random. `tests.attacks.guided` looks for
inputs by coverage instead.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import resource
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.attacks.readers import Reader, made, readers
from truequant.errors import TruequantError

SECONDS, MEMORY = 10, 2 * 2**30
"""What one input may cost: seconds of CPU time, and bytes of memory above what the process had."""


class Hang(BaseException):
    """An input that took too long."""


def outcome(reader: Reader, data: bytes, scratch: Path) -> str:
    """What reading does: "read", one of our exceptions, or an escape."""
    scratch.write_bytes(data)
    try:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            reader.read(scratch)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except TruequantError as error:
        said = str(error)
        return type(error).__name__ if len(said) > 10 and len(said) < 4000 else f"escape: {len(said)} characters said"
    except Hang:
        return f"escape: more than {SECONDS} s"
    except Exception as error:
        return f"escape: {type(error).__name__}: {str(error)[:200]}"
    return "read"


def guard() -> None:
    """Bound time and memory of what follows in this process."""

    def late(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, late)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def fuzz(count: int, seed: int, folder: Path, tell: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
    """Read `count` inputs; how many ended how, by reader, and the escapes with their inputs."""
    warnings.simplefilter("ignore")
    known, scratch, work = readers(folder), folder / "input", folder / "work"
    guard()
    source, begin = random.Random(seed), time.monotonic()
    names, shares = list(known), [r.share for r in known.values()]
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in known}
    escapes: list[dict[str, str]] = []
    slowest = 0.0

    def result(done: int) -> dict[str, Any]:
        return {
            "inputs": done, "escapes": len(escapes), "seed": seed, "seconds": round(time.monotonic() - begin, 1),
            "slowest_seconds": round(slowest, 3), "readers": {n: dict(sorted(c.items())) for n, c in counts.items()},
            "escaped": escapes[:20],
        }  # fmt: skip

    for done in range(1, count + 1):
        (name,) = source.choices(names, shares)
        data = made(source, known[name], work)
        before = time.process_time()
        found = outcome(known[name], data, scratch)
        slowest = max(slowest, time.process_time() - before)
        if found.startswith("escape"):
            escapes.append({"reader": name, "found": found, "input": data[:2000].hex()})
            found = "escape"
        counts[name][found] += 1
        if done % 5000 == 0:
            tell(result(done))
    return result(count)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)

    def tell(result: dict[str, Any]) -> None:
        print(result["inputs"], "inputs,", result["escapes"], "escapes,", result["seconds"], "s", flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps(result, indent=2) + "\n")

    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        result = fuzz(options.inputs, options.seed, Path(folder), tell)
    tell(result)
    raise SystemExit(1 if result["escapes"] else 0)


if __name__ == "__main__":
    main()
