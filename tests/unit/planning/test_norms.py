"""Which calls the plan takes for norms of codes, and what it says of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.numerics import NormRule
from truequant.planning import Site

WIDTH = 12


class Between(nn.Module):
    """A function between two layers, with a gain and a bias of its own."""

    def __init__(self, function: Callable[[Between, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), function
        self.gain, self.bias = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x)))


def _llama(m: Between, x: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return m.gain * wide.to(x.dtype)


def _gemma(m: Between, x: Tensor) -> Tensor:
    return x / ((x**2).mean(dim=-1, keepdim=True) + 1e-6).sqrt() * (1.0 + m.gain)


def _annotated(m: Between, x: Tensor) -> Tensor:
    return m.gain * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-3) + m.bias


def _apart(m: Between, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt((x - mean).square().mean(-1, keepdim=True) + 1e-5) * m.gain + m.bias


def _variance(m: Between, x: Tensor) -> Tensor:
    centred = x - x.mean((1, -1), keepdim=True)
    return centred * (x.var((1, 2), keepdim=True, unbiased=False) + 1e-5) ** -0.5


def _channels(m: Between, x: Tensor) -> Tensor:
    x = x.transpose(1, 2)
    x = (x - x.mean(1, keepdim=True)) * torch.rsqrt(x.var(1, correction=0, keepdim=True) + 1e-5)
    return (x * m.gain[:, None] + m.bias[:, None]).transpose(1, 2)


def _clip(m: Between, x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _clamped(m: Between, x: Tensor) -> Tensor:
    return x / x.norm(2, -1, True).clamp(min=1e-6)


LAST = (-1,)
WRITTEN: dict[str, tuple[Callable[[Between, Tensor], Tensor], NormRule, int]] = {
    "rms": (_llama, NormRule("rms", LAST, 0, 1e-6), 1),
    "rms, divided": (_gemma, NormRule("rms", LAST, 0, 1e-6), 1),
    "unbiased, eps outside": (_annotated, NormRule("layer", LAST, 0, 1e-3, True, 1), 1),
    "difference computed twice": (_apart, NormRule("layer", LAST, 0, 1e-5), 2),
    "two axes": (_variance, NormRule("layer", (-2, -1), 0, 1e-5), 0),
    "channels": (_channels, NormRule("layer", (-2,), 0, 1e-5), 2),
    "length": (_clip, NormRule("l2", LAST, 0, 0.0), 0),
    "length, clamped": (_clamped, NormRule("l2", LAST, 0, 1e-6), 0),
}  # fmt: skip


def norms(model: nn.Module, x: Tensor, config: tq.QConfig | None = None) -> list[Site]:
    return [site for site in tq.plan(model, x, config).sites if site.action == "normalize"]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_norm_written_by_hand_is_one_and_exact(name: str) -> None:
    function, rule, maps = WRITTEN[name]
    torch.manual_seed(0)
    model, x = Between(function), torch.randn(4, 5, WIDTH)
    (site,) = norms(model, x)
    assert site.norm_rule == rule
    assert len([n for n in site.fused if "transpose" not in n]) == maps
    with torch.no_grad():
        expected = model(x)
    qat = tq.prepare(model, x)
    tq.calibrate(qat, [x])
    qat.train()(x).square().mean().backward()
    assert all(p.grad is not None for n, p in qat.named_parameters() if n not in ("gain", "bias"))
    int8 = tq.convert(qat.eval())
    assert int8.ops()["Normalize"] == 1
    assert "Island" not in int8.ops()
    tq.assert_exact(qat, int8, [x, torch.randn(2, 5, WIDTH)])
    with torch.no_grad():
        assert float((qat(x) - expected).abs().max()) < 0.1 * float(expected.abs().max())


NOT: dict[str, tuple[Callable[[Between, Tensor], Tensor], str]] = {
    "over the batch": (lambda m, x: (x - x.mean(0, keepdim=True)) / (x.std(0, keepdim=True) + 1e-5), ""),
    "another's mean": (lambda m, x: x * torch.rsqrt(x.tanh().pow(2).mean(-1, keepdim=True) + 1e-6), ""),
    "another axis": (lambda m, x: (x - x.mean(1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5), ""),
    "cubes": (lambda m, x: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-6), ""),
    "absolute": (lambda m, x: x / x.norm(1, -1, True), ""),
    "not kept": (lambda m, x: x * torch.rsqrt(x.pow(2).mean(-1)[..., None] + 1e-6), ""),
    "L1": (lambda m, x: F.normalize(x, p=1, dim=-1), "no L2 norm along one axis"),
    "of the batch": (lambda m, x: F.normalize(x, dim=0), "it normalizes over the batch"),
    "gain of the input": (lambda m, x: F.layer_norm(x, (WIDTH,), x.mean((0, 1))), "its gain or bias depends on the inputs"),
    "float before": (lambda m, x: F.layer_norm(x.cumsum(-1), (WIDTH,)), "its input is left in float"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT)
def test_what_is_none_is_none_and_the_plan_says_why(name: str) -> None:
    function, why = NOT[name]
    torch.manual_seed(0)
    model, x = Between(function), torch.randn(4, 5, WIDTH)
    assert norms(model, x) == []
    reasons = {site.op: site.reason for site in tq.plan(model, x).sites if site.action == "float"}
    assert not why or why in reasons.values()
    qat = tq.prepare(model, x)
    tq.calibrate(qat, [x])
    qat.eval()
    assert torch.equal(tq.convert(qat)(x), qat(x)) or name in ("over the batch", "of the batch", "gain of the input")


def test_a_step_that_is_read_elsewhere_is_no_part() -> None:
    def both(m: Between, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() + centred.tanh()

    def mean_too(m: Between, x: Tensor) -> Tensor:
        square = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(square + 1e-6) + square

    torch.manual_seed(0)
    x = torch.randn(4, 5, WIDTH)
    assert norms(Between(both), x) == []
    (site,) = norms(Between(mean_too), x)
    actions = {s.name: s.action for s in tq.plan(Between(mean_too), x).sites}
    assert (actions["rsqrt_0"], actions["pow_0"]) == ("within", "float")
    assert site.fused == ()


def test_what_leads_to_a_norm_is_said_to_be_computed_with_it() -> None:
    torch.manual_seed(0)
    decided = tq.plan(Between(_annotated), torch.randn(4, 5, WIDTH))
    (norm,) = [s for s in decided.sites if s.action == "normalize"]
    parts = {s.name: (s.action, s.reason) for s in decided.sites if s.fused_into == norm.name and s.name not in norm.fused}
    assert parts == {
        "mean_0": ("within", "computed with div_0"), "sub_0": ("norm", "computed with div_0"),
        "mul_0": ("norm", "computed with div_0"), "std_0": ("within", "computed with div_0"),
        "add_0": ("within", "computed with div_0"),
    }  # fmt: skip
    assert "computed with div_0" in str(decided)


def test_a_rule_leaves_all_of_a_norm_in_float() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, WIDTH)
    rules = (tq.Rule("div_0", None),)
    decided = tq.plan(Between(_annotated), x, dataclasses.replace(tq.QConfig(), rules=rules))
    actions = {s.name: s.action for s in decided.sites}
    assert {actions[n] for n in ("mean_0", "sub_0", "mul_0", "std_0", "add_0", "div_0")} == {"float"}
    assert "a step of div_0, which is left in float" in str(decided)
    qat = tq.prepare(Between(_annotated), x, dataclasses.replace(tq.QConfig(), rules=rules))
    tq.calibrate(qat, [x])
    assert torch.equal(tq.convert(qat.eval())(x), qat(x))


def test_runtimes_that_are_not_here_have_norms_of_their_own() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)), torch.randn(3, 8)
    decided = tq.plan(model, x, tq.QConfig().for_target("xnnpack"))
    assert (decided.site("1").action, decided.site("1").reason) == ("float", "target 'xnnpack' normalizes in float")


def test_a_norm_of_a_float_value_that_has_a_grid_in_any_case() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = x.cumsum(-1)
            return y + self.layer(self.norm(y))

    (site,) = norms(Residual(), torch.randn(3, 8))
    assert site.name == "norm"


def test_rows_too_long_for_sums_of_64_bits_stay_float() -> None:
    length = 48_000
    model, x = nn.Sequential(nn.Conv1d(1, 1, 1), nn.GroupNorm(1, 1), nn.Conv1d(1, 1, 1)), torch.randn(2, 1, length)
    wide = dataclasses.replace(tq.QConfig(), activation=tq.QuantScheme(tq.types.uint16))
    assert tq.plan(model, x).site("1").action == "normalize"
    decided = tq.plan(model, x, wide).site("1")
    assert (decided.action, decided.reason) == ("float", "its rows are too long for sums of 64 bits")
