from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from truequant.errors import ArgumentError
from truequant.numerics import add, fma, mul, table

ALL = torch.arange(256.0)
PAIRS = (ALL.reshape(-1, 1), ALL.reshape(1, -1))


def q(scale: float, zero_point: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(scale, dtype=torch.float32), torch.tensor(float(zero_point))


def test_add_rounds_after_the_zero_point_is_added() -> None:
    """sa = sb = 1, sy = 2, zy = 1: a + b = 1 gives 0.5 + 1 = 1.5, which rounds to 2; rint(0.5) + 1 would be 1."""
    a, b, y = q(1.0, 0), q(1.0, 0), q(2.0, 1)
    assert add(torch.tensor([1.0]), torch.tensor([0.0]), a, b, y, 0, 255, "onnxruntime").item() == 2
    assert add(torch.tensor([1.0]), torch.tensor([0.0]), a, b, y, 0, 255, "portable").item() == 1


def test_the_order_of_the_operands_is_part_of_the_rule() -> None:
    a, b, y = q(0.0173, 3), q(0.0291, 200), q(0.0361, 119)
    one = fma(a[0] / y[0], PAIRS[0], fma(b[0] / y[0], PAIRS[1], torch.tensor(0.1)))
    other = fma(b[0] / y[0], PAIRS[1], fma(a[0] / y[0], PAIRS[0], torch.tensor(0.1)))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("rule", ["onnxruntime", "portable"])
def test_real_zero_changes_nothing(rule: str) -> None:
    """x + 0 with equal scales gives the code of x, x * 1 too."""
    a, b = q(2.0**-5, 31), q(2.0**-5, 99)
    zero = torch.full_like(ALL, 99.0)
    assert torch.equal(add(ALL, zero, a, b, a, 0, 255, rule), ALL)  # type: ignore[arg-type]
    one = torch.full_like(ALL, 99.0 + 32)
    assert torch.equal(mul(ALL, one, a, b, a, 0, 255, rule), ALL)  # type: ignore[arg-type]


def test_the_rules_differ_at_powers_of_two() -> None:
    a, b, y = q(2.0**-5, 117), q(2.0**-6, 33), q(2.0**-4, 131)
    for rule, share in ((add, 0.1), (mul, 0.001)):
        one = rule(*PAIRS, a, b, y, 0, 255, "onnxruntime")
        other = rule(*PAIRS, a, b, y, 0, 255, "portable")
        assert (one != other).float().mean() > share
        assert (one - other).abs().max() == 1


def test_mul_by_hand() -> None:
    """M = 0.5 * 0.5 / 0.1 = 2.5; p = (5 - 3) * (9 - 4) = 10; 25 + 7."""
    got = mul(torch.tensor([5.0]), torch.tensor([9.0]), q(0.5, 3), q(0.5, 4), q(0.1, 7), 0, 255, "onnxruntime")
    assert got.item() == 32


def test_clamps_and_bounds() -> None:
    a = q(1.0, 0)
    for rule in (add, mul):
        for named in ("onnxruntime", "portable"):
            got = rule(*PAIRS, a, a, a, 50, 60, named)  # type: ignore[arg-type]
            assert (got.min(), got.max()) == (50, 60)
            bounds = torch.tensor(50.0), torch.tensor(60.0)
            assert torch.equal(rule(*PAIRS, a, a, a, *bounds, named), got)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [add, mul])
def test_an_unknown_rule(rule: object) -> None:
    with pytest.raises(ArgumentError) as caught:
        rule(ALL, ALL, q(1, 0), q(1, 0), q(1, 0), 0, 255, "magic")  # type: ignore[operator]
    assert str(caught.value) == (
        "no arithmetic rule 'magic'\n  got:      magic\n  expected: 'onnxruntime' or 'portable' or 'xnnpack'"
    )


def test_fma_rounds_once() -> None:
    a = torch.tensor([1.0 + 2**-12])
    assert fma(a, a, torch.tensor([-1.0])).item() == 2**-11 + 2**-24
    assert (a * a - 1).item() == 2**-11


def test_a_table_is_computed_in_float64() -> None:
    x, y = q(1 / 255, 0), q(1 / 255, 0)
    got = table(torch.sigmoid, x, (0, 255), y, 0, 255)
    wanted = [round(1 / (1 + math.exp(-i * float(x[0]))) / float(y[0])) for i in range(256)]
    assert got.dtype == torch.float32
    assert got.tolist() == wanted


def test_a_table_of_nan_and_infinity() -> None:
    x = q(1.0, 2)
    got = table(torch.log, x, (0, 5), q(1.0, 3), 1, 9)  # log of -2, -1, 0, 1, 2, 3
    assert got.tolist() == [1, 1, 1, 3, 4, 4]
    assert table(torch.log, x, (0, 2), q(1.0, 0), -9, 9).tolist() == [0, 0, -9]
    assert table(torch.reciprocal, x, (2, 3), q(1.0, 0), -9, 9).tolist() == [9, 1]
    bounds = torch.tensor(1.0), torch.tensor(9.0)
    assert table(torch.log, x, (0, 5), q(1.0, 3), *bounds).tolist() == got.tolist()


def test_a_table_of_a_signed_range() -> None:
    got = table(torch.abs, q(0.5, -1), (-4, 3), q(0.25, 0), 0, 255)
    assert got.tolist() == [6, 4, 2, 0, 2, 4, 6, 8]
