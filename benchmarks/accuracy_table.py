"""docs/accuracy.md from the cells that are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

Results = Mapping[str, Any]
Float = tuple[float, float]
"""A float model by its top-1: where training starts, and after as many further epochs."""
WIDTHS = ("w8a8", "w4a4", "w3a3", "w2a2", "w1a1")
EIGHT = ("int8", "w8a8")
"""Presets of 8 bits, the default first, which are measured as they are."""
_ONLY = {"ternary": ("w2a2",), "binary": ("w1a1",)}
_NEVER = {  # 8-bit DoReFa weights would need odd codes of 9 bits; binary codes have nothing to round, dampen or freeze
    "dorefa": ("w8a8",), "pact": ("w8a8",), "ewgs": ("w1a1",), "stochastic": ("w1a1",), "tqt": ("w1a1",),
    "progressive": ("w8a8", "w4a4"), "dampening": ("w8a8", "w1a1"), "freezing": ("w8a8", "w1a1"),
}  # fmt: skip
TEXTBOOK = {
    ("lenet", "w3a3"): 99.34, ("lenet", "w2a2"): 99.14, ("lenet", "w1a1"): 98.44, ("lenet", "w4a4-all"): 99.30,
    ("lenet", "w3a3-all"): 99.17, ("lenet", "w2a2-all"): 99.02, ("lenet", "w1a1-all"): 98.24,
    ("mlp", "w4a4"): 98.33, ("mlp", "w3a3"): 98.22, ("mlp", "w2a2"): 98.14, ("mlp", "w1a1"): 97.63,
}  # fmt: skip
"""Last epoch, one seed, of LSQ written down in 60 lines: what the mean of three seeds should exceed."""

_AGAINST_TEXTBOOK = """## Against textbook LSQ

Means of up to three seeds, with their gain over the textbook figure, which is of one seed; the best algorithm is the best of
those that ran with three. The textbook figures come from a trial of the paper's method in 60 lines, from a LeNet of 99.31 and
an MLP of 98.29 in float; its images may not have been moved, so that a part of the gain may be the data's. Seeds of the MLP
lie 0.1 to 0.3 points apart: of its rows, differences of a few hundredths say nothing about the next seed.

"""
_PRESETS = """## The default, and w8a8

The presets as they are, after calibration on 2,048 images (PTQ), and trained for the same 3 epochs behind it (QAT); float as
below. The default, `int8`, has weights of 7 bits where x86 kernels add pairs of products, and of 8 elsewhere.

"""
_INTRODUCTION = """# Accuracy on MNIST

Written by `python benchmarks/accuracy.py` from `benchmarks/results/accuracy.json`; a cell that is not there has not been run.

Top-1 on the 10,000 test images, in percent, **after the last epoch** (not the best one). Every model starts from the same
float model of its seed (3 epochs on all 60,000 images, SGD, each batch moved by up to two pixels), and every algorithm then
gets 3 epochs of the same batches with the same learning rate at equal width (0.01; 0.015 at 3 bits, 0.02 at 2 and 0.03 at 1).
**float** is that float model trained on for the same 3 epochs. **PTQ** is calibrated on 2,048 training images; "best" is the
best of min-max, percentile and least squared error, and of the best of these behind cross-layer equalization, AdaRound or
both, by the loss on 5,000 training images. **lsq+ batchnorm** is LSQ+ whose BatchNorm is estimated again afterwards on 6,400
training images, as `batchnorm` does behind LSQ, or on **all** of them; the MLP runs both, by three seeds at every width. First
and last layers keep 8 bits; `-all` quantizes them as the rest. PACT and DoReFa clip at 0: where no ReLU comes before, as behind
the mobilenet's linear bottlenecks, activations have LSQ's grid with a zero point.

A cell reads `mean / worst (seeds)`; a single seed is marked `¹`. `†`: the code that this cell depends on has changed since it
ran (`--stale` runs it again); in which order float32 sums are rounded, which differs between CPUs, is none of it. `‡`: it ran
on another CPU than most cells of its model, where the same float training ends in another float model; that one's figure is
named beside **float**. Single runs of the depthwise net at 2 bits can lie 20 points apart: on two CPUs EWGS gave 78.17 and
97.31, PACT 97.23 and 75.54; at 4 bits 99.12 and 99.03, 99.04 and 99.08.
"""


def defined(algorithm: str, widths: str) -> bool:
    """Whether an algorithm is defined at these widths, and is another one than at the next."""
    width = widths.removesuffix("-all")
    return width in _ONLY.get(algorithm, (width,)) and width not in _NEVER.get(algorithm, ())


def _of(results: Results, model: str, algorithm: str, widths: str) -> list[tuple[str, Any]]:
    """Cells of all seeds, in their order."""
    prefix = f"{model}/{algorithm}/{widths}/"
    return sorted((item for item in results.items() if item[0].startswith(prefix)), key=lambda item: _seed(item[0]))


def _seed(key: str) -> int:
    return int(key.rsplit("/", 1)[1])


def _cell(found: list[tuple[str, Any]], current: Mapping[str, str], floats: Mapping[int, list[Float]]) -> str:
    if not found:
        return ""
    found = found[:3] if len(found) >= 3 else found
    scores = [row["top1"] for _, row in found]
    stale = "†" if any(current.get(key) != row["code"] for key, row in found) else ""
    elsewhere = "‡" if any(_float(row) != floats[_seed(key)][0] for key, row in found) else ""
    if len(scores) == 1:
        return f"{scores[0]:.2f} ¹{stale}{elsewhere}"
    return f"{mean(scores):.2f} / {min(scores):.2f} ({len(scores)}){stale}{elsewhere}"


def _float(row: Mapping[str, Any]) -> Float:
    return row["float_start"], row["float_further"]


def _floats(rows: Iterable[tuple[str, Any]]) -> dict[int, list[Float]]:
    """The float models of each seed, the one that most cells started from first."""
    found: dict[int, Counter[Float]] = {}
    for key, row in rows:
        found.setdefault(_seed(key), Counter())[_float(row)] += 1
    return {seed: [model for model, _ in counted.most_common()] for seed, counted in sorted(found.items())}


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *(list(r) for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ["---"] * len(lines[0]), *lines[1:])) + "\n"


def document(results: Results, current: Mapping[str, str]) -> str:
    """The page. `current`: digests of the code as it is now, by cell."""
    failed = {key: row["failed"] for key, row in results.items() if "failed" in row}
    results = {key: row for key, row in results.items() if key not in failed}
    presets = {key: row for key, row in results.items() if key.split("/")[1] in ("calibrated", "trained")}
    results = {key: row for key, row in results.items() if key not in presets}
    parts = [_INTRODUCTION, _presets(presets, current)]
    parts += [_model(results, failed, current, model, end) for model in ("lenet", "mlp", "mobilenet") for end in ("", "-all")]
    parts += [_failed(failed), _per_tensor(results, current), _textbook(results), _gains(results), _stability(results)]
    parts += [_deployed(results | presets)]
    return "\n".join(part for part in parts if part)


def _presets(results: Results, current: Mapping[str, str]) -> str:
    """The default beside w8a8, each model's cells of one CPU."""
    rows = []
    for model in dict.fromkeys(key.split("/")[0] for key in results):
        floats = _floats(item for item in results.items() if item[0].startswith(f"{model}/"))
        scores = [models[0][1] for models in list(floats.values())[:3]]
        own = [_cell(_of(results, model, a, preset), current, floats) for a in ("calibrated", "trained") for preset in EIGHT]
        rows.append([model, f"{mean(scores):.2f} / {min(scores):.2f} ({len(scores)})", *own])
    header = ("model", "float", *(f"{preset}, {what}" for what in ("PTQ", "QAT") for preset in EIGHT))
    return _PRESETS + _table(header, rows) if rows else ""


def _model(results: Results, failed: Mapping[str, str], current: Mapping[str, str], model: str, end: str) -> str:
    names = list(dict.fromkeys(key.split("/")[1] for key in results if key.startswith(f"{model}/")))
    rows = []
    floats = _floats(item for item in results.items() if item[0].startswith(f"{model}/"))

    def missing(name: str, width: str) -> str:
        if any(key.startswith(f"{model}/{name}/{width}{end}/") for key in failed):
            return "failed"
        return "" if defined(name, width) else "–"

    for name in sorted(names, key=_order):
        cells = [_cell(_of(results, model, name, width + end), current, floats) or missing(name, width) for width in WIDTHS]
        if any(c not in ("", "–") for c in cells):
            rows.append([name, *cells])
    if not rows:
        return ""
    told = ", ".join(
        f"{further:.2f} (seed {seed}{', another CPU ‡' * (k > 0)})"
        for seed, models in list(floats.items())[:3]
        for k, (_, further) in enumerate(models)
    )
    title = f"## {model}" + (", all layers" if end else "")
    return f"{title}\n\nfloat: {told}\n\n" + _table(("algorithm", *(w + end for w in WIDTHS)), rows)


def _order(name: str) -> tuple[int, str]:
    first = ("ptq min-max", "ptq best", "straight-through", "lsq")
    return (first.index(name), "") if name in first else (len(first), name)


def _failed(failed: Mapping[str, str]) -> str:
    rows = [[key, message] for key, message in sorted(failed.items())]
    return "## Failed\n\nRuns that ended with no model to convert.\n\n" + _table(("cell", "error"), rows) if rows else ""


def _per_tensor(results: Results, current: Mapping[str, str]) -> str:
    rows = [
        [key.split("/")[1], _cell([(key, row)], current, {_seed(key): [_float(row)]}), f"{row['float_further']:.2f}"]
        for key, row in sorted(results.items()) if "-per-tensor/" in key
    ]  # fmt: skip
    return "## mobilenet, one scale a weight tensor, w8a8\n\n" + _table(("algorithm", "top-1", "float"), rows) if rows else ""


def _textbook(results: Results) -> str:
    rows = []
    for (model, widths), goal in TEXTBOOK.items():
        names = {key.split("/")[1] for key in results if key.startswith(f"{model}/") and f"/{widths}/" in key}
        found = {name: [row["top1"] for _, row in _of(results, model, name, widths)][:3] for name in sorted(names, key=_order)}
        scores = found.get("lsq")
        if not scores:
            continue
        means = {name: mean(own) for name, own in found.items() if len(own) == 3 and not name.startswith("ptq")}
        best = max(means, key=lambda name: means[name], default=None)  # of equal ones the first: no page depends on hashes
        told = "–" if best is None else f"{best} {means[best]:.2f} ({means[best] - goal:+.2f})"
        gain = f"{mean(scores) - goal:+.2f}"
        rows.append([model, widths, f"{goal:.2f}", f"{mean(scores):.2f}", str(len(scores)), gain, told])
    if not rows:
        return ""
    header = ("model", "widths", "textbook", "LSQ here", "seeds", "gain", "best algorithm")
    return _AGAINST_TEXTBOOK + _table(header, rows)


def _gains(results: Results) -> str:
    """Whether each algorithm beats plain straight-through training somewhere, by the mean of the seeds that both have, from the
    same float model.
    """
    gains: dict[tuple[str, str, str], list[float]] = {}
    for key, row in results.items():
        model, algorithm, widths, seed = key.split("/")
        plain = results.get("/".join((model, "straight-through", widths, seed)))
        if (
            plain is not None
            and _float(plain) == _float(row)
            and algorithm != "straight-through"
            and not algorithm.startswith("ptq")
        ):
            gains.setdefault((algorithm, model, widths), []).append(row["top1"] - plain["top1"])
    if not gains:
        return ""
    rows = []
    for name in sorted({algorithm for algorithm, _, _ in gains}):
        # three seeds say more than one: a single one counts only where there is nothing else
        seeds = max(len(found) for key, found in gains.items() if key[0] == name)
        places = {key: found for key, found in gains.items() if key[0] == name and len(found) == seeds}
        (_, model, widths), found = max(places.items(), key=lambda item: mean(item[1]))
        rows.append([name, f"{model} {widths}", str(seeds), f"{mean(found):+.2f}", "yes" if mean(found) > 0 else "no"])
    title = "## Against plain straight-through training: each algorithm where it gains most\n\n"
    return title + _table(("algorithm", "where", "seeds", "points", "better"), rows)


def _stability(results: Results) -> str:
    rows = []
    for widths in ("w4a4", "w2a2"):
        scores = [row["top1"] for _, row in _of(results, "lenet", "lsq", widths)]
        if len(scores) > 3:
            rows.append(
                [widths, str(len(scores)), f"{mean(scores):.2f}", f"{min(scores):.2f}", f"{mean(scores) - min(scores):.2f}"]
            )
    if not rows:
        return ""
    return "## LeNet, LSQ, many seeds\n\n" + _table(("widths", "seeds", "mean", "worst", "mean - worst"), rows)


def _deployed(results: Results) -> str:
    if not results:
        return ""
    unequal = [key for key, row in results.items() if row["top1"] != row["onnxruntime"] or row["codes_different"]]
    codes, different = (sum(row[f"codes_{what}"] for row in results.values()) for what in ("compared", "different"))
    equal = len(results) - len(unequal)
    said = f"{len(results)} models: the top-1 of their Int8 files under onnxruntime was the one above in {equal}"
    return f"## Deployed\n\n{said}; of {codes:,} codes compared, {different} differed.\n"
