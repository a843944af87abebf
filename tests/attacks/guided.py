"""The readers of files under atheris, which keeps the inputs that reach new code and goes on from there.

    pip install -r requirements/optional/atheris.txt
    python -m tests.attacks.guided --runs 100000 --out benchmarks/results/fuzz_guided.json

An input's first byte says which reader gets the rest. Half of the changes are libFuzzer's, half those of `changes.py`, which
sign a container again: behind a SHA-256 no change of bytes alone comes through. An escape ends the run with its input.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import multiprocessing
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

INSTRUMENTED = ("truequant.files", "truequant.checkpoints", "truequant.planning.codec", "truequant.planning.plan",
                "truequant.schemes", "truequant.integer", "truequant.demo.idx")  # fmt: skip
MISSING = "atheris is not installed (Linux and macOS only):\n    pip install -r requirements/optional/atheris.txt"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        raise SystemExit(MISSING)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        # libFuzzer ends the process that it runs in, without a word to Python.
        child = multiprocessing.get_context("fork").Process(target=guided, args=(options, Path(folder)))
        child.start()
        child.join()
    raise SystemExit(child.exitcode)


def guided(options: argparse.Namespace, folder: Path) -> None:
    """Fuzz until the runs are done or something escapes; this process ends then."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from tests.attacks.fuzz import guard, outcome
        from tests.attacks.readers import readers
    warnings.simplefilter("ignore")
    known = readers(folder)
    names, begin = list(known), time.monotonic()
    counts: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in names}
    runs = 0

    def tell(escaped: list[dict[str, str]]) -> None:
        result: dict[str, Any] = {
            "inputs": sum(sum(c.values()) for c in counts.values()), "escapes": len(escaped), "seed": options.seed,
            "seconds": round(time.monotonic() - begin, 1),
            "readers": {n: dict(sorted(c.items())) for n, c in counts.items()}, "escaped": escaped,
        }  # fmt: skip
        print(result["inputs"], "inputs,", result["escapes"], "escapes,", result["seconds"], "s", flush=True)  # noqa: T201
        if options.out is not None:
            options.out.write_text(json.dumps(result, indent=2) + "\n")

    def one(data: bytes) -> None:
        nonlocal runs
        runs += 1
        if data:
            reader = names[data[0] % len(names)]
            found = outcome(known[reader], data[1:], folder / "input")
            counts[reader]["escape" if found.startswith("escape") else found] += 1
            if found.startswith("escape"):
                tell([{"reader": reader, "found": found, "input": data[1:2001].hex()}])
                raise AssertionError(found)
        if runs == options.runs or runs % 10_000 == 0:
            tell([])

    def change(data: bytes, most: int, seed: int) -> bytes:
        source = random.Random(seed)
        if data and source.random() < 0.5:
            index = data[0] % len(names)
            try:
                changed = known[names[index]].structured(source, data[1:], folder / "work")
            except Exception:  # it was changed too much already to be changed inside its own structure
                changed = b""
            if 0 < len(changed) < most:
                return bytes([index]) + changed
        return atheris.Mutate(data, most)  # type: ignore[no-any-return]

    corpus = folder / "corpus"
    corpus.mkdir()
    for index, reader in enumerate(known.values()):
        for number, seed in enumerate(reader.seeds):
            (corpus / f"{index}-{number}").write_bytes(bytes([index]) + seed)
    # Time and memory of one input are bounded by `guard`.
    flags = [f"-runs={options.runs}", f"-seed={options.seed}", "-max_len=60000", "-timeout=600", "-rss_limit_mb=0"]
    guard()
    atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={folder}/", str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
