"""Mistakes that are easily made meet one clear error or one warning, whose fix works."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.errors import ArgumentError, ArgumentTypeError, CalibrationError, FileError, PlanError, SchemeError, StateError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(10):
        optimizer.zero_grad()
        model.train()(X).square().mean().backward()
        optimizer.step()


class TestOptimizerOfTheFloatModel:
    def test_it_is_said_when_the_training_ends(self) -> None:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        qat = tq.prepare(model, X)
        train(qat, optimizer)
        with pytest.warns(UserWarning, match="does the optimizer hold the float model's parameters"):
            qat.eval()
        tq.convert(qat)  # said once

    def test_convert_says_it_too(self) -> None:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        qat = tq.prepare(model, X)
        train(qat, optimizer)
        with pytest.warns(UserWarning, match="none of its weights has changed"):
            tq.convert(qat)

    @pytest.mark.parametrize("inplace", [False, True])
    def test_the_fixes_work(self, inplace: bool) -> None:
        model = net()
        before = torch.optim.SGD(model.parameters(), 0.1)
        qat = tq.prepare(model, X, inplace=inplace)
        train(qat, before if inplace else torch.optim.SGD(qat.parameters(), 0.1))
        tq.convert(qat.eval())

    def test_a_frozen_backbone_and_a_model_that_is_not_trained_are_no_mistake(self) -> None:
        model = net()
        model[0].requires_grad_(False)
        qat = tq.prepare(model, X)
        tq.calibrate(qat, [X])
        tq.convert(qat.train().eval())
        train(qat, torch.optim.SGD([p for p in qat.parameters() if p.requires_grad], 0.1))
        qat.eval()


class TestCalibration:
    def test_nan_in_a_batch_is_named_and_left_out(self) -> None:
        damaged = torch.cat((X[:3], torch.full((1, 3, 8, 8), torch.nan)))
        qat, clean = tq.prepare(net(), X), tq.prepare(net(), X)
        with pytest.warns(UserWarning, match=r"batch 1, counted from 0, first at 'input_0' \(192 of 768 values\)\. Ranges"):
            tq.calibrate(qat, [X, damaged])
        tq.calibrate(clean, [X])
        wanted, found = clean.state_dict(), qat.state_dict()
        different = {name for name in wanted if not torch.equal(found[name], wanted[name])}
        assert not different

    def test_batches_of_nothing_else_raise_and_leave_the_ranges(self) -> None:
        qat = tq.prepare(net(), X)
        tq.calibrate(qat, [X])
        before = {name: value.clone() for name, value in qat.state_dict().items()}
        with pytest.raises(CalibrationError, match="only NaN and infinity reached 'input_0'"):
            tq.calibrate(qat, [torch.full_like(X, torch.inf)])
        assert all(torch.equal(value, before[name]) for name, value in qat.state_dict().items())

    def test_a_loader_that_raises_leaves_the_ranges(self) -> None:
        def loader() -> object:
            yield 100 * X
            raise OSError("the disk is gone")

        qat = tq.prepare(net(), X)
        tq.calibrate(qat, [X])
        before = {name: value.clone() for name, value in qat.state_dict().items()}
        with pytest.raises(OSError, match="the disk is gone"):
            tq.calibrate(qat, loader())
        assert all(torch.equal(value, before[name]) for name, value in qat.state_dict().items())

    @pytest.mark.parametrize("one", [X, {"x": X}], ids=["tensor", "dict"])
    def test_one_batch_is_no_list_of_batches(self, one: object) -> None:
        qat = tq.prepare(net(), X)
        with pytest.raises(ArgumentTypeError, match=r"calibrate: batches are no list.*\n.*one (Tensor|dict)(.|\n)*\[batch\]"):
            tq.calibrate(qat, one)
        tq.calibrate(qat, [X])
        int8 = tq.convert(qat)
        for what in (lambda: tq.verify(qat, int8, one), lambda: tq.evaluate(qat, one), lambda: tq.statistics(qat, one)):
            with pytest.raises(ArgumentTypeError, match="batches are no list of batches"):
                what()


class TestExample:
    @pytest.mark.parametrize(
        ("inputs", "fix"),
        [
            (X[0], r"x.unsqueeze\(0\)"),
            (X[:, :2], "run alone first"),
            ((X, X), "run alone first"),
            ((X * 255).to(torch.uint8), r"x.float\(\) / 255"),
            (X.double(), r"x.to\(torch.float32\), not float64"),
            (X.to("meta"), "the inputs are on meta, the model on cpu"),
        ],
        ids=["no batch axis", "channels", "two inputs", "uint8", "float64", "device"],
    )
    def test_inputs_that_the_model_does_not_take(self, inputs: object, fix: str) -> None:
        with pytest.raises(PlanError, match="raised on the example inputs, before anything was quantized") as raised:
            tq.prepare(net(), inputs)
        assert raised.value.fix is not None
        assert raised.match(fix)
        assert raised.value.__cause__ is not None

    def test_the_line_of_the_model_is_named(self) -> None:
        class Wrong(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x @ torch.ones(5, 5)

        with pytest.raises(PlanError, match=r"test_mistakes.py:\d+: return x @ torch.ones\(5, 5\)"):
            tq.prepare(Wrong(), X)

    def test_a_model_prepared_in_inference_mode_trains(self) -> None:
        with torch.inference_mode():
            qat = tq.prepare(net(), X)
            tq.calibrate(qat, [X])
        train(qat, torch.optim.SGD(qat.parameters(), 0.1))


class TestFiles:
    def test_a_file_of_another_kind_is_named(self, tmp_path: Path) -> None:
        torch.save(net().state_dict(), tmp_path / "weights.pt")
        (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0\x10\0\0\0")
        (tmp_path / "model.tflite").write_bytes(b"\x1c\0\0\0TFL3\0\0\0\0")
        (tmp_path / "model.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
        for name, what in (
            ("weights.pt", "torch.save"),
            ("model.gguf", "GGUF"),
            ("model.tflite", "LiteRT"),
            ("model.onnx", "ONNX"),
        ):
            with pytest.raises(FileError, match=f"not a truequant file\n.*{what}(.|\n)*fix:"):
                tq.load(tmp_path / name)


class TestWords:
    @pytest.mark.parametrize(("name", "meant"), [("w8a9", "w8a8"), ("int9", "int8"), ("w4a4_all", "w4a4-all")])
    def test_a_preset_that_is_nearly_one(self, name: str, meant: str) -> None:
        with pytest.raises(SchemeError, match=f"did you mean '{meant}'"):
            tq.prepare(net(), X, name)

    def test_weights_of_the_float_model_after_prepare(self) -> None:
        weights = net().state_dict()
        qat = tq.prepare(net(), X)
        with pytest.raises(StateError, match=r"the state of a float model(.|\n)*comes before tq.prepare"):
            qat.load_state_dict(weights)
        qat.load_state_dict(qat.state_dict())
        assert qat.load_state_dict(weights, strict=False).missing_keys

    def test_accuracy_needs_no_metric(self) -> None:
        qat = tq.prepare(net(), X)
        tq.calibrate(qat, [X])
        targets = qat.eval()(X).argmax(1)
        targets[0] += 1 if targets[0] < 3 else -1
        assert tq.evaluate(qat, [(X, targets)]) == tq.evaluate(tq.convert(qat), [(X, targets)]) == 0.75
        with pytest.raises(ArgumentError, match=r"accuracy is not defined(.|\n)*metric=…"):
            tq.evaluate(qat, [(X, targets.float())])

    def test_nothing_is_said_where_nothing_is_wrong(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            qat = tq.prepare(net(), X)
            train(qat, torch.optim.SGD(qat.parameters(), 0.1))
            tq.convert(qat.eval())


class TestFormatsOfFloats:
    """They are not here; the error names who has them."""

    @pytest.mark.parametrize("name", ["fp8", "mxfp4", "nvfp4", "float8_e4m3fn", torch.float8_e5m2])
    def test_as_a_dtype(self, name: object) -> None:
        with pytest.raises(SchemeError, match="for FP8, MXFP4 and NVFP4 take") as caught:
            tq.QuantScheme(name)  # type: ignore[arg-type]
        assert "dtype" in str(caught.value)

    def test_as_a_preset(self) -> None:
        with pytest.raises(SchemeError, match="no preset 'fp8'") as caught:
            tq.QConfig.preset("fp8")
        assert "ModelOpt or torchao" in str(caught.value)

    @pytest.mark.parametrize("given", ["int8", torch.int8])
    def test_the_type_of_that_name_is_ours(self, given: object) -> None:
        with pytest.raises(SchemeError) as caught:
            tq.QuantScheme(given)  # type: ignore[arg-type]
        assert caught.value.fix == "tq.types.int8"


class TestOtherImagesThanInCalibration:
    """Values four times as large as those of calibration: most are clipped."""

    BATCHES = (X.tanh() / X.tanh().abs().max(),)

    def calibrated(self) -> nn.Module:
        return tq.calibrate(tq.prepare(net(), X), self.BATCHES).eval()

    def share(self, x: Tensor, qat: nn.Module) -> float:
        told = tq.statistics(qat)["input_0"]
        codes = (x / told.scale[0]).round() + told.zero_point[0]
        return float(((codes < 0) | (codes > 255)).double().mean())

    def test_verify_says_it_of_the_input(self) -> None:
        qat = self.calibrated()
        wide = self.BATCHES[0] * 4
        for given in (qat, None):
            found = tq.verify(given, tq.convert(qat), [wide], runtimes=["reference"])
            assert found.clipped_inputs == {"input": self.share(wide, qat)}
            assert "% of the values of 'input' lie outside the range of calibration, -" in str(found)
            assert found.to_dict()["verification"]["clipped_inputs"] == found.clipped_inputs

    def test_evaluate_says_it_of_the_first_batch(self) -> None:
        qat = self.calibrated()
        wide = [(self.BATCHES[0] * 4, torch.zeros(4, dtype=torch.long))] * 2
        for model in (qat, tq.convert(qat)):
            with pytest.warns(UserWarning, match="evaluate: .* are inputs normalized, and channels ordered") as caught:
                tq.evaluate(model, wide)
            assert [w.filename for w in caught] == [__file__]

    def test_nothing_is_said_of_the_images_of_calibration(self) -> None:
        qat = self.calibrated()
        assert "outside" not in str(tq.verify(qat, tq.convert(qat), self.BATCHES, runtimes=["reference"]))
        tq.evaluate(qat, [(self.BATCHES[0], torch.zeros(4, dtype=torch.long))])


class TestTrainingThatDiverged:
    def test_convert_names_the_range_that_grew_most(self) -> None:
        qat = tq.prepare(net(), X)
        tq.calibrate(qat, [X])
        with torch.no_grad():
            qat[0].weight.mul_(1e5)  # type: ignore[union-attr, operator]
        for _ in range(200):
            qat.train()(X)
        grown = r"The range of '\d\.output' has grown [\d,]+ times since .*, as did those of 1 more"
        with pytest.warns(UserWarning, match=grown) as caught:
            tq.convert(qat.eval())
        assert [w.filename for w in caught] == [__file__]
        tq.calibrate(qat, [X])  # these are the ranges that are wanted
        tq.convert(qat)

    def test_a_checkpoint_brings_ranges_of_its_own(self) -> None:
        qat, other = tq.prepare(net(), X), tq.prepare(net(), X)
        tq.calibrate(qat, [X * 1e5])
        tq.calibrate(other, [X])
        other.load_state_dict(qat.state_dict())
        tq.convert(other.eval())


@pytest.mark.parametrize(
    "ask", [lambda m: m.train(), lambda m: torch.optim.SGD(m.parameters(), 0.1)], ids=["train", "optimizer"]
)
def test_training_an_int8_model(ask: Callable[[nn.Module], object]) -> None:
    qat = tq.prepare(net(), X)
    tq.calibrate(qat, [X])
    int8 = tq.convert(qat.eval())
    with pytest.warns(UserWarning, match=r"train the prepared model \(`qat`\)"), contextlib.suppress(ValueError):
        ask(int8)  # an optimizer refuses an empty list, in its own words
    int8.eval()
