"""Training as a picture: loss and error over steps, for branches that part from a common trunk."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from truequant.errors import ArgumentError
from truequant.files import atomic_write

_COLORS = ("#3b4252", "#2a78d6", "#d9480f", "#2b8a3e")


@dataclass(frozen=True, slots=True)
class Branch:
    """One stretch of training.

    losses: one value a step, the first at `start + 1`; accuracies: percent, by step.
    """

    name: str
    start: int
    losses: tuple[float, ...]
    accuracies: Mapping[int, float]


def plot_curves(
    path: str | os.PathLike[str], branches: Sequence[Branch], title: str, marks: Mapping[str, float] | None = None
) -> int:
    """Write a PNG with the branches' losses (smoothed) and errors, and return its size in bytes.

    The error is 100 % - accuracy: on a logarithmic axis the last tenths of a percent stay visible.
    marks: further accuracies without a curve of their own, in percent by name, drawn as points at the last step.
    ArgumentError without matplotlib (`pip install truequant[plots]`).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, MaxNLocator
    except ImportError as error:
        raise ArgumentError("curves need matplotlib", got=str(error), fix="pip install truequant[plots]") from error

    # A figure of its own, not pyplot's: no global state, no window system, whatever the user's process does with pyplot.
    figure = Figure(figsize=(11, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    loss_axes, error_axes = figure.subplots(1, 2)
    for order, (branch, color) in enumerate(zip(branches, _cycle(len(branches)), strict=True)):
        width = max(3.2 - 0.8 * order, 1.4)  # branches often lie on each other: the lower ones show at the rim
        steps = range(branch.start + 1, branch.start + 1 + len(branch.losses))
        loss_axes.plot(steps, branch.losses, color=color, alpha=0.15, linewidth=0.7)
        loss_axes.plot(steps, _smooth(branch.losses), color=color, linewidth=width, label=branch.name)
        points = sorted(branch.accuracies.items())
        at, errors = [step for step, _ in points], [_error(accuracy) for _, accuracy in points]
        error_axes.plot(at, errors, color=color, linewidth=width, marker="o", markersize=4, label=branch.name)
    last = max(branch.start + len(branch.losses) for branch in branches)
    for (name, value), color in zip((marks or {}).items(), reversed(_cycle(4)), strict=False):
        error_axes.plot([last], [_error(value)], color=color, linestyle="none", marker="D", markersize=6, label=name)
    loss_axes.set(yscale="log", title="training loss", xlabel="step")
    error_axes.set(yscale="log", title="top-1 error on held-out images", xlabel="step", xlim=loss_axes.get_xlim())
    low, high = error_axes.get_ylim()
    labels = FuncFormatter(_percent("123456789" if high < 5 * low else "125"))  # more in a wide range would collide
    error_axes.yaxis.set_major_formatter(labels)
    error_axes.yaxis.set_minor_formatter(labels)
    for axes in (loss_axes, error_axes):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(color="#e5e9f0", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return atomic_write(path, png.getvalue())


def _error(accuracy: float) -> float:
    return max(100 - accuracy, 0.005)  # a logarithmic axis has no zero


def _percent(digits: str) -> Callable[[float, object], str]:
    """Labels of ticks that begin with one of `digits`; others get none."""
    return lambda value, _: f"{value:g} %" if f"{value:e}"[0] in digits else ""


def _cycle(count: int) -> list[str]:
    return [_COLORS[index % len(_COLORS)] for index in range(count)]


def _smooth(values: Sequence[float], momentum: float = 0.97) -> list[float]:
    """Moving average, corrected for its start as in Kingma and Ba 2015, "Adam", section 3."""
    smoothed, average = [], 0.0
    for count, value in enumerate(values, 1):
        average = momentum * average + (1 - momentum) * value
        smoothed.append(average / (1 - momentum**count))
    return smoothed
