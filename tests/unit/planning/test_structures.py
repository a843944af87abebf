"""What a model takes and returns as it is: structure, order and keys in memory, in files and in calls."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import truequant as tq
from truequant.errors import ArgumentError, ConversionError
from truequant.planning.structures import build, is_tree, mapped, names_in, renamed, tree_of

X, Y = torch.rand(4, 8), torch.rand(4, 8)


@dataclass
class Answer:
    logits: Tensor
    more: Any = None
    count: int = 3


Pair = namedtuple("Pair", "z a")


class Cache:
    """What no program holds."""


class Net(nn.Module):
    """A model with two layers whose forward is what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)


def net(forward: Callable[..., Any]) -> Net:
    model: Net = type("Model", (Net,), {"forward": forward})()
    return model


def int8_of(model: nn.Module, example: Any, tmp_path: Path) -> tuple[nn.Module, tq.Int8Model]:
    """The evaluated model, and the Int8 model of a file."""
    torch.manual_seed(0)
    qat = tq.calibrate(tq.prepare(model, example), [example], progress=False).eval()
    tq.convert(qat).save(tmp_path / "m.tq")
    return qat, tq.load(tmp_path / "m.tq")


RETURNED: dict[str, tuple[Callable[[Net, Tensor], Any], Callable[[Any], Any]]] = {
    "order": (lambda s, x: {"z": s.a(x), "a": s.b(x)}, list),
    "keys": (lambda s, x: {1: s.a(x), 0: s.b(x), None: 2}, list),
    "ordered": (lambda s, x: OrderedDict(z=s.a(x), a=s.b(x)), list),
    "dataclass": (lambda s, x: Answer(s.a(x), (s.b(x), None)), lambda y: (y.logits.shape, len(y.more), y.more[1], y.count)),
    "named tuple": (lambda s, x: Pair(s.a(x), s.b(x)), lambda y: (y._fields, y.z.shape, y[1].shape)),
    "constants": (lambda s, x: (s.a(x), None, 3, 2.5, True, "text", [s.b(x)]), lambda y: (y[1:6], len(y[6]))),
    "parameter": (lambda s, x: [s.a(x), s.a.bias], lambda y: [t.tolist() for t in y[1:]]),
}


@pytest.mark.parametrize("name", RETURNED)
def test_outputs_are_as_they_are(name: str, tmp_path: Path) -> None:
    forward, look = RETURNED[name]
    qat, int8 = int8_of(net(forward), X, tmp_path)
    assert look(int8(X)) == look(qat(X))
    report = tq.verify(qat, int8, [X], runtimes=("reference", "onnxruntime"))
    assert [r.outputs_different for r in report.runtimes.values()] == [0, 0]


def test_what_no_program_holds_is_none_and_said(tmp_path: Path) -> None:
    model = net(lambda s, x: (Cache(), s.a(x)))
    assert (
        "the converted model returns None where the model returns a Cache: a program holds tensors, numbers and text"
        in tq.plan(model, X).notes
    )
    qat, int8 = int8_of(model, X, tmp_path)
    assert int8(X)[0] is None
    assert torch.equal(int8(X)[1], qat(X)[1])


TAKEN: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    "dict": (lambda s, batch: s.a(batch["u"]) + s.b(batch["v"]), {"u": X, "v": Y}, ({"u": X, "v": Y}, Y)),
    "keywords": (lambda s, u, v: s.a(u) + s.b(v), {"u": X, "v": Y}, ({"u": X, "v": Y}, Y)),
    "mapping": (lambda s, batch: s.a(batch["u"]), (UserDict(u=X),), [UserDict(u=X)]),
    "list": (lambda s, xs: s.a(xs[0]) + s.b(xs[1]), ([X, Y],), ([X, Y], Y)),
    "two in a list": (lambda s, xs: s.a(xs[0]) + s.b(xs[1]), ([X, Y],), [X, Y]),
    "nested": (lambda s, d: s.a(d["l"][0]) + s.b(d["m"]["q"]), ({"l": [X], "m": {"q": Y}},), ({"l": [X], "m": {"q": Y}}, Y)),
    "dataclass": (lambda s, o: s.a(o.logits) + s.b(o.more), (Answer(X, Y),), (Answer(X, Y),)),
    "flag": (lambda s, x, mode="a": s.b(x) if mode == "b" else s.a(x), (X, "b"), (X, "b")),
    "none": (lambda s, x, mask=None: s.a(x), (X, None), (X, None)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_inputs_are_as_they_are(name: str, tmp_path: Path) -> None:
    forward, example, item = TAKEN[name]
    model = net(forward)
    assert len(tq.plan(model, example).inputs) == len([q for q in tq.plan(model, example).quantizers if q.kind == "input"])
    qat, _ = int8_of(model, example, tmp_path)
    tq.calibrate(qat, [item], progress=False)
    assert tq.verify(qat, tq.convert(qat), [item], runtimes=("reference",)).codes_different == 0


class Count:
    def __init__(self) -> None:
        self.answers = 0

    def update(self, answers: Tensor, targets: Tensor) -> None:
        self.answers += len(answers)

    def compute(self) -> int:
        return self.answers


def test_evaluate_takes_what_the_model_takes(tmp_path: Path) -> None:
    for model in int8_of(net(TAKEN["dict"][0]), {"u": X, "v": Y}, tmp_path):
        assert tq.evaluate(model, [({"u": X, "v": Y}, Y)], Count()) == 4


def test_a_call_by_name_is_the_call_by_position(tmp_path: Path) -> None:
    qat, int8 = int8_of(net(lambda s, u, v=None, flag=True: s.a(u)), X, tmp_path)
    large = 10 * X  # clipped by the quantizer of the input, however it is given
    for call in (lambda m: m(large), lambda m: m(u=large), lambda m: m(large, None), lambda m: m(large, flag=True)):
        assert torch.equal(call(qat), call(int8))
        assert torch.equal(call(int8), int8(large))


@pytest.mark.parametrize(
    ("call", "got"),
    [
        (lambda m: m(X, flag=False), "False for 'flag'"),
        (lambda m: m(X, Y), "a Tensor for 'v'"),
        (lambda m: m(X, w=1), "1 for 'w'"),
        (lambda m: m(), "0 positional, keywords []"),
        (lambda m: m(X, u=X), "1 positional, keywords ['u']"),
    ],
)
def test_another_call_is_refused_by_name(call: Callable[[Any], Any], got: str, tmp_path: Path) -> None:
    _, int8 = int8_of(net(lambda s, u, v=None, flag=True: s.a(u)), X, tmp_path)
    with pytest.raises(ArgumentError) as error:
        call(int8)
    assert str(error.value) == (
        f"the Int8 model was called with other inputs than it was converted with\n  got:      {got}\n"
        "  expected: (float32[*, 8])"
    )


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ({"u": X}, "no batch['v']"),
        ({"u": X, "v": Y, "w": Y}, "batch['w'], which the example did not have"),
    ],
)
def test_another_dict_is_refused_by_name(given: Any, got: str, tmp_path: Path) -> None:
    _, int8 = int8_of(net(TAKEN["dict"][0]), {"u": X, "v": Y}, tmp_path)
    with pytest.raises(ArgumentError) as error:
        int8(given)
    assert (error.value.got, error.value.expected) == (got, "({u: float32[*, 8], v: float32[*, 8]})")


def test_trees() -> None:
    value = {"z": (X, None), 1: [Answer(Y, "text")], None: Pair(X, True)}
    names = iter("abcd")
    tree = tree_of(value, lambda leaf: next(names))
    assert list(names_in(tree)) == ["a", "b", "c"]
    made = build(renamed(tree, {"a": "0", "b": "1", "c": "0"}), {"0": X, "1": Y})
    assert list(made) == ["z", 1, None]
    assert (made["z"][0] is X, made[1][0].logits is Y, made[1][0]["more"], made[None].z is X) == (True, True, "text", True)
    assert is_tree(tree)
    doubled = mapped(value, lambda t: t * 2)
    assert torch.equal(doubled[1][0].logits, 2 * Y)
    assert isinstance(doubled[1][0], Answer)


@pytest.mark.parametrize(
    "tree", [{}, {"tuple": 1}, {"items": [["a"]]}, {"items": [["a", 1], ["a", 2]]}, {"named": [["_a", 1]]},
             {"named": [["if", 1]]}, {"fields": [["a b", 1]]}, {"text": 1}, {"what": []},
             {"tuple": [], "items": []}, {"dict": []}],
)  # fmt: skip
def test_what_is_no_tree(tree: Any) -> None:
    assert not is_tree(tree)


def test_a_mask_that_exporting_alone_would_build_is_not_in_the_program(tmp_path: Path) -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        y: Tensor = self.a(x)
        if torch.compiler.is_exporting():
            y = y + torch.zeros(4)
        return y

    _, int8 = int8_of(net(forward), X, tmp_path)
    assert int8.ops() == {"Dequantize": 1, "Linear": 1, "Quantize": 1}
    assert not torch.compiler.is_exporting()


def test_what_joins_an_empty_tensor_is_moved(tmp_path: Path) -> None:
    model = net(lambda s, x: s.b(torch.cat([torch.tensor([]), torch.cat([s.a(x), s.b(x)], -1)], -1)))
    assert not tq.plan(model, X).in_float()
    qat, int8 = int8_of(model, X, tmp_path)
    assert tq.verify(qat, int8, [X], runtimes=("reference", "onnxruntime")).codes_different == 0


class Known(nn.Linear):
    """A class that a library finds by its text."""


def test_a_class_goes_by_the_text_of_its_origin() -> None:
    qat = tq.prepare(Known(8, 4), X)
    assert str(type(qat)) == str(Known)
    assert type(qat) is not Known
    assert (type(qat).__name__, type(qat).__module__) == ("Known", __name__)


class Labelled(nn.Module):
    """Returns its loss beside its answers where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.table(ids))
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_loss_is_named_before_training() -> None:
    x = {"ids": torch.arange(4), "labels": torch.tensor([0, 1, 2, 3])}
    note = "'cross_entropy_0' is a loss, which no program computes: prepare with example inputs without labels"
    assert note in tq.plan(Labelled(), x).notes
    with pytest.warns(UserWarning, match=r"no program computes a loss 'cross_entropy_0'(.|\n)*without labels"):
        qat = tq.prepare(Labelled(), x)
    tq.calibrate(qat, [x], progress=False)
    with pytest.raises(ConversionError) as error:
        tq.convert(qat.eval())
    assert error.value.fix == "prepare with example inputs without labels: a program computes no loss"
    assert not any("loss" in n for n in tq.plan(Labelled(), {"ids": torch.arange(4)}).notes)


def test_a_weight_scheme_of_another_modules_table_is_said_to_do_nothing() -> None:
    class Borrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(4, 8), nn.Linear(8, 2)

        def forward(self, ids: Tensor) -> Tensor:
            y: Tensor = self.head(F.embedding(ids, self.table.weight))
            return y

    rule = tq.Rule("embedding_0", weight=tq.QuantScheme(tq.types.int4, tq.PerChannel(0)))
    plan = tq.plan(Borrowing(), torch.arange(4), tq.QConfig().with_rules(rule))
    said = "no weight of 'embedding_0' is quantized by it: its table is no parameter of the module that reads it"
    assert f"{rule!r}: {said}" in plan.notes
