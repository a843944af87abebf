"""What has no part in a result: tensors that are an example of a shape or dtype, and constants made like them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import truequant as tq


class Net(nn.Module):
    def __init__(self, function: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.function = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), function
        self.register_buffer("positions", torch.linspace(-1, 1, 4).reshape(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.function(self, self.conv(x)))
        return y


def grid(net: Net, y: Tensor) -> Tensor:
    down, right = torch.meshgrid(torch.arange(4).type_as(y), torch.arange(4).type_as(y), indexing="ij")
    return y * right + down


CONSTANTS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "meshgrid": grid,
    "to": lambda net, y: y + torch.arange(4).to(y),
    "buffer": lambda net, y: y + net.positions.type_as(y),  # type: ignore[operator]
    "expanded": lambda net, y: y + net.positions.expand_as(y),  # type: ignore[operator]
    "computed": lambda net, y: y * torch.exp(-torch.arange(4).type_as(y)),
    "triangle": lambda net, y: y * torch.tril(torch.ones(4, 4)).type_as(y),
    "number": lambda net, y: y * y.new_tensor(2.0),
    "list": lambda net, y: y * y.new_tensor([[1.0, 2.0, 3.0, 4.0]]),
}
MOVEMENTS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "expand_as": lambda net, y: y * y.mean((2, 3), keepdim=True).sigmoid().expand_as(y),
    "view_as": lambda net, y: y.flatten(1).relu().view_as(y),
    "reshape_as": lambda net, y: y.flatten(1).relu().reshape_as(y),
    "type_as": lambda net, y: y.type_as(net.positions) + y,  # type: ignore[arg-type]
    "places": lambda net, y: y[:, torch.tensor([3, 1, 0, 2])],
    "places behind an ellipsis": lambda net, y: y[..., torch.arange(3, -1, -1)],
    "index_select": lambda net, y: torch.index_select(y, dim=1, index=torch.tensor([3, 1, 0, 2])),
}


def deployed(model: nn.Module) -> tuple[list[str], int]:
    """What the plan leaves in float, and how many codes differ between evaluation and onnxruntime."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 4, 4)
    plan = tq.plan(model, x)
    qat = tq.prepare(model, x, plan).train()
    qat(x).sum().backward()
    tq.calibrate(qat, [x], progress=False)
    report = tq.verify(qat.eval(), tq.convert(qat), [x], runtimes=("onnxruntime",))
    assert report.codes_compared > 0
    return [s.name for s in plan.in_float()], report.runtimes["onnxruntime"].codes_different


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_stays_one(name: str) -> None:
    assert deployed(Net(CONSTANTS[name])) == ([], 0)


@pytest.mark.parametrize("name", MOVEMENTS)
def test_moves_codes(name: str) -> None:
    assert deployed(Net(MOVEMENTS[name])) == ([], 0)


def test_places_of_the_batch_are_no_constant_places() -> None:
    plan = tq.plan(Net(lambda net, y: y[torch.tensor([1, 0])]), torch.rand(2, 3, 4, 4))
    assert [(s.name, s.reason) for s in plan.in_float()] == [("getitem_0", "indexed by a tensor")]
