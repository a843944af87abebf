"""Recurrent and attention models."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Recurrent(nn.Module):
    """Word vectors, a recurrent layer, an answer from its last step."""

    def __init__(self, kind: type[nn.RNNBase], layers: int, both: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 12)
        self.layer = kind(12, 16, num_layers=layers, batch_first=True, bidirectional=both)
        self.out = nn.Linear(32 if both else 16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        y, _ = self.layer(self.words(ids))
        return self.out(y[:, -1])


class Attention(nn.Module):
    """Attention written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(60, 16), nn.Parameter(torch.randn(1, 12, 16) * 0.1)
        self.qkv, self.project, self.norm, self.out = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places[:, : ids.shape[1]]
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(8), -1)
        x = self.norm(x + self.project((weights @ v).transpose(1, 2).reshape(n, length, 16)))
        return self.out(x.mean(1))


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.out = (
            nn.Linear(8, 16),
            nn.MultiheadAttention(16, 4, batch_first=True),
            nn.Linear(16, 5),
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.embed(x)
        z, _ = self.attention(y, y, y, key_padding_mask=mask)
        return self.out((y + z).mean(1))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
        self.out = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.encoder(self.words(ids)).mean(1))


class Translator(nn.Module):
    """nn.Transformer with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(60, 16), nn.Linear(16, 60)
        self.transformer = nn.Transformer(16, 4, 1, 1, 32, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.out(self.transformer(self.words(source), self.words(target), tgt_mask=mask))


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2020: a class token, learned places, blocks that normalize first."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.zeros(1, 1, 16))
        self.places = nn.Parameter(torch.randn(1, 17, 16) * 0.02)
        layer = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.out(self.norm(self.blocks(x))[:, 0])


class TextCnn(nn.Module):
    """Kim 2014."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 12)
        self.convs = nn.ModuleList(nn.Conv1d(12, 8, k) for k in (2, 3, 4))
        self.out = nn.Linear(24, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids).transpose(1, 2)
        return self.out(torch.cat([F.relu(c(x)).amax(2) for c in self.convs], 1))
