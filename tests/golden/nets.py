"""The nets of the golden files. Their forwards never change: files of old versions are loaded into them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def filled(shape: tuple[int, ...], period: int) -> Tensor:
    """Values in [-1, 1] that no random generator of any torch changes."""
    return (torch.arange(math.prod(shape)) * 37 % period).reshape(shape) / (period - 1) * 2 - 1


class Convolutions(nn.Module):
    """Integer nodes of convolutional nets: layers of every kind, sums, tables, pooling, joins, resizes, products."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = F.hardswish(self.depthwise(x)) + x
        y = y * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1)))
        small = F.max_pool2d(y, 2)
        wide = torch.cat((F.interpolate(small, scale_factor=2.0), self.up(small)), 1)
        return self.head(F.avg_pool2d(F.pad(wide, (1, 1, 1, 1)), 6).flatten(1))


class Attention(nn.Module):
    """Ids, tables, linear layers, products of activations, and float islands between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, 32)
        self.queries, self.keys, self.values = (nn.Linear(32, 32) for _ in range(3))
        self.norm = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 16)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        weights = torch.softmax(self.queries(x) @ self.keys(x).transpose(1, 2) / 5.0, -1)
        return self.down(F.gelu(self.up(self.norm(x + weights @ self.values(x)))))


class Recurrent(nn.Module):
    """Recurrent layers between integer ones."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(6, 8)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.lstm = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.gru(F.relu(self.into(x)))[0])[0][:, -1])


NETS: dict[str, tuple[type[nn.Module], Tensor]] = {
    "convolutions": (Convolutions, filled((4, 3, 16, 16), 101)),
    "attention": (Attention, torch.arange(2 * 6).reshape(2, 6) * 5 % 16),
    "recurrent": (Recurrent, filled((2, 5, 6), 23)),
}


def net(name: str) -> nn.Module:
    """The net, its parameters filled by formula."""
    built = NETS[name][0]()
    with torch.no_grad():
        for index, parameter in enumerate(built.parameters()):
            parameter.copy_(filled(tuple(parameter.shape), 61 + 2 * index) * 0.5)
    return built
