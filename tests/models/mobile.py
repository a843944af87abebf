"""Small convolutional classifiers: depthwise layers, squeeze and excitation, shuffles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.classic import conv, head


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, inputs, 3, stride, inputs), conv(inputs, outputs, 1))


def mobilenet_v1() -> nn.Module:
    return nn.Sequential(conv(3, 8), separable(8, 16, 1), separable(16, 24, 2), separable(24, 24, 1), head(24))


class Xception(nn.Module):
    """Chollet 2016: depthwise and pointwise layers with nothing between them, a ReLU in front, strided shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shortcut = conv(3, 8), nn.Conv2d(8, 16, 1, 2, bias=False)
        self.first, self.second, self.head = self.plain(8, 16), self.plain(16, 16), head(16)

    @staticmethod
    def plain(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False), nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.max_pool2d(self.first(x), 3, 2, 1) + self.shortcut(x)
        return self.head(F.relu(y + self.second(F.relu(y))))


class SqueezeExcite(nn.Module):
    """Hu et al. 2017."""

    def __init__(self, width: int, gate: type[nn.Module]) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Inverted(nn.Module):
    """Sandler et al. 2018; with squeeze and excitation Howard et al. 2019 and Tan & Le 2019, there with dropped paths."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        act: type[nn.Module],
        gate: type[nn.Module] | None = None,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        width, self.drop = inputs * 2, drop
        layers = [nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), act()]
        layers += [nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width), act()]
        if gate is not None:
            layers.append(SqueezeExcite(width, gate))
        self.body = nn.Sequential(*layers, nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.training and self.drop:
            keep = torch.rand(x.shape[0], 1, 1, 1) >= self.drop
            y = y * keep / (1 - self.drop)
        return x + y if self.residual else y


def _mobile(act: type[nn.Module], gate: type[nn.Module] | None, drop: float = 0.0) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), act())
    blocks = [Inverted(8, 8, 1, act, gate, drop), Inverted(8, 16, 2, act, gate, drop), Inverted(16, 16, 1, act, gate, drop)]
    return nn.Sequential(stem, *blocks, nn.Conv2d(16, 32, 1), act(), head(32))


def mobilenet_v2() -> nn.Module:
    return _mobile(nn.ReLU6, None)


def mobilenet_v3() -> nn.Module:
    return _mobile(nn.Hardswish, nn.Hardsigmoid)


def efficientnet() -> nn.Module:
    return _mobile(nn.SiLU, nn.Sigmoid, 0.2)


def mnasnet() -> nn.Module:
    return _mobile(nn.ReLU, nn.Sigmoid)


class Shuffle(nn.Module):
    """Ma et al. 2018: one half passes by, then channels are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.body = nn.Sequential(
            conv(half, half, 1),
            nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            conv(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        y = torch.cat((left, self.body(right)), dim=1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet() -> nn.Module:
    return nn.Sequential(conv(3, 16, 3, 2), Shuffle(16), Shuffle(16), head(16))


class Ghost(nn.Module):
    """Han et al. 2019: half of the channels are cheap maps of the other half."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.primary, self.cheap = conv(inputs, outputs // 2, 1), conv(outputs // 2, outputs // 2, 3, 1, outputs // 2)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)[:, : self.outputs]


def ghostnet() -> nn.Module:
    return nn.Sequential(conv(3, 8, 3, 2), Ghost(8, 16), Ghost(16, 24), SqueezeExcite(24, nn.Hardsigmoid), head(24))


class RegNetBlock(nn.Module):
    """Radosavovic et al. 2020."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = conv(width, width, 1), conv(width, width, 3, 1, 2)
        self.se = SqueezeExcite(width, nn.Sigmoid)
        self.c = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.c(self.se(self.b(self.a(x)))))


def regnet() -> nn.Module:
    return nn.Sequential(conv(3, 16, 3, 2), RegNetBlock(16), RegNetBlock(16), head(16))


class Cbam(nn.Module):
    """Woo et al. 2018: channel attention from two poolings, then spatial attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.shared = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1))
        self.spatial, self.head = nn.Conv2d(2, 1, 7, padding=3), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.shared(F.adaptive_avg_pool2d(x, 1)) + self.shared(F.adaptive_max_pool2d(x, 1)))
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.head(x * self.spatial(pooled).sigmoid())


class ConvNextBlock(nn.Module):
    """Liu et al. 2022: LayerNorm on the last axis, GELU, a learned factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 4, 4), ConvNextBlock(16), ConvNextBlock(16), head(16))
