"""A printed plan: what a reader looks for, within the width of a page."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import truequant as tq


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first_projection, self.second_projection = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.second_projection(torch.relu(self.first_projection(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedded = nn.Embedding(9, 8)
        self.encoder_of_all_the_texts_of_it = nn.ModuleList([Block(), Block()])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedded(ids)
        for block in self.encoder_of_all_the_texts_of_it:
            x = block(x)
        return x


def test_sites_stand_below_their_module_and_long_names_are_short() -> None:
    printed = str(tq.plan(Net(), torch.zeros(2, 3, dtype=torch.long)))
    lines = printed.splitlines()
    assert max(map(len, lines[:-1])) < 150
    at = lines.index("encoder_of_all_the_texts_of_it.1:")
    rows = [" ".join(line.split()) for line in lines[at + 1 : at + 6]]
    assert rows == [
        "first_projection linear int7 channel 0 …0.add_0 uint8 symmetric integer layer, weight narrowed",
        "relu_0 relu_0 in first_projection computed with first_projection",
        "second_projection linear int7 channel 0 relu_0 uint8 integer layer, weight narrowed",
        "norm layer_norm second_projection.output uint8 integer sums of a row, then float32 step by step",
        "add_0 …0.add_0, norm.output uint8 integer add",
    ]
    assert " ".join(lines[2].split()) == "input_0 input int64 model input"
