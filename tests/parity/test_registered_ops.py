"""Ops that a user registers: planned, trained, converted, saved and exported as torch's own are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.errors import ArgumentError, ConversionError, ExportError, FileError


@tq.register_op(role="table")
def bump(x: Tensor, height: float, width: float | Tensor = 1.0) -> Tensor:
    return height * torch.exp(-((x / width) ** 2))


def _interleaved(steps: Any, x: str, groups: int) -> str:
    return steps.reshape(steps.transpose(steps.reshape(x, (0, groups, -1, 5)), (0, 2, 1, 3)), (0, -1, 5))  # type: ignore[no-any-return]


@tq.register_op(role="movement", lower=_interleaved)
def interleave(x: Tensor, groups: int) -> Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _scaled_softmax(step: Any, x: str, weight: str) -> str:
    return step("Mul", [step("Softmax", [x], axis=-1), weight])  # type: ignore[no-any-return]


@tq.register_op(onnx=_scaled_softmax)
def scaled_softmax(x: Tensor, weight: Tensor) -> Tensor:
    return x.softmax(-1) * weight


@tq.register_op
def without_form(x: Tensor) -> Tensor:
    return x.cumsum(-1)


tq.register_op(torch.lgamma, role="table", name="lgamma_of_mine")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.width, self.weight = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        y = bump(self.first(x), 0.5, width=self.width)
        y = torch.lgamma(y + 0.5)
        y = interleave(self.second(y).view(-1, 8, 5), groups=4).view(-1, 5, 8)
        return self.last(scaled_softmax(y, self.weight))


@pytest.fixture
def converted() -> tuple[nn.Module, tq.Int8Model, Tensor]:
    x = torch.randn(4, 5, 8)
    qat = tq.prepare(Model(), x)
    tq.calibrate(qat, [x])
    qat.train()(x).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in qat.parameters())
    return qat, tq.convert(qat.eval()), x


def test_they_are_planned_by_their_role() -> None:
    decided = tq.plan(Model(), torch.randn(4, 5, 8))
    actions = {s.name: s.action for s in decided.sites}
    assert actions["bump_0"] == actions["lgamma_of_mine_0"] == "table"
    assert actions["interleave_0"] == "movement"
    assert actions["scaled_softmax_0"] == "float"
    left = tq.plan(Model(), torch.randn(4, 5, 8), tq.QConfig().with_rules(tq.Rule(bump, None)))
    assert left.site("bump_0").action == "float"


def test_every_code_is_equal(converted: tuple[nn.Module, tq.Int8Model, Tensor]) -> None:
    qat, int8, x = converted
    assert {k: int8.ops()[k] for k in ("Table", "Island", "Transpose")} == {"Table": 3, "Island": 1, "Transpose": 1}
    report = tq.verify(qat, int8, [x, torch.randn(7, 5, 8)], runtimes=("reference",))
    assert report.codes_different == report.outputs_different == 0
    assert tq.verify(qat, int8, [x]).runtimes["onnxruntime"].codes_different == 0


def test_with_quantizers_off_it_is_the_float_model(converted: tuple[nn.Module, tq.Int8Model, Tensor]) -> None:
    qat, _, x = converted
    with tq.quantizers_off(qat):
        y = qat(x)
    assert torch.equal(y, tq.restore_float(qat)(x))


def test_a_file_needs_the_op_where_it_is_loaded(converted: tuple[nn.Module, tq.Int8Model, Tensor], tmp_path: Path) -> None:
    _, int8, x = converted
    path = tmp_path / "model.tq"
    int8.save(path)
    assert torch.equal(tq.load(path)(x), int8(x))
    script = (
        "import sys, truequant as tq\ntry:\n tq.load(sys.argv[1])\nexcept tq.TruequantError as e:\n print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(FileError.__name__)
    assert "an op that is not registered here" in done.stdout


class Small(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.function(self.layer(x)))


def test_a_float_op_without_onnx_runs_and_is_not_exported(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    with pytest.warns(UserWarning, match="no ONNX form is known of 'without_form_0'"):
        qat = tq.prepare(Small(without_form), x)
    tq.calibrate(qat, [x])
    int8 = tq.convert(qat.eval())
    assert torch.equal(int8(x), qat(x))
    with pytest.raises(ExportError, match="registered.without_form has no ONNX form"):
        tq.export_onnx(int8, tmp_path / "model.onnx")


def test_arguments_that_no_program_holds_are_named() -> None:
    x = torch.randn(3, 4)
    qat = tq.prepare(Small(object_taking), x)
    tq.calibrate(qat, [x])
    with pytest.raises(ConversionError, match="'takes_object'.*cannot hold"):
        tq.convert(qat.eval())


@tq.register_op(role="table")
def takes_object(x: Tensor, what: object) -> Tensor:
    return x.abs()


def object_taking(x: Tensor) -> Tensor:
    return takes_object(x, object())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "relu"}, "there is an op 'relu' already"),
        ({"name": "bump"}, "there is an op 'bump' already"),
        ({"name": "<lambda>"}, "no name for the op"),
        ({"name": "fresh", "role": "layer"}, "no role 'layer'"),
        ({"name": "fresh", "role": "movement"}, "lower= belongs to movements"),
        ({"name": "fresh", "role": "table", "lower": len}, "lower= belongs to movements"),
        ({"name": "fresh", "role": "table", "onnx": len}, "onnx= belongs to float ops"),
    ],
)
def test_what_cannot_be_registered(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        tq.register_op(lambda x: x, **arguments)


def test_a_movement_must_return_its_last_step() -> None:
    wrong = tq.register_op(lambda x: x.flip(-1), role="movement", name="flip_of_mine", lower=lambda steps, x: x)
    x = torch.randn(3, 4)
    qat = tq.prepare(Small(wrong), x)
    tq.calibrate(qat, [x])
    with pytest.raises(ConversionError, match="does not return its last step"):
        tq.convert(qat.eval())
