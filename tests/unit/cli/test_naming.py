"""Names of Python objects on the command line: found, or one error that says what is there instead."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from truequant.cli.inputs import example_inputs, model_and_inputs
from truequant.cli.naming import made, named
from truequant.errors import ArgumentError

FILE = """
from torch import nn
def make(width=4):
    return nn.Linear(width, 2)
def both():
    import torch
    return nn.Linear(3, 2), torch.rand(5, 3)
model = nn.Linear(7, 2)
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "people_models.py").write_text(FILE)
    (tmp_path / "people_broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_modules_and_files() -> None:
    assert made("people_models:make", "here").in_features == 4
    assert made("people_models:make", "here", {"width": 9}).in_features == 9
    assert made("people_models.py:make", "here").in_features == 4
    assert made("people_models.py:model", "here").in_features == 7  # a model itself is not called
    assert named("torch.nn:Linear.forward", "here") is nn.Linear.forward


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("people_models", ["here: no name of a Python object", "MODULE:NAME"]),
        (":make", ["no name of a Python object"]),
        ("people_models:mak", ["'people_models' has no 'mak'", "did you mean 'people_models:make'?"]),
        ("people_models:zzz", ["name something that 'people_models' defines"]),
        ("no_such_module_here:make", ["there is no module 'no_such_module_here'", "run truequant where the module lies"]),
        ("people_models.deeper:make", ["there is no module 'people_models.deeper'"]),
        ("nowhere/file.py:make", ["there is no file 'nowhere/file.py'"]),
        ("people_models:number", ["'people_models:number' cannot be called", "int"]),
    ],
)
def test_what_is_not_there(name: str, words: list[str]) -> None:
    with pytest.raises(ArgumentError) as error:
        made(name, "here")
    assert all(word in str(error.value) for word in words)


@pytest.mark.usefixtures("folder")
def test_a_module_whose_own_import_fails_is_not_called_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        made("people_broken:make", "here")


@pytest.mark.usefixtures("folder")
def test_models_with_their_inputs() -> None:
    model, inputs = model_and_inputs("people_models:both", None)
    assert (type(model), inputs.shape) == (nn.Linear, (5, 3))
    assert model_and_inputs("people_models:both", ["2x3"])[1].shape == (2, 3)
    with pytest.raises(ArgumentError, match="no example inputs"):
        model_and_inputs("people_models:make", None)
    with pytest.raises(ArgumentError, match=r"made no model\n  got:      OrderedDict"):
        model_and_inputs("collections:OrderedDict", ["2x3"])


def test_example_inputs() -> None:
    assert example_inputs(["2x3"]).dtype == torch.float32
    ids, mask = example_inputs(["4x50:int64<7", "4x50:bool"])
    assert (ids.dtype, mask.dtype, int(ids.min()), int(ids.max())) == (torch.int64, torch.bool, 0, 6)
    named_inputs = example_inputs(["ids=2x5:int64", "x=2x3:bfloat16"])
    assert {name: (tuple(x.shape), x.dtype) for name, x in named_inputs.items()} == {
        "ids": ((2, 5), torch.int64), "x": ((2, 3), torch.bfloat16),
    }  # fmt: skip
    assert torch.equal(example_inputs(["2x3"]), example_inputs(["2x3"]))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (["2,3"], "no shape"), (["2x"], "no shape"), (["2x3:float33"], "no dtype of torch"), (["2x3:nn"], "no dtype of torch"),
        (["0x3"], "a shape of that size"), (["99999x99999"], "a shape of that size"), (["a=2x3", "2x3"], "have a name"),
        (["a=2x3", "a=2x3"], "have a name"),
    ],
)  # fmt: skip
def test_shapes_that_are_none(shapes: list[str], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        example_inputs(shapes)
