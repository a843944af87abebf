"""`truequant demo --checkpoint-dir DIR --resume`: interrupted anywhere, the same files come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.demo.test_pipeline import console, write_set
from truequant.demo import DemoOptions, run_demo
from truequant.demo.saving import PhaseSaving
from truequant.errors import ArgumentError

FILES = ("model.tq", "model.onnx", "float.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_set(folder)
    return folder


def run(data: Path, out: Path, **options: Any) -> dict[str, bytes]:
    run_demo(DemoOptions(data, "mlp", float_epochs=1, qat_epochs=2, out=out, **options), console())
    return {name: (out / name).read_bytes() for name in FILES}


@pytest.mark.slow
def test_interrupted_in_each_training_the_same_files_come_out(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(data, tmp_path / "whole")
    saving = {"checkpoint_dir": tmp_path / "kept", "checkpoint_every": 3, "resume": True}
    step, left = PhaseSaving.step, 0

    def stopped(self: PhaseSaving, number: int, **parts: Any) -> None:
        nonlocal left
        step(self, number, **parts)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PhaseSaving, "step", stopped)
        for left in (5, 10, 14):  # in the first training, at an epoch's end in the second, in the third  # noqa: B007
            with pytest.raises(KeyboardInterrupt):
                run(data, tmp_path / "again", **saving)
    assert run(data, tmp_path / "again", **saving) == whole
    assert run(data, tmp_path / "elsewhere", **saving) == whole  # of a finished run

    with pytest.raises(ArgumentError, match="holds checkpoints of another job"):
        run(data, tmp_path / "again", **saving, seed=1)


def test_folders_that_do_not_fit(data: Path, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ArgumentError, match="is not empty"):
        run(data, tmp_path / "out", checkpoint_dir=tmp_path)
    with pytest.raises(ArgumentError, match="nothing to resume from"):
        run(data, tmp_path / "out", resume=True)
