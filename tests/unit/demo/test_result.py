"""The result of a run as a file that programs read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from truequant.analysis import RuntimeReport, Verification
from truequant.demo import DemoOptions, DemoResult
from truequant.reports import Cpu, Stage


def example() -> DemoResult:
    names = {"float": 99.3, "ptq": 99.25, "qat": 99.31, "int8": 99.31, "onnxruntime": 99.31}
    sizes = {"float": 1000, "int8": 260, "onnxruntime": 300}
    return DemoResult(
        options=DemoOptions(out=Path("somewhere")),
        stages={name: Stage(name.upper(), top1, sizes.get(name), {1: 0.001, 64: 0.01}) for name, top1 in names.items()},
        ptq_observer="MSE",
        verification=Verification({"reference": RuntimeReport(10), "onnxruntime": RuntimeReport(10)}),
        test_images=10,
        genuine_data=True,
        seconds=12.345,
        versions={"torch": "2.13.0", "onnx": None},
        cpu=Cpu("a CPU", 2, ("avx2",)),
    )


def test_the_promised_keys_are_there(tmp_path: Path) -> None:
    example().write(tmp_path / "result.json")
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["float_top1"] == 99.3
    assert found["ptq_top1"] == 99.25
    assert found["qat_top1"] == found["int8_top1"] == found["onnxruntime_top1"] == 99.31
    assert [found[key] for key in ("codes_compared", "codes_different", "max_difference", "argmax_changed")] == [20, 0, 0, 0]
    assert [found[key] for key in ("float_bytes", "int8_bytes", "onnx_bytes")] == [1000, 260, 300]
    assert found["seconds"] == 12.35
    assert found["versions"] == {"torch": "2.13.0", "onnx": None}
    assert found["cpu"] == {"name": "a CPU", "cores": 2, "features": ["avx2"]}
    assert found["latency"]["int8"] == {"1": 0.001, "64": 0.01}
    assert found["runtimes"]["onnxruntime"]["codes_compared"] == 10
    assert (found["model"], found["preset"], found["seed"], found["ptq_observer"]) == ("lenet", "int8", 0, "MSE")


@pytest.mark.parametrize(
    ("report", "identical"),
    [
        (RuntimeReport(10), True),
        (RuntimeReport(10, codes_different=1, max_difference=1), False),
        (RuntimeReport(10, argmax_changed=1), False),
        (RuntimeReport(10, outputs_different=1), False),
    ],
    ids=["same", "a code", "a prediction", "an output"],
)
def test_identical_means_codes_outputs_and_predictions(report: RuntimeReport, identical: bool) -> None:
    verification = Verification({"reference": RuntimeReport(10), "onnxruntime": report})
    assert replace(example(), verification=verification).identical is identical
