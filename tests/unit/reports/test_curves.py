"""The picture of a training: a readable PNG, the same each time, and no global state of matplotlib's touched."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from truequant.errors import ArgumentError
from truequant.reports import Branch, plot_curves
from truequant.reports.curves import _percent, _smooth

BRANCHES = [
    Branch("float", 0, (2.0, 1.0, 0.5), {3: 97.0}),
    Branch("float, continued", 3, (0.4, 0.3), {3: 97.0, 5: 98.0}),
    Branch("quantization-aware", 3, (0.5, 0.3), {3: 96.0, 5: 100.0}),
]


def test_it_writes_a_png_and_the_same_one_again(tmp_path: Path) -> None:
    import matplotlib.image
    import matplotlib.pyplot

    size = plot_curves(tmp_path / "a.png", BRANCHES, "title", {"post-training": 97.5})
    plot_curves(tmp_path / "b.png", BRANCHES, "title", {"post-training": 97.5})
    assert (tmp_path / "a.png").stat().st_size == size
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert matplotlib.image.imread(tmp_path / "a.png").shape == (630, 1650, 4)
    assert matplotlib.pyplot.get_fignums() == []


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value() -> None:
    assert _smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert _smooth([5.0, 1.0])[0] == pytest.approx(5.0)


def test_labels_of_the_error_axis() -> None:
    label = _percent("125")
    assert [label(value, 0) for value in (0.5, 0.6, 1.0, 20.0, 40.0)] == ["0.5 %", "", "1 %", "20 %", ""]


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named '{name}'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ArgumentError, match=r"curves need matplotlib\n(.|\n)*pip install truequant\[plots\]"):
        plot_curves(tmp_path / "a.png", BRANCHES, "title")
