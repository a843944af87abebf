"""Four float models for 28 x 28 images, in plain PyTorch: nothing here knows of quantization."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp() -> nn.Sequential:
    """784-256-256-10, with BatchNorm."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 256), nn.BatchNorm1d(256), nn.ReLU(),
        nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.1),
        nn.Linear(256, 10),
    )  # fmt: skip


class LeNet(nn.Module):
    """Two convolutions, two linear layers; activations and pooling are functions, as in most tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 5, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.hidden = nn.Linear(512, 128)
        self.classifier = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        x = F.relu(self.hidden(torch.flatten(x, 1)))
        return self.classifier(x)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, "Deep Residual Learning", figure 2)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.shortcut.append(nn.Conv2d(channels_in, channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y)) + self.shortcut(x)
        return self.relu(y)


class ResNet(nn.Module):
    """Four residual blocks of 16 to 96 channels behind an early stride: 300,858 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layers = nn.Sequential(
            ResidualBlock(16, 16, 1), ResidualBlock(16, 32, 2), ResidualBlock(32, 96, 2), ResidualBlock(96, 96, 1)
        )
        self.classifier = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.relu(self.norm(self.conv(x))))
        return self.classifier(x.mean(dim=(2, 3)))


class InvertedResidual(nn.Module):
    """Expand, filter each channel alone, project without an activation (Sandler et al. 2018, "MobileNetV2", table 1)."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.residual = stride == 1 and channels_in == channels
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True),
            nn.Conv2d(wide, wide, 3, stride, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True),
            nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNet(nn.Module):
    """MobileNetV2 in small: five inverted residuals, two of them with a residual add that no activation follows."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True),
            InvertedResidual(16, 24, 2, 3), InvertedResidual(24, 24, 1, 3),
            InvertedResidual(24, 40, 2, 3), InvertedResidual(40, 40, 1, 3), InvertedResidual(40, 96, 1, 6),
            nn.Conv2d(96, 384, 1, bias=False), nn.BatchNorm2d(384), nn.ReLU6(inplace=True),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(384, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


lenet, resnet, mobilenet = LeNet, ResNet, MobileNet
MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "lenet": lenet, "resnet": resnet, "mobilenet": mobilenet}
