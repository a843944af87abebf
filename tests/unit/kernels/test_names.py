"""The compiled kernels read attributes by name: a name that no class has would switch a fast path off without a word."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

import truequant as tq
from truequant.fake import FakeQuantize, WeightQuantizer, quantizers

CSRC = Path(__file__).resolve().parents[3] / "csrc" / "bindings"


def read_by_kernels() -> set[str]:
    return {name for path in CSRC.iterdir() for name in re.findall(r'PyUnicode_InternFromString\("(\w+)"\)', path.read_text())}


def attributes(of: object) -> set[str]:
    """Names that are found by looking an attribute up: in the object, its tensors and its class."""
    tensors = {name for part in ("_parameters", "_buffers", "_modules") for name in getattr(of, part, ())}
    return set(vars(of)) | tensors | set(dir(type(of)))


def test_every_name_that_a_kernel_reads_is_an_attribute() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    qat = tq.prepare(model, torch.randn(2, 1, 8, 8), "w4a8")
    found = dict(quantizers(qat))
    activation = next(q for q in found.values() if isinstance(q, FakeQuantize))
    weight = next(q for q in found.values() if isinstance(q, WeightQuantizer))
    counting = FakeQuantize(tq.QuantScheme(tq.types.uint8, observer=tq.ranges.Histogram()))
    objects = (activation, activation.observer, counting.observer, weight, qat[1])
    known = {"__dict__"}.union(*map(attributes, objects))
    named = read_by_kernels()
    assert len(named) > 20
    assert named - known == set()
