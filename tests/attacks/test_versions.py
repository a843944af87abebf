"""Checkpoints of every version that was released load for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import truequant as tq
from tests.golden.make import HERE, digests
from tests.training_runs import Net, fresh
from truequant.checkpoints import migrations, stored
from truequant.errors import FileError

GOLDEN = sorted(HERE.glob("qat-v*.ckpt"))


def test_the_present_version_has_golden_files() -> None:
    assert HERE / f"qat-v{stored.VERSION}.ckpt" in GOLDEN
    assert len(GOLDEN) == stored.VERSION == len(migrations.MIGRATIONS) + 1


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files_load_and_train_on(path: Path) -> None:
    run = fresh("adam")
    found = tq.load_checkpoint(path, **run.parts())
    assert (found.kind, found.step, found.extra) == ("qat", 3, {"note": [1, 2.5]})
    assert digests(run) == json.loads(path.with_suffix(".json").read_text())
    assert run.train(1)
    assert tq.load_checkpoint(path.with_name(path.name.replace("qat", "float")), model=Net()).kind == "float"


def test_an_older_version_is_brought_up_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {**{k: v for k, v in header.items() if k != "steps"}, "step": header["steps"]}, tensors

    def added(header: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {**header, "new": True}, {**tensors, "x": torch.ones(1)}

    monkeypatch.setattr(migrations, "MIGRATIONS", {1: renamed, 2: added})
    header, tensors = migrations.migrated({"version": 1, "steps": 7}, {}, 3)
    assert (header, list(tensors)) == ({"version": 3, "step": 7, "new": True}, ["x"])


def test_a_learned_scale_of_version_1_gets_an_axis_and_its_count_of_steps_none() -> None:
    """The file's own parameters of the same name, and quantizers per channel, stay as they are."""
    header = {"version": 1, "model": {"quantizers": {"relu": {}, "conv": {}}}}
    shapes = {"model/relu.shift": (), "model/relu.offset": (), "model/conv.shift": (8,), "model/own.shift": (),
              "optimizer/relu.shift/exp_avg": (), "optimizer/relu.shift/step": ()}  # fmt: skip
    _, tensors = migrations.migrated(header, {n: torch.zeros(s) for n, s in shapes.items()}, 2)
    changed = {n: tuple(t.shape) for n, t in tensors.items() if tuple(t.shape) != shapes[n]}
    assert changed == dict.fromkeys(("model/relu.shift", "model/relu.offset", "optimizer/relu.shift/exp_avg"), (1,))


def test_a_later_version_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truequant.checkpoints.snapshot.VERSION", stored.VERSION + 1)
    tq.save_checkpoint(tmp_path / "x", model=Net())
    with pytest.raises(FileError, match="load it with the truequant that wrote it"):
        tq.load_checkpoint(tmp_path / "x")
