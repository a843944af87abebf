"""A module that takes the place of a planned one, or comes beside them, has no plan: nothing runs until there is one."""

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

X = torch.rand(4, 8)
FIX = "tq.restore_float(model), then tq.prepare(model, example_inputs) plans the model as it is now; calibrate again"


def made() -> Any:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 8), nn.GELU())
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), inner, nn.ReLU(), nn.Linear(8, 4))


def prepared() -> Any:
    return tq.calibrate(tq.prepare(made(), X), [X])


def put(path: str, new: Callable[[], nn.Module]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        parent, _, key = path.rpartition(".")
        model.get_submodule(parent)[int(key)] = new()

    return change


def remove(index: int) -> Callable[[Any], None]:
    return lambda model: model.__delitem__(index)


Change = Callable[[Any], Any]
SEQUENCE = "modules"
CHANGES: dict[str, tuple[Change, str, str, str]] = {
    "a new head": (put("5", lambda: nn.Linear(8, 3)), "'5' replaced", "Linear", "Linear"),
    "another activation": (put("2", nn.GELU), "'2' replaced", "GELU", "ReLU"),
    "nothing in its place": (put("4", nn.Identity), "'4' replaced", "Identity", "ReLU"),
    "one further inside": (put("3.0", lambda: nn.Linear(8, 8)), "'3.0' replaced", "Linear", "Linear"),
    "a whole block": (put("3", lambda: nn.Sequential(nn.Linear(8, 8))), "'3' replaced", "Sequential", "Sequential"),
    "removed at the end": (remove(5), "'5' removed", "", "Linear"),
    "removed in between": (remove(4), "'4' removed", "", "ReLU"),
    "appended": (lambda m: m.append(nn.Tanh()), "'6' added", "Tanh", SEQUENCE),
    "inserted": (lambda m: m.insert(1, nn.Tanh()), "'1' added", "Tanh", SEQUENCE),
    "put behind": (lambda m: m.__setitem__(5, nn.Sequential(m[5], nn.Tanh())), "'5.1' added", "Tanh", SEQUENCE),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_module_has_no_plan(name: str) -> None:
    change, what, now, before = CHANGES[name]
    qat = prepared()
    change(qat)
    got = f"{now}, which no plan knows" if now else "no module"
    planned = "the modules that were planned" if before == SEQUENCE else f"the {before} that was planned"
    what = what.replace(" ", ": the module was ") + " after the model was prepared"
    text = f"{what}\n  got:      {got}\n  expected: {planned}\n  fix:      {FIX}"
    for run in (lambda: qat.eval()(X), lambda: qat.train()(X), lambda: tq.convert(qat), lambda: tq.calibrate(qat, [X])):
        with pytest.raises(PlanError) as caught:
            run()
        assert str(caught.value) == text
    float_model = tq.restore_float(qat)
    wanted = made()
    change(wanted)
    assert [type(m) for m in float_model.modules()] == [type(m) for m in wanted.modules()]
    again = tq.calibrate(tq.prepare(float_model, X), [X]).eval()
    assert torch.equal(tq.convert(again)(X), again(X))


class Adapter(nn.Module):
    """As adapters, wrappers of parallel training and compilers have it: the planned module is inside."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.unused: nn.Module | None = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return torch.relu(self.layer(x))


class LowRank(nn.Module):
    """An adapter that brings layers of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.down = layer, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x) + self.down(x)


def test_layers_of_an_adapter_that_no_plan_knows_are_named() -> None:
    qat: Any = tq.calibrate(tq.prepare(Block(), X), [X]).eval()
    qat.layer = LowRank(qat.layer)
    with pytest.raises(PlanError) as error:
        qat(X)
    assert str(error.value) == (
        "'layer': the module was wrapped after the model was prepared\n"
        "  got:      a Linear beside it, 'down', which no plan knows\n"
        "  expected: the modules that were planned\n"
        "  fix:      adapters go in before: model = peft.get_peft_model(model, …), then tq.prepare(model, …)"
    )


def parametrized(qat: Any) -> None:
    nn.utils.parametrize.register_parametrization(qat.layer, "weight", nn.Identity())


LEGAL: dict[str, Callable[[Any], Any]] = {
    "copied": copy.deepcopy,
    "pickled": lambda qat: pickle.loads(pickle.dumps(qat)),
    "wrapped": lambda qat: setattr(qat, "layer", Adapter(qat.layer)),
    "a loss beside it": lambda qat: setattr(qat, "loss", nn.MSELoss()),
    "without what no example calls": lambda qat: delattr(qat, "unused"),
    "None for what no example calls": lambda qat: setattr(qat, "unused", None),
    "parametrized": parametrized,
    "another dtype and back": lambda qat: qat.double().float(),
    "a loaded state": lambda qat: setattr(qat, "loaded", bool(qat.load_state_dict(qat.state_dict(), assign=True))),
}


@pytest.mark.parametrize("name", LEGAL)
def test_the_planned_modules_are_still_there(name: str) -> None:
    qat: Any = tq.calibrate(tq.prepare(Block(), X), [X]).eval()
    before = qat(X)
    changed = LEGAL[name](qat)
    changed = changed if isinstance(changed, nn.Module) else qat
    for _ in range(2):
        assert torch.equal(changed.eval()(X), before)
    changed.train()(X)
    with tq.quantizers_off(changed):
        changed(X)


def test_a_copy_looks_at_its_own_modules() -> None:
    qat = prepared()
    other = copy.deepcopy(qat)
    other[5] = nn.Linear(8, 3)
    qat(X)
    with pytest.raises(PlanError, match="'5': the module was replaced"):
        other(X)
    qat[5] = nn.Linear(8, 3)
    with pytest.raises(PlanError, match="'5': the module was replaced"):
        qat(X)
