"""Models with an answer for each place, several answers, or other than two axes of space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.classic import conv, head


class Unet(nn.Module):
    """Ronneberger et al. 2015, going up by transposed convolutions or by interpolation."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.down1, self.down2, self.bottom = conv(3, 8), conv(8, 16), conv(16, 16)
        self.up = nn.ConvTranspose2d(16, 16, 2, 2) if mode == "transposed" else nn.Identity()
        self.up1, self.up2 = conv(32, 8), conv(16, 8)
        self.deconv = nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=8)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.up(self.bottom(F.max_pool2d(b, 2)))
        if self.mode == "bilinear":
            y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        y = self.up1(torch.cat([b, y], 1))
        return self.out(self.up2(torch.cat([a, self.deconv(y)], 1)))


class Hourglass(nn.Module):
    """Newell et al. 2016: down and up again around a residual of the same size, twice, each with its heat maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 8, 3, 2)
        self.sides, self.inner = (nn.ModuleList(conv(8, 8) for _ in range(2)) for _ in range(2))
        self.maps = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(2))
        self.back = nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = self.stem(x), []
        for side, inner, maps in zip(self.sides, self.inner, self.maps, strict=True):
            y = side(x) + F.interpolate(inner(F.max_pool2d(x, 2)), scale_factor=2)
            found.append(maps(y))
            x = x + y + self.back(found[-1])
        return found


class DeepLab(nn.Module):
    """Chen et al. 2017: dilated windows side by side with the mean of the image, interpolated to its size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 3, 2), conv(8, 16, 3, 2))
        self.branches = nn.ModuleList(nn.Conv2d(16, 8, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.image, self.project, self.out = conv(16, 8, 1), conv(32, 16, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        mean = F.interpolate(self.image(F.adaptive_avg_pool2d(y, 1)), scale_factor=8.0)
        y = self.project(torch.cat([*(F.relu(branch(y)) for branch in self.branches), mean], 1))
        return F.interpolate(self.out(y), scale_factor=4, mode="bilinear", align_corners=False)


class HighResolution(nn.Module):
    """Wang et al. 2019: two resolutions that exchange their maps."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = conv(3, 8), conv(8, 16, 3, 2)
        self.to_low = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        self.to_high = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = head(24)

    def forward(self, x: Tensor) -> Tensor:
        high = self.high(x)
        low = self.low(high)
        up = F.interpolate(self.to_high(low), scale_factor=2, mode="nearest")
        high, low = F.relu(high + up), F.relu(low + self.to_low(high))
        return self.head(torch.cat([F.avg_pool2d(high, 2), low], 1))


class SuperResolution(nn.Module):
    """Shi et al. 2016: pixel shuffle, PReLU, a residual over the whole image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Conv2d(3, 12, 5, padding=2), nn.PReLU(), nn.Conv2d(12, 12, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.b(self.act(self.a(x)))) + F.interpolate(x, scale_factor=2)


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 8, 4, 2, 1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 3, 3, 2, 1, 1), nn.Sigmoid(),
    )  # fmt: skip


class Yolo(nn.Module):
    """Redmon & Farhadi 2018, Bochkovskiy et al. 2020: LeakyReLU, cross-stage parts, spatial pyramid pooling, three heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1))
        self.part1, self.part2, self.join = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 16, 1)
        self.deep, self.mix = nn.Conv2d(64, 16, 1), nn.Conv2d(32, 16, 1)
        self.heads = nn.ModuleList(nn.Conv2d(16, 3 * 7, 1) for _ in range(2))

    def forward(self, x: Tensor) -> dict[str, list[Tensor] | Tensor]:
        x = self.stem(x)
        x = F.leaky_relu(self.join(torch.cat([F.leaky_relu(self.part1(x), 0.1), self.part2(x)], 1)), 0.1)
        small = F.max_pool2d(x, 2)
        pyramid = [small, *(F.max_pool2d(small, k, 1, k // 2) for k in (3, 5, 7))]
        small = F.leaky_relu(self.deep(torch.cat(pyramid, 1)), 0.1)
        large = self.mix(torch.cat([x, F.interpolate(small, scale_factor=2.0)], 1))
        found = [h(t) for h, t in zip(self.heads, (large, small), strict=True)]
        n = x.shape[0]
        return {"boxes": [y.view(n, 3, 7, y.shape[2], y.shape[3]).permute(0, 1, 3, 4, 2) for y in found], "large": large}


class Pyramid(nn.Module):
    """Lin et al. 2017: a feature pyramid with GroupNorm heads."""

    def __init__(self) -> None:
        super().__init__()
        self.c2, self.c3 = conv(3, 8, 3, 2), conv(8, 16, 3, 2)
        self.l2, self.l3 = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)
        self.smooth, self.norm, self.out = nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        c2 = self.c2(x)
        p3 = self.l3(self.c3(c2))
        p2 = self.l2(c2) + F.interpolate(p3, size=c2.shape[-2:])
        y = self.out(F.relu(self.norm(self.smooth(p2))))
        return F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)


class Temporal(nn.Module):
    """Bai et al. 2018: dilated causal convolutions over time, the tail cut off."""

    def __init__(self) -> None:
        super().__init__()
        convs = (nn.Conv1d(8, 8, 3, padding=2 * d, dilation=d) for d in (1, 2))
        self.layers = nn.ModuleList(nn.utils.parametrizations.weight_norm(c) for c in convs)
        self.stem, self.out = nn.Conv1d(4, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            y = layer(x)
            x = torch.relu(x + torch.relu(y[:, :, : x.shape[2]]))
        return self.out(x[:, :, -1])


def video() -> nn.Module:
    """Tran et al. 2014."""
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d((1, 2, 2)), nn.Conv3d(8, 8, 3, padding=1),
        nn.ReLU(),        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 6),
    )  # fmt: skip


@dataclass
class Comparison:
    distance: Tensor
    features: tuple[Tensor, Tensor]


torch.utils._pytree.register_dataclass(Comparison)


class Siamese(nn.Module):
    """One tower called twice, two inputs, a dataclass out."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(conv(3, 8, 3, 2), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 16))
        self.out = nn.Linear(16, 1)

    def forward(self, left: Tensor, right: Tensor) -> Comparison:
        a, b = self.tower(left), self.tower(right)
        return Comparison(self.out((a - b).abs()), (a, b))


class Arithmetic(nn.Module):
    """Numbers, learned and written, in every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale, self.head = nn.Conv2d(3, 8, 3), nn.Parameter(torch.tensor(0.7)), head(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(2 * x - 1)
        z = (1 - y) / 3 + self.scale * y
        z -= y.relu() * 0.5
        return self.head(z.clamp(-2, 2) + -y)


def fully_convolutional() -> nn.Module:
    """Nothing in it knows the size of the image."""
    return nn.Sequential(conv(3, 8), conv(8, 8, 3, 2), nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 1))


class Mixer(nn.Module):
    """Tolstikhin et al. 2021."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.norm1, self.norm2, self.norm = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(16)
        self.tokens = nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16))
        self.channels = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.out = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.out(self.norm(x).mean(1))
