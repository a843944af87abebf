"""Float ops between quantized edges: the program computes torch's own numbers, and the ONNX file those of onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.errors import ExportError
from truequant.runtimes import CompiledModel, onnx_bytes
from truequant.runtimes.onnxruntime.session import run, session


class Function(nn.Module):
    """A model that is one function of its inputs: nothing in it is quantized."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def computed(function: Callable[..., Any], *inputs: Tensor, dynamic: Any = None) -> tuple[Any, Any, Any]:
    """What torch, the program and onnxruntime make of the inputs."""
    plan = tq.plan(Function(function), inputs, FLOAT, dynamic=dynamic)
    assert plan.refused() == plan.without_onnx() == ()
    qat = tq.prepare(Function(function), inputs, plan).eval()
    int8 = tq.convert(qat)
    return qat(*inputs), int8(*inputs), CompiledModel(int8.program)(*inputs)


def leaves(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


FLOAT = tq.QConfig(weight=None, activation=None, input=None, output=None)
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 5, 8, generator=GENERATOR)
Y = torch.randn(2, 5, 8, generator=GENERATOR)
IMAGE = torch.randn(2, 3, 13, 16, generator=GENERATOR)
SQUARE = torch.randn(2, 5, 5, generator=GENERATOR)
WHOLE = torch.randint(-9, 9, (2, 5, 8), generator=GENERATOR)
DIVISOR = torch.tensor([3, -2, 1, 5, -7, 2, 9, -1])
PLACES = torch.randint(0, 5, (2, 3, 8), generator=GENERATOR)
ROWS = torch.tensor([4, 0, 0, 2])
LEFT, RIGHT = torch.triu_indices(5, 5, 1)


def moved_up(n: Tensor) -> Tensor:
    """As an encoder-decoder makes the decoder's tokens of its own: one place on, behind a start."""
    moved = n.new_zeros(n.shape)
    moved[:, 1:] = n[:, :-1].clone()
    moved[:, 0] = 2
    return moved.masked_fill(moved == -100, 1)


EXACT: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "mask times activation": (lambda x: x * (x > 0), (X,)),
    "activation times mask": (lambda x: (x > 0) * x, (X,)),
    "activation plus mask": (lambda x: x + (x > 0), (X,)),
    "integers and floats": (lambda x, n: x * n + n, (X, WHOLE)),
    "integers divided": (lambda n: n / 4, (WHOLE,)),
    "integers compared with a number that is none": (lambda n: n > 0.5, (WHOLE,)),
    "masks joined": (lambda x: ((x > 0) & (x < 1)) | (x < -1) ^ (x > 2), (X,)),
    "masks summed": (lambda x: (x > 0).sum(-1), (X,)),
    "bits": (lambda n: (n & 5) | (~n ^ 3), (WHOLE,)),
    "not a number": (lambda x: torch.logical_not(x > 0) & torch.logical_and(x, x - 1), (X,)),
    "largest of a mask": (lambda x, n: torch.maximum(x, n), (X, WHOLE)),
    "where of two kinds": (lambda x, n: torch.where(x > 0, n, x), (X, WHOLE)),
    "clamp between tensors": (lambda x, y: x.clamp(min=y - 1, max=y + 1), (X, Y)),
    "clamp of integers": (lambda n: n.clamp(-2, 3), (WHOLE,)),
    "pairs in front": (lambda x: x[LEFT, RIGHT], (SQUARE[0],)),
    "pairs behind the batch": (lambda x: x[:, LEFT, RIGHT], (SQUARE,)),
    "pairs behind two axes": (lambda x: x[:, :, LEFT, RIGHT], (IMAGE,)),
    "pairs apart": (lambda x: x[ROWS % 2, :, ROWS], (X,)),
    "one place of several axes": (lambda x: x[:, PLACES[0, 0]], (X,)),
    "a table of pairs": (lambda x: x[:, ROWS[None], ROWS[:, None]], (X,)),
    "sort": (lambda x: tuple(x.sort(-1)), (X,)),
    "sort down": (lambda x: tuple(x.sort(1, descending=True)), (X,)),
    "argsort": (lambda x: x.argsort(1), (X,)),
    "topk": (lambda x: tuple(x.topk(3, dim=1)), (X,)),
    "lowest k": (lambda x: tuple(x.topk(3, largest=False)), (X,)),
    "argmin": (lambda x: x.argmin(1), (X,)),
    "argmax of all": (lambda x: x.argmax(), (X,)),
    "scatter": (lambda x, y: x.scatter(1, PLACES[:1, :1], y), (X, Y)),
    "scatter of a number": (lambda x: x.scatter(1, PLACES[:, :1], 7.0), (X,)),
    "scatter of mask": (lambda x: torch.zeros_like(x).scatter(-1, x.topk(2, dim=-1).indices, 1.0), (X,)),
    "scatter_reduce amax": (lambda x, y: x.scatter_reduce(1, PLACES, y[:, :3], "amax"), (X, Y)),
    "a part overwritten": (lambda x, y: torch.slice_scatter(x, y[..., :2], -1, -6, 6, 2), (X, Y)),
    "a part overwritten, to the end": (lambda x, y: torch.slice_scatter(x, y[:, :2], 1, start=3), (X, Y)),
    "a place overwritten": (lambda x, y: torch.select_scatter(x, y[:, :, 0], 2, -1), (X, Y)),
    "integers moved up": (moved_up, (WHOLE,)),
    "index_copy": (lambda x, y: x.index_copy(1, torch.tensor([3, 0]), y[:, :2]), (X, Y)),
    "floor division": (lambda x: torch.div(x, 0.1, rounding_mode="floor"), (torch.linspace(-3, 3, 61).reshape(1, 61),)),
    "truncated division": (lambda x, y: torch.div(x, y, rounding_mode="trunc"), (X, Y)),
    "floor division of integers": (lambda n: n // DIVISOR, (WHOLE,)),
    "truncated division of integers": (lambda n: torch.div(n, DIVISOR, rounding_mode="trunc"), (WHOLE,)),
    "remainder of integers": (lambda n: n % DIVISOR, (WHOLE,)),
    "remainder": (lambda x: x % 0.75, (X,)),
    "fmod": (lambda x, y: torch.fmod(x, y), (X, Y)),
    "threshold": (lambda x: F.threshold(x, 0.1, -3.0), (X,)),
    "adaptive maximum": (lambda x: F.adaptive_max_pool2d(x, (3, 5)), (IMAGE,)),
    "adaptive maximum of a sequence": (lambda x: F.adaptive_max_pool1d(x, 3), (X,)),
    "unfold": (lambda x: F.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 0), stride=2), (IMAGE,)),
    "windows": (lambda x: x.unfold(1, 3, 2), (X,)),
    "nearest exact": (lambda x: F.interpolate(x, size=(7, 31), mode="nearest-exact"), (IMAGE,)),
    "expand as": (lambda x, y: x[:, :1].expand_as(y), (X, Y)),
    "reshape as": (lambda x, y: x.reshape_as(y), (X, Y)),
    "any": (lambda x: (x > 2).any(-1), (X,)),
    "all": (lambda x: (x > -2).all(1, keepdim=True), (X,)),
    "no numbers": (lambda x: torch.nan_to_num(x / (x > 0), 3.0, 9.0, -9.0), (X,)),
    "joined": (lambda x, y: torch.cat([x.neg(), y], 1), (X, Y)),
}
CLOSE: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "bilinear to a size": (lambda x: F.interpolate(x, size=(20, 9), mode="bilinear"), (IMAGE,)),
    "bilinear from one place": (lambda x: F.interpolate(x.mean((2, 3), keepdim=True), size=(6, 6), mode="bilinear"), (IMAGE,)),
    "bilinear, corners": (lambda x: F.interpolate(x, size=(20, 9), mode="bilinear", align_corners=True), (IMAGE,)),
    "bicubic": (lambda x: F.interpolate(x, size=(20, 9), mode="bicubic"), (IMAGE,)),
    "bilinear, smoothed": (lambda x: F.interpolate(x, size=(6, 9), mode="bilinear", antialias=True), (IMAGE,)),
    "bicubic, smoothed": (lambda x: F.interpolate(x, size=(6, 9), mode="bicubic", antialias=True), (IMAGE,)),
    "baddbmm": (lambda x, y: torch.baddbmm(x @ y.mT, x, y.mT, beta=0.5, alpha=2), (X, Y)),
    "baddbmm of nothing": (lambda x, y: torch.baddbmm(torch.full((1,), float("nan")), x, y.mT, beta=0, alpha=2), (X, Y)),
    "addmm, scaled": (lambda x, y: torch.addmm(x[0] @ y[0].mT, x[0], y[0].mT, beta=0.5, alpha=2), (X, Y)),
    "addcmul": (lambda x, y: torch.addcmul(x, y, y, value=0.5), (X, Y)),
    "lerp": (lambda x, y: torch.lerp(x, y, 0.3), (X, Y)),
    "lerp by a tensor": (lambda x, y: torch.lerp(x, y, y.sigmoid()), (X, Y)),
    "logsumexp": (lambda x: torch.logsumexp(x, -1), (X,)),
    "index_add": (lambda x, y: x.index_add(1, ROWS, y[:, :4], alpha=2), (X, Y)),
    "scatter_add": (lambda x, y: x.scatter_add(1, PLACES, y), (X, Y)),
    "scatter_reduce": (lambda x, y: x.scatter_reduce(1, PLACES, y[:, :3], "sum"), (X, Y)),
    "fold": (lambda x: F.fold(F.unfold(x, 3, padding=1), (13, 16), 3, padding=1), (IMAGE,)),
    "samples of a grid": (lambda x, g: F.grid_sample(x, g[..., :2], align_corners=False), (IMAGE, X[:, :, None].tanh())),
    "samples of a grid, border": (
        lambda x, g: F.grid_sample(x, g[..., :2], "nearest", "border", True), (IMAGE, X[:, :, None].tanh()),
    ),
    "product": (lambda x: x.prod(1), (X,)),
    "log1p": (lambda x: torch.log1p(x.abs()) + torch.expm1(x) + torch.log2(x.abs()), (X,)),
    "convolution of the same size": (lambda x: F.conv2d(x, IMAGE[:, :, :4, :3], padding="same"), (IMAGE,)),
}  # fmt: skip


TABLE, BAGS = torch.randn(9, 4, generator=GENERATOR), (torch.tensor([1, 3, 3, 0, 8, 2]), torch.tensor([0, 2, 2, 5]))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_that_begin_at_offsets(mode: str, padding: int | None, last: bool) -> None:
    """One bag is empty."""
    options: dict[str, Any] = {"mode": mode, "padding_idx": padding, "include_last_offset": last}
    offsets = torch.cat([BAGS[1], torch.tensor([6])]) if last else BAGS[1]
    weighted = (BAGS[0] / 4,) if mode == "sum" else ()
    want, program, shipped = computed(
        lambda rows, at, *w: F.embedding_bag(rows, TABLE, at, **options, per_sample_weights=w[0] if w else None),
        BAGS[0], offsets, *weighted,
    )  # fmt: skip
    assert torch.equal(program, want)
    torch.testing.assert_close(shipped, want)


@pytest.mark.parametrize("name", EXACT)
def test_places_and_comparisons_are_equal(name: str) -> None:
    function, inputs = EXACT[name]
    for want, program, shipped in zip(*map(leaves, computed(function, *inputs)), strict=True):
        assert program.dtype == want.dtype == shipped.dtype
        assert torch.equal(program, want)
        assert torch.equal(shipped, want)


@pytest.mark.parametrize("name", CLOSE)
def test_sums_are_equal_up_to_their_order(name: str) -> None:
    function, inputs = CLOSE[name]
    want, program, shipped = computed(function, *inputs)
    assert torch.equal(program, want)
    torch.testing.assert_close(shipped, want, rtol=1e-5, atol=1e-5)


def test_an_error_of_onnxruntime_is_one_of_truequant() -> None:
    with pytest.raises(ExportError, match="onnxruntime does not take the ONNX file") as error:
        session(b"no model")
    assert "got:" in str(error.value)
    int8 = tq.convert(tq.prepare(Function(lambda x: x.sort(-1).values), X, FLOAT).eval())
    active = session(onnx_bytes(int8.program))
    with pytest.raises(ExportError, match=r"onnxruntime cannot run the ONNX file on inputs of input_0.float \(2, 4, 8\)"):
        run(active, {"input_0.float": X[:, :4]})


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_a_row_that_sees_nothing_is_nothing(kind: torch.dtype) -> None:
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    mask[1, :, :, :2] = False
    given = mask if kind == torch.bool else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    q = torch.randn(2, 1, 5, 8, generator=GENERATOR)
    want, program, shipped = computed(lambda q, m: F.scaled_dot_product_attention(q, q, q, attn_mask=m), q, given)
    assert torch.equal(program, want)
    assert bool((want[1, 0, :2] == 0).all())
    torch.testing.assert_close(shipped, want)
    qat = tq.prepare(Function(lambda q: F.scaled_dot_product_attention(q, q, q, attn_mask=given[1:])), q, FLOAT).eval()
    torch.testing.assert_close(CompiledModel(tq.convert(qat).program)(q), qat(q))
