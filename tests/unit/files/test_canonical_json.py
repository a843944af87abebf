"""Canonical JSON: one text a value, and a value again from every text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truequant.errors import FileError
from truequant.files import Json, dumps, loads
from truequant.files.limits import MAX_JSON_DEPTH

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_reads_back_the_same_value(value: Json) -> None:
    text = dumps(value)
    assert loads(text) == value
    assert dumps(loads(text)) == text
    assert text.isascii()


def test_keys_are_sorted_and_spaces_left_out() -> None:
    assert dumps({"b": (1, 2.5), "a": {"d": True, "c": None}}) == '{"a":{"c":null,"d":true},"b":[1,2.5]}'
    assert dumps({"x": 1, "y": 2}) == dumps({"y": 2, "x": 1})


@pytest.mark.parametrize("number", [0.1, 1e-308, 5e-324, 1.7976931348623157e308, -0.0, 1 / 3])
def test_floats_keep_their_bits(number: float) -> None:
    back = loads(dumps(number))
    assert isinstance(back, float)
    assert back == number
    assert math.copysign(1, back) == math.copysign(1, number)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_number_that_is_not_finite_is_written(number: float) -> None:
    with pytest.raises(FileError) as caught:
        dumps({"scale": [1.0, number]}, "header")
    assert str(caught.value) == (
        f"header.scale[1]: not a finite number\n  got:      {number!r}\n  expected: numbers without NaN and Infinity"
    )


def test_what_json_cannot_hold_is_named_with_its_path() -> None:
    with pytest.raises(FileError, match=r"header\.a\[0\]: JSON has no such value\n  got:      set"):
        dumps({"a": [{1}]}, "header")
    with pytest.raises(FileError, match="a key is not a string\n  got:      1"):
        dumps({1: 2})


def test_depth_is_bounded_on_both_ways() -> None:
    value: Json = 0
    for _ in range(MAX_JSON_DEPTH):
        value = [value]
    assert loads(dumps(value)) == value
    with pytest.raises(FileError, match=f"nested too deeply\n  expected: at most {MAX_JSON_DEPTH} levels"):
        dumps([value])
    with pytest.raises(FileError, match="nested too deeply"):
        loads("[" * (MAX_JSON_DEPTH + 1) + "]" * (MAX_JSON_DEPTH + 1))


def test_brackets_inside_strings_are_not_depth() -> None:
    text = dumps("[" * 1000 + '"{\\')
    assert loads(text) == "[" * 1000 + '"{\\'
