"""The demo's four models on all 10,000 genuine test images: not one code of one edge differs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import truequant as tq
from truequant.demo import MODELS, load_mnist


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["w8a8", "w8a8-pow2"])
@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet", "mobilenet"])
def test_every_code_of_every_edge(name: str, preset: str) -> None:
    torch.manual_seed(0)
    data = load_mnist()
    qat = tq.prepare(MODELS[name](), data.train_images[:8], preset)
    optimizer = torch.optim.SGD(qat.parameters(), 0.05, momentum=0.9)
    for step in range(60):
        rows = slice(64 * step, 64 * step + 64)
        optimizer.zero_grad()
        F.cross_entropy(qat(data.train_images[rows]), data.train_labels[rows]).backward()
        optimizer.step()
    int8 = tq.convert(qat.eval())
    report = tq.verify(qat, int8, data.test_images.split(250))
    assert report.codes_different == 0, str(report)
    assert report.outputs_different == report.argmax_changed == 0
    edges = sum(codes[0].numel() for codes in int8.codes(data.test_images[:1]).values())
    assert report.codes_compared == 2 * 10_000 * edges
