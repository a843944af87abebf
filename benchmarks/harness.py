"""What all benchmarks share: options, rounds in which the contenders take turns, results as JSON, tables, the page.

A script calls `options`, measures, and hands its rows to `publish`, which prints them, writes them as JSON with the machine's
features, and with `--record` merges them into `benchmarks/results/NAME.json` and its section of `docs/performance.md`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from truequant.files import atomic_write
from truequant.reports import cpu, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], str]]


# -- options ---------------------------------------------------------------------------------------------------------------
def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--quick", action="store_true", help="the short form of `make bench`")
    found.add_argument("--threads", type=int, default=cpu().cores, help="threads of torch; every usable core by default")
    found.add_argument("--json", type=Path, help="where to write the results; out/benchmarks/NAME.json by default")
    found.add_argument("--record", action="store_true", help="merge into benchmarks/results and docs/performance.md")
    return found


def options(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse, and set torch's threads."""
    found = arguments.parse_args()
    torch.set_num_threads(found.threads)
    return found


def keep_pages() -> None:
    """Freed memory stays with the process: no page is handed back, and faulted in again, between two calls.

    Else a small model's step takes a tenth longer, and what one contender hands back the next one waits for.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc's malloc.h: M_MMAP_THRESHOLD is -3, M_TRIM_THRESHOLD is -1
        library.mallopt(-3, 1 << 30)
        library.mallopt(-1, (1 << 31) - 1)


# -- time ------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call: the median and the quartiles of all rounds, and what each round took, in their order."""

    median: float
    low: float
    high: float
    rounds: int
    each: tuple[float, ...]

    def times_ours(self, ours: Timing) -> float:
        """How many times as long as `ours` it takes: the median of the ratios of one round."""
        return statistics.median(a / b for a, b in zip(self.each, ours.each, strict=True))


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, fewest: int = 5, most: int = 400, warmup: int = 3
) -> dict[str, Timing]:
    """Time the calls by turns until about `seconds` are spent.

    Each round makes every call once, in an order of its own, so that what else the machine does meets all of them alike, and
    none is always the one behind another: it would find the caches, and threads that still wait awake, as that one left them.
    Garbage is collected between rounds only.
    """
    names, shuffle = list(calls), random.Random(0)
    for name in names:
        for _ in range(warmup):
            calls[name]()
    taken: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    with _no_collection():
        for turn in range(most):
            shuffle.shuffle(names)
            for name in names:
                before = time.perf_counter()
                calls[name]()
                taken[name].append(time.perf_counter() - before)
            if turn + 1 >= fewest and time.perf_counter() - started > seconds:
                break
            if turn % 8 == 7:
                gc.collect()
    return {name: _timing(values) for name, values in taken.items()}


def _timing(values: Sequence[float]) -> Timing:
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return Timing(statistics.median(ordered), ordered[quarter], ordered[-1 - quarter], len(ordered), tuple(values))


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# -- results ---------------------------------------------------------------------------------------------------------------
def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on, beside versions."""
    found = asdict(cpu())
    return {**found, "features": list(found["features"]), "threads": threads}


def publish(
    name: str, given: argparse.Namespace, rows: list[Row], key: Sequence[str],
    columns: Columns | Callable[[list[Row]], Columns], title: str, page: Path | None = None, **more: Any,
) -> None:  # fmt: skip
    """Print the table; write JSON; with `--record`, merge by `key` into what is recorded and renew the page's section.

    columns: fixed, or those of given rows. A long benchmark can be recorded in pieces: rows of other keys stay.
    """

    def columns_of(some: list[Row]) -> Columns:
        return columns(some) if callable(columns) else columns

    Console(width=140 if not sys.stdout.isatty() else None).print(_table(rows, columns_of(rows), title))
    result = {
        "benchmark": name,
        "title": title,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(given.threads),
        "versions": {**versions(), **more.pop("versions", {})},
        **more,
        "rows": rows,
    }
    _write(given.json or ROOT / "out" / "benchmarks" / f"{name}.json", result)
    if given.record:
        path = RESULTS / f"{name}.json"
        result["rows"] = _merged(path, result, key)
        _write(path, result)
        section(name, _lines(result, columns_of(result["rows"])), page or PAGE)


def _write(path: Path, result: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())


def _merged(path: Path, result: Mapping[str, Any], key: Sequence[str]) -> list[Row]:
    """Recorded rows of the same machine and versions that were not measured again, and the new ones."""
    if not path.is_file():
        return list(result["rows"])
    recorded = json.loads(path.read_text())
    if recorded["machine"] != result["machine"] or recorded["versions"] != result["versions"]:
        return list(result["rows"])
    fresh = {tuple(row[k] for k in key): row for row in result["rows"]}
    kept = [fresh.pop(found, row) for row in recorded["rows"] for found in [tuple(row[k] for k in key)]]
    return kept + list(fresh.values())


def _table(rows: Sequence[Row], columns: Columns, title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for position, heading in enumerate(columns):
        table.add_column(heading, justify="left" if position == 0 else "right", no_wrap=position == 0)
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    return table


def _lines(result: Mapping[str, Any], columns: Columns) -> list[str]:
    """The table in Markdown, and what its figures depend on."""
    lines = [f"*{result['title']}*", "", f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    lines += [f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in result["rows"]]
    found = result["machine"]
    known = [
        f"{package} {number}" for package, number in result["versions"].items() if number and package in ("python", "torch")
    ]
    return [*lines, "", f"{found['name']}, {found['threads']} threads, {', '.join(known)}; measured {result['measured'][:10]}."]


def section(name: str, lines: Sequence[str], page: Path) -> None:
    """Replace the section of a page between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = page.read_text()
    if begin not in text or end not in text:
        raise SystemExit(f"{page.name} has no section for {name}: it needs the lines {begin} and {end}")
    head, tail = text.split(begin)[0], text.split(end)[1]
    atomic_write(page, (head + begin + "\n" + "\n".join(lines) + "\n" + end + tail).encode())


def milliseconds(seconds: float | None) -> str:
    """`12.3 ms`, or a dash."""
    return "–" if seconds is None else f"{1000 * seconds:.2f} ms"


def ratio(value: float | None) -> str:
    """Two decimals, or a dash."""
    return "–" if value is None else f"{value:.2f}"
