"""Area 11: one config for the model, exceptions by name, glob, type and call site, carried through to the Int8 model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.errors import PlanError
from truequant.schemes import PerChannel, PerTensor, QConfig, QuantScheme, Rule, int2, int3, int4, int8, uint4, uint6, uint8


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU())
        self.blocks = nn.Sequential(Block(6), Block(6))
        self.hidden = nn.Linear(6, 6)
        self.classifier = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).mean((2, 3))
        return self.classifier(F.relu(self.hidden(x)))


X = torch.randn(8, 1, 8, 8)
FOUR, THREE, TWO = (QuantScheme(t, PerChannel(0)) for t in (int4, int3, int2))


def trained(config: QConfig) -> nn.Module:
    torch.manual_seed(0)
    qat = tq.prepare(Net(), X, config)
    optimizer = torch.optim.SGD(qat.parameters(), 0.02)
    for _ in range(4):
        optimizer.zero_grad()
        qat(torch.randn_like(X)).square().sum().backward()
        optimizer.step()
    return qat.eval()


def weight_types(model: nn.Module) -> dict[str, str]:
    return {n.removesuffix(".weight"): q.scheme.dtype.name for n, q in tq.quantizers(model) if n.endswith(".weight")}


ALL = {"stem.0", "blocks.0.conv", "blocks.1.conv", "hidden", "classifier"}


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([Rule("hidden", weight=FOUR)], {"hidden": "int4"}),
        ([Rule("blocks", weight=FOUR)], {"blocks.0.conv": "int4", "blocks.1.conv": "int4"}),
        ([Rule("blocks.*.conv", weight=FOUR)], {"blocks.0.conv": "int4", "blocks.1.conv": "int4"}),
        ([Rule("**conv", weight=FOUR)], {"blocks.0.conv": "int4", "blocks.1.conv": "int4"}),
        ([Rule(nn.Linear, weight=FOUR)], {"hidden": "int4", "classifier": "int4"}),
        ([Rule(Block, weight=FOUR)], {}),
        (
            [Rule(nn.Conv2d, weight=FOUR), Rule("blocks.1", weight=TWO)],
            {"stem.0": "int4", "blocks.0.conv": "int4", "blocks.1.conv": "int2"},
        ),
        (
            [Rule("blocks.1", weight=TWO), Rule(nn.Conv2d, weight=FOUR)],
            {"stem.0": "int4", "blocks.0.conv": "int4", "blocks.1.conv": "int4"},
        ),
        ([Rule("**", weight=FOUR), Rule("stem", weight=QConfig().weight)], dict.fromkeys(ALL, "int4") | {"stem.0": "int8"}),
    ],
)
def test_which_rule_wins(rules: list[Rule], expected: dict[str, str]) -> None:
    qat = tq.prepare(Net(), X, QConfig().with_rules(*rules))
    assert weight_types(qat) == dict.fromkeys(ALL, "int7") | expected


def test_a_call_site_has_its_own_scheme() -> None:
    config = QConfig().with_rules(
        Rule("blocks.0.add_0", output=QuantScheme(uint6)), Rule("blocks.1.add_0", output=QuantScheme(uint4))
    )
    qat = trained(config)
    program = tq.convert(qat).program
    assert (program.edges["blocks.0.add_0"].qmax, program.edges["blocks.1.add_0"].qmax) == (63, 15)
    assert_right(qat)


def test_fields_left_out_are_inherited() -> None:
    plan = tq.plan(Net(), X, QConfig.preset("w4a4").with_rules(Rule("hidden", output=QuantScheme(uint8))))
    assert plan.quantizer("hidden.weight").scheme == QConfig.preset("w4a4").weight
    assert plan.quantizer(plan.site("hidden").emits or "").scheme.dtype == uint8


def test_the_plan_shows_which_rule_won() -> None:
    rules = [Rule(nn.Linear, weight=FOUR), Rule("hidden", weight=TWO)]
    plan = tq.plan(Net(), X, QConfig().with_rules(*rules))
    assert plan.site("hidden").rule == repr(rules[1])
    assert plan.site("classifier").rule == repr(rules[0])
    assert plan.site("stem.0").rule is None


def assert_right(qat: nn.Module) -> tq.Int8Model:
    """Edge by edge: evaluation, program and onnxruntime."""
    int8 = tq.convert(qat)
    report = tq.verify(qat, int8, [X, 3 * X])
    assert report.codes_different == 0, str(report)
    with torch.no_grad():
        assert torch.equal(qat(X), int8(X))
    return int8


@pytest.mark.parametrize(
    "rules",
    [
        [Rule("blocks.0", weight=FOUR), Rule("blocks.1", weight=TWO), Rule("hidden", weight=THREE)],
        [Rule("hidden", input=QuantScheme(uint4))],
        [Rule("**", weight=QuantScheme(int8, PerTensor())), Rule("classifier", weight=FOUR)],
        [Rule("blocks.*", output=QuantScheme(uint6)), Rule("stem", weight=THREE)],
    ],
)
def test_mixtures_of_widths_reach_the_int8_model(rules: list[Rule]) -> None:
    qat = trained(QConfig().with_rules(*rules))
    int8 = assert_right(qat)
    reach = {n.output: int(n.weight.abs().max()) for n in int8.program.nodes if hasattr(n, "weight")}
    for name, dtype in weight_types(qat).items():
        assert reach[name] <= {"int8": 127, "int7": 64, "int4": 7, "int3": 3, "int2": 1}[dtype]


@pytest.mark.parametrize("name", ["stem.0", "blocks.0.conv", "hidden", "classifier", "blocks.1"])
def test_float_islands_are_exactly_where_asked(name: str) -> None:
    """What a rule leaves in float is float in the program, everything else is integer, and nothing else changes."""
    qat = trained(QConfig().with_rules(Rule(name, None)))
    plan = tq.plan(Net(), X, QConfig().with_rules(Rule(name, None)))
    in_float = {s.name for s in plan.in_float()}
    asked = {s.name for s in plan.sites if s.owner == name or s.owner.startswith(f"{name}.")}
    followers = {"blocks.0.norm"} if name == "blocks.0.conv" else set()  # a BatchNorm has no layer left to fold into
    assert in_float == asked | followers
    int8 = tq.convert(qat)
    islands = {n.output for n in int8.program.nodes if type(n).__name__ == "Island"}
    assert islands == in_float
    with torch.no_grad():
        assert torch.equal(qat(X), int8(X))
    ours, theirs = tq.codes(qat, X), int8.codes(X)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[k].int(), theirs[k].int()) for k in ours)


def test_everything_in_float_is_the_float_model() -> None:
    config = QConfig().with_rules(Rule("**", None))
    torch.manual_seed(0)
    model = Net().eval()
    qat = tq.prepare(model, X, config).eval()
    assert dict(tq.quantizers(qat)) == {}
    with torch.no_grad():
        assert torch.equal(qat(X), model(X))
        assert torch.equal(tq.convert(qat)(X), model(X))


def test_a_rule_that_matches_nothing_suggests_near_names() -> None:
    with pytest.raises(PlanError, match=r"Rule\('clasifier', None\) matches nothing") as caught:
        tq.prepare(Net(), X, QConfig().with_rules(Rule("clasifier", None)))
    assert "classifier" in str(caught.value)
    with pytest.raises(PlanError, match="matches nothing"):
        tq.prepare(Net(), X, QConfig().with_rules(Rule(nn.Conv3d, weight=FOUR)))


def test_consumers_that_disagree_are_both_named() -> None:
    with pytest.raises(
        PlanError, match="'blocks.0.conv' and 'blocks.0.add_0' read the same edge and disagree|disagree"
    ) as caught:
        tq.prepare(Net(), X, QConfig().with_rules(Rule("blocks.0.conv", input=QuantScheme(uint4))))
    assert "blocks.0.conv" in str(caught.value)
    assert "blocks.0.add_0" in str(caught.value)
