"""What a plan says of float ops before anything is trained is what `convert` and `export_onnx` do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.errors import ConversionError, ExportError
from truequant.planning.float_ops import ISLAND_OPS, MOVING_OPS, ONNX_OPS


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(8, 8), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.linear(x))


X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "chance": (lambda y: y + torch.rand_like(y), "rand_like.default"),
    "as many as values say": (lambda y: y[y > 0], "whose shape depends on values"),
    "different values": (lambda y: torch.unique(y.round()), "_unique2.default"),
    "singular values": (lambda y: torch.linalg.svdvals(y), "linalg_svdvals.default"),
}
WITHOUT_ONNX: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "spectrum": (lambda y: torch.fft.rfft(y).abs(), "fft_rfft.default"),
    "distances": (lambda y: torch.cdist(y, y), "cdist.default"),
    "running products": (lambda y: torch.cumprod(y, -1), "cumprod.default"),
    "median": (lambda y: y.median(-1).values, "median.dim"),
}
HELD: dict[str, Callable[[Tensor], Any]] = {
    "log softmax": lambda y: y.log_softmax(-1),
    "cumulated": lambda y: y.cumsum(-1),
    "threshold": lambda y: F.threshold(y, 0.1, 0.0),
    "sorted": lambda y: y.sort(-1).values,
    "attention of few heads": lambda y: F.scaled_dot_product_attention(
        y[:, None].expand(-1, 2, -1, -1), y[:, None], y[:, None]
    ),
    "written into": lambda y: y.sort(-1).values.mul_(2).clamp_(-1, 1),
    "of its dtype": lambda y: y.new_zeros(8).cumsum(0) + y.softmax(-1),
}


def prepared(function: Callable[[Tensor], Any]) -> nn.Module:
    return tq.calibrate(tq.prepare(Net(function), X), [X], progress=False).eval()


@pytest.mark.parametrize("name", REFUSED)
def test_what_convert_will_refuse_is_said_by_plan_and_prepare(name: str) -> None:
    function, op = REFUSED[name]
    plan = tq.plan(Net(function), X)
    (site,) = plan.refused()
    assert op in site.refused[0]
    assert f"cannot be converted: no program holds {site.refused[0]}" in str(plan)
    with pytest.warns(UserWarning, match="tq.convert will refuse this model: no program holds") as caught:
        qat = prepared(function)
    assert len(caught) == 1
    assert f"'{site.name}' ({site.refused[0]})" in str(caught[0].message)
    with pytest.raises(ConversionError, match="no place in an integer program|as many elements as values say|no static graph"):
        tq.convert(qat)


@pytest.mark.parametrize("name", WITHOUT_ONNX)
def test_what_has_no_onnx_form_is_said_and_is_an_island_of_the_program(name: str, tmp_path: Path) -> None:
    function, op = WITHOUT_ONNX[name]
    plan = tq.plan(Net(function), X)
    (site,) = plan.without_onnx()
    assert site.without_onnx == (op,)
    assert f"no ONNX form: {op}" in str(plan)
    with pytest.warns(UserWarning, match=f"tq.export_onnx will refuse this model: no ONNX form is known of '{site.name}'"):
        qat = prepared(function)
    int8 = tq.convert(qat)
    int8.save(tmp_path / "m.tq")
    assert torch.equal(tq.load(tmp_path / "m.tq")(X), qat(X))
    with pytest.raises(ExportError, match=f"the float op {op} has no ONNX form"):
        tq.export_onnx(int8, tmp_path / "m.onnx")


@pytest.mark.parametrize("name", HELD)
def test_nothing_is_said_of_what_every_file_holds(name: str, tmp_path: Path) -> None:
    plan = tq.plan(Net(HELD[name]), X)
    assert plan.in_float()
    assert plan.refused() == plan.without_onnx() == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qat = prepared(HELD[name])
    tq.export_onnx(tq.convert(qat), tmp_path / "m.onnx")


def test_a_plan_keeps_what_it_says_of_files() -> None:
    plan = tq.plan(Net(WITHOUT_ONNX["spectrum"][0]), X)
    assert tq.Plan.from_json(plan.to_json()) == plan


def test_the_table_names_pure_ops_that_torch_has() -> None:
    for name in ISLAND_OPS | MOVING_OPS:
        packet, overload = name.split(".")
        schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
        assert name in MOVING_OPS or not schema.is_mutable, name
    assert ONNX_OPS <= ISLAND_OPS
