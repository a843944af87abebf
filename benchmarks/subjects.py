"""The models that are measured, as users write them: nothing here knows of quantization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from truequant.demo.models import LeNet


class Residual(nn.Module):
    """A basic block of He et al. 2016, section 4.2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


def residual_network(blocks: int, widths: tuple[int, ...] = (16, 32, 64), classes: int = 10) -> nn.Module:
    """A ResNet for images of 32 x 32: `2 * blocks * len(widths) + 2` layers."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
    inputs = widths[0]
    for position, width in enumerate(widths):
        for block in range(blocks):
            layers.append(Residual(inputs, width, 2 if position and not block else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class Inverted(nn.Module):
    """Sandler et al. 2018, table 1."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)]
        layers += [nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True)]
        self.body = nn.Sequential(*layers, nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 at full width (table 2), with the strides that images of 32 x 32 are given."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6(inplace=True)]
    inputs = 32
    for expansion, width, repeats, stride in _STAGES:
        for position in range(repeats):
            layers.append(Inverted(inputs, width, stride if position == 0 else 1, expansion))
            inputs = width
    layers += [nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 10))


class EncoderBlock(nn.Module):
    """Attention and a perceptron, each beside a shortcut; LayerNorm before (ViT) or behind them (BERT)."""

    def __init__(self, width: int, heads: int, hidden: int, before: bool) -> None:
        super().__init__()
        self.heads, self.before = heads, before
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def attention(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(n, length, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.before:
            x = x + self.attention(self.norm1(x))
            return x + self.down(F.gelu(self.up(self.norm2(x))))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class VisionTransformer(nn.Module):
    """A small ViT (Dosovitskiy et al. 2020) for images of 32 x 32: 64 patches, averaged at the end."""

    def __init__(self, width: int = 192, depth: int = 6, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 64, width) * 0.02)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, 4 * width, True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


class TextEncoder(nn.Module):
    """An encoder of BERT's size (Devlin et al. 2018: 12 layers of width 768, 12 heads), which classifies its first token."""

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12, words: int = 30522, length: int = 512) -> None:
        super().__init__()
        self.words, self.position = nn.Embedding(words, width), nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, 4 * width, False) for _ in range(depth)))
        self.head = nn.Linear(width, 10)
        self.register_buffer("order", torch.arange(length).unsqueeze(0), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.position(self.order[:, : ids.shape[1]]))
        return self.head(self.blocks(x)[:, 0])


@dataclass(frozen=True)
class Subject:
    """A model with its inputs. batch: the default, at which the goals stand; batches: the others of the long form."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    batch: int
    batches: tuple[int, ...]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]


def _images(channels: int, side: int) -> Callable[[int], Tensor]:
    return lambda batch: torch.randn(batch, channels, side, side)


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4)


SUBJECTS: dict[str, Subject] = {
    s.name: s
    for s in (
        Subject("LeNet", LeNet, _images(1, 28), 128, (1, 16, 256), _sgd),
        Subject("ResNet-20", lambda: residual_network(3), _images(3, 32), 64, (1, 8, 256), _sgd),
        Subject("MobileNetV2", mobilenet_v2, _images(3, 32), 32, (1, 8, 128), _sgd),
        Subject("ViT", VisionTransformer, _images(3, 32), 32, (1, 8, 128), _adamw),
        Subject("BERT-size", TextEncoder, lambda batch: torch.randint(0, 30522, (batch, 128)), 4, (1, 8), _adamw),
    )
}
