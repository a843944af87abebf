"""Convolutional classifiers up to 2017: one path, residual paths, dense paths, branches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(True),
    )


def head(inputs: int, classes: int = 10) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class LeNetTanh(nn.Module):
    """LeCun et al. 1998: tanh and average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.f1, self.f2 = nn.Linear(16 * 25, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.tanh(self.c1(x)), 2)
        x = F.avg_pool2d(torch.tanh(self.c2(x)), 2)
        return self.f2(torch.tanh(self.f1(x.flatten(1))))


def alexnet() -> nn.Module:
    """Krizhevsky et al. 2012: large windows with strides, overlapping pooling, groups, three linear layers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 2), nn.ReLU(True), nn.MaxPool2d(3, 2), nn.Conv2d(8, 16, 5, padding=2, groups=2), nn.ReLU(True),
        nn.MaxPool2d(3, 2), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(True), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(144, 32), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(32, 24), nn.ReLU(True),
        nn.Linear(24, 10),
    )  # fmt: skip


def vgg() -> nn.Module:
    """Simonyan & Zisserman 2014, with BatchNorm."""
    layers: list[nn.Module] = []
    width = 3
    for out in (8, 16, 16):
        layers += [conv(width, out), conv(out, out), nn.MaxPool2d(2)]
        width = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 16, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down = None
        if stride != 1 or inputs != outputs:
            self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    """He et al. 2015; with groups, ResNeXt (Xie et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        outputs = width * 2
        self.body = nn.Sequential(
            conv(inputs, width, 1), conv(width, width, 3, stride, groups), nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )  # fmt: skip
        same = stride == 1 and inputs == outputs
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class PreActivation(nn.Module):
    """He et al. 2016: BatchNorm and ReLU in front."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(x)))) + self.shortcut(x)


def resnet() -> nn.Module:
    return nn.Sequential(conv(3, 8), BasicBlock(8, 8, 1), BasicBlock(8, 16, 2), BasicBlock(16, 16, 1), head(16))


def resnet_bottleneck() -> nn.Module:
    return nn.Sequential(conv(3, 8), Bottleneck(8, 8, 1), Bottleneck(16, 8, 1), Bottleneck(16, 16, 2), head(32))


def resnext() -> nn.Module:
    return nn.Sequential(conv(3, 8), Bottleneck(8, 8, 1, 4), Bottleneck(16, 16, 2, 4), head(32))


def wide_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), PreActivation(8, 24, 1), PreActivation(24, 32, 2), nn.BatchNorm2d(32),
        nn.ReLU(), head(32),
    )  # fmt: skip


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, parts: list[Tensor]) -> Tensor:
        return self.conv(F.relu(self.norm(torch.cat(parts, 1))))


class DenseNet(nn.Module):
    """Huang et al. 2016."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(DenseLayer(8 + 4 * i, 4) for i in range(3))
        self.transition = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2))
        self.head = head(10)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for layer in self.layers:
            parts.append(layer(parts))
        return self.head(self.transition(torch.cat(parts, 1)))


class Inception(nn.Module):
    """Szegedy et al. 2014: branches, and a second head that only training asks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.b1, self.b3 = conv(8, 4, 1), nn.Sequential(conv(8, 4, 1), conv(4, 8))
        self.b5 = nn.Sequential(conv(8, 4, 1), conv(4, 4, 5))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(8, 4, 1))
        self.aux, self.head = head(8), head(20)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = self.head(torch.cat([self.b1(x), self.b3(x), self.b5(x), self.pool(x)], 1))
        return (y, self.aux(x)) if self.training else y


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.cat([torch.relu(self.one(x)), torch.relu(self.three(x))], 1)


def squeezenet() -> nn.Module:
    """Iandola et al. 2016: pooling in ceil mode, a convolution as classifier."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(True), nn.MaxPool2d(3, 2, ceil_mode=True), Fire(8, 4, 8),
        nn.MaxPool2d(3, 2, ceil_mode=True), Fire(16, 4, 8), nn.Dropout(0.5), nn.Conv2d(16, 10, 1), nn.ReLU(True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class RepVgg(nn.Module):
    """Ding et al. 2021 in its training form: three branches that are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        self.three = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.one = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.identity, self.head = nn.BatchNorm2d(8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.three(x) + self.one(x) + self.identity(x)))
