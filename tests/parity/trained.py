"""A few steps of training, and the comparison of all forms that follows, for tests of what folds into a layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import truequant as tq


def trained(model: nn.Module, config: str, steps: int = 3, rate: float = 0.05) -> nn.Module:
    """The model, prepared for images (4, 3, 9, 9), after some steps of SGD."""
    generator = torch.Generator().manual_seed(1)
    qat = tq.prepare(model, torch.rand(4, 3, 9, 9), config).train()
    optimizer = torch.optim.SGD(qat.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        qat(torch.rand(4, 3, 9, 9, generator=generator)).square().mean().backward()
        optimizer.step()
    return qat


def trained_on(kind: type[nn.Module], example: Callable[..., Tensor], config: tq.QConfig | str | None = None) -> nn.Module:
    """A model of `kind`, evaluated, after three steps of SGD on batches of several sizes. example: of a model and a size."""
    torch.manual_seed(0)
    model = kind()
    qat = tq.prepare(model, example(model), config).train()
    optimizer = torch.optim.SGD(qat.parameters(), 0.05)
    for batch in (4, 5, 6):
        optimizer.zero_grad()
        qat(example(model, batch)).square().mean().backward()
        optimizer.step()
    return qat.eval()


def codes_are_equal(qat: nn.Module, x: Tensor, tmp_path: Path) -> tq.Int8Model:
    """Evaluation, program, onnxruntime and the loaded file give the same codes; the converted model."""
    int8 = tq.convert(qat.eval())
    report = tq.verify(qat, int8, [x], runtimes=("reference", "onnxruntime"))
    assert report.codes_compared > 0
    assert report.codes_different == 0
    assert all(r.codes_different == 0 for r in report.runtimes.values())
    int8.save(tmp_path / "model.tq")
    assert torch.equal(tq.load(tmp_path / "model.tq")(x), int8(x))
    return int8
