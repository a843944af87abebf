"""What a step of quantization-aware training costs, as a ratio to the same step in float.

    python benchmarks/qat_step.py [MODEL …] [--batch N …] [--compiled] [--peers NAME …] [--quick] [--record]

A step is: gradients to None, forward, cross entropy, backward, optimizer. Float, truequant and whichever peers are installed
take turns in one process, with the same parameters, inputs, optimizer, memory format and threads, and an allocator that keeps
what a step frees; the ratio is that of the medians. After it was timed, truequant's model must have observed with every
planned quantizer in every step, every quantizer must change the result, and the converted model must compute the codes of the
evaluated one: a row says so, or the script fails.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import harness
import torch
from contenders import Contender, Counted, batch_of, codes_different, contender, float_model, idle_quantizers, ours, planned
from harness import Row
from peers import PEERS
from subjects import SUBJECTS, Subject

FLOAT, FLOAT_COMPILED, OURS, OURS_COMPILED = "float", "float compiled", "truequant", "truequant compiled"


def measure(subject: Subject, batch: int, given: argparse.Namespace) -> tuple[Row, dict[str, str | None]]:
    """One row: seconds and ratios of all contenders, and the versions of the peers."""
    x, y = batch_of(subject, batch, given.channels_last)
    plain = float_model(subject, given.channels_last)
    fresh: Callable[[], Any] = lambda: float_model(subject, given.channels_last)  # noqa: E731
    entries = [contender(FLOAT, subject, plain, x, y), contender(OURS, subject, ours(subject, fresh(), x), x, y)]
    if given.compiled:
        entries.append(contender(FLOAT_COMPILED, subject, fresh(), x, y, compiled=True))
        entries.append(contender(OURS_COMPILED, subject, ours(subject, fresh(), x), x, y, compiled=True))
    found, absent = _peers(subject, given, fresh, x, y)
    entries += found
    for entry in entries:
        entry.step()
    counted = Counted(entries[1].prepared)
    started = time.perf_counter()
    timings = harness.interleaved({e.name: e.step for e in entries}, seconds=given.seconds, fewest=given.rounds)
    taken = time.perf_counter() - started
    steps = timings[OURS].rounds + 3
    row: Row = {
        "model": subject.name, "batch": batch, "rounds": timings[FLOAT].rounds, "channels_last": given.channels_last,
        "compiled": given.compiled,
        "seconds": {n: t.median for n, t in timings.items()},
        "quartiles": {n: (t.low, t.high) for n, t in timings.items()},
        "ratios": {n: t.median / timings[FLOAT].median for n, t in timings.items()},
        "absent": absent, "taken": round(taken, 1),
    }  # fmt: skip
    if OURS_COMPILED in timings:
        row["compiled_ratio"] = timings[OURS_COMPILED].median / timings[FLOAT_COMPILED].median
    return row | _checks(entries, counted, steps, subject, given), {p: PEERS[p].version() for p in PEERS}


def _peers(
    subject: Subject, given: argparse.Namespace, fresh: Callable[[], Any], x: torch.Tensor, y: torch.Tensor
) -> tuple[list[Contender], dict[str, str]]:
    """Peers that are installed and take this model, with one step made; the others with the reason."""
    entries, absent = [], {}
    for name in given.peers:
        peer = PEERS[name]
        if peer.version() is None:
            absent[name] = "not installed"
            continue
        try:
            model = peer.prepare(fresh(), x)
            entry = contender(name, subject, model, x, y)
            entry.step()
        except Exception as error:  # what a peer cannot do is a finding, not a failure of this script
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
            continue
        entries.append(entry)
    return entries, absent


def _checks(entries: list[Contender], counted: Counted, steps: int, subject: Subject, given: argparse.Namespace) -> Row:
    """What makes the figure an honest one."""
    qat = entries[1].prepared
    silent = counted.silent(steps)
    if silent:
        raise SystemExit(f"{subject.name}: {len(silent)} quantizers did not observe in every step, among them {silent[0]}")
    few, _ = batch_of(subject, 2, given.channels_last)
    idle = idle_quantizers(qat, few)
    if idle:
        raise SystemExit(f"{subject.name}: {len(idle)} quantizers change nothing, among them {idle[0]}")
    return {"quantizers": planned(qat), "codes": codes_different(qat, few)}


def _columns(rows: list[Row]) -> harness.Columns:
    names = [n for n in (FLOAT, FLOAT_COMPILED, OURS, OURS_COMPILED, *PEERS) if any(n in r["ratios"] for r in rows)]
    columns: dict[str, Callable[[Row], str]] = {
        "model": lambda r: r["model"],
        "batch": lambda r: str(r["batch"]),
        "float step": lambda r: harness.milliseconds(r["seconds"][FLOAT]),
    }
    for name in names[1:]:
        columns[name] = lambda r, n=name: harness.ratio(r["ratios"].get(n))  # type: ignore[misc]
    if any("compiled_ratio" in r for r in rows):
        columns["compiled to compiled"] = lambda r: harness.ratio(r.get("compiled_ratio"))
    return columns | {
        "quantizers": lambda r: str(r["quantizers"]),
        "codes different, program": lambda r: f"{r['codes']['reference']['different']:,}",
        "onnxruntime": lambda r: f"{_unaccounted(r):,}",
        "behind islands": lambda r: f"{r['codes']['onnxruntime']['behind_islands']:,}",
    }


def _unaccounted(row: Row) -> int:
    """Codes of onnxruntime that differ although what they were computed from is equal."""
    found = row["codes"]["onnxruntime"]
    different: int = found["different"] - found["behind_islands"]
    return different


def main() -> None:
    arguments = harness.parser(__doc__)
    arguments.add_argument("models", nargs="*", choices=[*SUBJECTS, []], help="models; all of them by default")
    arguments.add_argument(
        "--batch",
        type=int,
        nargs="*",
        default=[],
        help="batch sizes; by default each model's own and, in the long form, 1 to 256",
    )
    arguments.add_argument("--compiled", action="store_true", help="torch.compile float and truequant, too")
    arguments.add_argument(
        "--peers", nargs="*", default=list(PEERS), choices=list(PEERS), help="which of the peers; all by default"
    )
    arguments.add_argument("--seconds", type=float, default=30.0, help="how long to measure a row")
    arguments.add_argument("--rounds", type=int, default=10, help="the fewest rounds of a row")
    arguments.add_argument("--channels-last", action="store_true", help="models and images in channels-last")
    given = harness.options(arguments)
    harness.keep_pages()
    if given.quick:
        given.seconds, given.rounds = 5.0, 5
    warnings.simplefilter("ignore")
    rows, versions = [], {}
    for name in given.models or (["LeNet", "ResNet-20"] if given.quick else list(SUBJECTS)):
        subject = SUBJECTS[name]
        for batch in given.batch or ((subject.batch,) if given.quick else (subject.batch, *subject.batches)):
            row, found = measure(subject, batch, given)
            rows.append(row)
            versions |= found
            print(f"{name}, batch {batch}: " + ", ".join(f"{n} {v:.3f}" for n, v in row["ratios"].items()), flush=True)
    title = "A training step, as a ratio to float eager"
    harness.publish(
        "qat_step", given, rows, ("model", "batch", "channels_last", "compiled"), _columns, title, versions=versions
    )
    wrong = [r["model"] for r in rows if r["codes"]["reference"]["different"] or _unaccounted(r)]
    if wrong:
        raise SystemExit(f"the converted model differs from the evaluated one: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
