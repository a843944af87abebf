"""Area 2: `FakeQuantizeLayer` holds any layer and quantizes what it returns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from truequant.errors import ArgumentError, ArgumentTypeError
from truequant.fake import FakeQuantizeLayer
from truequant.schemes import PerChannel, QuantScheme, int8, uint8

LAYERS = {
    "Linear": (nn.Linear(6, 4), torch.randn(3, 6)),
    "Conv1d": (nn.Conv1d(2, 4, 3), torch.randn(3, 2, 9)),
    "Conv2d": (nn.Conv2d(2, 4, 3), torch.randn(3, 2, 9, 9)),
    "Conv3d": (nn.Conv3d(2, 4, 3), torch.randn(3, 2, 5, 5, 5)),
    "ConvTranspose2d": (nn.ConvTranspose2d(2, 4, 3), torch.randn(3, 2, 5, 5)),
    "BatchNorm2d": (nn.BatchNorm2d(4), torch.randn(3, 4, 5, 5)),
    "ReLU": (nn.ReLU(), torch.randn(3, 4)),
    "LayerNorm": (nn.LayerNorm(4), torch.randn(3, 4)),
    "Embedding": (nn.Embedding(10, 4), torch.randint(0, 10, (3, 2))),
    "MaxPool2d": (nn.MaxPool2d(2), torch.randn(3, 4, 6, 6)),
    "Sequential": (nn.Sequential(nn.Linear(6, 4), nn.ReLU()), torch.randn(3, 6)),
    "Identity": (nn.Identity(), torch.randn(3, 4)),
}


def formula(y: Tensor, scale: Tensor, zero_point: Tensor, scheme: QuantScheme) -> Tensor:
    return (torch.clamp(torch.round(y / scale) + zero_point, scheme.qmin, scheme.qmax) - zero_point) * scale


@pytest.mark.parametrize("name", LAYERS)
def test_any_layer_per_tensor(name: str) -> None:
    layer, x = LAYERS[name]
    scheme = QuantScheme(uint8)
    wrapped = FakeQuantizeLayer(layer, scheme)
    expected = layer(x)
    y = wrapped(x)
    low, high = min(0.0, float(expected.detach().min())), max(0.0, float(expected.detach().max()))
    assert float(wrapped.scale) == pytest.approx((high - low) / 255)
    assert torch.equal(y, formula(expected, wrapped.scale, wrapped.zero_point, scheme))


@pytest.mark.parametrize(("name", "axis"), [("Linear", 1), ("Conv1d", 1), ("Conv2d", 1), ("BatchNorm2d", 1), ("Embedding", -1)])
def test_per_channel_scales_are_those_of_each_channel(name: str, axis: int) -> None:
    layer, x = LAYERS[name]
    wrapped = FakeQuantizeLayer(layer, QuantScheme(int8, PerChannel(axis)))
    y = layer(x)
    wrapped(x)
    reach = y.abs().movedim(axis, 0).flatten(1).amax(1)
    assert wrapped.scale.shape == (4,)
    assert torch.allclose(wrapped.scale, reach / 127)


def test_updates_in_training_and_not_in_evaluation() -> None:
    wrapped = FakeQuantizeLayer(nn.Identity(), QuantScheme(uint8))
    wrapped(torch.tensor([0.0, 255.0]))
    wrapped(torch.tensor([0.0, 510.0]))
    wrapped(torch.tensor([0.0]))
    assert float(wrapped.scale) == pytest.approx(0.9 + 0.1 * 2)
    wrapped.eval()
    before = {k: v.clone() for k, v in wrapped.state_dict().items()}
    wrapped(torch.tensor([0.0, 1e6]))
    assert all(torch.equal(v, before[k]) for k, v in wrapped.state_dict().items())


@pytest.mark.parametrize("scheme", [QuantScheme(uint8), QuantScheme(int8, PerChannel(1))])
def test_state_round_trip_before_the_first_forward(scheme: QuantScheme) -> None:
    """Buffers have their final shape from construction on, so that a trained state loads into a fresh layer."""
    trained = FakeQuantizeLayer(nn.Linear(6, 4), scheme)
    for _ in range(3):
        trained(torch.randn(5, 6))
    fresh = FakeQuantizeLayer(nn.Linear(6, 4), scheme)
    shapes = {k: v.shape for k, v in fresh.state_dict().items()}
    fresh.load_state_dict(trained.state_dict())
    assert {k: v.shape for k, v in fresh.state_dict().items()} == shapes
    x = torch.randn(7, 6)
    assert torch.equal(fresh.eval()(x), trained.eval()(x))


def test_scale_and_zero_point_are_buffers_not_parameters() -> None:
    wrapped = FakeQuantizeLayer(nn.Linear(6, 4), QuantScheme(uint8))
    buffers = dict(wrapped.named_buffers())
    assert {"fake_quantize.scale", "fake_quantize.zero_point"} <= set(buffers)
    assert {n for n, _ in wrapped.named_parameters()} == {"layer.weight", "layer.bias"}


def test_channels_must_be_given_where_the_layer_does_not_tell() -> None:
    scheme = QuantScheme(int8, PerChannel(1))
    with pytest.raises(ArgumentError, match=r"ReLU does not tell how many scales PerChannel\(axis=1\) has") as caught:
        FakeQuantizeLayer(nn.ReLU(), scheme)
    assert "channels=" in str(caught.value)
    wrapped = FakeQuantizeLayer(nn.ReLU(), scheme, channels=4)
    wrapped(torch.randn(3, 4))
    assert wrapped.scale.shape == (4,)


def test_structures_are_kept() -> None:
    torch.manual_seed(0)
    wrapped = FakeQuantizeLayer(nn.LSTM(3, 4), QuantScheme(int8))
    y, (h, c) = wrapped(torch.randn(5, 2, 3))
    for tensor in (y, h, c):
        assert torch.equal(tensor, formula(tensor, wrapped.scale, wrapped.zero_point, wrapped.fake_quantize.scheme))


def test_gradients_reach_the_layer() -> None:
    layer = nn.Linear(6, 4)
    wrapped = FakeQuantizeLayer(layer, QuantScheme(int8))
    x = torch.randn(5, 6)
    wrapped(x)
    wrapped(x).sum().backward()
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, x.sum(0).expand(4, 6))


def test_a_layer_is_a_module() -> None:
    with pytest.raises(ArgumentTypeError, match="the layer is no module"):
        FakeQuantizeLayer(torch.relu, QuantScheme(uint8))  # type: ignore[arg-type]
