"""Checkpoints of every version that was released load for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import truequant as tq
from tests.golden.make import HERE, digests
from tests.training_runs import Net, fresh
from truequant.checkpoints import stored
from truequant.errors import FileError

GOLDEN = sorted(HERE.glob("qat-v*.ckpt"))


def test_the_present_version_has_golden_files() -> None:
    assert HERE / f"qat-v{stored.VERSION}.ckpt" in GOLDEN
    assert len(GOLDEN) == stored.VERSION == len(stored.MIGRATIONS) + 1


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files_load_and_train_on(path: Path) -> None:
    run = fresh("adam")
    found = tq.load_checkpoint(path, **run.parts())
    assert (found.kind, found.step, found.extra) == ("qat", 3, {"note": [1, 2.5]})
    assert digests(run) == json.loads(path.with_suffix(".json").read_text())
    assert run.train(1)
    assert tq.load_checkpoint(path.with_name(path.name.replace("qat", "float")), model=Net()).kind == "float"


def test_an_older_version_is_brought_up_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(header: dict[str, Any]) -> dict[str, Any]:
        return {**{k: v for k, v in header.items() if k != "steps"}, "step": header["steps"]}

    monkeypatch.setattr(stored, "VERSION", 3)
    monkeypatch.setattr(stored, "MIGRATIONS", {1: renamed, 2: lambda header: {**header, "new": True}})
    assert stored.migrated({"version": 1, "steps": 7}) == {"version": 3, "step": 7, "new": True}


def test_a_later_version_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truequant.checkpoints.snapshot.VERSION", stored.VERSION + 1)
    tq.save_checkpoint(tmp_path / "x", model=Net())
    with pytest.raises(FileError, match="load it with the truequant that wrote it"):
        tq.load_checkpoint(tmp_path / "x")
