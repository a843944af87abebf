"""One converted model for images and sequences of any size."""

from __future__ import annotations

import builtins
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.errors import ArgumentError, ConversionError
from truequant.integer import load


class Segments(nn.Module):
    """Fully convolutional: a strided way down, nearest and transposed ways up, a skip, a mean over whatever is there."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.up, self.out = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = F.relu(self.a(x))
        b = F.relu(self.norm(self.b(a)))
        y = self.out(torch.cat([self.up(b), F.interpolate(b, scale_factor=2)], 1))
        return F.max_pool2d(y, 2), (a * a.mean((2, 3), keepdim=True)).mean((2, 3))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.conv, self.out = nn.Embedding(40, 8), nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(self.words(ids).transpose(1, 2))).transpose(1, 2))


def exact(qat: nn.Module, int8: tq.Int8Model, inputs: list[Tensor]) -> None:
    for x in inputs:
        report = tq.verify(qat, int8, [x])
        assert report.codes_different == 0
        assert report.outputs_different == 0


def test_images_of_any_size(tmp_path: object) -> None:
    torch.manual_seed(0)
    qat = tq.prepare(Segments(), torch.randn(2, 3, 16, 16), dynamic={0: (2, 3)})
    qat(torch.randn(4, 3, 16, 16))
    qat.eval()
    int8 = tq.convert(qat)
    exact(qat, int8, [torch.randn(1, 3, 16, 16), torch.randn(2, 3, 24, 12), torch.randn(3, 3, 8, 40)])
    path = f"{tmp_path}/model.tq"
    int8.save(path)
    exact(qat, load(path), [torch.randn(1, 3, 20, 36)])


def test_sequences_of_any_length() -> None:
    torch.manual_seed(0)
    qat = tq.prepare(Words(), {"ids": torch.randint(0, 40, (2, 9))}, dynamic={"ids": (1,)})
    qat(ids=torch.randint(0, 40, (4, 9)))
    qat.eval()
    int8 = tq.convert(qat)
    for length in (3, 9, 31):
        report = tq.verify(qat, int8, [{"ids": torch.randint(0, 40, (2, length))}])
        assert report.codes_different == 0


def test_tokens_of_images_of_any_size() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.out = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.patches(x)).flatten(2).transpose(1, 2))  # how many is computed from both axes

    qat = tq.prepare(Tokens(), torch.randn(2, 3, 16, 16), dynamic={0: (2, 3)})
    qat(torch.randn(4, 3, 16, 16))
    qat.eval()
    exact(qat, tq.convert(qat), [torch.randn(1, 3, 16, 16), torch.randn(2, 3, 24, 8), torch.randn(3, 3, 4, 40)])


def test_a_size_that_was_fixed_stays_fixed() -> None:
    qat = tq.prepare(Segments(), torch.randn(2, 3, 16, 16))
    qat(torch.randn(2, 3, 16, 16))
    with pytest.raises(ArgumentError, match="wrong shape"):
        tq.convert(qat.eval())(torch.randn(2, 3, 20, 20))


@pytest.mark.parametrize(
    ("dynamic", "said"), [({1: (2,)}, "no tensor"), ({"x": (2,)}, "no tensor"), ({0: (4,)}, "no such axis")]
)
def test_what_is_not_there_cannot_be_dynamic(dynamic: dict[int | str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        tq.plan(Segments(), torch.randn(2, 3, 16, 16), dynamic=dynamic)


def test_a_length_that_the_forward_fixes_is_named() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = nn.GRU(4, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.layer(x)[0][:, -1])

    qat = tq.prepare(Recurrent(), torch.randn(2, 5, 4), dynamic={0: (1,)})
    qat(torch.randn(2, 5, 4))
    with pytest.raises(ConversionError, match="'input_0': axis 1 cannot be dynamic"):
        tq.convert(qat.eval())


class Rows(nn.Module):
    """What a forward asks about the size of its batch."""

    def __init__(self, form: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.out, self.form = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(128, 5), form

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.form(F.relu(self.conv(x)), x))


@pytest.mark.parametrize(
    "form",
    [
        lambda y, x: y.view(len(x), -1),
        lambda y, x: y.reshape(len(y), 128),
        lambda y, x: y.view(x.shape[0], -1),
        lambda y, x: y.view(x.size(0), -1),
    ],
)
def test_a_batch_of_any_size_however_it_is_asked_for(form: Callable[[Tensor, Tensor], Tensor]) -> None:
    number_of = builtins.len

    def asked(y: Tensor, x: Tensor) -> Tensor:
        assert builtins.len is number_of  # while it is traced too: torch's compiler, once loaded, keeps what it found there
        return form(y, x)

    qat = tq.prepare(Rows(asked), torch.randn(3, 3, 4, 4))
    qat(torch.randn(3, 3, 4, 4))
    int8 = tq.convert(qat.eval())
    assert "len" not in globals()
    assert int8.program.inputs[0].shape == (None, 3, 4, 4)
    exact(qat, int8, [torch.randn(1, 3, 4, 4), torch.randn(7, 3, 4, 4)])


def test_a_loop_over_the_batch_takes_the_size_of_the_example() -> None:
    """And not the two that export is tried with."""

    def rows(y: Tensor, x: Tensor) -> Tensor:
        return torch.stack([y[i].flatten() for i in range(x.shape[0])])

    x = torch.randn(3, 3, 4, 4)
    qat = tq.prepare(Rows(rows), x)
    qat(x)
    int8 = tq.convert(qat.eval())
    assert int8.program.inputs[0].shape == (3, 3, 4, 4)
    exact(qat, int8, [x])
    with pytest.raises(ArgumentError, match=r"expected: float32\[3, 3, 4, 4\]"):
        int8(torch.randn(2, 3, 4, 4))
