"""Names of inputs and outputs in ONNX files: those of the forward's arguments and of what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import truequant as tq

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


@dataclass
class Scores:
    logits: Tensor
    hidden: tuple[Tensor, ...]


class Pair(NamedTuple):
    mean: Tensor
    spread: Tensor


class Net(nn.Module):
    def __init__(self, returned: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.returned = nn.Linear(4, 4), returned

    def forward(self, x: Tensor, context: Tensor | None = None) -> Any:
        y = self.fc(x) if context is None else self.fc(x) + self.fc(context)
        return self.returned(y, torch.relu(y))


class OfDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.batch = nn.Linear(4, 4), nn.ReLU()

    def forward(self, batch: dict[str, Tensor], fc: Tensor) -> Tensor:
        return self.batch(self.fc(batch["left"]) + batch["right"] * fc)


def names(model: nn.Module, inputs: Any, path: Path) -> tuple[list[str], list[str]]:
    """Of the file of a model, which gives what the Int8 model does, before and after it was loaded, when it is fed by them."""
    qat = tq.prepare(model, inputs)
    tq.calibrate(qat, [inputs])
    int8 = tq.convert(qat.eval())
    tq.export_onnx(int8, path / "m.onnx")
    graph = onnx.load(path / "m.onnx").graph
    found = [i.name for i in graph.input], [o.name for o in graph.output]
    int8.save(path / "m.tq")
    again = tq.load(path / "m.tq").program
    assert [i.name for i in again.inputs] == found[0]
    assert tq.verify(qat, int8, [inputs]).codes_different == 0
    session = onnxruntime.InferenceSession(path / "m.onnx")
    tensors = torch.utils._pytree.tree_leaves(inputs)
    results = session.run(None, {name: x.numpy() for name, x in zip(found[0], tensors, strict=True)})
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    wanted = {id(t): t for t in torch.utils._pytree.tree_leaves(tuple(_plain(int8(*args, **kwargs))))}
    assert len(results) <= len(wanted)
    assert all(torch.equal(torch.from_numpy(a), b) for a, b in zip(results, wanted.values(), strict=False))
    return found


def _plain(result: Any) -> list[Any]:
    return list(result.values()) if isinstance(result, dict) else list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (lambda y, z: z, ["output"]),
        (lambda y, z: (z, y), ["output.0", "output.1"]),
        (lambda y, z: {"out": z, "aux": y}, ["out", "aux"]),
        (lambda y, z: Scores(y, (z,)), ["logits", "hidden.0"]),
        (lambda y, z: Pair(z, y), ["mean", "spread"]),
        (lambda y, z: {"fc": z, "aux": y}, ["relu_0.value", "aux"]),  # a layer has that name
    ],
    ids=["one", "tuple", "dict", "dataclass", "named", "taken"],
)
def test_outputs(returned: Callable[[Tensor, Tensor], Any], expected: list[str], tmp_path: Path) -> None:
    assert names(Net(returned), (X,), tmp_path) == (["x"], expected)


def test_inputs(tmp_path: Path) -> None:
    assert names(Net(lambda y, z: z), (X, X + 1), tmp_path) == (["x", "context"], ["output"])
    assert names(Net(lambda y, z: z), {"x": X, "context": X}, tmp_path) == (["x", "context"], ["output"])
    assert names(nn.Sequential(nn.Linear(4, 4)), (X,), tmp_path) == (["input"], ["output"])


def test_a_layer_that_returns_floats_keeps_its_name(tmp_path: Path) -> None:
    """Its weights are known by it, in the program and in reports."""
    qat = tq.prepare(nn.Sequential(nn.Linear(32, 4)), torch.randn(2, 32), "w4a16")
    tq.calibrate(qat, [torch.randn(2, 32)])
    tq.export_onnx(tq.convert(qat.eval()), tmp_path / "m.onnx")
    assert [o.name for o in onnx.load(tmp_path / "m.onnx").graph.output] == ["0"]


def test_a_name_that_a_layer_has(tmp_path: Path) -> None:
    """`batch` and `fc` are layers too, whose edges have these names."""
    inputs = ({"left": X, "right": X}, X)
    assert names(OfDict(), inputs, tmp_path) == (["batch.left", "batch.right", "fc.float"], ["output"])
