"""`FakeQuantizeLayer`: a layer of any kind whose result is fake-quantized."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from truequant.errors import ArgumentError, ArgumentTypeError
from truequant.fake.quantizers import FakeQuantize
from truequant.schemes import PerChannel, PerGroup, QuantScheme

_CHANNELS = ("out_channels", "out_features", "num_features", "num_channels", "embedding_dim", "hidden_size")


class FakeQuantizeLayer(nn.Module):
    """An ordinary module that holds `layer` and fake-quantizes the floating point tensors that it returns.

    Scale and zero point live in buffers of their final shape, so that a state loads before the first forward. They follow
    the data in `train()` and hold still in `eval()`.

    channels: how many scales a per-channel scheme has (the shape, for a per-group one); layers that know their own number
        of output channels need not be told.
    Raises `ArgumentError` where it is needed and neither given nor known.

    >>> import torch
    >>> from truequant.schemes import QuantScheme, uint8
    >>> layer = FakeQuantizeLayer(nn.Linear(4, 2), QuantScheme(uint8))
    >>> layer(torch.randn(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, layer: nn.Module, scheme: QuantScheme, channels: int | tuple[int, ...] | None = None) -> None:
        super().__init__()
        if not isinstance(layer, nn.Module):
            raise ArgumentTypeError("FakeQuantizeLayer: the layer is no module", got=type(layer).__name__, expected="nn.Module")
        self.layer = layer
        self.fake_quantize = FakeQuantize(scheme, _channels(layer, scheme) if channels is None else channels)
        self.fake_quantize.name = type(layer).__name__

    @property
    def scale(self) -> Tensor:
        """The scale in force, float32, `()` or `(channels,)`."""
        return self.fake_quantize.effective_scale()

    @property
    def zero_point(self) -> Tensor:
        """The zero point, an integer carried by float32, of the shape of `scale`."""
        return self.fake_quantize.zero_point

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer returns, quantized."""
        return pytree.tree_map(self._quantized, self.layer(*args, **kwargs))

    def _quantized(self, leaf: Any) -> Any:
        return self.fake_quantize(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _channels(layer: nn.Module, scheme: QuantScheme) -> int | None:
    if not isinstance(scheme.granularity, (PerChannel, PerGroup)):
        return None
    known: int | None = next((getattr(layer, name) for name in _CHANNELS if isinstance(getattr(layer, name, None), int)), None)
    if known is None or isinstance(scheme.granularity, PerGroup):
        raise ArgumentError(
            f"FakeQuantizeLayer: {type(layer).__name__} does not tell how many scales {scheme.granularity} has",
            got="channels=None",
            expected="the number of channels, or the shape of the groups",
            fix=f"FakeQuantizeLayer({type(layer).__name__}(…), scheme, channels=…)",
        )
    return known
