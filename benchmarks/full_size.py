"""Models of ImageNet's size, as their papers describe them: nothing here knows of quantization."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size but for its stride, and its BatchNorm."""
    padding = kernel // 2
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(outputs)]


class Bottleneck(nn.Module):
    """He et al. 2016, figure 5; the stride is that of the middle convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        first = [*convolution(inputs, width, 1), nn.ReLU(inplace=True)]
        middle = [*convolution(width, width, 3, stride), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*first, *middle, *convolution(width, 4 * width, 1))
        changes = stride != 1 or inputs != 4 * width
        self.shortcut = nn.Sequential(*(convolution(inputs, 4 * width, 1, stride) if changes else ()))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return y


def resnet_50() -> nn.Module:
    """ResNet-50 (He et al. 2016, table 1) for images of 224 x 224."""
    layers: list[nn.Module] = [*convolution(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for position, (width, repeats) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(repeats):
            layers.append(Bottleneck(inputs, width, 2 if position and not block else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


class SqueezeExcitation(nn.Module):
    """Hu et al. 2018, with the hard sigmoid of MobileNetV3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _divisible(channels / 4)
        self.pool, self.squeeze = nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, squeezed, 1)
        self.relu, self.excite, self.gate = nn.ReLU(inplace=True), nn.Conv2d(squeezed, channels, 1), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.gate(self.excite(self.relu(self.squeeze(self.pool(x)))))
        return y


class InvertedV3(nn.Module):
    """A block of Howard et al. 2019, figure 4."""

    def __init__(self, inputs: int, wide: int, outputs: int, kernel: int, stride: int, squeeze: bool, hard: bool) -> None:
        super().__init__()
        activation: Callable[..., nn.Module] = nn.Hardswish if hard else nn.ReLU
        layers: list[nn.Module] = []
        if wide != inputs:
            layers += [*convolution(inputs, wide, 1), activation(inplace=True)]
        layers += [*convolution(wide, wide, kernel, stride, wide), activation(inplace=True)]
        layers += [SqueezeExcitation(wide)] if squeeze else []
        self.body = nn.Sequential(*layers, *convolution(wide, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x) if self.residual else self.body(x)
        return y


_LARGE = (
    (3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2), (3, 72, 24, False, False, 1), (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1), (3, 240, 80, False, True, 2), (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1), (3, 184, 80, False, True, 1), (3, 480, 112, True, True, 1), (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2), (5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1),
)  # fmt: skip
"""Kernel, width within, outputs, squeeze and excitation, hard swish, stride: table 1 of Howard et al. 2019."""


def mobilenet_v3() -> nn.Module:
    """MobileNetV3-Large for images of 224 x 224."""
    layers: list[nn.Module] = [*convolution(3, 16, 3, 2), nn.Hardswish(inplace=True)]
    inputs = 16
    for kernel, wide, outputs, squeeze, hard, stride in _LARGE:
        layers.append(InvertedV3(inputs, wide, outputs, kernel, stride, squeeze, hard))
        inputs = outputs
    layers += [*convolution(inputs, 960, 1), nn.Hardswish(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(960, 1280), nn.Hardswish(inplace=True), nn.Dropout(0.2), nn.Linear(1280, 1000))


def _divisible(channels: float) -> int:
    """The nearest multiple of 8 that is not a tenth less."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


__all__ = ["mobilenet_v3", "resnet_50"]
