"""Targets as values: constraints that plan and export obey, and rules that are named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from tests.programs import edge, program, values_of
from truequant.errors import ArgumentError, SchemeError
from truequant.integer.nodes import Add
from truequant.runtimes import adds_that_differ, census, onnx_bytes, promises
from truequant.schemes import ONNXRUNTIME, QNN, TARGETS, TENSORRT, XNNPACK, Target

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        return self.last((self.two(x) + x).mean((2, 3)))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (TENSORRT, "activations of target 'tensorrt' are signed and symmetric"),
        (XNNPACK, "activations of target 'xnnpack' are signed"),
        (QNN, "target 'qnn' has one scale for all weights of a linear layer"),
    ],
)
def test_plan_refuses_what_a_target_cannot_hold(target: Target, message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        tq.plan(Block(), X, tq.QConfig(target=target))


def test_widths() -> None:
    with pytest.raises(SchemeError, match="no weights of 4 bits"):
        tq.plan(Block(), X, tq.QConfig(weight=tq.QuantScheme(tq.types.int4, tq.PerTensor()), target=QNN))
    with pytest.raises(SchemeError, match="no target 'tflite'"):
        tq.QConfig().for_target("tflite")


@pytest.mark.parametrize("name", ["tensorrt", "qnn"])
@pytest.mark.parametrize("preset", ["w8a8", "w8a8-pow2", "w4a4"])
def test_a_config_for_a_target_goes_all_the_way(name: str, preset: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    torch.manual_seed(0)
    qat = tq.prepare(Block(), X, tq.QConfig.preset(preset).for_target(name))
    tq.calibrate(qat, [X])
    int8 = tq.convert(qat)
    for e in int8.program.edges.values():
        assert e.signed is (target.activations != "unsigned")
        assert e.zero_point == 0 or target.activations != "signed and symmetric"
    tq.export_onnx(int8, tmp_path / "net.onnx")
    kinds = Counter(node.op_type for node in onnx.load(str(tmp_path / "net.onnx")).graph.node)
    assert kinds["Conv"] == 2  # plain QDQ, no kernels of onnxruntime
    assert kinds["Add"] == 1
    assert not any(kind.startswith("QLinear") for kind in kinds)
    report = tq.verify(qat, int8, [X], runtimes=("reference", name))
    assert [r.grade for r in report.runtimes.values()] == ["EXACT", "UNVERIFIED"]
    assert f"target '{name}': no runtime of it runs here" in str(report)


def test_a_runtime_refuses_a_target_that_it_does_not_compute(tmp_path: Path) -> None:
    qat = tq.prepare(Block(), X, tq.QConfig().for_target("xnnpack"))
    tq.calibrate(qat, [X])
    int8 = tq.convert(qat)
    text = "runtime 'onnxruntime' does not compute the arithmetic of target 'xnnpack'"
    for call in (
        lambda: tq.export_onnx(int8, tmp_path / "net.onnx"),
        lambda: tq.compile(int8),
        lambda: tq.verify(qat, int8, [X], runtimes=["onnxruntime"]),
    ):
        with pytest.raises(ArgumentError, match=text) as found:
            call()
        assert "fix:      runtime 'litert'; or calibrate again for one of its targets" in str(found.value)


def test_a_target_that_runs_here_changes_nothing() -> None:
    assert tq.QConfig().for_target("onnxruntime") == tq.QConfig()
    assert ONNXRUNTIME.rules
    assert not TENSORRT.rules


def needing_fma(target: str = "onnxruntime") -> tuple[object, ...]:
    """An add of which some pairs of codes need FMA."""
    generator = torch.Generator().manual_seed(0)
    while True:
        scales = (2.0 ** (torch.rand(3, generator=generator) * 5 - 4)).tolist()
        zeros = torch.randint(0, 256, (3,), generator=generator).tolist()
        edges = {n: edge(s, z) for n, s, z in zip("aby", scales, zeros, strict=True)}
        p = program(Add("a", "b", "y", "onnxruntime", 0, 255), edges, "a", "b", rank=1)
        if adds_that_differ(p, "x86 without FMA"):
            return p, edges
    raise AssertionError


def test_an_add_that_needs_fma_is_promised_with_fma_only_or_ships_as_a_table() -> None:
    import dataclasses

    p, edges = needing_fma()
    assert "x86 without FMA" in " ".join(promises(p))  # type: ignore[arg-type]
    assert census(onnx_bytes(p)).get("QLinearAdd") == 1  # type: ignore[arg-type]
    sse = dataclasses.replace(p, target="onnxruntime-sse")  # type: ignore[type-var]
    assert "on every x86 CPU" in promises(sse)[0]  # type: ignore[arg-type]
    assert "QLinearAdd" not in census(onnx_bytes(sse))  # type: ignore[arg-type]
    a, b = (v.flatten() for v in torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"))
    tq.assert_exact(None, sse, [(values_of(a, edges["a"]), values_of(b, edges["b"]))])  # type: ignore[arg-type, index]
