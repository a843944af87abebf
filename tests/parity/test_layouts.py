"""Float islands read one layout of memory in evaluation and in the program, whatever views the forward makes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.fake.layouts import on_contiguous


class Chain(nn.Module):
    """What computes codes, a movement, and what is left in float."""

    def __init__(self, stem: nn.Module, rest: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.rest = stem, rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.stem(x))


def _sum_of_views(y: Tensor) -> Tensor:
    return (y.transpose(2, 3) + y.transpose(2, 3)).exp().mean((-1, -2))


def _heads(y: Tensor) -> Tensor:
    n, length, width = y.shape
    q, k, v = y.reshape(n, length, 3, 4, width // 12).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width // 3)


def _einsum_heads(y: Tensor) -> Tensor:
    q, k, v = (t.view(*t.shape[:2], 4, -1) for t in y.chunk(3, -1))
    return torch.einsum("bhlm,bmhd->blhd", torch.einsum("blhd,bmhd->bhlm", q, k).softmax(-1), v).flatten(2)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "mean of a sum of views": (lambda: nn.Conv2d(3, 64, 3), _sum_of_views),
    "mean of pixels last": (lambda: nn.Conv2d(3, 64, 3), lambda y: (y.permute(0, 2, 3, 1) * 2.5).exp().mean((-1, -2))),
    "sum over channels": (lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU()), lambda y: _sum_of_views(y).exp().sum(1)),
    "attention over images": (nn.Hardswish, lambda y: F.scaled_dot_product_attention(y, y, y)),
    "norm": (nn.Hardswish, lambda y: F.normalize(y.transpose(2, 3) + y.transpose(2, 3).contiguous(), dim=1)),
    "group norm": (lambda: nn.Conv2d(3, 64, 3), lambda y: F.group_norm(y, 4)),
    "float convolution": (lambda: nn.Softmax(1), lambda y: F.conv2d(y, torch.ones(4, 3, 3, 3).contiguous(memory_format=CL))),
    "attention of heads": (lambda: nn.Sequential(Tokens(), nn.Linear(3, 96)), _heads),
    "attention by einsum": (lambda: nn.Sequential(Tokens(), nn.Linear(3, 96)), _einsum_heads),
}
CL = torch.channels_last


class Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("formats", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("name", CASES)
def test_islands_read_what_the_program_reads(name: str, formats: tuple[int, int]) -> None:
    torch.manual_seed(0)
    stem, rest = CASES[name]
    model, x = Chain(stem(), rest), torch.randn(4, 3, 17, 15)
    model = model.to(memory_format=CL) if formats[0] else model  # type: ignore[call-overload]
    x = x.to(memory_format=CL) if formats[1] else x
    qat = tq.prepare(model, x)
    tq.calibrate(qat, [x])
    int8 = tq.convert(qat.eval())
    with torch.no_grad():
        assert torch.equal(qat(x), int8(x))


def test_a_view_goes_on_working_behind_a_contiguous_result() -> None:
    """Channels last, this view merges axes that lie behind each other; behind a contiguous softmax they do not."""
    model = Chain(nn.Conv2d(3, 8, 3), lambda y: y.softmax(1).permute(0, 2, 3, 1).view(y.shape[0], -1, 8)).to(memory_format=CL)
    x = torch.randn(4, 3, 9, 7).to(memory_format=CL)
    qat = tq.prepare(model, x)
    tq.calibrate(qat, [x])
    assert torch.equal(qat.eval()(x), tq.convert(qat)(x))


def test_a_view_that_is_written_into_keeps_its_base() -> None:
    """A view of a copy, or a copy that is overwritten, would leave the tensor itself as it was."""
    y = torch.ones(3, 4).t()
    for write in (lambda t: t.diagonal().zero_(), lambda t: t.add_(1), lambda t: t.cos_(), lambda t: torch.sin(t, out=t)):
        expected, found = y.clone(), torch.ones(3, 4).t()
        write(expected)
        on_contiguous(write, (found,), {})
        assert torch.equal(found, expected)


_seen: list[bool] = []


@tq.register_op(role="float")
def softmax_that_looks(y: Tensor) -> Tensor:
    _seen.append(y.is_contiguous())
    return y.softmax(1)


class Looks(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return softmax_that_looks(y.transpose(2, 3))


@pytest.mark.filterwarnings("ignore:tq.export_onnx will refuse")
def test_training_reads_what_the_forward_has() -> None:
    """No copy in a step of training."""
    x = torch.randn(2, 3, 9, 7)
    qat = tq.prepare(nn.Sequential(nn.Conv2d(3, 8, 3), Looks(), nn.Conv2d(8, 4, 1)), x)
    for mode in (True, False):
        _seen.clear()
        qat.train(mode)(x)
        assert _seen == [not mode]
