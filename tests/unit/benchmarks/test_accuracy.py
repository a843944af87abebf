"""The accuracy table: which cells there are, when they are stale, what the page says, and that its recipes run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import truequant as tq
from benchmarks import accuracy, accuracy_table, recipes
from truequant.calibration import AdaRound
from truequant.demo.models import MODELS


def row(top1: float, code: str = "now", **other: Any) -> dict[str, Any]:
    return {
        "top1": top1, "onnxruntime": top1, "float_start": 99.0, "float_further": 99.2, "codes_compared": 10,
        "codes_different": 0, "seconds": 1.0, "code": code, **other,
    }  # fmt: skip


def test_every_algorithm_has_its_cells_and_undefined_ones_have_none() -> None:
    found = {cell.key for cell in accuracy.cells()}
    for algorithm in recipes.RECIPES:
        for width in ("w4a4", "w2a2"):
            for seed in range(3):
                assert (f"lenet/{algorithm}/{width}/{seed}" in found) is accuracy_table.defined(algorithm, width)
    for preset in accuracy_table.EIGHT:
        assert {f"{model}/{a}/{preset}/2" for model in ("lenet", "mlp", "mobilenet") for a in recipes.PRESETS} <= found
    for combination in recipes.COMBINATIONS:
        assert {f"mlp/{combination}/{width}/2" for width in accuracy_table.WIDTHS} <= found
    assert "lenet/lsq/w4a4/19" in found
    assert "lenet/lsq/w3a3-all/2" in found
    assert "lenet/dorefa/w8a8/0" not in found
    assert "mobilenet/ptq min-max/w8a8-per-tensor/0" in found


def test_a_digest_follows_the_code_and_not_the_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accuracy._meaning('def f():\n    "docs"\n    return 1  # why\n') == accuracy._meaning("def f():\n    return 1\n")
    assert accuracy._meaning("def f():\n    return 1\n") != accuracy._meaning("def f():\n    return 2\n")
    cell = accuracy.Cell("lenet", "lsq", "w4a4", 0)
    before = accuracy.digest(cell)
    monkeypatch.setitem(recipes.RECIPES, "lsq", recipes.straight_through)
    assert accuracy.digest(cell) != before
    cell = accuracy.Cell("mlp", "lsq+ batchnorm", "w4a4", 0)
    before = accuracy.digest(cell)
    monkeypatch.setattr(recipes, "lsq_plus", recipes.straight_through)
    assert accuracy.digest(cell) != before


def test_the_page_tells_means_worst_seeds_stale_cells_and_what_gained() -> None:
    results = {
        "lenet/lsq/w4a4/0": row(99.3), "lenet/lsq/w4a4/1": row(99.1), "lenet/lsq/w4a4/2": row(99.2),
        "lenet/lsq/w2a2/0": row(98.0, code="before"), "lenet/straight-through/w2a2/0": row(98.5),
    }  # fmt: skip
    page = accuracy_table.document(results, dict.fromkeys(results, "now"))
    assert "99.20 / 99.10 (3)" in page
    assert "98.00 ¹†" in page
    assert "| lsq | lenet w2a2 | 1 | -0.50 | no |" in page
    assert "| lenet | w2a2 | 99.14 | 98.00 | 1 | -1.14 |" in page
    assert "in 5; of 50 codes compared, 0 differed" in page
    assert "‡" not in page.split("## lenet")[1]
    results["lenet/lsq/w2a2/0"]["float_further"] = 99.1  # trained on another CPU
    page = accuracy_table.document(results, dict.fromkeys(results, "now"))
    assert "float: 99.20 (seed 0), 99.10 (seed 0, another CPU ‡), 99.20 (seed 1), 99.20 (seed 2)" in page
    assert "98.00 ¹†‡" in page
    assert "| lsq | lenet w2a2 | 1 | -0.50 | no |" not in page, "gains are told from the same float model"
    results["lenet/lsq/w2a2/0"]["float_further"] = 99.2
    results["lenet/tqt/w4a4/0"] = {"failed": "'conv1.weight' is not finite", "code": "now"}
    results["lenet/tqt/w2a2/0"] = row(98.1)
    page = accuracy_table.document(results, dict.fromkeys(results, "now"))
    assert "| tqt |  | failed |  | 98.10 ¹ |" in page
    assert "| lenet/tqt/w4a4/0 | 'conv1.weight' is not finite |" in page
    del results["lenet/tqt/w2a2/0"]
    results["lenet/lsq/w4a4/0"]["onnxruntime"] = 99.29
    assert "in 4; of 50" in accuracy_table.document(results, {})


@pytest.mark.parametrize("widths", ["w2a2", "w1a1"])
def test_the_best_of_post_training_methods_is_the_best_on_training_images(widths: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    made, real = [], recipes._observed

    def observed(job: recipes.Job, observer: Any, steps: Any = ()) -> torch.nn.Module:
        found = real(job, observer, [replace(s, iterations=40) if isinstance(s, AdaRound) else s for s in steps])
        made.append((found, steps))
        return found

    monkeypatch.setattr(recipes, "_observed", observed)
    images, labels = torch.rand(256, 1, 28, 28), torch.randint(0, 10, (256,))
    chosen = recipes.ptq_best(recipes.Job(MODELS["lenet"]().eval(), images, labels, widths, 0))
    assert [[type(s).__name__ for s in steps] for _, steps in made] == [
        [], [], [], ["CrossLayerEqualization"], ["AdaRound"], ["CrossLayerEqualization", "AdaRound"],
    ]  # fmt: skip
    with torch.no_grad():
        losses = [float(F.cross_entropy(m(images), labels)) for m, _ in made]
        assert float(F.cross_entropy(chosen(images), labels)) == pytest.approx(min(losses), rel=1e-4)
    report = tq.verify(chosen, tq.convert(chosen), [images[:4]], runtimes=("reference",))
    assert report.codes_different == 0


@pytest.mark.parametrize(
    ("name", "widths"),
    [("lsq+", "w4a4"), ("dampening", "w2a2"), ("batchnorm", "w3a3-all"), ("distilled", "w8a8"), ("lsq+ batchnorm all", "w4a4")],
)
def test_recipes_train_what_converts_exactly(name: str, widths: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(recipes, "FINE", recipes.Recipe(epochs=1, learning_rate=0.01))
    images, labels = torch.rand(256, 1, 28, 28), torch.randint(0, 10, (256,))
    trained = (recipes.RECIPES | recipes.COMBINATIONS)[name](recipes.Job(MODELS["lenet"]().eval(), images, labels, widths, 0))
    assert not trained.training
    report = tq.verify(trained, tq.convert(trained), [images[:4]], runtimes=("reference",))
    assert report.codes_different == 0


def test_a_run_that_fails_is_kept_as_that_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(cell: accuracy.Cell, *_: Any) -> dict[str, Any]:
        if cell.algorithm == "tqt":
            raise tq.TruequantError("'conv1.weight' is not finite", fix="look for the step")
        return row(98.0)

    monkeypatch.setattr(accuracy, "run", run)
    monkeypatch.setattr(accuracy, "load", lambda: None)
    monkeypatch.setattr(accuracy, "ROOT", tmp_path)
    monkeypatch.setattr(accuracy, "RESULTS", tmp_path / "accuracy.json")
    monkeypatch.setattr(accuracy, "digest", lambda cell: "now")
    monkeypatch.setattr("sys.argv", ["accuracy.py", "--only", "mlp/t", "w2a2/0"])
    (tmp_path / "docs").mkdir()
    with pytest.raises(SystemExit, match="1 cells failed: mlp/tqt/w2a2/0"):
        accuracy.main()
    found = json.loads((tmp_path / "accuracy.json").read_text())
    assert found["mlp/ternary/w2a2/0"]["top1"] == 98.0
    assert found["mlp/tqt/w2a2/0"] == {"failed": "'conv1.weight' is not finite", "code": "now"}
    accuracy.main()  # known: nothing runs again
