"""`verify` as a product: what it counts, where it points, what it saves, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from tests.programs import residual_net
from truequant.analysis.origins import island_fed
from truequant.analysis.runners import RUNTIMES, Runner, Subject
from truequant.errors import ArgumentError, ArgumentTypeError, FileError, VerificationError
from truequant.files import read_container, write_container
from truequant.integer import IntegerProgram
from truequant.integer.nodes import Conv
from truequant.runtimes import digest

PROGRAM = residual_net()
X = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def altered(program: IntegerProgram, name: str, **fields: object) -> IntegerProgram:
    """The program with other fields in the node that writes `name`."""
    nodes = tuple(dataclasses.replace(n, **fields) if n.output == name else n for n in program.nodes)
    return dataclasses.replace(program, nodes=nodes)


def moved_bias(program: IntegerProgram, name: str, by: int) -> IntegerProgram:
    node = next(n for n in program.nodes if n.output == name)
    assert isinstance(node, Conv)
    return altered(program, name, bias=node.bias + by)


@pytest.fixture
def other_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime 'faulty' that computes another bias in 'a1', which is not the first conv."""

    def faulty(subject: Subject) -> Runner:
        model = tq.Int8Model(moved_bias(subject.int8.program, "a1", 4000))
        return Runner(model.codes, model)

    monkeypatch.setitem(RUNTIMES, "faulty", faulty)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def qat() -> nn.Module:
    torch.manual_seed(0)
    model = tq.prepare(Small(), X, "w8a8")
    tq.calibrate(model, [X])
    return model


def test_the_evaluated_model_its_program_and_onnxruntime(qat: nn.Module) -> None:
    def accuracy(output: Tensor, item: tuple[Tensor, Tensor]) -> float:
        return float((output.argmax(1) == item[1]).float().mean())

    labels = torch.arange(6) % 3
    batches = [(X[:4], labels[:4]), (X[4:], labels[4:])]
    report = tq.verify(qat, tq.convert(qat), batches, metric=accuracy, progress=False)
    assert [r.grade for r in report.runtimes.values()] == ["EXACT", "EXACT"]
    assert (report.batches, report.examples, report.expected) == (2, 6, "evaluated model")
    right = (tq.convert(qat)(X).argmax(1) == labels).float().mean()
    assert report.metric == pytest.approx(float(right), abs=1e-6)  # the mean over examples, not over batches
    assert all(r.metric == report.metric for r in report.runtimes.values())
    assert report.machine is not None
    assert report.machine.kind in str(report)
    assert json.loads(json.dumps(report.to_dict()))["onnxruntime"]["grade"] == "EXACT"


def test_a_program_against_itself_needs_no_model() -> None:
    report = tq.verify(None, PROGRAM, iter([X[:3], X[3:]]))
    assert list(report.runtimes) == ["onnxruntime"]
    assert report.runtimes["onnxruntime"].grade == "EXACT"
    assert report.expected == "reference program"
    assert report.program == digest(PROGRAM)


@pytest.mark.usefixtures("other_bias")
def test_a_difference_is_counted_located_and_kept(tmp_path: Path) -> None:
    report = tq.verify(None, PROGRAM, [X[:1] * 0, X], runtimes=("faulty", "reference"), cases=tmp_path)
    faulty = report.runtimes["faulty"]
    assert faulty.grade == "DIFFERENT"
    assert report.runtimes["reference"].grade == "EXACT"
    assert next(iter(faulty.by_edge)) == "a1"
    assert set(faulty.origins) == {"a1"}  # not the edges behind it, which differ too
    assert len(faulty.by_edge) > 1
    assert faulty.codes_behind_islands == 0
    assert not faulty.exact_between_islands
    first = faulty.first_difference
    assert first is not None
    assert first.edge == "a1"
    want, have = tq.Int8Model(PROGRAM).codes(X[:1] * 0), tq.Int8Model(moved_bias(PROGRAM, "a1", 4000)).codes(X[:1] * 0)
    at = first.position
    assert (int(want["a1"][at]), int(have["a1"][at])) == (first.expected, first.got)
    assert faulty.codes_different == sum(
        int((tq.Int8Model(PROGRAM).codes(x)[n].int() != tq.Int8Model(moved_bias(PROGRAM, "a1", 4000)).codes(x)[n].int()).sum())
        for x in (X[:1] * 0, X)
        for n in PROGRAM.edges
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["faulty.case"]

    again = tq.replay(tmp_path / "faulty.case", PROGRAM)
    assert again.reproduced
    assert again.different > 0
    assert len(again.case.inputs["x"]) == 1
    assert "a1" in str(again)
    cured = tq.replay(tmp_path / "faulty.case", PROGRAM, runtime="onnxruntime")
    assert not cured.reproduced
    assert cured.different == 0


@pytest.mark.usefixtures("other_bias")
def test_one_example_of_a_batch_is_the_case() -> None:
    report = tq.verify(None, PROGRAM, [X], runtimes=("faulty",))
    case, first = report.runtimes["faulty"].case, report.first_difference
    assert case is not None
    assert first is not None
    assert torch.equal(case.inputs["x"], X[first.position[0] : first.position[0] + 1])


@pytest.mark.usefixtures("other_bias")
def test_what_is_required(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="faulty does not compute what the reference program computes") as caught:
        tq.assert_exact(None, PROGRAM, [X], runtimes=("faulty",), cases=tmp_path)
    assert isinstance(caught.value.verification, tq.Verification)
    assert "tq.replay(" in str(caught.value)
    assert "'a1'" in str(caught.value)
    with pytest.raises(VerificationError):
        tq.verify(None, PROGRAM, [X], runtimes=("faulty",), require="EXACT BETWEEN ISLANDS")
    assert tq.assert_exact(None, PROGRAM, [X]).codes_different == 0


def test_a_difference_of_one_is_within_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(subject: Subject) -> Runner:
        def codes(x: Tensor) -> dict[str, Tensor]:
            found = {n: c.clone() for n, c in subject.int8.codes(x).items()}
            found["y.q"] = (found["y.q"].int() - 1).clamp(0).to(torch.uint8)
            return found

        return Runner(codes, subject.int8)

    monkeypatch.setitem(RUNTIMES, "shifted", shifted)
    tq.verify(None, PROGRAM, [X], runtimes=("shifted",), require="WITHIN 1")
    report = tq.verify(None, PROGRAM, [X], runtimes=("shifted",)).runtimes["shifted"]
    assert report.grade == "WITHIN 1"
    assert report.max_difference == 1


def test_an_output_that_no_code_accounts_for_is_different(monkeypatch: pytest.MonkeyPatch) -> None:
    def scaled(subject: Subject) -> Runner:
        return Runner(subject.int8.codes, lambda x: subject.int8(x) * 1.0000001)

    monkeypatch.setitem(RUNTIMES, "scaled", scaled)
    report = tq.verify(None, PROGRAM, [X], runtimes=("scaled",)).runtimes["scaled"]
    assert (report.grade, report.codes_different) == ("DIFFERENT", 0)
    assert set(report.origins) == {"y"}


class Normed(nn.Module):
    """A float island between two integer layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.norm(self.one(x)))


@pytest.mark.parametrize("wrong_integers", [False, True])
def test_islands_are_counted_apart(monkeypatch: pytest.MonkeyPatch, wrong_integers: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 8)
    config = dataclasses.replace(tq.QConfig.preset("w8a8"), rules=(tq.Rule(nn.LayerNorm, None),))
    qat = tq.prepare(Normed(), x, config)
    tq.calibrate(qat, [x])
    program = tq.convert(qat).program
    (fed,), _ = island_fed(program)

    def drifting(subject: Subject) -> Runner:
        """Another island: some of the codes that it writes are one off; what follows is computed from them."""

        def run(x: Tensor, names: object) -> dict[str, Tensor]:
            from truequant.integer import execute

            own = subject.int8.program
            last = [n.output for n in own.nodes if n.output in own.edges][-1]
            feeds = {own.inputs[0].name: x}
            plain = execute(own, feeds, own.edges)
            moved = plain[fed].clone()
            moved[::3] = (moved[::3].int() + 1).clamp(0, 255).to(torch.uint8)
            found = execute(own, feeds, {*own.edges, *own.output_names()}, {fed: moved}) | {fed: moved}
            if wrong_integers:
                found[last] = found[last].clone()
                found[last][1:2] ^= 2
                found |= execute(own, feeds, own.output_names(), found)
            return found

        def codes(x: Tensor) -> dict[str, Tensor]:
            return {n: c for n, c in run(x, None).items() if n in program.edges}

        return Runner(codes, lambda x: run(x, None)[str(program.outputs)])

    monkeypatch.setitem(RUNTIMES, "drifting", drifting)
    report = tq.verify(None, program, [x], runtimes=("drifting",)).runtimes["drifting"]
    assert set(report.island_origins) == {fed}
    assert report.exact_between_islands is not wrong_integers
    assert ("EXACT" in report.grade) is not wrong_integers
    if wrong_integers:
        assert len(report.origins) == 1
        assert 0 < report.codes_behind_islands < report.codes_different
        assert report.codes_different - report.codes_behind_islands == sum(report.origins.values()) == 4
    else:
        assert not report.origins
        assert report.codes_behind_islands == report.codes_different > 0
        assert report.grade == "EXACT BETWEEN ISLANDS"
        assert report.distance == ("WITHIN 1" if report.max_difference == 1 else "DIFFERENT")
        tq.verify(None, program, [x], runtimes=("drifting",), require="EXACT BETWEEN ISLANDS")
        with pytest.raises(VerificationError, match="EXACT BETWEEN ISLANDS"):
            tq.assert_exact(None, program, [x], runtimes=("drifting",))


def test_a_target_without_a_runtime_is_unverified() -> None:
    report = tq.verify(None, PROGRAM, [X], runtimes=("onnxruntime", "tensorrt"))
    assert report.runtimes["tensorrt"].grade == "UNVERIFIED"
    assert "UNVERIFIED" in str(report)
    with pytest.raises(VerificationError, match="tensorrt"):
        tq.assert_exact(None, PROGRAM, [X], runtimes=("tensorrt",))


def test_bad_arguments(qat: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no batches"):
        tq.verify(None, PROGRAM, [])
    with pytest.raises(ArgumentError, match="no runtime 'tflite'"):
        tq.verify(None, PROGRAM, [X], runtimes=("tflite",))
    with pytest.raises(ArgumentError, match="no requirement 'PERFECT'"):
        tq.verify(None, PROGRAM, [X], require="PERFECT")  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="not an Int8 model"):
        tq.verify(None, 7, [X])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="not this model's"):
        tq.verify(qat, PROGRAM, [X])
    with pytest.raises(FileError):
        tq.verify(None, tmp_path / "missing.tq", [X])


@pytest.mark.usefixtures("other_bias")
def test_cases_are_untrusted(tmp_path: Path) -> None:
    report = tq.verify(None, PROGRAM, [X], runtimes=("faulty",), cases=tmp_path)
    path = tmp_path / "faulty.case"
    header, tensors = read_container(path)
    with pytest.raises(ArgumentError, match="another program"):
        tq.replay(path, moved_bias(PROGRAM, "a2", 1))
    lies: list[dict[str, object]] = [
        {"format": "something"}, {"version": 2}, {"position": [9, 0, 0, 0]}, {"position": [0]}, {"inputs": ["x", "x"]},
        {"inputs": [1]}, {"edge": 3}, {"more": 1},
    ]  # fmt: skip
    for lie in lies:
        write_container(path, header | lie, tensors)
        with pytest.raises(FileError):
            tq.replay(path, PROGRAM)
    write_container(path, header, tensors | {"got": tensors["got"].float()})
    with pytest.raises(FileError, match="not codes"):
        tq.replay(path, PROGRAM)
    write_container(path, header | {"edge": "nowhere"}, tensors)
    with pytest.raises(ArgumentError, match="does not fit"):
        tq.replay(path, PROGRAM)
    assert report.runtimes["faulty"].case is not None


def test_a_bar_where_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    tq.verify(None, PROGRAM, [X], progress=False)
    assert capsys.readouterr().err == ""
    tq.verify(None, PROGRAM, iter([X]), progress=True)
    assert "verifying" in capsys.readouterr().err
