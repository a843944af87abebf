"""The report's plots as PNG files, for terminals and papers: drawn from the data of the page itself."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from truequant.errors import ArgumentError, FileError
from truequant.files import atomic_write

SOFT, LINE, ACCENT, WARN = "#59606e", "#d9dde3", "#1f5fbf", "#b3470b"
LEVELS = ((40, "#2c7bb6"), (30, "#77b7d8"), (20, "#f0c05a"), (10, "#e8823a"), (float("-inf"), "#b5262b"))
"""Colours of signal over quantization noise in decibels, those of the page."""
MAP_ROWS, SITES = 60, 12
"""How many quantizers the picture of the map names, and how many get a picture of their own: the worst ones."""
Draw = Callable[[Any, Mapping[str, Any]], None]


def picture_files(folder: str | os.PathLike[str], data: Mapping[str, Any], sites: int = SITES) -> dict[str, int]:
    """Write the plots of a report's data as PNG files into `folder`, and return the size of each by its path.

    map.png: the signal over quantization noise of every quantizer, the worst first; training.png, where there was a history;
    sensitivity.png, where it was measured; site-NAME.png of the `sites` worst quantizers: values against the grid, ranges of
    channels, scale over training.

    data: of `report_data`, or of `read_report`. Raises `ArgumentError` without matplotlib (`pip install truequant[plots]`),
    `FileError` for a folder that cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"'{folder}' cannot be a folder of pictures: {error.strerror}") from error
    written = {}
    for name, size, draw in _pictures(data, sites):
        path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)[:120]}.png"
        written[str(path)] = atomic_write(path, _png(size, draw, data))
    return written


def _pictures(data: Mapping[str, Any], sites: int) -> Iterator[tuple[str, tuple[float, float], Draw]]:
    measured = [s for s in data["sites"] if s.get("sqnr") is not None]
    measured.sort(key=lambda s: float(s["sqnr"]))
    if measured:
        rows = measured[:MAP_ROWS]
        yield "map", (8, 1.2 + 0.22 * len(rows)), lambda figure, _: _map(figure, rows, len(measured))
    if data.get("history") and data["history"]["figures"]:
        yield "training", (8, 3.2), _training
    if data.get("sensitivity"):
        count = min(40, len(data["sensitivity"]["sites"]))
        yield "sensitivity", (8, 1.2 + 0.22 * count), _sensitivity
    for site in measured[:sites]:
        yield f"site-{site['name']}", (8, 3.2), lambda figure, found, site=site: _site(figure, found, site)  # type: ignore[misc]


def _png(size: tuple[float, float], draw: Draw, data: Mapping[str, Any]) -> bytes:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArgumentError("pictures need matplotlib", got=str(error), fix="pip install truequant[plots]") from error
    # A figure of its own, not pyplot's: no global state, no window system, whatever the user's process does with pyplot.
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, data)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _color(sqnr: float) -> str:
    return next(color for least, color in LEVELS if sqnr >= least)


def _map(figure: Any, rows: list[Any], count: int) -> None:
    axes = figure.subplots()
    axes.barh([s["name"] for s in rows], [s["sqnr"] for s in rows], color=[_color(s["sqnr"]) for s in rows])
    shown = f"the worst {len(rows)} of {count} quantizers" if len(rows) < count else f"{count} quantizers"
    axes.set(title=f"Signal over quantization noise, {shown}", xlabel="dB")
    _bars(axes)


def _bars(axes: Any) -> None:
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="x", color=LINE)


def _training(figure: Any, data: Mapping[str, Any]) -> None:
    figures = data["history"]["figures"]
    for axes, (name, points) in zip(figure.subplots(1, len(figures), squeeze=False)[0], figures.items(), strict=True):
        axes.plot([p[0] for p in points], [p[1] for p in points], color=ACCENT)
        axes.set(title=name, xlabel="step")
        axes.grid(color=LINE)


def _sensitivity(figure: Any, data: Mapping[str, Any]) -> None:
    found = data["sensitivity"]
    sites = sorted(found["sites"], key=lambda s: -s["only"])[:40]
    axes = figure.subplots()
    axes.barh([s["name"] for s in sites], [s["only"] for s in sites], color=ACCENT, label="this quantizer alone")
    axes.axvline(found["quantized"], color=WARN, linestyle="--", label="all quantizers")
    axes.axvline(found["floating"], color=SOFT, linestyle=":", label="none")
    axes.set(title="Loss with one quantizer alone, the most sensitive first")
    axes.legend(frameon=False, loc="lower right")
    _bars(axes)


def _site(figure: Any, data: Mapping[str, Any], site: Mapping[str, Any]) -> None:
    """Up to three plots side by side, as the page has them."""
    channels, past = site.get("channels"), (data.get("history") or {}).get("scales", {}).get(site["name"])
    draws: list[Callable[[Any], None]] = []
    if site.get("histogram"):
        draws.append(lambda axes: _histogram(axes, site))
    if channels and len(channels["low"]) > 1:
        draws.append(lambda axes: _channels(axes, channels))
    if past:
        draws.append(lambda axes: _scales(axes, data["history"]["steps"][-len(past) :], past))
    figure.suptitle(f"{site['name']}, {site['scheme']}, {site['sqnr']:.1f} dB", fontsize=11)
    for axes, draw in zip(figure.subplots(1, max(1, len(draws)), squeeze=False)[0], draws, strict=False):
        draw(axes)


def _histogram(axes: Any, site: Mapping[str, Any]) -> None:
    found = site["histogram"]
    count = len(found["counts"])
    width = (found["high"] - found["low"]) / count
    axes.bar([found["low"] + (i + 0.5) * width for i in range(count)], found["counts"], width, color=ACCENT, log=True)
    axes.axvspan(found["low"], site["minimum"], color=WARN, alpha=0.15, linewidth=0)
    axes.axvspan(site["maximum"], found["high"], color=WARN, alpha=0.15, linewidth=0)
    if len(site["scale"]) == 1 and site["qmax"] - site["qmin"] <= 64:
        for code in range(site["qmin"], site["qmax"] + 1):
            axes.axvline((code - site["zero_point"][0]) * site["scale"][0], color=ACCENT, alpha=0.2, linewidth=0.6)
    axes.set(title="values (shaded: clipped)", ylabel="count", xlim=(found["low"], found["high"]))


def _channels(axes: Any, channels: Mapping[str, Any]) -> None:
    places = range(len(channels["low"]))
    axes.fill_between(places, channels["low"], channels["high"], color=ACCENT, alpha=0.3, step="mid")
    axes.plot(places, channels["low"], color=ACCENT, drawstyle="steps-mid")
    axes.plot(places, channels["high"], color=WARN, drawstyle="steps-mid")
    axes.set(title="range of each channel", xlabel="channel")
    axes.grid(color=LINE)


def _scales(axes: Any, steps: list[int], scales: list[float]) -> None:
    axes.plot(steps, scales, color=ACCENT)
    axes.set(title="scale over training", xlabel="step")
    axes.grid(color=LINE)
