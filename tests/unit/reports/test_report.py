"""The HTML report: what it holds, what no text in it can do, and that a browser shows it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.errors import FileError, StateError
from truequant.reports import Stage, read_report


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 4, 3), nn.LayerNorm(6), nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.conv(x).relu()).flatten(1))


def trained(preset: str = "w8a8") -> tuple[nn.Module, Tensor, tq.training.History]:
    torch.manual_seed(0)
    x = torch.randn(16, 1, 8, 8)
    config = dataclasses.replace(tq.QConfig.preset(preset), rules=(tq.Rule(nn.LayerNorm, None),))  # an island to be shown
    qat = tq.prepare(Net(), x, config)
    history, monitor = tq.training.History(qat), tq.training.GradientMonitor(qat)
    optimizer = torch.optim.SGD(qat.parameters(), 0.01)
    for step in range(5):
        optimizer.zero_grad()
        loss = qat(x).square().mean()
        loss.backward()
        monitor.before_step()
        optimizer.step()
        monitor.after_step()
        history.record(step, monitor, loss=loss.item())
    return qat.eval(), x, history


def written(path: Path, **more: Any) -> tuple[dict[str, Any], str]:
    qat, x, history = trained()
    int8 = tq.convert(qat)
    found = tq.verify(qat, int8, [x])
    tq.report(
        path, qat, [x], history=history, int8=int8, verification=found, stages=[Stage("Int8", 99.1, 1234, {1: 0.001})], **more
    )
    return read_report(path), path.read_text()


def test_every_quantizer_has_a_page(tmp_path: Path) -> None:
    data, text = written(tmp_path / "report.html", title="Net")
    assert [s["name"] for s in data["sites"]] == [q.name for q in tq.statistics(trained()[0]).quantizers]
    of = {s["name"]: s for s in data["sites"]}
    assert sum(of["input_0"]["histogram"]["counts"]) == 16 * 64
    assert sum(of["conv.weight"]["histogram"]["counts"]) == 36
    assert len(of["conv.weight"]["channels"]["low"]) == len(of["conv.weight"]["scale"]) == 4
    assert of["out.output"]["sqnr"] > 20
    assert [v["grade"] for v in data["verification"]] == ["EXACT", "EXACT"]
    assert [s["name"] for s in data["order"] if s["action"] == "float"] == ["norm"]
    assert data["history"]["figures"]["loss"][0][0] == 0
    assert len(data["history"]["scales"]["input_0"]) == 5
    assert set(data["history"]["oscillating"]) == {"conv.weight", "out.weight"}
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", text)  # nothing is loaded from anywhere


def test_writing_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    qat, x, _ = trained()
    before = {k: v.clone() for k, v in qat.state_dict().items()}
    tq.report(tmp_path / "report.html", qat.train(), [x])
    assert qat.training
    assert all(torch.equal(v, before[k]) for k, v in qat.state_dict().items())


def test_texts_are_inert(tmp_path: Path) -> None:
    evil = '</script><script>document.title = "run"</script>"&'
    data, text = written(tmp_path / "report.html", title=evil)
    assert data["title"] == evil
    assert "</script><script>document" not in text
    assert "&lt;/script&gt;&lt;script&gt;document" in text


def test_two_runs_are_compared(tmp_path: Path) -> None:
    qat, x, _ = trained("w4a4-all")
    tq.report(tmp_path / "old.html", qat, [x], title="four bits")
    data, _ = written(tmp_path / "new.html", before=tmp_path / "old.html")
    assert data["before"]["title"] == "four bits"
    schemes = {s["name"]: s["scheme"] for s in data["before"]["sites"]}
    assert schemes["conv.weight"].startswith("int4")


@pytest.mark.parametrize(
    "text", ["", "no report", '<script type="application/json" id="data">[1]</script>',
             '<script type="application/json" id="data">{"format": 1, "sites": [3]}</script>',
             '<script type="application/json" id="data">{"format": 9, "sites": []}</script>',
             '<script type="application/json" id="data">' + "[" * 100_000 + "</script>"],
)  # fmt: skip
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "old.html").write_text(text)
    with pytest.raises(FileError, match="report"):
        read_report(tmp_path / "old.html")


def test_a_float_model_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="is not prepared"):
        tq.report(tmp_path / "report.html", Net())
