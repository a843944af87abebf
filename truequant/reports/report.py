"""`report`: one self-contained HTML page about a quantized model, which needs no network."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from torch import nn

from truequant.analysis import Verification
from truequant.errors import FileError
from truequant.fake import base_class, outermost
from truequant.files import atomic_write
from truequant.integer import Int8Model, program_shapes
from truequant.reports.pictures import picture_files
from truequant.reports.sites import site_pages
from truequant.reports.system import cpu, versions
from truequant.reports.table import Stage

FORMAT = 1
MAX_REPORT = 64 << 20
"""Bytes of an earlier report that are read for a comparison."""
_DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


def report(
    path: str | os.PathLike[str], model: nn.Module, batches: Iterable[Any] | None = None, *,
    title: str = "", stages: Sequence[Stage] = (), verification: Verification | None = None, int8: Int8Model | None = None,
    history: Any = None, sensitivity: Any = None, before: str | os.PathLike[str] | None = None,
    inputs: Callable[[Any], Any] | None = None, pictures: str | os.PathLike[str] | None = None,
) -> int:  # fmt: skip
    """Write an HTML page about a prepared model, and return its size in bytes.

    It holds a summary, a map of the model coloured by error, a page for every quantizer (values against the grid, what is
    clipped, ranges by channel, scale over training), what stays float and why, and what else it is given.

    batches: items as `calibrate` takes them, to measure activations; without them only weights are drawn.
    stages: accuracy, size and latency of the model's forms. verification: what `verify` found. int8: for the program's census.
    history: a `History` of training, or its `to_dict()`. sensitivity: what `sensitivity` found. before: an earlier report to
    compare with. pictures: a folder for the plots as PNG files too, as `picture_files` draws them; needs matplotlib.

    Raises `StateError` for a float model, `FileError` for a `before` that is no report.

    >>> import torch, truequant as tq, tempfile, pathlib
    >>> model = tq.prepare(torch.nn.Linear(4, 2), torch.randn(8, 4))
    >>> _ = tq.calibrate(model, [torch.randn(8, 4)])
    >>> page = pathlib.Path(tempfile.mkdtemp()) / "report.html"
    >>> tq.report(page, model, [torch.randn(8, 4)]) == page.stat().st_size
    True
    """
    data = report_data(
        model, batches, title=title, stages=stages, verification=verification, int8=int8, history=history,
        sensitivity=sensitivity, inputs=inputs,
    )  # fmt: skip
    if before is not None:
        data["before"] = _comparable(read_report(before))
    content = render(data).encode()
    atomic_write(path, content)
    if pictures is not None:
        picture_files(pictures, data)
    return len(content)


def report_data(
    model: nn.Module, batches: Iterable[Any] | None = None, *, title: str = "", stages: Sequence[Stage] = (),
    verification: Verification | None = None, int8: Int8Model | None = None, history: Any = None, sensitivity: Any = None,
    inputs: Callable[[Any], Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that the page shows, as plain numbers and strings."""
    root = outermost(model)
    plan = root.binding.plan
    return {
        "format": FORMAT,
        "title": title or base_class(root).__name__,
        "state": root.binding.clock.state,
        "versions": versions(),
        "cpu": cpu().name,
        "target": str(plan.target) if plan is not None else "",
        "stages": [{"name": s.name, "top1": s.top1, "size": s.size, "latency": s.latency} for s in stages],
        "verification": None if verification is None else _verification(verification),
        "program": None if int8 is None else {"ops": int8.ops(), "bytes": int8.size_bytes, "classes": _classes(int8)},
        "sites": site_pages(model, batches, inputs),
        "order": [] if plan is None else [_site(s) for s in plan.sites if s.action != "identity"],
        "history": history if history is None or isinstance(history, Mapping) else history.to_dict(),
        "sensitivity": None if sensitivity is None else sensitivity.to_dict(),
    }


def _classes(int8: Int8Model) -> int | None:
    """Of a model that returns one row of numbers an example, as classifiers do: how many."""
    program, sizes = int8.program, {}
    for tensor in int8.program.inputs:
        sizes[tensor.name] = tuple(2 if n is None else n for n in tensor.shape)
    names = program.output_names()
    shape = program_shapes(program, sizes).get(names[0], ()) if len(names) == 1 else ()
    return shape[1] if len(shape) == 2 and shape[1] > 1 else None


def _site(site: Any) -> dict[str, Any]:
    fields = ("name", "op", "action", "reason", "weight", "emits", "quantizer", "fused_into")
    return {name: getattr(site, name) for name in fields}


def _verification(found: Verification) -> list[dict[str, Any]]:
    return [
        {
            "runtime": name, "grade": r.grade, "compared": r.codes_compared, "different": r.codes_different,
            "largest": r.max_difference, "changed": r.argmax_changed,
        }
        for name, r in found.runtimes.items()
    ]  # fmt: skip


def _comparable(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison shows of an earlier report: figures, no drawings."""
    figures = ("name", "kind", "scheme", "scale", "sqnr", "clipped", "error")
    return {
        "title": str(data.get("title", ""))[:200],
        "stages": data.get("stages", []),
        "sites": [{k: s.get(k) for k in figures} for s in data["sites"]],
    }


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The data of a report. `FileError` for a file that is none; nothing in it is run."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_REPORT:
            raise FileError(f"{path}: too large for a report", got=path.stat().st_size, expected=f"at most {MAX_REPORT} bytes")
        found = _DATA.search(path.read_text(encoding="utf-8"))
        data = json.loads(found[1]) if found else None
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path}: cannot be read as a report", got=str(error)[:200]) from error
    sites = data.get("sites") if isinstance(data, dict) and data.get("format") == FORMAT else None
    if not isinstance(data, dict) or not isinstance(sites, list) or not all(isinstance(s, dict) for s in sites):
        raise FileError(f"{path}: no report of this truequant", fix="write it again with tq.report")
    return data


def render(data: Mapping[str, Any]) -> str:
    """The page of some data."""
    assets = files("truequant.reports") / "assets"
    parts = {name: (assets / name).read_text(encoding="utf-8") for name in ("report.html", "report.css", "report.js")}
    # "<" never stands in the data, so that no text in it can end the element that holds it.
    text = json.dumps(_finite(data), separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    return Template(parts["report.html"]).substitute(
        title=_escaped(str(data["title"])), data=text, style=parts["report.css"], script=parts["report.js"],
        plot_style=(assets / "uplot.css").read_text(encoding="utf-8"),
        plot_script=(assets / "uplot.js").read_text(encoding="utf-8"),
    )  # fmt: skip


def _escaped(text: str) -> str:
    for raw, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(raw, entity)
    return text


def _finite(value: Any) -> Any:
    """Numbers rounded to what a drawing can show; those that JSON lacks as None."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
