"""Residual streams of 8 or 16 bits: chosen once, by the first range, kept in every file, and exact in every runtime."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from tests.emulation import WITHOUT_FMA, WITHOUT_VNNI, differences, needs_qemu
from tests.interpret import interpret
from truequant.errors import PlanError
from truequant.integer import float_sums
from truequant.planning import is_wide_stream
from truequant.runtimes import onnx_bytes
from truequant.runtimes.onnx.forms import FormName
from truequant.runtimes.onnxruntime.census import optimized
from truequant.runtimes.onnxruntime.session import Level, run, session
from truequant.schemes import ONNXRUNTIME, uint8

LEVELS: tuple[Level, ...] = get_args(Level)
STREAMS = ["embed.output", "places.output", "add_0", "blocks.0.add_0", "blocks.1.add_0"]


class Block(nn.Module):
    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norm, self.up, self.down = norm(24), nn.Linear(24, 40), nn.Linear(40, 24)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Stream(nn.Module):
    """Tokens and their places, two blocks with a norm in front, a norm and a head; three features are `factor` times larger."""

    def __init__(self, factor: float, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.places = nn.Embedding(40, 24), nn.Embedding(12, 24)
        self.blocks, self.norm, self.head = nn.ModuleList(Block(norm) for _ in range(2)), norm(24), nn.Linear(24, 7)
        with torch.no_grad():
            self.embed.weight[:, :3] *= factor
            for name, gain in self.named_parameters():
                if name.endswith("norm.weight"):
                    gain[:3] /= factor

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        y = self.embed(x) + self.places(places)
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y))


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(0, 40, (4, 12), generator=generator), torch.arange(12).expand(4, 12)) for _ in range(count)]


def prepared(factor: float, config: tq.QConfig | tq.Plan | None = None, norm: type[nn.Module] = nn.LayerNorm) -> nn.Module:
    return tq.prepare(Stream(factor, norm), batches()[0], config)


def widths(model: nn.Module) -> dict[str, tuple[int, bool]]:
    plan = model.binding.plan
    return {q.name: (q.scheme.dtype.bits, q.chosen) for q in plan.quantizers if q.stream is not None}


def chosen(bits: int) -> dict[str, tuple[int, bool]]:
    """What `widths` are; the places have no outlying features."""
    return {name: (8 if name == "places.output" else bits, True) for name in STREAMS}


def decibels(found: Tensor, wanted: Tensor) -> float:
    return float(10 * torch.log10(wanted.square().sum() / (found - wanted).square().sum()))


@pytest.fixture(scope="module", params=[nn.LayerNorm, nn.RMSNorm], ids=["layer", "rms"])
def wide(request: pytest.FixtureRequest) -> nn.Module:
    model = prepared(200.0, norm=request.param)
    tq.calibrate(model, batches())
    return model.eval()


def test_a_plan_leaves_the_width_open() -> None:
    plan = prepared(200.0).binding.plan
    assert [q.name for q in plan.quantizers if q.undecided] == STREAMS
    assert str(plan).count("uint8 or uint16, as its range says") == 5
    assert tq.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("channels", "expected"), [([1.0, 1.0, 8.0], False), ([1.0, 1.0, 8.1], True), ([0.0, 0.0, 0.0], False)]
)
def test_more_than_eight_times_the_median_channel(channels: list[float], expected: bool) -> None:
    assert is_wide_stream(torch.tensor(channels)) is expected


def test_calibration_chooses_once_and_the_plan_tells() -> None:
    model = prepared(200.0)
    before = model.binding.plan
    tq.calibrate(model, batches())
    assert widths(model) == chosen(16)
    after = model.binding.plan
    assert before.diff(after)[:2] == (
        "quantizer 'embed.output': scheme uint8 -> uint16",
        "quantizer 'embed.output': chosen False -> True",
    )
    assert "uint8 or uint16" not in str(after)
    with torch.no_grad():
        model.embed.weight[:, :3] /= 200
    tq.calibrate(model, batches())
    assert model.binding.plan == after


def test_the_first_training_batch_chooses_without_calibration() -> None:
    for factor, bits in ((200.0, 16), (1.0, 8)):
        model = prepared(factor).train()
        model(*batches()[0]).square().mean().backward()
        assert widths(model) == chosen(bits)
        model(*batches()[1]).square().mean().backward()
        tq.assert_exact(model.eval(), tq.convert(model), batches())


def test_without_outlying_channels_codes_are_those_of_eight_bits() -> None:
    models = [prepared(1.0), prepared(1.0, tq.QConfig(wide_streams=False))]
    for model in models:
        tq.calibrate(model, batches()).eval()
    assert widths(models[0]) == chosen(8)
    assert widths(models[1]) == {}
    found, wanted = (tq.convert(model).codes(*batches()[0]) for model in models)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("factor", [50.0, 200.0, 1000.0])
def test_accuracy_is_that_of_a_model_without_outlying_channels(factor: float) -> None:
    x = batches()[0]
    wanted = Stream(factor)(*x).detach()
    found = {}
    for name, config in {"chosen": tq.QConfig(), "8 bits": tq.QConfig(wide_streams=False)}.items():
        model = tq.calibrate(prepared(factor, config), batches()).eval()
        with torch.no_grad():
            found[name] = decibels(model(*x), wanted)
    assert found["chosen"] > 25
    assert found["8 bits"] < found["chosen"] - 8


def test_evaluation_program_files_and_oracle_are_one(wide: nn.Module, tmp_path: Path) -> None:
    int8 = tq.convert(wide)
    assert sum(edge.wide for edge in int8.program.edges.values()) == 4
    assert float_sums(int8.program) == ()
    tq.assert_exact(wide, int8, batches())
    report = tq.verify(wide, int8, batches()).runtimes["onnxruntime"]
    assert (report.grade, report.codes_different) == ("EXACT", 0)
    feeds = dict(zip((i.name for i in int8.program.inputs), batches()[0], strict=True))
    expected = interpret(int8.program, feeds)
    for name, codes in int8.codes(*batches()[0]).items():
        assert np.array_equal(codes.numpy().astype(np.int64), expected[name]), name
    int8.save(tmp_path / "m.tq")
    again = tq.load(tmp_path / "m.tq").codes(*batches()[0])
    assert all(torch.equal(again[name], codes) for name, codes in int8.codes(*batches()[0]).items())


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_every_level_and_thread_count_gives_the_same_codes(wide: nn.Module, form: FormName) -> None:
    int8 = tq.convert(wide)
    names = [*int8.program.edges]
    data = onnx_bytes(int8.program, form=form, show_edges=True)
    feeds = dict(zip((i.name for i in int8.program.inputs), batches()[0], strict=True))
    expected = int8.codes(*batches()[0])
    for level in LEVELS:
        for threads in (1, 2):
            found = run(session(data, level=level, threads=threads), feeds, names)
            assert all(torch.equal(found[name].int(), expected[name].int()) for name in names), (level, threads)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_no_level_joins_the_sums_of_streams(wide: nn.Module, form: FormName) -> None:
    """A QLinearAdd rounds otherwise, and a norm of the runtime's own sums in float32."""
    data = onnx_bytes(tq.convert(wide).program, form=form)
    for level in LEVELS:
        ops = [node.op_type for node in optimized(data, level).node]
        assert ops.count("Add") >= 3
        assert not any(re.match("QLinearAdd|.*Norm", op) for op in ops)


@pytest.mark.emulated
@needs_qemu
@pytest.mark.parametrize("cpu", [WITHOUT_VNNI, WITHOUT_FMA])
def test_the_same_codes_on_other_cpus(wide: nn.Module, cpu: str, tmp_path: Path) -> None:
    ((compared, different),) = differences(cpu, {"m": (tq.convert(wide).program, batches()[0])}, tmp_path).values()
    assert compared > 10_000
    assert different == {}


def test_checkpoints_before_and_after_the_choice(tmp_path: Path) -> None:
    open_, done = prepared(200.0), tq.calibrate(prepared(200.0), batches())
    tq.save_checkpoint(tmp_path / "open.ckpt", model=open_)
    tq.save_checkpoint(tmp_path / "done.ckpt", model=done)
    for start in (Stream(200.0), prepared(200.0), prepared(200.0, done.binding.plan), copy.deepcopy(done)):
        tq.load_checkpoint(tmp_path / "done.ckpt", model=start)
        assert start.binding.plan == done.binding.plan
        same(start, done)
    fresh = Stream(200.0)
    tq.load_checkpoint(tmp_path / "open.ckpt", model=fresh)
    assert fresh.binding.plan == open_.binding.plan
    same(tq.calibrate(fresh, batches()), done)
    narrow = tq.calibrate(prepared(1.0), batches())
    with pytest.raises(PlanError, match="prepared by another plan"):
        tq.load_checkpoint(tmp_path / "done.ckpt", model=narrow)


def test_a_state_alone_tells_the_width() -> None:
    for factor in (200.0, 1.0):
        done, start = tq.calibrate(prepared(factor), batches()), prepared(factor)
        start.load_state_dict(done.state_dict())
        assert start.binding.plan == done.binding.plan
        same(start, done)


def test_buffers_that_another_rank_wrote_tell_the_width() -> None:
    done, start = tq.calibrate(prepared(200.0), batches()), prepared(200.0)
    with torch.no_grad():
        for own, other in zip(start.buffers(), done.buffers(), strict=True):
            own.copy_(other)
    same(start, done)
    assert start.binding.plan == done.binding.plan


def test_a_chosen_plan_prepares_and_is_kept() -> None:
    plan = tq.calibrate(prepared(200.0), batches()).binding.plan
    model = prepared(1.0, tq.Plan.from_json(plan.to_json()))
    tq.calibrate(model, batches())
    assert model.binding.plan == plan
    tq.assert_exact(model.eval(), tq.convert(model), batches())


def test_a_loader_that_raises_chooses_nothing() -> None:
    model = prepared(200.0)
    before, state = model.binding.plan, copy.deepcopy(model.state_dict())

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield batches()[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        tq.calibrate(model, broken())
    assert model.binding.plan == before
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    tq.calibrate(model, batches())
    assert widths(model) == chosen(16)


@pytest.mark.parametrize("method", [tq.ranges.MSE(), tq.ranges.Percentile(99.9), tq.methods.GPTQ()])
def test_methods_of_calibration_find_ranges_for_the_width(method: object) -> None:
    model = tq.calibrate(prepared(200.0), batches(), method)
    assert widths(model) == chosen(16)
    tq.assert_exact(model.eval(), tq.convert(model), batches())


def test_a_scheme_that_is_said_wins() -> None:
    rule = tq.Rule("blocks.0.add_0", output=tq.QuantScheme(uint8))
    model = tq.calibrate(prepared(200.0, tq.QConfig().with_rules(rule)), batches())
    assert "blocks.0.add_0" not in widths(model)
    edited = prepared(200.0).binding.plan.with_scheme("add_0", tq.QuantScheme(uint8))
    assert "add_0" not in widths(tq.calibrate(prepared(200.0, edited), batches()))


def test_a_target_without_that_width_keeps_eight_bits_and_the_plan_says_so() -> None:
    target = replace(ONNXRUNTIME, activation_bits=(8,))
    plan = prepared(200.0, replace(tq.QConfig(), target=target)).binding.plan
    assert not any(q.stream for q in plan.quantizers)
    assert (
        "note: the result of 'blocks.0.add_0' keeps 8 bits however its channels differ: "
        "target 'onnxruntime' has no activations of 16 bits"
    ) in str(plan)


class Direct(Stream):
    """A layer that reads the stream itself."""

    def __init__(self, factor: float) -> None:
        super().__init__(factor)
        self.side = nn.Linear(24, 7)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        y = self.blocks[0](self.embed(x) + self.places(places))
        return self.head(self.norm(y)) + self.side(y)


def test_a_stream_that_a_layer_sums_keeps_eight_bits_and_the_plan_says_so() -> None:
    plan = tq.plan(Direct(200.0), batches()[0])
    assert (
        "note: the result of 'blocks.0.add_0' keeps 8 bits however its channels differ: "
        "'side' reads it too, which sums no wider codes exactly"
    ) in str(plan)
    assert not plan.quantizer("blocks.0.add_0").undecided
    assert plan.quantizer("add_0").undecided


def test_configs_without_the_switch_mean_what_they_meant() -> None:
    plan = tq.plan(Stream(200.0), batches()[0])
    text = plan.to_json().replace('"wide_streams":true,', "").replace(',"wide_streams":true', "")
    assert "wide_streams" not in text
    assert tq.Plan.from_json(text).config == tq.QConfig(wide_streams=False)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_first_batch_leaves_eight_bits() -> None:
    """A compiled graph cannot ask what it saw: ranges are of 8 bits then, and the codes are still the program's."""
    model = prepared(200.0).train()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(*batches()[0]).square().mean().backward()
    tq.assert_exact(model.eval(), tq.convert(model), batches())


def same(found: nn.Module, wanted: nn.Module) -> None:
    """The same codes of every edge."""
    a, b = (tq.convert(copy.deepcopy(model).eval()).codes(*batches()[0]) for model in (found, wanted))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in b)
