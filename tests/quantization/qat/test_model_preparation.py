"""Area 4: `prepare` inserts quantizers where the plan says, and changes nothing else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant import QATModuleWrapper
from truequant.errors import ArgumentTypeError, PlanError, StateError
from truequant.fake import WeightQuantizer


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.03)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.norm(self.conv(x)))


class Net(nn.Module):
    """A tied pair of linear layers, a list of blocks, functional calls, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.drop = nn.Dropout(0.25)
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = self.drop(F.max_pool2d(x, 2).mean((2, 3)))
        return self.b(torch.relu(self.a(x)))


X = torch.randn(4, 1, 10, 10)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_quantizers_sit_where_planned_and_only_there(net: Net) -> None:
    plan = tq.plan(net, X)
    qat = tq.prepare(net, X)
    found = dict(tq.quantizers(qat))
    assert set(found) == {q.name for q in plan.quantizers}
    for planned in plan.quantizers:
        path = f"{planned.owner}.quantizers.{planned.slot}" if planned.owner else f"quantizers.{planned.slot}"
        assert qat.get_submodule(path) is found[planned.name]
        assert found[planned.name].scheme == planned.scheme
        assert isinstance(found[planned.name], WeightQuantizer) is (planned.kind == "weight")


def test_every_planned_quantizer_runs_once_a_forward_and_no_other(net: Net) -> None:
    qat = tq.prepare(net, X)
    runs: list[str] = []
    for name, quantizer in tq.quantizers(qat):
        quantizer.register_forward_hook(lambda m, a, y, name=name: runs.append(name))
    qat(X)
    assert sorted(runs) == sorted(q.name for q in tq.plan(net, X).quantizers)


def test_structure_and_isinstance(net: Net) -> None:
    qat = tq.prepare(net, X)
    for name, module in net.named_modules():
        assert isinstance(qat.get_submodule(name), type(module)), name
    assert isinstance(qat, QATModuleWrapper)
    names = [n for n, _ in qat.named_modules() if "quantizers" not in n]
    assert names == [n for n, _ in net.named_modules()]
    assert len(qat.blocks) == 2  # type: ignore[arg-type]


def test_float_keys_and_their_order_are_preserved(net: Net) -> None:
    qat = tq.prepare(net, X)
    ours = [k for k in qat.state_dict() if "quantizers" not in k]
    assert ours == list(net.state_dict())
    assert [n for n, _ in qat.named_parameters()] == [n for n, _ in net.named_parameters()]


def test_hyper_parameters_are_preserved_through_modes(net: Net) -> None:
    qat = tq.prepare(net, X)
    for _ in range(2):
        qat.train()
        qat(X)
        qat.eval()
        qat(X)
    norm = qat.get_submodule("blocks.0.norm")
    assert (norm.eps, norm.momentum, qat.get_submodule("drop").p) == (1e-3, 0.03, 0.25)


def test_tied_weights_stay_tied(net: Net) -> None:
    for qat in (tq.prepare(net, X), tq.prepare(copy.deepcopy(net), X, inplace=True)):
        assert qat.get_parameter("a.weight") is qat.get_submodule("b").weight


def test_in_place_keeps_the_parameter_objects(net: Net) -> None:
    before = dict(net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    qat = tq.prepare(net, X, inplace=True)
    assert qat is net
    assert all(p is before[n] for n, p in qat.named_parameters())
    value = qat.get_parameter("a.bias").detach().clone()
    qat(X).square().sum().backward()
    optimizer.step()
    assert not torch.equal(qat.get_parameter("a.bias"), value)


def test_a_copy_leaves_the_model_alone(net: Net) -> None:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    qat = tq.prepare(net, X)
    assert type(net) is Net
    assert list(net.state_dict()) == list(before)
    with torch.no_grad():
        qat.get_parameter("a.bias").add_(1)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_hooks_are_preserved(net: Net) -> None:
    calls: list[str] = []
    net.stem.register_forward_hook(lambda m, a, y: calls.append("stem"))
    net.blocks[0].register_forward_pre_hook(lambda m, a: calls.append("block"))
    qat = tq.prepare(net, X, inplace=True)
    calls.clear()
    qat(X)
    assert calls == ["stem", "block"]


def test_weight_ranges_are_set_by_prepare(net: Net) -> None:
    qat = tq.prepare(net, X)
    stem = qat.get_submodule("stem.quantizers.weight")
    expected = net.stem.weight.detach().abs().amax((1, 2, 3)) / 64
    assert torch.equal(stem.scale, expected)
    assert all(q.is_calibrated is isinstance(q, WeightQuantizer) for _, q in tq.quantizers(qat))


def test_with_quantizers_off_the_model_is_the_float_model(net: Net) -> None:
    qat = tq.prepare(net, X)
    qat(X)
    for mode in (True, False):
        twin = copy.deepcopy(net).train(mode)
        twin.load_state_dict({k: v for k, v in qat.state_dict().items() if "quantizers" not in k})
        qat.train(mode).zero_grad()
        with tq.quantizers_off(qat):
            torch.manual_seed(1)
            ours = qat(X)
            torch.manual_seed(1)
            theirs = twin(X)
            assert torch.equal(ours, theirs)
            ours.sum().backward()
        theirs.sum().backward()
        for (name, p), q in zip(qat.named_parameters(), twin.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad), name  # type: ignore[arg-type]


def test_a_float_checkpoint_loads_and_goes_back(net: Net) -> None:
    other = Net()
    with torch.no_grad():
        for p in other.parameters():
            p.uniform_(-1, 1)
    qat = tq.prepare(net, X)
    missing, unexpected = qat.load_state_dict(other.state_dict(), strict=False)
    assert unexpected == []
    assert all("quantizers" in key for key in missing)
    back = Net()
    back.load_state_dict({k: v for k, v in qat.state_dict().items() if "quantizers" not in k})
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in back.state_dict().items())


def test_state_round_trip_before_the_first_forward(net: Net) -> None:
    trained = tq.prepare(net, X, "w4a4")
    for _ in range(2):
        trained(X)
    fresh = tq.prepare(Net(), X, "w4a4")
    fresh.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(X), trained.eval()(X))


def test_optimizers_see_learned_scales_from_prepare_on(net: Net) -> None:
    qat = tq.prepare(net, X, "w4a4")
    learned = [n for n, _ in qat.named_parameters() if n.endswith(".shift")]
    assert learned
    assert all(n in dict(qat.named_parameters()) for n in learned)
    qat(X).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in qat.parameters())


def test_deepcopy_and_pickle_of_the_whole_model(net: Net) -> None:
    qat = tq.prepare(net, X)
    qat(X)
    qat.eval()
    with torch.no_grad():
        for other in (copy.deepcopy(qat), pickle.loads(pickle.dumps(qat))):
            assert torch.equal(other(X), qat(X))
            assert other.binding.clock is other.get_submodule("stem").binding.clock
            assert other.binding.clock is not qat.binding.clock


def test_restore_float_gives_the_trained_float_model(net: Net) -> None:
    qat = tq.prepare(net, X)
    qat(X).sum().backward()
    torch.optim.SGD(qat.parameters(), 0.1).step()
    with tq.quantizers_off(qat), torch.no_grad():
        expected = qat.eval()(X)
    plain = tq.restore_float(qat)
    assert type(plain) is Net
    assert all(
        type(m).__name__ in {"Net", "Block", "Conv2d", "BatchNorm2d", "ReLU", "ModuleList", "Dropout", "Linear"}
        for m in plain.modules()
    )
    assert list(plain.state_dict()) == list(Net().state_dict())
    with torch.no_grad():
        assert torch.equal(plain(X), expected)


def test_prepared_twice_is_an_error(net: Net) -> None:
    qat = tq.prepare(net, X)
    with pytest.raises(StateError, match="the model is prepared already"):
        tq.prepare(qat, X)
    with pytest.raises(StateError, match="the model is prepared already"):
        tq.plan(qat, X)
    with pytest.raises(StateError, match="the model is prepared already"):
        tq.prepare(nn.Sequential(qat), X)


def test_wrong_arguments(net: Net) -> None:
    with pytest.raises(ArgumentTypeError, match="the model is not an nn.Module"):
        tq.prepare(lambda x: x, X)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="example_inputs is no input of a model"):
        tq.prepare(net, 3)
    net.quantizers = nn.Linear(1, 1)
    with pytest.raises(PlanError, match="has an attribute 'quantizers' of its own"):
        tq.prepare(net, X)


def test_a_path_that_planning_never_saw_is_an_error(net: Net) -> None:
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.other = nn.Linear(3, 3), nn.Linear(3, 3), False

        def forward(self, x: Tensor) -> Tensor:
            return self.right(x) + x + x if self.other else self.left(x) + x

    x = torch.randn(2, 3)
    qat = tq.prepare(Switch(), x)
    qat(x)
    qat.other = True
    with pytest.raises(PlanError, match="'right' is called in a way that was not there when the model was prepared"):
        qat(x)


def test_a_sequential_iterates_over_its_own_children() -> None:
    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    model = nn.Sequential(Residual(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    qat = tq.prepare(model, x)
    assert len(qat) == 2  # type: ignore[arg-type]
    assert len(qat[0]) == 2  # type: ignore[index]
    assert [type(m).__name__ for m in qat[0]] == ["QATLinear", "QATReLU"]  # type: ignore[index]
    assert isinstance(qat[-1], nn.Linear)  # type: ignore[index]
    with tq.quantizers_off(qat):
        assert torch.equal(qat(x), model(x))
