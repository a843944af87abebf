"""Nested values to JSON and tensors, and back."""

from __future__ import annotations

from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from truequant.checkpoints.tree import MAX_DEPTH, TreeReader, TreeWriter
from truequant.errors import ArgumentTypeError, FileError
from truequant.files import dumps, loads


def through(value: Any) -> Any:
    writer = TreeWriter()
    text = dumps(writer.encode(value, "extra"))
    return TreeReader(writer.tensors, "file").decode(loads(text), "extra")


VALUES: list[Any] = [
    None, True, 0, -(2**80), 1.5, -0.0, 5e-324, "", "$tensor", [], [1, [2]], (), (1, (2,)), {}, {"a": 1, "b": [2.0]},
    {"b": 1, "a": 2}, {"$tensor": 1}, {1: "x", None: 2, (1, 2): 3, "4": 4}, Counter({3: 2, 7: 1}), b"", b"\x00\xff",
    float("inf"), float("-inf"), {"deep": {"er": [({"x": (1,)},)]}},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back_with_their_types_and_order(value: Any) -> None:
    found = through(value)
    assert found == value
    assert repr(found) == repr(value)


def test_nan_and_ordered_dicts() -> None:
    assert repr(through([float("nan")])) == "[nan]"
    assert list(through(OrderedDict(b=1, a=2))) == ["b", "a"]


@pytest.mark.parametrize(
    "tensor",
    [torch.randn(2, 3), torch.tensor(3), torch.empty(0, 4), torch.randn(4, 4).t(), torch.ones(2, dtype=torch.bfloat16),
     torch.tensor([float("nan"), float("inf")]), torch.tensor([True]), torch.arange(3, dtype=torch.uint8)],
    ids=lambda t: f"{t.dtype}{tuple(t.shape)}",
)  # fmt: skip
def test_tensors(tensor: torch.Tensor) -> None:
    found = through({"t": tensor})["t"]
    assert found.dtype == tensor.dtype
    assert torch.equal(found, tensor) or bool(torch.isnan(tensor).any())


def test_numpy() -> None:
    found = through([numpy.arange(6).reshape(2, 3), numpy.float32(1.5), numpy.float64(2.5)])
    assert numpy.array_equal(found[0], numpy.arange(6).reshape(2, 3))
    assert (type(found[1]), found[1]) == (numpy.float32, 1.5)
    assert (type(found[2]), found[2]) == (float, 2.5)  # a float of Python's, which float64 is


def test_the_same_memory_is_stored_once_and_other_memory_is_not() -> None:
    writer, t = TreeWriter(), torch.randn(4)
    writer.encode([t, t.detach(), t[:2], t.clone(), torch.empty(0), torch.empty(0)], "x")
    assert len(writer.tensors) == 5


def test_names_say_where_and_never_clash() -> None:
    writer = TreeWriter()
    writer.encode({"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, "z" * 3000: torch.ones(2)}, "extra")
    names = list(writer.tensors)
    assert names[0] == "extra/a/b"
    assert len(set(names)) == 3
    assert max(map(len, names)) <= 1024


@pytest.mark.parametrize(
    ("value", "got"),
    [(Path("x"), "pathlib"), ({1, 2}, "builtins.set"), (lambda: 1, "builtins.function"), (torch.float32, "torch.dtype"),
     (object(), "builtins.object")],
    ids=["path", "set", "function", "dtype", "object"],
)  # fmt: skip
def test_what_would_need_pickle_is_named_with_its_path(value: Any, got: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        TreeWriter().encode({"a": [0, {"b": value}]}, "extra")
    assert "save_checkpoint: extra/a/1/b cannot be stored without pickle\n  got:      " + got in str(caught.value)
    assert "expected: None, bool, int, float, str, bytes, list, tuple, dict" in str(caught.value)


def test_values_that_hold_themselves_and_tensors_without_data() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ArgumentTypeError, match=f"nested too deeply\n  expected: at most {MAX_DEPTH} levels"):
        TreeWriter().encode(loop, "extra")
    for tensor in (torch.empty(2, device="meta"), torch.eye(2).to_sparse()):
        with pytest.raises(ArgumentTypeError, match="extra/0 cannot be stored"):
            TreeWriter().encode([tensor], "extra")
    with pytest.raises(ArgumentTypeError, match="a NumPy array of object"):
        TreeWriter().encode(numpy.array([None]), "extra")


LIES: list[Any] = [
    {"$tensor": "nothing"}, {"$tensor": 1}, {"$array": "half"}, {"$scalar": "pair"}, {"$float": "1e9"}, {"$bytes": "§"},
    {"$bytes": "abc"}, {"$dict": [[1]]}, {"$dict": {}}, {"$dict": [[[1], 2]]}, {"$tuple": 1}, {"$eval": "1"},
    {"$tuple": [], "b": 1}, {"$counter": 3},
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=repr)
def test_lies(lie: Any) -> None:
    tensors = {"half": torch.ones(1, dtype=torch.bfloat16), "pair": torch.ones(2)}
    with pytest.raises(FileError, match=r"file.ckpt: 'extra/k(/0)?' cannot be"):
        TreeReader(tensors, "file.ckpt").decode({"k": lie}, "extra")
