"""Area 3: `QATModuleWrapper` swaps the class of a layer for a subclass of it, and nothing else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant import QATModuleWrapper
from truequant.errors import ArgumentError, StateError
from truequant.schemes import PerChannel, QuantScheme, int8, uint8

WEIGHT, ACTIVATION = QuantScheme(int8, PerChannel(0)), QuantScheme(uint8)
LAYERS = {
    "Linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "Linear without bias": (lambda: nn.Linear(6, 4, bias=False), (2, 3, 6)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (3, 4, 9, 9)),
    "Conv2d same": (lambda: nn.Conv2d(3, 4, (3, 5), padding="same", bias=False), (2, 3, 7, 7)),
    "Conv2d reflect": (lambda: nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect"), (2, 3, 7, 7)),
    "Conv2d circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 7, 7)),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 3, padding=1), (2, 2, 5, 5, 5)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5, 5)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 4, 2, stride=2), (2, 2, 3, 3, 3)),
    "Embedding": (lambda: nn.Embedding(9, 5, padding_idx=2), None),
    "Embedding max_norm": (lambda: nn.Embedding(9, 5, max_norm=1.0), None),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    return build(), torch.randint(0, 9, (4, 3)) if shape is None else torch.randn(shape)


def wrapped(name: str) -> tuple[nn.Module, Tensor]:
    layer, x = made(name)
    activation = None if "Embedding" in name else ACTIVATION
    return QATModuleWrapper.wrap(layer, weight=WEIGHT, input=activation, output=ACTIVATION), x


@pytest.mark.parametrize("name", LAYERS)
def test_with_quantizers_off_it_is_the_original_bit_for_bit(name: str) -> None:
    original, x = made(name)
    layer, _ = wrapped(name)
    layer(x)
    xs = [x.clone().requires_grad_(x.is_floating_point()) for _ in range(2)]
    layer.zero_grad()
    with tq.quantizers_off(layer):
        outputs = [original(xs[0]), layer(xs[1])]
    assert torch.equal(*outputs)
    for y in outputs:
        y.square().sum().backward()
    for (key, ours), theirs in zip(layer.named_parameters(), original.parameters(), strict=True):
        assert torch.equal(ours, theirs), key
        assert torch.equal(ours.grad, theirs.grad), key  # type: ignore[arg-type]
    if x.is_floating_point():
        assert torch.equal(xs[0].grad, xs[1].grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LAYERS)
def test_type_parameters_names_and_hyper_parameters_are_kept(name: str) -> None:
    original, _ = made(name)
    before = copy.deepcopy(original)
    parameters = dict(original.named_parameters())
    layer = QATModuleWrapper.wrap(original, weight=WEIGHT)
    assert layer is original
    assert isinstance(layer, type(before))
    assert isinstance(layer, QATModuleWrapper)
    assert dict(layer.named_parameters()).keys() == parameters.keys()
    assert all(layer.get_parameter(n) is p for n, p in parameters.items())
    assert set(before.state_dict()) <= set(layer.state_dict())
    hyper = {k: v for k, v in before.__dict__.items() if not k.startswith("_")}
    assert {k: layer.__dict__[k] for k in hyper} == hyper


@pytest.mark.parametrize("name", LAYERS)
def test_training_computes_with_the_quantized_weight(name: str) -> None:
    """Only the weight quantized: the result is the original layer's on the weight's grid, gradient straight through."""
    original, x = made(name)
    if "max_norm" in name:
        original(x)  # renormalizes what it looks up, in place
    layer, _ = made(name)
    QATModuleWrapper.wrap(layer, weight=WEIGHT)
    y = layer(x)
    weight = original.get_parameter("weight")
    rows = weight.detach().abs().flatten(1).amax(1).clamp(min=1e-12) / 127
    rows = rows.reshape(-1, *(1,) * (weight.dim() - 1))
    with torch.no_grad():
        weight.copy_(torch.clamp(torch.round(weight / rows), -127, 127) * rows)
    if "max_norm" in name:
        original.max_norm = None
    expected = original(x)
    assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(layer.get_parameter("weight").grad, weight.grad)  # type: ignore[arg-type]


class Order:
    """What runs, in order of execution: seen from calls, not from attribute names."""

    def __init__(self, layer: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        for slot, quantizer in layer.get_submodule("quantizers").named_children():
            quantizer.register_forward_hook(lambda m, a, y, slot=slot: self.events.append(slot))
        linear = F.linear

        def spy(*args: Tensor) -> Tensor:
            self.events.append("linear")
            return linear(*args)

        monkeypatch.setattr(F, "linear", spy)


@pytest.mark.parametrize(
    ("asked", "order"),
    [
        ({"weight": WEIGHT}, ["weight", "linear"]),
        ({"input": ACTIVATION}, ["input", "linear"]),
        ({"output": ACTIVATION}, ["linear", "output"]),
        ({"weight": WEIGHT, "input": ACTIVATION, "output": ACTIVATION}, ["input", "weight", "linear", "output"]),
    ],
)
def test_quantizers_sit_exactly_where_asked(
    asked: dict[str, QuantScheme], order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = QATModuleWrapper.wrap(nn.Linear(6, 4), **asked)
    seen = Order(layer, monkeypatch)
    layer(torch.randn(3, 6))
    assert seen.events == order


def test_evaluation_computes_integer_codes() -> None:
    """Against Python integers: acc = sum((xq - zx) wq) + bq, then one rounding to the output's grid."""
    torch.manual_seed(1)
    layer = QATModuleWrapper.wrap(nn.Linear(16, 4), weight=WEIGHT, input=ACTIVATION, output=ACTIVATION)
    x = torch.randn(5, 16)
    layer(x)
    layer.eval()
    q = layer.get_submodule("quantizers")
    sx, zx = float(q.input.scale), int(q.input.zero_point)
    sy, zy = q.output.scale, int(q.output.zero_point)
    sw = layer.weight.detach().abs().amax(1) / 127
    xq = (torch.clamp(torch.round(x / q.input.scale) + zx, 0, 255)).long() - zx
    wq = torch.clamp(torch.round(layer.weight.detach() / sw[:, None]), -127, 127).long()
    unit = torch.tensor(sx) * sw
    bq = torch.round(layer.bias.detach().double() / unit.double()).long()
    acc = torch.tensor([[sum(a * b for a, b in zip(r, w, strict=True)) for w in wq.tolist()] for r in xq.tolist()]) + bq
    yq = torch.clamp(torch.round(acc.float() * (unit / sy)) + zy, 0, 255)
    with torch.no_grad():
        assert torch.equal(layer(x), (yq - zy) * sy)


def test_unwrap_gives_the_layer_back() -> None:
    layer = QATModuleWrapper.wrap(nn.Conv2d(1, 2, 3), weight=WEIGHT, output=ACTIVATION)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(torch.randn(1, 1, 5, 5)).sum().backward()
    optimizer.step()
    trained = {n: p.detach().clone() for n, p in layer.named_parameters()}
    plain = layer.unwrap()
    assert type(plain) is nn.Conv2d
    assert plain is layer
    assert set(plain.state_dict()) == {"weight", "bias"}
    assert all(torch.equal(p, trained[n]) for n, p in plain.named_parameters())
    with pytest.raises(StateError, match="Conv2d is not wrapped"):
        QATModuleWrapper.unwrap(plain)  # type: ignore[arg-type]


def test_a_layer_that_cannot_be_wrapped_stays_as_it_was() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ArgumentError, match="wrap: a result has no scales of tokens"):
        QATModuleWrapper.wrap(layer, weight=WEIGHT, output=tq.QuantScheme(tq.types.int8, observer=tq.ranges.Dynamic()))
    assert type(layer) is nn.Linear
    assert not list(layer.children())
    assert type(QATModuleWrapper.wrap(layer, weight=WEIGHT)) is not nn.Linear


def test_deepcopy_and_pickle() -> None:
    layer, x = wrapped("Conv2d")
    layer(x)
    layer.eval()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is type(layer)
        assert torch.equal(other(x), layer(x))
        assert other.get_parameter("weight") is not layer.get_parameter("weight")


def test_errors() -> None:
    layer = QATModuleWrapper.wrap(nn.Linear(2, 2), weight=WEIGHT)
    with pytest.raises(StateError, match="QATLinear is wrapped already"):
        QATModuleWrapper.wrap(layer, weight=WEIGHT)
    with pytest.raises(ArgumentError, match="ReLU has no weight to quantize"):
        QATModuleWrapper.wrap(nn.ReLU(), weight=WEIGHT)
    with pytest.raises(ArgumentError, match="inputs and outputs have one scale"):
        QATModuleWrapper.wrap(nn.Linear(2, 2), output=QuantScheme(int8, PerChannel(0)))
    with pytest.raises(StateError, match="was wrapped by hand"):
        tq.convert(layer)
