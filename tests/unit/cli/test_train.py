"""`train` and `init`: the whole way from a TOML file, stopped and resumed to the same bits, and files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import truequant as tq
from truequant.cli.app import app
from truequant.cli.recipe import read_recipe
from truequant.errors import ArgumentError, SchemeError
from truequant.reports import read_report

FILE = """
import os, random, signal
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(144, 3))

def untrained():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))

class Noisy(Dataset):
    def __init__(self, stop_at=None):
        self.images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        self.stop_at, self.served = stop_at, 0
    def __len__(self):
        return 32
    def __getitem__(self, index):
        self.served += 1
        if self.served == self.stop_at and not os.path.exists("stopped/checkpoints/step-0000000006.ckpt"):
            os.kill(os.getpid(), signal.SIGINT)
        return self.images[index] + random.random() * torch.rand(1, 8, 8), index % 3

def data(stop_at=None):
    return DataLoader(Noisy(stop_at), 8, shuffle=True), DataLoader(Noisy(), 8)

def odd_loss(outputs, targets):
    return outputs.square().mean()

def no_loss(outputs, targets):
    return outputs

class Spectrum(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(5, 3)
    def forward(self, x):
        return self.out(torch.fft.rfft(x[:, 0, 0]).abs())

class Drawing(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(8, 3)
    def forward(self, x):
        y = self.out(x[:, 0, 0])
        return y + torch.rand_like(y)
"""
RECIPE = """
model = { factory = "people_train.py:make", inputs = ["8x1x8x8"] }
data = { factory = "people_train.py:data", calibration_batches = 2 }
quantization = { preset = "w4a8-all" }
training = { epochs = 3, learning_rate = 0.02, momentum = 0.9 }
schedule = { freeze_ranges_at = 9, bits = { 0 = 8, 4 = 4 } }
distillation = { weight = 0.5, temperature = 2.0 }
output = { folder = "FOLDER", checkpoint_every = 50, verify_batches = 2 }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "people_train.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})


def write(name: str, folder: str, *changes: tuple[str, str]) -> str:
    text = RECIPE.replace("FOLDER", folder)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    Path(name).write_text(text)
    return name


def test_a_training_that_was_stopped_goes_on_to_the_same_bits(folder: Path) -> None:
    whole = invoke("train", write("whole.toml", "whole"), "--json")
    assert whole.exit_code == 0, whole.output
    found = json.loads(whole.stdout)
    assert (found["steps"], len(found["losses"]), 0 <= found["top1"] <= 1) == (12, 12, True)
    assert {name: found["verification"][name]["grade"] for name in ("reference", "onnxruntime")} == {
        "reference": "EXACT", "onnxruntime": "EXACT",
    }  # fmt: skip

    # Ctrl-C in the middle of the second epoch: 2 calibration batches and 5 whole ones were served, and part of the sixth.
    stopping = ("calibration_batches", "arguments = { stop_at = 60 }, calibration_batches")
    stopped = invoke("train", write("stopped.toml", "stopped", stopping), "--json")
    assert stopped.exit_code == 130, stopped.output
    report = json.loads(stopped.stdout)
    assert report == {
        "interrupted": True, "step": 6, "checkpoint": "stopped/checkpoints/step-0000000006.ckpt",
        "resume": "truequant train stopped.toml --resume",
    }  # fmt: skip
    saved = "stopped/checkpoints/step-0000000006.ckpt"
    assert f"stopped behind step 6 of 12; saved {saved}\nto go on: truequant train stopped.toml --resume" in stopped.stderr
    assert not (folder / "stopped" / "model.tq").exists()

    again = invoke("train", "stopped.toml", "--resume", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["losses"] == found["losses"]
    assert (folder / "stopped" / "model.tq").read_bytes() == (folder / "whole" / "model.tq").read_bytes()
    assert "stopped behind" not in again.stderr


def test_what_may_not_change_before_a_resumption(folder: Path) -> None:
    assert invoke("train", write("r.toml", "r"), "--steps", "1").exit_code == 0
    anew = invoke("train", "r.toml", "--steps", "1")
    assert (anew.exit_code, "--resume goes on from the newest" in anew.stderr) == (2, True)
    write("r.toml", "r", ("0.02", "0.03"))
    changed = invoke("train", "r.toml", "--resume")
    assert changed.exit_code == 2
    assert "r.toml changed since the checkpoint: training.steps, training.learning_rate" in " ".join(changed.stderr.split())
    nothing = invoke("train", write("n.toml", "n"), "--resume")
    assert (nothing.exit_code, "'n/checkpoints' holds nothing to resume from" in nothing.stderr) == (2, True)


def test_the_newest_and_the_best_checkpoints_stay_and_a_damaged_one_is_passed_over(folder: Path) -> None:
    options = ("checkpoint_every = 50", 'checkpoint_every = 2, keep = 2, best = "test-loss"')
    whole = invoke("train", write("w.toml", "w", options), "--json")
    assert whole.exit_code == 0, whole.output
    assert json.loads(whole.stdout)["checkpoint"] == "w/checkpoints/step-0000000012.ckpt"
    names = sorted(path.name for path in (folder / "w" / "checkpoints").glob("*.ckpt"))
    assert names[-2:] == ["step-0000000010.ckpt", "step-0000000012.ckpt"]
    assert len(names) <= 3

    model = (folder / "w" / "model.tq").read_bytes()
    newest = folder / "w" / "checkpoints" / names[-1]
    newest.write_bytes(newest.read_bytes()[:-9])
    again = invoke("train", "w.toml", "--resume")
    assert again.exit_code == 0, again.output
    assert "It is passed over for 'step-0000000010.ckpt'" in " ".join(again.stdout.split())
    assert "resumed at step 10 of 12" in again.stdout
    assert (folder / "w" / "model.tq").read_bytes() == model

    reported = ["--model", "people_train.py:make", "--data", "people_train.py:data", "--out", "r.html", "--png", "r"]
    done = invoke("report", "w/checkpoints", *reported, "--sensitivity", "--json")
    assert done.exit_code == 0, done.output
    data = read_report(folder / "r.html")
    assert data["history"]["steps"] == list(range(1, 13))
    assert [stage["name"] for stage in data["stages"]][-1] == "onnxruntime"
    assert data["stages"][1]["top1"] == data["stages"][2]["top1"] == data["stages"][3]["top1"]
    pictures = {path.name: path.read_bytes() for path in (folder / "r").iterdir()}
    assert {"map.png", "training.png", "sensitivity.png", "site-0.weight.png"} <= set(pictures)
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 5000 for picture in pictures.values())
    assert set(json.loads(done.stdout)["files"]) == {"r.html", *(f"r/{name}" for name in pictures)}


@pytest.mark.usefixtures("folder")
def test_what_cannot_be_exported_says_so_before_training() -> None:
    with pytest.warns(UserWarning, match="will refuse this model"):
        refused = invoke("train", write("fft.toml", "fft", ("people_train.py:make", "people_train.py:Spectrum")))
    assert (refused.exit_code, "no ONNX file can hold 'rfft_0'" in refused.stderr) == (2, True), refused.output
    assert not list(Path("fft/checkpoints").glob("*.ckpt"))


@pytest.mark.usefixtures("folder")
def test_what_cannot_be_converted_says_so_before_training() -> None:
    with pytest.warns(UserWarning, match="tq.convert will refuse this model"):
        refused = invoke("train", write("noisy.toml", "noisy", ("people_train.py:make", "people_train.py:Drawing")))
    assert (refused.exit_code, "has no place in an integer program" in refused.stderr) == (2, True), refused.output
    assert not list(Path("noisy/checkpoints").glob("*.ckpt"))


def test_random_weights_are_said(folder: Path) -> None:
    drawn = invoke("train", write("drawn.toml", "drawn", (":make", ":untrained")), "--steps", "1")
    assert drawn.exit_code == 0, drawn.output
    assert "starts from random weights" in " ".join(drawn.output.split())
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3))
    tq.save_checkpoint("trained.ckpt", model=model)
    given = (':make"', ':untrained", weights = "trained.ckpt"')
    trained = invoke("train", write("trained.toml", "trained", given), "--steps", "1")
    assert trained.exit_code == 0, trained.output
    assert "random weights" not in " ".join(trained.output.split())


def test_losses_of_the_users_own(folder: Path) -> None:
    own = write("own.toml", "own", ("epochs = 3", 'loss = "people_train.py:odd_loss", optimizer = "adamw", steps = 1'))
    result = invoke("train", own, "--json")
    assert (result.exit_code, "top1" in json.loads(result.stdout)) == (0, False)
    none = invoke("train", write("no.toml", "no", ("epochs = 3", 'loss = "people_train.py:no_loss", steps = 1')))
    assert (none.exit_code, "returned no number" in none.stderr) == (2, True)
    nan = invoke("train", write("nan.toml", "nan", ("0.02", "1e30")))
    assert (nan.exit_code, "the loss is nan at step" in nan.stderr) == (2, True), nan.output


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("learning_rate", "learning_rte"), "unknown key 'training.learning_rte'\n"),
        (("learning_rate", "learning_rte"), "did you mean 'learning_rate'?"),
        (("0.02", '"high"'), "training.learning_rate: Input should be a valid number\n  got:      'high'"),
        (("0.02", "0.0"), "training.learning_rate: Input should be greater than 0"),
        (("epochs = 3", 'optimizer = "lion"'), "training.optimizer: Input should be 'sgd', 'adam' or 'adamw'"),
        (("epochs = 3", "epochs = 3, steps = 5"), "epochs or steps, one of them"),
        (('factory = "people_train.py:make", ', ""), "'model.factory' is missing"),
        (("schedule =", "skedule ="), "did you mean 'schedule'?"),
        (("freeze_ranges_at = 9", "freeze_ranges_at = -1"), "schedule.freeze_ranges_at"),
        (("model =", "model = ="), "cannot be read as TOML"),
        (("temperature", "temprature"), "did you mean 'temperature'?"),
        (("0 = 8", "first = 8"), "schedule.bits: a key is no step"),
        (("epochs = 3", "epochs = true"), "training.epochs: Input should be a valid integer"),
    ],
)
def test_wrong_recipes(change: tuple[str, str], words: str) -> None:
    with pytest.raises(ArgumentError) as error:
        read_recipe(Path(write("wrong.toml", "run", change)))
    assert words in str(error.value)
    assert "wrong.toml" in str(error.value)


@pytest.mark.usefixtures("folder")
def test_wrong_quantization_is_found_before_anything_is_imported() -> None:
    write("wrong.toml", "run", ("people_train.py:make", "nowhere:make"), ("w4a8-all", "w9"))
    with pytest.raises(SchemeError, match="no preset 'w9'"):
        read_recipe(Path("wrong.toml"))
    with pytest.raises(ArgumentError, match=r"there is no file 'none.toml'\n  fix:      truequant init"):
        read_recipe(Path("none.toml"))
    Path("long.toml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(ArgumentError, match="too large for a recipe"):
        read_recipe(Path("long.toml"))


def test_init_writes_a_recipe_that_trains(folder: Path) -> None:
    options = ["--data", "people_train.py:data", "--input", "8x1x8x8", "--out", "mine.toml"]
    assert invoke("init", "people_train.py:make", *options).exit_code == 0
    text = (folder / "mine.toml").read_text()
    assert all(line in text for line in ("#   0\n", "#   5\n", '# select = "5"'))
    assert max(map(len, text.splitlines())) <= 110
    assert invoke("train", "mine.toml", "--steps", "1").exit_code == 0
    assert tq.load("run/model.tq").ops()["Conv"] == 1
    assert invoke("init", "people_train.py:make", "--data", "people_train.py:data", "--out", "batch.toml").exit_code == 0
    assert '# inputs = ["8x3x32x32"]' in (folder / "batch.toml").read_text()  # they are the first batch's
    twice = invoke("init", "people_train.py:make", *options)
    assert (twice.exit_code, "--force writes over it" in twice.stderr) == (2, True)
    assert invoke("init", "people_train.py:make", *options, "--force").exit_code == 0
