"""One module in several places: a quantizer for each place, the same codes everywhere, rules by the place's name."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truequant as tq
from truequant.errors import PlanError
from truequant.planning import Plan


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(inputs, outputs, 1), act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.conv(x))
        return y


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Inner(nn.Module):
    """A part that its parent calls, and the parent's parent calls again."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.Conv2d(3, 3, 1), nn.SiLU()))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(x) + self.outer[1](x)
        return y


class Branch(nn.Module):
    """The activation is called by a branch of training too, before the last call in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU()
        self.stem, self.auxiliary, self.head = Block(3, 4, act), Block(4, 2, act), Block(4, 2, act)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        y = self.stem(x)
        auxiliary = self.auxiliary(y) if self.training else None
        return self.head(y), auxiliary


class Embedded(nn.Module):
    """The activation is also called, by another module, on what no input has a part in."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU()
        self.of_a_number, self.block = nn.Sequential(nn.Linear(4, 3), act), Block(3, 2, act)

    def forward(self, x: Tensor) -> Tensor:
        shift = self.of_a_number(torch.arange(4.0))
        y: Tensor = self.block(x) + shift.sum()
        return y


def shared(act: nn.Module) -> nn.Module:
    return nn.Sequential(Block(3, 4, act), nn.Sequential(Block(4, 4, act), act, nn.Conv2d(4, 4, 1), act), nn.Conv2d(4, 2, 1))


def two_towers() -> nn.Module:
    conv = nn.Conv2d(3, 3, 1)
    return nn.Sequential(nn.Sequential(conv, nn.ReLU()), nn.Sequential(conv, nn.BatchNorm2d(3)), nn.Sequential(conv, nn.SiLU()))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "SiLU": lambda: shared(nn.SiLU()), "ReLU in place": lambda: shared(nn.ReLU(inplace=True)), "Swish": lambda: shared(Swish()),
    "conv": two_towers, "inner": Inner, "branch": Branch, "constant": Embedded,
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_computes_the_same_everywhere(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 4, 4)
    plan = tq.plan(MODELS[name](), x)
    assert Plan.from_json(plan.to_json()) == plan
    qat = tq.prepare(MODELS[name](), x, plan)
    first_of(qat.train()(x)).sum().backward()
    tq.calibrate(qat, [x], progress=False)
    int8 = tq.convert(qat.eval())
    report = tq.verify(pickle.loads(pickle.dumps(copy.deepcopy(qat))), int8, [x], runtimes=("reference", "onnxruntime"))
    assert report.codes_compared > 0
    assert [r.codes_different for r in report.runtimes.values()] == [0, 0]
    int8.save(tmp_path / "m.tq")
    assert torch.equal(first_of(tq.load(tmp_path / "m.tq")(x)), first_of(qat(x)))


def first_of(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def test_each_place_has_its_own_scale() -> None:
    act = nn.SiLU()
    model = nn.Sequential(Block(3, 3, act), Block(3, 3, act))
    with torch.no_grad():
        model[0].conv.weight.mul_(100)
        model[1].conv.weight.mul_(0.01)
    x = torch.rand(2, 3, 4, 4)
    qat = tq.calibrate(tq.prepare(model, x), [x], progress=False)
    scales = [float(q.scale) for q in qat[0].act.quantizers.values()]
    assert len(scales) == 2
    assert max(scales) > 20 * min(scales)


def test_names_are_those_of_the_places() -> None:
    act = nn.SiLU()
    model, x = nn.Sequential(Block(3, 3, act), Block(3, 3, act)), torch.rand(2, 3, 4, 4)
    assert [s.name for s in tq.plan(model, x).sites] == ["0.conv", "0.act", "1.conv", "1.act"]
    one = tq.QConfig().with_rules(tq.Rule("1.act", None))
    assert [s.name for s in tq.plan(model, x, one).in_float()] == ["1.act"]
    tree = tq.QConfig().with_rules(tq.Rule("0", None))
    assert [s.name for s in tq.plan(model, x, tree).in_float()] == ["0.conv", "0.act"]


def test_a_rule_about_any_place_of_a_layer_is_about_its_one_weight() -> None:
    rule = tq.Rule("1.0", weight=tq.QuantScheme(tq.types.int4, tq.PerChannel(0)))
    plan = tq.plan(two_towers(), torch.rand(2, 3, 4, 4), tq.QConfig().with_rules(rule))
    assert [q.scheme.dtype.bits for q in plan.quantizers if q.kind == "weight"] == [4]


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU()
        self.a, self.b, self.c = Block(3, 3, act), Block(3, 3, act), nn.Sequential(act)
        self.on = False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x))
        return self.c(y) if self.on else y  # type: ignore[no-any-return]


def test_a_call_by_a_module_that_did_not_call_raises() -> None:
    x = torch.rand(2, 3, 4, 4)
    qat = tq.prepare(Forked(), x).train()
    qat.on = True
    with pytest.raises(PlanError) as error:
        qat(x)
    assert str(error.value) == (
        "'a.act' is called in a way that was not there when the model was prepared\n"
        "  got:      a call by a module that did not call it then\n  expected: calls [(0,), (1,)]\n"
        "  fix:      prepare with example inputs that take this path"
    )


def test_a_branch_of_training_is_none_of_evaluation() -> None:
    x = torch.rand(2, 3, 4, 4)
    qat = tq.calibrate(tq.prepare(Branch(), x), [x], progress=False).eval()
    qat.__dict__["training"] = True  # the branch is taken while its modules evaluate
    with pytest.raises(PlanError, match=r"'auxiliary\.conv': call 0 of 'conv2d' was not there"):
        qat(x)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled() -> None:
    x = torch.rand(2, 3, 4, 4)
    qat = tq.calibrate(tq.prepare(shared(nn.SiLU()), x), [x], progress=False).eval()
    assert torch.equal(torch.compile(qat, backend="eager", fullgraph=True)(x), qat(x))
