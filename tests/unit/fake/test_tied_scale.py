"""In training, a weight whose scale is tied to its BatchNorm is quantized as the folded weight will be."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import truequant as tq


def test_training_uses_the_grid_of_the_folded_weight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.2, -3.0, 1.0]))
        model[1].running_var.copy_(torch.tensor([4.0, 0.5, 1.0]))
    x = torch.randn(4, 2, 6, 6)
    qat = tq.prepare(model, x, "w8a8-per-tensor")
    quantizer = dict(tq.quantizers(qat))["0.weight"]
    used: list[Tensor] = []
    quantizer.register_forward_hook(lambda module, args, output: used.append(output.detach()))
    norm = qat[1]
    factor = (norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)).detach().reshape(-1, 1, 1, 1)
    weight = qat[0].weight.detach().double()
    qat(x)
    codes = used[0].double() * factor / quantizer.scale.double()
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert torch.allclose(codes, weight * factor / quantizer.scale.double(), atol=0.501)
    assert codes.abs().max().round() == 127
