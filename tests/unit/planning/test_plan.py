"""The plan says where quantizers sit and why; it is made without touching the model."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truequant.errors import PlanError, SchemeError
from truequant.planning import Plan, plan
from truequant.schemes import PerChannel, PerGroup, QConfig, QuantScheme, Rule, int4, uint4, uint8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + 0.1 * torch.randn_like(x) + x.mean()  # shifts the ordinals of the adds in training
        y = self.relu(self.norm(self.conv(x)))
        y = F.max_pool2d(self.relu(self.second(y)), 2) + F.max_pool2d(y, 2)
        return self.fc(y.mean((2, 3)))


X = torch.randn(2, 1, 8, 8)


def decided(config: QConfig | str | None = None, model: nn.Module | None = None, x: Tensor = X) -> Plan:
    return plan(model or Net(), x, config)


def test_one_quantizer_at_the_end_of_each_chain() -> None:
    p = decided()
    assert p.site("conv").fused == ("norm", "relu#0")
    assert p.site("conv").norm == "norm"
    assert p.site("relu#0").quantizer == p.site("conv").emits
    assert p.site("second").fused == ("relu#1", "max_pool2d_0")
    assert p.site("max_pool2d_0").quantizer == p.site("second").emits
    assert p.site("conv").quantizer is None
    assert p.site("norm").quantizer is None


def test_behind_a_relu_the_zero_point_is_zero() -> None:
    p = decided()
    assert p.quantizer(p.site("conv").emits or "").scheme.is_symmetric
    assert not p.quantizer("input_0").scheme.is_symmetric
    assert not p.quantizer(p.site("fc").emits or "").scheme.is_symmetric


def test_data_movement_keeps_the_grid() -> None:
    p = decided()
    second_pool = p.site("max_pool2d_1")
    assert second_pool.action == "movement"
    assert second_pool.quantizer is None
    assert p.site("add_0").reads == (p.site("second").emits, p.site("conv").emits)


def test_a_row_names_what_is_read_and_what_comes_out() -> None:
    table = str(decided())
    (add,) = (line for line in table.splitlines() if line.startswith("add_0 "))
    reads = ", ".join(str(r) for r in decided().site("add_0").reads)
    assert f" {reads} " in add


def test_sizes_to_try_where_no_example_is_known() -> None:
    spec = decided().inputs[0]
    assert replace(spec, shape=(None, 3, 8), example=()).made_up() == [2, 3, 8]
    assert replace(spec, shape=(None, 3, None), example=(7, 3, 5)).made_up() == [2, 3, 5]


@pytest.mark.parametrize(("size", "action"), [(2, "pool"), (3, "float")])
def test_adaptive_pooling_is_integer_where_its_windows_are_equal(size: int, action: str) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(self.conv(x), size)

    assert decided(model=Pooled()).site("adaptive_avg_pool2d_0").action == action


def test_training_only_calls_shift_ordinals() -> None:
    p = decided()
    assert (p.site("add_0").ordinal, p.site("add_0").train_ordinal) == (0, 2)
    assert (p.site("mean_0").ordinal, p.site("mean_0").train_ordinal) == (0, 1)


def test_planning_leaves_the_model_alone() -> None:
    model = Net()
    model.conv.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    random = torch.random.get_rng_state()
    plan(model, X)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_equal_models_have_equal_plans() -> None:
    assert decided() == decided()
    assert decided("w4a4") != decided()


def test_print_names_every_site_and_its_reason() -> None:
    text = str(decided(QConfig().with_rules(Rule("fc", None))))
    for site in decided().sites:
        assert site.name in text
    assert re.search(r"fc +linear .*Rule\('fc', None\)", text)


@pytest.mark.parametrize(
    ("select", "hit"),
    [
        ("second", {"second"}),
        ("sec*", {"second"}),
        ("**", {"conv", "second", "fc"}),
        (re.compile("se.*d"), {"second"}),
        (nn.Conv2d, {"conv", "second"}),
        (F.conv2d, {"conv", "second"}),
        (nn.Module, {"conv", "second", "fc"}),
    ],
)
def test_selectors(select: object, hit: set[str]) -> None:
    scheme = QuantScheme(int4, PerChannel(0))
    p = decided(QConfig().with_rules(Rule(select, weight=scheme)))  # type: ignore[arg-type]
    assert {q.owner for q in p.quantizers if q.kind == "weight" and q.scheme == scheme} == hit


def test_call_sites_can_be_selected() -> None:
    scheme = QuantScheme(uint4)
    p = decided(QConfig().with_rules(Rule("add_0", output=scheme)))
    assert p.quantizer(p.site("add_0").emits or "").scheme.dtype == uint4
    p = decided(QConfig().with_rules(Rule(torch.add, None)))
    assert p.site("add_0").action == "float"


def test_later_rules_win() -> None:
    four, eight = QuantScheme(int4, PerChannel(0)), QConfig().weight
    p = decided(QConfig().with_rules(Rule("**", weight=four), Rule("fc", weight=eight)))
    assert [q.scheme for q in p.quantizers if q.kind == "weight"] == [four, four, eight]
    p = decided(QConfig().with_rules(Rule("fc", None), Rule("fc", weight=four)))
    assert p.site("fc").action == "layer"


def test_a_rule_that_matches_nothing_suggests_near_names() -> None:
    with pytest.raises(PlanError, match=r"Rule\('secnd', None\) matches nothing") as caught:
        decided(QConfig().with_rules(Rule("secnd", None)))
    assert "second" in str(caught.value.expected)


def test_consumers_that_disagree_are_both_named() -> None:
    with pytest.raises(PlanError, match="'second' and 'add_0' read the same edge and disagree|disagree"):
        decided(QConfig().with_rules(Rule("second", input=QuantScheme(uint4))))


def test_schemes_that_cannot_be_deployed_are_refused_with_the_site() -> None:
    with pytest.raises(SchemeError, match=r"'conv': PerChannel\(axis=1\) cannot be deployed to target 'onnxruntime'"):
        decided(QConfig().with_rules(Rule("conv", weight=QuantScheme(int4, PerChannel(1)))))
    with pytest.raises(SchemeError, match="'fc'.*cannot be deployed"):
        decided(QConfig().with_rules(Rule("fc", weight=QuantScheme(int4, PerGroup(2)))))
    with pytest.raises(SchemeError, match="weights are signed, symmetric"):
        decided(QConfig().with_rules(Rule("fc", weight=QuantScheme(uint8))))


def test_ends_keep_eight_bits() -> None:
    p = decided("w2a2")
    bits = {q.owner: q.scheme.dtype.bits for q in p.quantizers if q.kind == "weight"}
    assert bits == {"conv": 8, "second": 2, "fc": 8}
    assert p.quantizer(p.site("fc").reads[0] or "").scheme.dtype.bits == 8
    bits = {q.owner: q.scheme.dtype.bits for q in decided("w2a2-all").quantizers if q.kind == "weight"}
    assert set(bits.values()) == {2}


def test_what_is_never_called_is_said() -> None:
    model = Net()
    model.spare = nn.Linear(3, 3)
    p = decided(model=model)
    assert p.uncalled == ("spare",)
    assert "'spare' stays float" in str(p)


def test_batch_norm_behind_a_three_dimensional_linear_does_not_fold() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5), nn.ReLU())
    p = plan(model, torch.randn(2, 5, 4))
    assert p.site("0").norm is None
    assert p.site("1").action == "affine"


def test_concat_shares_one_grid() -> None:
    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([F.relu(self.a(x)), self.b(x)], 1))

    p = plan(Cat(), X)
    assert p.site("a").emits == p.site("b").emits == p.site("c").reads[0]
    assert not p.quantizer(p.site("b").emits or "").scheme.is_symmetric


def test_diff_names_what_changed() -> None:
    a, b = decided(), decided(QConfig().with_rules(Rule("conv", weight=QuantScheme(int4, PerChannel(0))), Rule("fc", None)))
    assert a.diff(a) == ()
    lines = a.diff(b)
    assert "quantizer 'conv.weight': scheme int7 channel 0 -> int4 channel 0" in lines
    assert "quantizer 'fc.weight' is gone" in lines
    assert any(line.startswith("site 'fc': action layer -> float") for line in lines)
    assert "quantizer 'fc.weight' is new" in b.diff(a)
